"""What a statement looks at: its query blocks, seen while they are compiled.

A compiler calls :meth:`Recorder.record` once for each SELECT, subquery or branch,
after its joins are final. So nothing has to be guessed from SQL text or found by
walking expressions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from django.db.models.sql.constants import INNER


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One use of a table in one block; ``is_inner`` if no outer join can leave
    its columns NULL."""

    alias: str
    table: str
    is_inner: bool


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One SELECT (or the target of an UPDATE or DELETE) with its filters."""

    compiler: Any
    query: Any
    occurrences: tuple[Occurrence, ...]

    @property
    def opts(self) -> Any:
        return self.query.get_meta()

    @property
    def joins(self) -> list[Any]:
        """Its joins; what the query itself counts as used ends with the compiling."""
        found = (self.query.alias_map[o.alias] for o in self.occurrences)
        return [join for join in found if getattr(join, "join_cols", None)]


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What a compiler found out about a SELECT while it set it up."""

    #: (expression, (sql, params), alias) of each column
    chosen: tuple[Any, ...]
    #: (resolved OrderBy, its SQL) in turn
    ordering: tuple[Any, ...] = ()
    #: what is grouped by
    grouped: tuple[Any, ...] = ()
    has_having: bool = False


def groups_by_key(query: Any) -> bool:
    """Whether columns of window functions need GROUP BY to mean the whole row.

    They are not spelled out there, so a server has to infer them from the key.
    """
    return bool(query.group_by) and any(
        annotation.contains_over_clause for annotation in query.annotations.values()
    )


def is_djangos(lookup: Any) -> bool:
    """Whether Django defined a lookup: a project's own may mean anything."""
    kind: Any = type(lookup)
    return _is_djangos(kind)


@lru_cache(maxsize=512)
def _is_djangos(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "django"


def block_of(compiler: Any) -> Block:
    """Describe a compiler whose joins are set up."""
    query = compiler.query
    if len(query.alias_map) == 1:  # the usual query, without the walk
        [(alias, table)] = query.alias_map.items()
        if query.alias_refcount.get(alias):
            return Block(compiler, query, (Occurrence(alias, table.table_name, True),))
    occurrences = []
    for alias in tuple(query.alias_map):
        if not query.alias_refcount.get(alias):
            continue
        join = query.alias_map[alias]
        occurrences.append(Occurrence(alias, join.table_name, _is_inner(query, alias)))
    return Block(compiler, query, tuple(occurrences))


def _is_inner(query: Any, alias: str) -> bool:
    while alias is not None:
        join = query.alias_map[alias]
        if join.parent_alias is None:
            return True
        if join.join_type != INNER or getattr(join, "filtered_relation", None):
            return False
        alias = join.parent_alias
    return True
