"""What rows of each query block may hold, known from the blocks around it as well.

A nested block with ``inner.key = outer.col`` AND-ed in its WHERE looks, for one row of
the outer block, at inner rows with that row's value only; the block of
``outer.col IN (SELECT inner.key ...)`` finds rows with other values in vain. So inner
rows matter whose value some outer row has that is in the result.

Outer rows that the outer WHERE drops need no inner rows: what its WHERE says of columns
(:func:`~dbfleet.planner.pruning.possible_values`) counts a nested query as true or
false, whichever it is. For a row that does not fit, a nested query that is answered
from too few rows changes nothing, under NOT and OR neither. In SELECT, ORDER BY and
aggregates a nested query is asked for rows that passed the WHERE. In the condition of
an outer join it also decides which rows are NULL, so columns that such a join may fill
with NULL pass nothing on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.db.models.expressions import Col
from django.db.models.lookups import Exact, In
from django.db.models.sql.where import WhereNode

from dbfleet.planner.blocks import Block, is_djangos
from dbfleet.planner.branches import ANYTHING, Branch, Values, any_of, both
from dbfleet.planner.pruning import (
    IsExact,
    is_same_equality,
    possible_values,
    spread_over_joins,
)
from dbfleet.planner.pushdown import conjuncts
from dbfleet.planner.ranges import NOT_NULL, NULL, can_be_null, join, meet

#: (outer column, inner column) that are equal
Pair = tuple[Col, Col]


class Scopes:
    """The values of every block of one statement, each found once."""

    def __init__(
        self,
        blocks: Sequence[Block],
        is_exact: IsExact,
        is_lookup: IsExact | None = None,
    ) -> None:
        self.blocks, self.is_exact, self.is_lookup = blocks, is_exact, is_lookup
        self._known: dict[int, Values] = {}
        self._asked: set[int] = set()

    def values(self, block: Block) -> Values:
        """What rows of a block that pass its WHERE, and matter, may hold."""
        known = self._known.get(id(block))
        if known is not None:
            return known
        self._asked.add(id(block))
        found = possible_values(block.query.where, self.is_exact, self.is_lookup)
        if len(self.blocks) > 1:
            found = both(found, self._inherited(block))
        found = spread_over_joins(found, block, self.is_exact)
        self._known[id(block)] = found
        return found

    def _inherited(self, block: Block) -> Values:
        found = ANYTHING
        for alias, pairs in self._correlations(block).items():
            # Names are found in the nearest block around; which one that is does not
            # show, so each block with that name counts.
            sources = [
                other
                for other in self.blocks
                if any(o.alias == alias for o in other.occurrences)
            ]
            found = both(found, self._passed_on(sources, pairs))
        for outer, pair in self._memberships(block):
            found = both(found, self._passed_on(outer, [pair], is_membership=True))
        return found

    def _passed_on(
        self,
        sources: Sequence[Block],
        pairs: Sequence[Pair],
        *,
        is_membership: bool = False,
    ) -> Values:
        """Branches of the sources, in terms of the inner columns that are equal."""
        parts: list[Values] = []
        for source in sources:
            is_known = id(source) in self._known or id(source) not in self._asked
            if not is_known or not _is_always_there(source, pairs[0][0].alias):
                return ANYTHING
            parts.append(
                tuple(
                    _renamed(branch, pairs, is_membership)
                    for branch in self.values(source)
                )
            )
        return any_of(parts) if parts else ANYTHING

    def _correlations(self, block: Block) -> dict[str, list[Pair]]:
        """Equalities with columns of blocks around, by their table's alias."""
        own = {o.alias for o in block.occurrences}
        found: dict[str, list[Pair]] = {}
        for node in conjuncts(block.query.where):
            if not isinstance(node, Exact) or not is_djangos(node):
                continue
            one, other = node.lhs, node.rhs
            if not (isinstance(one, Col) and isinstance(other, Col)):
                continue
            if (one.alias in own) == (other.alias in own):
                continue
            inner, outer = (one, other) if one.alias in own else (other, one)
            if is_same_equality(inner.target, outer.target, self.is_exact):
                found.setdefault(outer.alias, []).append((outer, inner))
        return found

    def _memberships(self, block: Block) -> list[tuple[list[Block], Pair]]:
        """``outer.col IN (this block)``, if all uses of the block's query are that."""
        inner = _only_column(block.query)
        # A row that a join misses selects NULL, which NOT IN would notice.
        if inner is None or not _is_always_there(block, inner.alias):
            return []
        found = [
            (other, node.lhs)
            for other in self.blocks
            for node in _leaves(other.query.where)
            if isinstance(node, In) and is_djangos(node) and node.rhs is block.query
        ]
        uses = sum(other.query is block.query for other in self.blocks)
        if not found or len(found) != uses:
            return []
        first = found[0][1]
        for other, column in found:
            is_own = any(
                o.alias == getattr(column, "alias", "") for o in other.occurrences
            )
            if not is_own or not isinstance(column, Col):
                return []
            if (column.alias, column.target) != (first.alias, first.target):
                return []
        if not is_same_equality(first.target, inner.target, self.is_exact):
            return []
        return [([other for other, _ in found], (first, inner))]


def _renamed(branch: Branch, pairs: Sequence[Pair], is_membership: bool) -> Branch:
    found: Branch = {}
    for outer, inner in pairs:
        allowed = branch.get(_key(outer))
        if allowed is None:
            continue
        if is_membership and can_be_null(allowed):
            continue  # NULL IN (...) is false for no rows, and unknown for some
        allowed = meet(allowed, NOT_NULL)
        if is_membership and inner.target.null:
            allowed = join(allowed, NULL)  # NOT IN notices a row with NULL
        known = found.get(_key(inner))
        found[_key(inner)] = allowed if known is None else meet(known, allowed)
    return found


def _key(column: Col) -> tuple[str, str]:
    name: Any = column.target.column
    return column.alias, name


def _is_always_there(block: Block, alias: str) -> bool:
    return all(o.is_inner for o in block.occurrences if o.alias == alias)


def _only_column(query: Any) -> Col | None:
    """The column that a query selects, if what it finds for one value of it does not
    depend on rows with other values."""
    has_more = (
        query.is_sliced
        or query.combinator
        or query.distinct_fields
        or query.group_by is not None
        or query.annotation_select
        or query.extra_select
    )
    if has_more or len(query.select) != 1 or not isinstance(query.select[0], Col):
        return None
    return query.select[0]


def _leaves(node: Any) -> Iterator[Any]:
    if isinstance(node, WhereNode):
        yield from node.leaves()
