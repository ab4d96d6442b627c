"""A union whose every branch has its rows on the shards.

Each shard answers the whole union for its own rows. The union's are those of all shards
together; equal ones of several shards are told by the database's equality. That holds
for no other combination: what is subtracted, or has to be there as well, may be on
another shard. Pure: nothing here talks to a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.exceptions import EmptyResultSet, FullResultSet

from dbfleet.planner.blocks import Block
from dbfleet.planner.colocation import Unproved, branch_clusters
from dbfleet.planner.merging import Column, Merge, bare, comparison_of, key_of, kind_of
from dbfleet.planner.uses import Clusters, Facts, Statement, Use


def union_of(
    facts: Facts, statement: Statement, uses: Sequence[Use]
) -> tuple[Merge, Clusters]:
    """How the shards' unions become one, and which shards may have rows of it; raises
    Unproved."""
    query = statement.outer.query
    if query.combinator != "union":
        raise Unproved(f"its {query.combinator} looks at rows of all shards")
    branches = _branches(statement)
    clusters: Clusters = frozenset()
    for block in branches:
        found = branch_clusters(facts, statement, uses, block)
        both = clusters is not None and found is not None
        clusters = clusters | found if both else None  # type: ignore[operator]
    columns = _Columns(facts, statement, branches)
    keys = tuple(
        key_of(facts, resolved, columns.column(columns.place(resolved.expression)))
        for resolved, _ in statement.outer.shape.ordering
    )
    distinct = None
    if not query.combinator_all:
        distinct = tuple(map(columns.column, range(columns.width)))
    low, high = query.low_mark, query.high_mark
    return Merge(columns.width, keys, (), distinct, low, high), clusters


def _branches(statement: Statement) -> tuple[Block, ...]:
    blocks = statement.blocks
    combined = statement.outer.query.combined_queries
    if any(one.combinator for one in combined):
        raise Unproved("a union stands within another")
    if any(block.query.subquery for block in blocks):
        raise Unproved("a branch of its union has a subquery")
    if len(blocks) != len(combined) or any(map(_is_empty, blocks)):
        raise Unproved("a branch of its union is left out")
    for block in blocks:
        query, chosen = block.query, block.compiler.shape.chosen
        is_whole = not query.is_sliced and not query.distinct
        is_plain = query.group_by is None and not any(
            getattr(expression, "contains_aggregate", False)
            for expression, _, _ in chosen
        )
        if not is_whole or not is_plain:
            raise Unproved("a branch of its union chooses among rows of all shards")
    return blocks


def _is_empty(block: Block) -> bool:
    """Whether Django leaves a branch out; alone, another one is no union any more."""
    where = block.compiler.where
    try:
        if where is not None:
            block.compiler.compile(where)
    except EmptyResultSet:
        return True
    except FullResultSet:
        pass
    return False


class _Columns:
    """The columns of a union, each made of one column of every branch."""

    def __init__(
        self, facts: Facts, statement: Statement, branches: Sequence[Block]
    ) -> None:
        self.facts = facts
        self.chosen = [bare(one) for one, _, _ in statement.outer.shape.chosen]
        self.width = len(self.chosen)
        rows = [[bare(one) for one, _, _ in b.compiler.shape.chosen] for b in branches]
        if not rows or any(len(row) != self.width for row in rows):
            raise Unproved("the columns of its branches are not known")
        self.branches = list(zip(*rows, strict=True))

    def place(self, expression: Any) -> int:
        ordinal = getattr(expression, "ordinal", None)  # of a PositionRef
        if ordinal is not None:
            return int(ordinal) - 1  # others may select the same in the first branch
        wanted = bare(expression)
        for at, one in enumerate(self.chosen):
            if one == wanted:
                return at
        raise Unproved("its order is none of its columns")

    def column(self, at: int) -> Column:
        """How the values of a column compare, which all branches have to agree in."""
        made_of = self.branches[at]
        if len({_family(kind_of(one)) for one in made_of}) > 1:
            raise Unproved("its branches have values of several types in a column")
        found = {comparison_of(self.facts, one) for one in made_of}
        kinds = {kind for kind, _ in found}
        if len(kinds) > 1 or (
            len(found) > 1 and not self.facts.engine.has_one_collation
        ):
            raise Unproved("its branches have texts of several collations in a column")
        is_text = kinds == {"text"}
        source = next(iter(found))[1] if len(found) == 1 else None
        return Column(at, is_text, source)


def _family(kind: str) -> str:
    """Kinds of fields whose values one type of a server has."""
    return "IntegerField" if kind.endswith(("IntegerField", "AutoField")) else kind
