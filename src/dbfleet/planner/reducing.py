"""Which fetched rows of one table tell that rows of another one cannot matter.

A *link* says: in one place where a table stands, its rows count only if their column
equals a column of a row of another table. So once the rows of that other table are
here, ``column IN (their values)`` may be added to what is fetched; of several places of
one table each needs a link.

Proved over the rows that were fetched, not over those that exist: the statement runs
over the rows of the other table from which the values were taken, and over those rows
the rows that are left behind change nothing. So it holds whatever is written meanwhile.

- A join's ``ON a.x = b.y`` is true for no row of ``b`` with another value, so an inner
  and a left join are the same without it: ``b`` by ``a``. The other way round a row of
  ``a`` that is missing would be a row of NULLs to what is joined left of it; it is left
  behind only where every join up to the first table is an inner one.
- AND-ed in a WHERE: ``a.x = b.y``, where ``a`` may belong to a block around; ``a.x IN
  (SELECT b.y ...)``, which is true for no other row of ``a`` however the rows of ``b``
  are chosen, and needs no other row of ``b`` if each of its rows is chosen by itself;
  ``EXISTS (SELECT ... WHERE b.y = a.x)`` with the equality AND-ed inside.

NULL equals nothing, so it is none of the values. Whether values are equal is decided by
the shard's server, and asked only of whole numbers and UUIDs, and of text where both
columns are of one field with the database's own collation.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models.expressions import Col, Exists
from django.db.models.lookups import Exact, In
from django.db.models.sql import Query
from django.db.models.sql.constants import INNER, LOUTER

from dbfleet.planner.blocks import Block, Occurrence, is_djangos
from dbfleet.planner.pruning import family_of, is_same_equality, stored_field
from dbfleet.planner.pushdown import conjuncts
from dbfleet.planner.route import Link, Reduction
from dbfleet.planner.tables import Table
from dbfleet.planner.uses import Facts, Statement, Use

#: a place where a table stands: its block, its alias
Place = tuple[int, str]


def reductions_of(
    facts: Facts, statement: Statement, uses: Sequence[Use]
) -> tuple[Reduction, ...]:
    """Every reduction of a table that travels; none of a statement that locks rows."""
    if statement.is_raw or statement.locking:
        return ()
    links = _Links(facts, statement, uses)
    found = []
    for use in uses:
        if use.is_hidden or not use.table.is_sharded or not use.places:
            continue
        places = [
            links.of(block, occurrence, use.table)
            for block, occurrence, _ in use.places
        ]
        if all(places):
            key = use.table.key_fields
            is_placed = len(key) == 1 and facts.is_exact(key[0])
            found.append(
                Reduction(
                    use.table.name,
                    tuple(dict.fromkeys(places)),
                    key if is_placed else (),
                )
            )
    return tuple(found)


class _Links:
    """The links of each place."""

    def __init__(self, facts: Facts, statement: Statement, uses: Sequence[Use]) -> None:
        self.facts, self.blocks = facts, statement.blocks
        self.tables: dict[Place, Table] = {}
        self.known: dict[str, Table] = {}
        for use in uses:
            if use.is_hidden:
                continue
            self.known[use.table.name] = use.table
            for block, occurrence, _ in use.places:
                self.tables[id(block), occurrence.alias] = use.table
        self.found: dict[Place, list[Link]] = {}
        for block in self.blocks:
            self._of_joins(block)
            for node in conjuncts(block.query.where):
                self._of_condition(block, node)

    def of(
        self, block: Block, occurrence: Occurrence, table: Table
    ) -> tuple[Link, ...]:
        links = self.found.get((id(block), occurrence.alias), ())
        return tuple(
            dict.fromkeys(link for link in links if link.from_table != table.name)
        )

    def _add(self, place: Place, field: Any, source: Table | None, other: Any) -> None:
        """Rows in a place count only if ``field`` equals ``other`` of some row."""
        if source is None or place not in self.tables:
            return
        if self._is_comparable(field, other):
            follows = field is not other and _refers_to(field, other)
            self.found.setdefault(place, []).append(
                Link(field.column, source.name, other.column, follows)
            )

    def _is_comparable(self, one: Any, other: Any) -> bool:
        if not (getattr(one, "column", None) and getattr(other, "column", None)):
            return False
        family = family_of(one)
        if family == "text":
            is_one = stored_field(one) is stored_field(other)
            return is_one and self.facts.is_plain_text(one)
        return family in ("int", "uuid") and is_same_equality(
            one, other, self.facts.is_exact
        )

    # -- joins ------------------------------------------------------------------------

    def _of_joins(self, block: Block) -> None:
        inner = {o.alias for o in block.occurrences if o.is_inner}
        for join in block.joins:
            if join.join_type not in (INNER, LOUTER):
                continue
            above = id(block), join.parent_alias
            below = id(block), join.table_alias
            for parent, child in join.join_fields:
                self._add(below, child, self.tables.get(above), parent)
                if {join.parent_alias, join.table_alias} <= inner:
                    self._add(above, parent, self.tables.get(below), child)

    # -- conditions -------------------------------------------------------------------

    def _of_condition(self, block: Block, node: Any) -> None:
        if type(node) is Exists:
            self._of_exists(block, node.query)
            return
        if not is_djangos(node):
            return
        lhs, rhs = getattr(node, "lhs", None), getattr(node, "rhs", None)
        if isinstance(node, Exact) and type(lhs) is Exists and rhs is True:
            self._of_exists(block, lhs.query)
        elif isinstance(node, Exact) and isinstance(lhs, Col) and isinstance(rhs, Col):
            self._of_equality(block, lhs, rhs)
            self._of_equality(block, rhs, lhs)
        elif isinstance(node, In) and isinstance(lhs, Col) and isinstance(rhs, Query):
            self._of_membership(block, lhs, rhs)

    def _of_equality(self, block: Block, column: Col, other: Col) -> None:
        place = self._inner_place(block, column)
        if place is not None:
            self._add(place, column.target, self._source(block, other), other.target)

    def _of_membership(self, block: Block, column: Col, query: Any) -> None:
        selected = _selected(query)
        if selected is None:
            return
        place = self._inner_place(block, column)
        if place is not None:
            source = self._table_in(query, selected)
            self._add(place, column.target, source, selected.target)
        if not _chooses_row_by_row(query):
            return
        nested = [other for other in self.blocks if other.query is query]
        if len(nested) != 1:
            return  # also used where other answers than true count
        place = self._inner_place(nested[0], selected)
        if place is not None:
            source = self._source(block, column)
            self._add(place, selected.target, source, column.target)

    def _of_exists(self, block: Block, query: Any) -> None:
        if query.combinator or query.group_by is not None:
            return  # an aggregate without groups has a row in any case
        if any(one.contains_aggregate for one in query.annotations.values()):
            return
        for node in conjuncts(query.where):
            if not isinstance(node, Exact) or not is_djangos(node):
                continue
            one, other = node.lhs, node.rhs
            if not (isinstance(one, Col) and isinstance(other, Col)):
                continue
            for outer, inner in ((one, other), (other, one)):
                if outer.alias in query.alias_map:
                    continue
                place = self._inner_place(block, outer)
                if place is not None:
                    source = self._table_in(query, inner)
                    self._add(place, outer.target, source, inner.target)

    # -- where columns are ------------------------------------------------------------

    def _inner_place(self, block: Block, column: Col) -> Place | None:
        """A place of a block itself that no outer join can fill with NULLs."""
        for occurrence in block.occurrences:
            if occurrence.alias == column.alias:
                return (id(block), column.alias) if occurrence.is_inner else None
        return None

    def _source(self, block: Block, column: Col) -> Table | None:
        """The table of a column of a block, or of one around it: names are found in
        the nearest, and which one that is does not show."""
        own = any(o.alias == column.alias for o in block.occurrences)
        blocks = [block] if own else self.blocks
        tables = {
            self.tables.get((id(other), column.alias))
            for other in blocks
            if any(o.alias == column.alias for o in other.occurrences)
        }
        return tables.pop() if len(tables) == 1 else None

    def _table_in(self, query: Any, column: Col) -> Table | None:
        join = query.alias_map.get(column.alias)
        return None if join is None else self.known.get(join.table_name)


def _selected(query: Any) -> Col | None:
    """The one column whose values a query gives, whatever its rows are."""
    has_more = query.combinator or query.annotation_select or query.extra_select
    if has_more or len(query.select) != 1 or not isinstance(query.select[0], Col):
        return None
    return query.select[0]


def _chooses_row_by_row(query: Any) -> bool:
    """Whether a row is among a query's rows whatever the others are."""
    return not (
        query.is_sliced
        or query.group_by is not None
        or query.distinct_fields
        or query.annotations
        or query.extra
    )


def _refers_to(field: Any, other: Any) -> bool:
    """Whether each value of a foreign key is one of the other column, if all rows of
    that are looked at."""
    while field.remote_field:
        field = field.target_field
        if field is other:
            return True
    return False
