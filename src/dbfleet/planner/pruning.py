"""Which shards can hold the rows that a query block looks at.

Sound before sharp: unknown means every shard. What a condition says of columns is
kept as a few branches, each of which names the values that columns may have: a row for
which the condition is true fits at least one branch. SQL's conditions have three
values, so the same is asked for false, not true and not false: NOT swaps them, and
NULL, which is neither true nor false, stays what it is. Joins on equal columns carry
values on. A key whose columns are listed in every branch has a set of shards.
"""

from __future__ import annotations

import datetime
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from django.core.exceptions import ValidationError
from django.db.backends.base.operations import BaseDatabaseOperations
from django.db.models import fields as kinds
from django.db.models import lookups
from django.db.models.expressions import Col, ColPairs
from django.db.models.fields.related_lookups import get_normalized_value
from django.db.models.fields.tuple_lookups import Tuple
from django.db.models.lookups import Exact, In, IsNull
from django.db.models.sql.constants import INNER
from django.db.models.sql.where import AND, OR, WhereNode

from dbfleet.planner.blocks import Block, is_djangos
from dbfleet.planner.branches import (
    ANYTHING,
    MAX_BRANCHES,
    NOTHING,
    Branch,
    Values,
    all_of,
    any_of,
    both,
    tidy,
)
from dbfleet.planner.ranges import (
    NOT_NULL,
    NULL,
    Allowed,
    Loose,
    Span,
    can_be_null,
    listed,
    meet,
    span,
)
from dbfleet.planner.tables import Table

#: whether equality on a field means equal values
IsExact = Callable[[Any], bool]
#: (key fields, values of keys) -> shard of each key; None if no row can have it
Places = Callable[[tuple[Any, ...], list[tuple[Any, ...]]], list[str | None]]
#: a key field, and a range of its values -> shards; None if any
ShardsIn = Callable[[Any, Span], frozenset[str] | None]

#: more keys than this in one IN are not worth placing one by one
MAX_KEYS = 10_000
#: what a row makes of a condition
TRUE, FALSE, NOT_TRUE, NOT_FALSE = range(4)
_NEGATED = (FALSE, TRUE, NOT_FALSE, NOT_TRUE)


def possible_values(
    node: Any, is_exact: IsExact, is_lookup: IsExact | None = None
) -> Values:
    """What rows for which ``node`` is true may hold.

    ``is_exact`` tells the fields whose equality is equality of values; under a
    case-insensitive collation 'a' also finds 'A', on whatever shard that is. Of a
    lookup the values are kept as they were given: home knows what they equal.
    """
    return _Reader(is_exact, is_lookup).rows(node, TRUE)


class _Reader:
    """Reads one condition; remembers what its XORs say, which is asked repeatedly."""

    __slots__ = ("_xors", "is_exact", "is_lookup")

    def __init__(self, is_exact: IsExact, is_lookup: IsExact | None) -> None:
        self.is_exact, self.is_lookup = is_exact, is_lookup
        self._xors: dict[int, tuple[Values, ...]] = {}

    def rows(self, node: Any, truth: int) -> Values:
        """What rows may hold for which ``node`` is as ``truth`` says."""
        if not isinstance(node, WhereNode):
            return self._lookup(node, truth)
        children = node.children
        if not children:
            return ANYTHING
        if node.negated:
            truth = _NEGATED[truth]
        if len(children) == 1:
            return self.rows(children[0], truth)
        connector = node.connector
        if connector not in (AND, OR):
            return self._xor(node)[truth]
        parts = [self.rows(child, truth) for child in children]
        # An AND is true, or not false, where all its parts are; an OR false.
        if (connector == AND) == (truth in (TRUE, NOT_FALSE)):
            return all_of(parts)
        return any_of(parts)

    def _xor(self, node: WhereNode) -> tuple[Values, ...]:
        """XOR for each truth, as any server has it.

        MariaDB and MySQL have an operator, whose answer is NULL for a NULL operand.
        For others Django counts the operands that are true: the answer is never NULL.
        """
        known = self._xors.get(id(node))
        if known is not None:
            return known
        found = (ANYTHING,) * 4
        # An operand that Django knows to match everything or nothing decides more
        # than it should, differently from server to server.
        if all(map(self._always_asks, node.leaves())):
            odd, even, unsure = NOTHING, ANYTHING, NOTHING
            for child in node.children:
                is_true, _, not_true, not_false = (
                    self.rows(child, truth) for truth in range(4)
                )
                odd, even = (
                    any_of([both(odd, not_true), both(even, is_true)]),
                    any_of([both(even, not_true), both(odd, is_true)]),
                )
                unsure = any_of([unsure, both(not_true, not_false)])
            found = (odd, even, any_of([even, unsure]), any_of([odd, unsure]))
        self._xors[id(node)] = found
        return found

    def _always_asks(self, node: Any) -> bool:
        """Whether a lookup becomes SQL, whatever its values."""
        lhs: Any = getattr(node, "lhs", None)
        value: Any = getattr(node, "rhs", None)
        if not is_djangos(node) or not isinstance(lhs, (Col, ColPairs)):
            return False
        if hasattr(value, "resolve_expression") or hasattr(value, "as_sql"):
            return False
        if isinstance(lhs, ColPairs):
            return not isinstance(node, In) or any(
                isinstance(row, (list, tuple)) and None not in row for row in value
            )
        if isinstance(node, In) and all(part is None for part in value):
            return False
        numbers = value if isinstance(value, (list, tuple)) else [value]
        return all(_is_in_range(lhs, n) for n in numbers)

    # -- one lookup ---------------------------------------------------------------

    def _lookup(self, node: Any, truth: int) -> Values:
        lhs = getattr(node, "lhs", None)
        if isinstance(lhs, Col):
            if not is_djangos(node):
                return ANYTHING
            if isinstance(node, Exact):
                return self._listed(lhs, (node.rhs,), truth)
            if isinstance(node, In):
                return self._in(lhs, node.rhs, truth)
            if isinstance(node, IsNull):
                return _is_null(lhs, node.rhs, truth)
            return self._between(lhs, node, truth)
        if isinstance(lhs, (ColPairs, Tuple)) and is_djangos(node):
            return self._tuple(node, lhs, truth)
        return ANYTHING

    def _in(self, column: Col, values: Any, truth: int) -> Values:
        if hasattr(values, "resolve_expression") or len(values) > MAX_KEYS:
            return ANYTHING
        values = [value for value in values if value is not None]  # as Django does
        if not values:
            return NOTHING if truth in (TRUE, NOT_FALSE) else ANYTHING
        return self._listed(column, values, truth)

    def _listed(self, column: Col, values: Iterable[Any], truth: int) -> Values:
        """``column = value`` for one of the values."""
        field = column.target
        expected = _EXPECTED.get(family := family_of(field))
        if not self.is_exact(field):
            if self.is_lookup is None or not self.is_lookup(field):
                return ANYTHING
            expected = None
        if expected is None:
            return _loosely(column, values, truth)
        for value in values:
            if not isinstance(value, expected):
                return ANYTHING
        if family == "date" and any(isinstance(v, datetime.datetime) for v in values):
            return ANYTHING
        found = frozenset(values)
        key: Any = (column.alias, field.column)
        if truth == TRUE:
            return ({key: found},)
        if family == "int" and not all(_is_in_range(column, n) for n in found):
            return ANYTHING  # not asked at all by some servers
        if truth == NOT_FALSE:
            return ({key: found | NULL},)  # type: ignore[operator]
        return ({key: Span(excluded=found, has_null=truth == NOT_TRUE)},)

    def _between(self, column: Col, node: Any, truth: int) -> Values:
        """A range of whole numbers or dates; nothing is known of other orders."""
        step = _STEPS.get(family_of(column.target))
        if step is None or not self.is_exact(column.target):
            return ANYTHING
        is_asked = truth in (TRUE, NOT_FALSE)
        try:
            bounds = _bounds(column, node, step)
            if bounds is None:
                return ANYTHING
            found = [span(*bounds)] if is_asked else _outside(*bounds, step)
        except OverflowError:  # the last of all dates
            return ANYTHING
        if truth in (NOT_TRUE, NOT_FALSE):
            found.append(NULL)
        key: Any = (column.alias, column.target.column)
        return tidy([{key: allowed} for allowed in found if allowed])

    def _tuple(self, node: Any, lhs: Any, truth: int) -> Values:
        """Conditions on several columns mean the same as one for each."""
        columns = list(lhs)
        if not all(isinstance(column, Col) for column in columns):
            return ANYTHING
        is_and = truth in (TRUE, NOT_FALSE)
        if isinstance(node, IsNull):
            parts = [_is_null(column, node.rhs, truth) for column in columns]
            return all_of(parts) if is_and != (node.rhs is True) else any_of(parts)
        rows = _tuples(node, lhs, columns)
        if rows is None or (len(rows) > MAX_BRANCHES and not is_and):
            return ANYTHING
        if not rows:
            return NOTHING if is_and else ANYTHING
        found = []
        for row in _grouped(rows):
            parts = list(map(self._listed, columns, row, [truth] * len(row)))
            found.append(all_of(parts) if is_and else any_of(parts))
        if len(found) == 1:
            return found[0]
        return any_of(found) if is_and else all_of(found)


def _bounds(column: Col, node: Any, step: Any) -> tuple[Any, Any] | None:
    """(lowest, highest value) of a comparison with plain values, None where open."""
    value = node.rhs
    is_range = isinstance(node, lookups.Range)
    expected = _EXPECTED[family_of(column.target)]
    for bound in value if is_range and isinstance(value, (list, tuple)) else [value]:
        if not isinstance(bound, expected) or isinstance(bound, datetime.datetime):
            return None
        if not _is_in_range(column, bound):
            return None
    if is_range:
        return value[0], value[1]
    if isinstance(node, lookups.GreaterThan):
        return value + step, None
    if isinstance(node, lookups.GreaterThanOrEqual):
        return value, None
    if isinstance(node, lookups.LessThan):
        return None, value - step
    return (None, value) if isinstance(node, lookups.LessThanOrEqual) else None


def _outside(low: Any, high: Any, step: Any) -> list[Allowed]:
    found = []
    if low is not None:
        found.append(span(None, low - step))
    if high is not None:
        found.append(span(high + step, None))
    return found


def _tuples(node: Any, lhs: Any, columns: list[Any]) -> list[tuple[Any, ...]] | None:
    """The prepared values of an equality or IN of several columns; None for others."""
    values = node.rhs
    if isinstance(node, Exact):
        values = [values]
    elif not isinstance(node, In):
        return None
    if not isinstance(values, (list, tuple, set, frozenset)) or len(values) > MAX_KEYS:
        return None
    rows = []
    for value in values:
        row = get_normalized_value(value, lhs) if hasattr(value, "_meta") else value
        if not isinstance(row, (list, tuple)) or len(row) != len(columns):
            return None
        if None in row:
            if isinstance(node, In):
                continue  # as Django does
            return None
        if any(hasattr(part, "as_sql") for part in row):
            return None
        try:
            prepared = [
                column.output_field.get_prep_value(part)
                for column, part in zip(columns, row, strict=True)
            ]
            rows.append(tuple(prepared))
            hash(rows[-1])
        except (TypeError, ValueError, ArithmeticError, ValidationError):
            return None
    return rows


def _grouped(rows: list[tuple[Any, ...]]) -> Iterable[Sequence[Iterable[Any]]]:
    """Values for each column; tuples that differ in their last part only are one."""
    if len(rows) == 1:
        return [[(part,) for part in rows[0]]]
    if len(rows) > MAX_BRANCHES:  # column by column: weaker than the tuples
        return [[set(parts) for parts in zip(*rows, strict=True)]]
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        groups.setdefault(row[:-1], []).append(row[-1])
    return [[*((part,) for part in start), last] for start, last in groups.items()]


def _loosely(column: Col, values: Iterable[Any], truth: int) -> Values:
    """Equality that Python cannot decide: only what is equal is known."""
    values = list(values)
    if truth != TRUE or any(v is None or hasattr(v, "as_sql") for v in values):
        return ANYTHING
    key: Any = (column.alias, column.target.column)
    try:
        if any(v != v for v in values):  # not a number
            return ANYTHING
        return ({key: Loose(values)},)
    except (TypeError, ArithmeticError):  # unhashable, such as JSON
        return ANYTHING


def _is_null(column: Col, wants_null: Any, truth: int) -> Values:
    if not isinstance(wants_null, bool):
        return ANYTHING
    key: Any = (column.alias, column.target.column)
    is_asked = truth in (TRUE, NOT_FALSE)
    return ({key: NULL if wants_null is is_asked else NOT_NULL},)


# -- kinds of values ----------------------------------------------------------------

#: family of a field -> the Python type of its prepared values
_EXPECTED: dict[str, type] = {
    "int": int,
    "bool": bool,
    "text": str,
    "uuid": uuid.UUID,
    "date": datetime.date,
}
#: families whose values can be counted -> from one to the next
_STEPS: dict[str, Any] = {"int": 1, "date": datetime.timedelta(days=1)}


def stored_field(field: Any) -> Any:
    """The field whose values a foreign key's column holds."""
    while field.remote_field:
        field = field.target_field
    return field


def family_of(field: Any) -> str:
    """Fields of one family compare as equal what Python calls equal; of those in
    ``_EXPECTED`` nothing else is equal. A project's own kind is its own family."""
    stored = stored_field(field)
    kind: Any = type(stored)
    family = _family(kind)
    places = getattr(stored, "decimal_places", None)
    return family if places is None else f"{family} {places}"


@lru_cache(maxsize=512)
def _family(kind: type) -> str:
    if kind.__module__.partition(".")[0] != "django":
        return f"{kind.__module__}.{kind.__qualname__}"
    for family, base in (
        ("int", kinds.IntegerField),
        ("bool", kinds.BooleanField),
        ("text", kinds.CharField),
        ("text", kinds.TextField),
        ("uuid", kinds.UUIDField),
    ):
        if issubclass(kind, base):
            return family
    if issubclass(kind, kinds.DateField) and not issubclass(kind, kinds.DateTimeField):
        return "date"
    return kind.__name__


def _is_in_range(column: Col, value: Any) -> bool:
    """Whether no server takes a number for one that the column cannot hold: Django
    then sends no condition at all."""
    if not isinstance(value, int):
        return True
    kind = stored_field(column.target).get_internal_type()
    low, high = BaseDatabaseOperations.integer_field_ranges.get(kind, (value, value))
    return bool(low <= value <= high)


# -- joins ----------------------------------------------------------------------------


def spread_over_joins(values: Values, block: Block, is_exact: IsExact) -> Values:
    """Carry values along ``a.x = b.y`` of a block's joins.

    From parent to child always: a child row that matches has the parent's value.
    From child to parent only over an inner join, where a parent without a match is
    no result.
    """
    if len(block.occurrences) < 2:
        return values
    outer = {o.alias for o in block.occurrences if not o.is_inner}
    edges = list(_edges(block, is_exact))
    return tuple(_carried(_of_rows(branch, outer), edges) for branch in values)


def _of_rows(branch: Branch, outer: set[str]) -> Branch:
    """Without what a row of NULLs fits as well, for tables that a join may miss.

    A row that is not fetched is a row of NULLs to the join, which would then be a
    result.
    """
    present = {alias for (alias, _), found in branch.items() if not can_be_null(found)}
    if present.issuperset(outer):
        return branch
    missed = outer - present
    return {c: allowed for c, allowed in branch.items() if c[0] not in missed}


def _edges(
    block: Block, is_exact: IsExact
) -> Iterator[tuple[tuple[str, str], tuple[str, str], bool]]:
    """(parent's column, child's column, whether both have to be there)."""
    for join_ in block.joins:
        for parent, child in join_.join_fields:
            if not getattr(child, "column", None) or not getattr(
                parent, "column", None
            ):
                continue
            if is_same_equality(parent, child, is_exact):
                above = (join_.parent_alias, parent.column)
                below = (join_.table_alias, child.column)
                yield above, below, join_.join_type == INNER


def is_same_equality(one: Any, other: Any, is_exact: IsExact) -> bool:
    """Whether columns of two fields that are equal equal the same values."""
    if not (is_exact(one) and is_exact(other)):
        return False
    if stored_field(one) is stored_field(other):
        return True
    # What a project's own field makes of a value may depend on its options.
    family = family_of(one)
    return family == family_of(other) and "." not in family


def _carried(
    branch: Branch, edges: list[tuple[tuple[str, str], tuple[str, str], bool]]
) -> Branch:
    branch = dict(branch)
    for _ in range(len(edges) + 1):
        changed = False
        for above, below, is_inner in edges:
            changed |= _narrow(branch, above, below)
            if is_inner:
                changed |= _narrow(branch, below, above)
        if not changed:
            break
    return branch


def _narrow(branch: Branch, source: tuple[str, str], target: tuple[str, str]) -> bool:
    if source not in branch:
        return False
    narrowed = meet(branch[source], NOT_NULL)  # NULL joins nothing
    if target in branch:
        narrowed = meet(narrowed, branch[target])
    if branch.get(target) == narrowed:
        return False
    branch[target] = narrowed
    return True


def clusters_of(
    table: Table,
    alias: str,
    values: Values,
    places: Places,
    shards_in: ShardsIn | None = None,
) -> frozenset[str] | None:
    """The shards that may hold rows of one table occurrence; None means any.

    ``shards_in`` is what a map of listed keys or ranges knows of a range of values.
    """
    if not values:
        return frozenset()  # the block has no rows, whatever its tables hold
    fields = table.key_fields
    if not fields:
        return None
    found: set[str] = set()
    keys: list[tuple[Any, ...]] = []
    for branch in values:
        if shards_in is not None and len(fields) == 1:
            allowed = branch.get((alias, fields[0].column))
            if isinstance(allowed, Span):
                some = shards_in(fields[0], allowed)
                if some is None:
                    return None
                found |= some
                continue
        sets = [listed(branch.get((alias, field.column))) for field in fields]
        if frozenset() in sets:
            continue  # a key of a row that is there is not NULL
        if None in sets:
            return None
        products = itertools.product(*sets)  # type: ignore[arg-type]
        keys += itertools.islice(products, MAX_KEYS + 1 - len(keys))
        if len(keys) > MAX_KEYS:
            return None
    placed = places(fields, keys) if keys else []
    return frozenset(found).union(shard for shard in placed if shard is not None)
