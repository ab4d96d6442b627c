"""Whether every shard can answer a statement for its own rows.

Proved by equality: a row of one table lies on the shard of another's if what places
the one (its shard key, or the foreign key to the row that it lives with) equals what
places the other. Equalities come from joins, from AND-ed conditions, and from a nested
query's condition on a column of the outer one. Unproved means no.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db.models.expressions import Col, Window
from django.db.models.lookups import Exact, In
from django.db.models.sql import Query
from django.db.models.sql.constants import INNER

from dbfleet.planner.blocks import Block
from dbfleet.planner.pruning import family_of
from dbfleet.planner.pushdown import conjuncts
from dbfleet.planner.repeatable import parts_of, unrepeatable
from dbfleet.planner.tables import Table
from dbfleet.planner.uses import Clusters, Facts, Statement, Use

#: (block, table alias, column): a nested query may use the outer one's alias anew
Column = tuple[int, str, str]
#: what placing columns have to agree in: types that hash alike, or one parent's column
Domain = tuple[str, ...]


class Unproved(Exception):
    """Why the shards cannot answer by themselves."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A statement whose every result row comes from one shard."""

    #: the outermost block that has tables
    block: Block
    #: shards that may have result rows
    clusters: Clusters
    #: (table alias, column) of the block that fix the shard of a row: the equal ones
    #: for each part of the key
    placing: tuple[frozenset[tuple[str, str]], ...]


def spread_of(facts: Facts, statement: Statement, uses: Sequence[Use]) -> Spread:
    """Prove that each result row is made of rows of one shard; raises Unproved."""
    _check_uses(statement, uses)
    outer = _outer(statement)
    for block in statement.blocks:
        _check_block(block, is_outer=block is outer)
    proof = _Proof(facts, statement, uses)
    proof.prove(outer)
    _check_windows(outer, proof.key)
    return Spread(outer, _clusters_of(outer, uses), proof.key)


def branch_clusters(
    facts: Facts, statement: Statement, uses: Sequence[Use], branch: Block
) -> Clusters:
    """The shards that may have rows of one SELECT of a union, each of which is made of
    rows of one shard; raises Unproved."""
    _check_uses(statement, uses)
    _check_block(branch, is_outer=False)
    _Proof(facts, replace(statement, blocks=(branch,)), uses).prove(branch)
    return _clusters_of(branch, uses)


def _check_uses(statement: Statement, uses: Sequence[Use]) -> None:
    if statement.is_raw or any(use.is_hidden for use in uses):
        raise Unproved("it has SQL of its own")
    for use in uses:
        if not (use.table.is_sharded or use.table.is_reference):
            raise Unproved(f"{use.table.label} is home's own")


def _clusters_of(block: Block, uses: Sequence[Use]) -> Clusters:
    clusters: Clusters = None
    for use in uses:
        for found_in, occurrence, found in use.places:
            is_own = found_in is block and occurrence.is_inner
            if is_own and use.table.is_sharded and found is not None:
                clusters = found if clusters is None else clusters & found
    return clusters


def _outer(statement: Statement) -> Block:
    query = statement.outer.query
    inner = getattr(query, "inner_query", None)  # an aggregate over a subquery
    wanted = query if inner is None else inner
    if wanted.combinator:
        raise Unproved(f"it is a {wanted.combinator}")
    for block in statement.blocks:
        if block.query is wanted:
            return block
    raise Unproved("its own rows come from a subquery")


def _check_block(block: Block, *, is_outer: bool) -> None:
    query = block.query
    if query.combinator:
        raise Unproved(f"it is a {query.combinator}")
    if query.explain_info:
        raise Unproved("it is explained by the server")
    what = unrepeatable(block)
    if what is not None:
        raise Unproved(f"{what} has to be computed in one place")
    windows = [query.where] if is_outer else [*query.annotations.values(), query.where]
    if any(getattr(one, "contains_over_clause", False) for one in windows):
        raise Unproved("a window looks at rows of all shards")


def _check_windows(
    block: Block, placing: tuple[frozenset[tuple[str, str]], ...]
) -> None:
    """A window sees whole partitions where the shard key is part of what they are."""
    for annotation in block.query.annotations.values():
        if not getattr(annotation, "contains_over_clause", False):
            continue
        for node in parts_of(annotation):
            if not isinstance(node, Window):
                continue
            by = node.partition_by
            columns = {
                (one.alias, one.target.column)
                for one in (by.get_source_expressions() if by is not None else ())
                if isinstance(one, Col)
            }
            if not placing or not all(part & columns for part in placing):
                raise Unproved("a window looks at rows of all shards")


class _Proof:
    """Grows the set of table occurrences that lie on the shard of the first."""

    def __init__(self, facts: Facts, statement: Statement, uses: Sequence[Use]) -> None:
        self.facts = facts
        self.blocks = statement.blocks
        self.tables: dict[int, dict[str, Table]] = {}
        self.targets: set[tuple[str, str]] = set()
        for use in uses:
            if not use.table.is_sharded:
                continue
            if use.table.key_path:
                hop = use.table.key_path[0]
                self.targets.add((hop.table, hop.target_column))
            for block, occurrence, _ in use.places:
                found = self.tables.setdefault(id(block), {})
                found[occurrence.alias] = use.table
        #: what is equal to what placed the first table, for each way of placing
        self.known: dict[Domain, list[set[Column]]] = {}
        self.key: tuple[frozenset[tuple[str, str]], ...] = ()

    def prove(self, outer: Block) -> None:
        own = self.tables.get(id(outer), {})
        anchor = next(
            (o for o in outer.occurrences if o.is_inner and o.alias in own), None
        )
        if anchor is None:
            raise Unproved("its rows need no row of a shard")
        self._attach(outer, anchor.alias, own[anchor.alias])
        self._grow(outer, own, {anchor.alias})
        domain = next(iter(self._domains(own[anchor.alias])), None)
        if domain is not None:
            # An outer join leaves NULL on any shard where it finds no row.
            inner = {o.alias for o in outer.occurrences if o.is_inner}
            self.key = tuple(
                frozenset(column[1:] for column in part if column[1] in inner)
                for part in self.known[domain[0]]
            )
        for block in self.blocks:
            if block is not outer:
                self._grow(block, self.tables.get(id(block), {}), set())

    def _grow(self, block: Block, tables: dict[str, Table], done: set[str]) -> None:
        equalities = [*self._equalities(block), *self._memberships(block)]
        for _ in range(len(block.occurrences) + len(equalities) + 1):
            before = len(done), self._size()
            for source, target in equalities:
                self._carry(source, target)
            for alias, table in tables.items():
                if alias not in done and self._is_placed(block, alias, table):
                    done.add(alias)
                    self._attach(block, alias, table)
            if before == (len(done), self._size()):
                break
        for alias, table in tables.items():
            if alias not in done:
                raise Unproved(f"{table.label} is not joined by its shard key")

    def _size(self) -> int:
        return sum(len(part) for parts in self.known.values() for part in parts)

    def _carry(self, source: Column, target: Column) -> None:
        for parts in self.known.values():
            for part in parts:
                if source in part:
                    part.add(target)

    def _attach(self, block: Block, alias: str, table: Table) -> None:
        for domain, columns in self._domains(table):
            parts = self.known.setdefault(domain, [set() for _ in columns])
            for part, column in zip(parts, columns, strict=True):
                part.add((id(block), alias, column))

    def _is_placed(self, block: Block, alias: str, table: Table) -> bool:
        return any(
            all(
                (id(block), alias, column) in part
                for part, column in zip(self.known[domain], columns, strict=True)
            )
            for domain, columns in self._domains(table)
            if domain in self.known
        )

    def _domains(self, table: Table) -> Iterator[tuple[Domain, tuple[str, ...]]]:
        """The ways in which columns of a table tell where its rows are."""
        if table.key_fields:
            kinds = tuple(map(self._kind, table.key_fields))
            if all(kinds):
                yield kinds, table.key_columns
        if table.key_path:
            hop = table.key_path[0]
            yield ("row", hop.table, hop.target_column), (hop.column,)
        for name, column in self.targets:
            if name == table.name:
                yield ("row", name, column), (column,)

    def _kind(self, field: Any) -> str:
        """Names the values of a field that hash alike; empty if equality is loose."""
        return family_of(field) if self.facts.is_exact(field) else ""

    def _memberships(self, block: Block) -> list[tuple[Column, Column]]:
        """``outer.key IN (this block)``: the column that it selects is equal."""
        query = block.query
        if query.is_sliced or query.group_by is not None or query.distinct_fields:
            return []
        found = []
        for other in self.blocks:
            for node in conjuncts(other.query.where):
                if not isinstance(node, In) or not isinstance(node.lhs, Col):
                    continue
                is_this = isinstance(node.rhs, Query) and node.rhs is query
                columns = list(query.select)
                if not is_this or len(columns) != 1 or not isinstance(columns[0], Col):
                    continue
                outer = self._column(other, node.lhs)
                if outer is not None and columns[0].alias in query.alias_map:
                    name: Any = columns[0].target.column
                    found.append((outer, (id(block), columns[0].alias, name)))
        return found

    def _equalities(self, block: Block) -> Iterator[tuple[Column, Column]]:
        """(known, then known as well): directions in which an equality is followed.

        From parent to child over any join: a child's row that is there matched. From
        child to parent only where every result has a child. A nested block says
        nothing of the outer one's columns.
        """
        scope = id(block)
        for join in block.joins:
            for parent_column, column in join.join_cols:
                above = scope, join.parent_alias, parent_column
                below = scope, join.table_alias, column
                yield above, below
                if join.join_type == INNER:
                    yield below, above
        for node in conjuncts(block.query.where):
            if not isinstance(node, Exact):
                continue
            if not (isinstance(node.lhs, Col) and isinstance(node.rhs, Col)):
                continue
            one, other = self._column(block, node.lhs), self._column(block, node.rhs)
            if one is None or other is None:
                continue
            for source, target in ((one, other), (other, one)):
                if target[0] == scope:
                    yield source, target

    def _column(self, block: Block, column: Col) -> Column | None:
        """A column as a block sees it: its own, or the only outer one of that name."""
        scopes = [block]
        if column.alias not in block.query.alias_map:
            scopes = [b for b in self.blocks if column.alias in b.query.alias_map]
        if len(scopes) != 1:
            return None
        name: Any = column.target.column
        return id(scopes[0]), column.alias, name
