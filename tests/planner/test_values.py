"""What single conditions say of a column's values: kinds, ranges, and NULL.

Equal in Python and equal in a server are two things; where they may differ nothing is
left out.
"""

from __future__ import annotations

import copy
import datetime
import os
import random
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.db import models
from django.db.models import lookups
from django.db.models.expressions import Col
from django.db.models.sql.where import AND, OR, XOR, WhereNode

from dbfleet.planner import ranges
from dbfleet.planner.branches import ANYTHING, MAX_BRANCHES, Branch, Values
from dbfleet.planner.pruning import possible_values
from dbfleet.planner.ranges import Allowed, Loose, Span

UTC = datetime.UTC
PARIS = datetime.timezone(datetime.timedelta(hours=2))


def column(kind: models.Field[Any, Any], name: str = "key") -> Col:
    kind = copy.copy(kind)
    kind.set_attributes_from_name(name)
    return Col("t", kind)


def equal(kind: models.Field[Any, Any], value: Any) -> Any:
    return lookups.Exact(column(kind), value)


def not_(node: Any) -> WhereNode:
    return WhereNode([node], negated=True)


def all_(*nodes: Any) -> WhereNode:
    return WhereNode(list(nodes), AND)


def any_(*nodes: Any) -> WhereNode:
    return WhereNode(list(nodes), OR)


def values(node: Any, *, is_exact: bool = True) -> Values:
    return possible_values(node, lambda field: is_exact)


def key(node: Any) -> Any:
    """The only branch's values of the key."""
    [branch] = values(node)
    return branch.get(("t", "key"))


INTEGER = models.IntegerField()


def test_equal_numbers_of_different_types_meet() -> None:
    assert key(all_(equal(INTEGER, 5), equal(INTEGER, "5"), equal(INTEGER, 5.0))) == {5}
    same = uuid.uuid4()
    found = all_(equal(models.UUIDField(), same), equal(models.UUIDField(), str(same)))
    assert key(found) == {same}


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (models.DecimalField(max_digits=9, decimal_places=2), "1.001", "1.00"),
        (models.FloatField(), 0.1 + 0.2, 0.3),
        (
            models.DateTimeField(),
            datetime.datetime(2024, 1, 1, 12, tzinfo=UTC),
            datetime.datetime(2024, 1, 1, 14, tzinfo=PARIS),
        ),
        (models.DurationField(), datetime.timedelta(1), datetime.timedelta(2)),
        (models.BinaryField(), b"a", memoryview(b"a")),
        (models.GenericIPAddressField(), "::1", "0:0:0:0:0:0:0:1"),
    ],
)
def test_values_that_only_a_server_can_compare_never_contradict(
    kind: models.Field[Any, Any], one: Any, other: Any
) -> None:
    assert key(equal(kind, one))
    assert key(all_(equal(kind, one), equal(kind, other)))
    left = all_(equal(kind, one), not_(equal(kind, other)))
    assert key(left) == key(equal(kind, one))


def test_what_is_no_value_of_its_column_says_nothing() -> None:
    raw = equal(INTEGER, 5)
    raw.rhs = "5"  # a lookup that prepares nothing
    assert values(raw) is ANYTHING
    assert values(equal(models.FloatField(), float("nan"))) is ANYTHING
    never = equal(models.DecimalField(max_digits=5, decimal_places=2), 1)
    never.rhs = Decimal("NaN")
    assert values(never) is ANYTHING
    day = equal(models.DateField(), datetime.date(2024, 1, 1))
    day.rhs = datetime.datetime(2024, 1, 1)
    assert values(day) is ANYTHING
    assert values(equal(models.JSONField(), {"a": 1})) is ANYTHING
    assert values(equal(models.CharField(), "a"), is_exact=False) is ANYTHING


def test_a_projects_own_field_is_compared_by_the_server_alone() -> None:
    own = type("OwnField", (models.IntegerField,), {"__module__": "shop.fields"})
    assert key(all_(equal(own(), 5), equal(own(), 6)))
    assert values(not_(equal(own(), 5))) is ANYTHING
    assert values(lookups.Range(column(own()), (1, 3))) is ANYTHING


def test_a_short_range_is_a_list_and_a_long_one_is_not() -> None:
    short = lookups.Range(column(INTEGER), (2, 4))
    assert key(short) == {2, 3, 4}
    assert key(all_(short, not_(equal(INTEGER, 3)))) == {2, 4}
    assert values(lookups.Range(column(INTEGER), (4, 2))) == ()
    long = lookups.Range(column(INTEGER), (1, ranges.MAX_LISTED + 1))
    assert ranges.listed(key(long)) is None
    first, last = datetime.date(2024, 2, 28), datetime.date(2024, 3, 1)
    days = key(lookups.Range(column(models.DateField()), (first, last)))
    assert days == {first, datetime.date(2024, 2, 29), last}
    ends = lookups.GreaterThan(column(models.DateField()), datetime.date.max)
    assert values(ends) is ANYTHING
    assert values(lookups.LessThan(column(models.CharField()), "b")) is ANYTHING


def test_null_makes_a_condition_neither_true_nor_false() -> None:
    null, three = lookups.IsNull(column(INTEGER), True), equal(INTEGER, 3)
    assert key(null) == {None}
    assert key(not_(three)) == Span(excluded=frozenset({3}))
    # What Django makes of exclude() on a column that may be NULL.
    excluded = not_(all_(three, lookups.IsNull(column(INTEGER), False)))
    assert key(excluded) == Span(excluded=frozenset({3}), has_null=True)
    assert values(all_(three, null)) == ()
    assert values(all_(null, not_(three))) == ()


def test_a_condition_that_django_leaves_out_is_met_by_null_too() -> None:
    listed = lookups.In(column(INTEGER), [None])
    assert values(listed) == ()
    assert values(not_(listed)) is ANYTHING
    small = equal(models.SmallIntegerField(), 1 << 40)
    assert values(not_(small)) is ANYTHING
    assert values(lookups.GreaterThan(column(INTEGER), -(1 << 70))) is ANYTHING


def test_xor_is_right_whether_or_not_null_makes_it_null() -> None:
    three, other = equal(INTEGER, 3), lookups.Exact(column(INTEGER, "age"), 1)
    # True for key 3 and an unknown age where true operands are counted.
    nodes: list[Any] = [three, other]
    found = values(WhereNode(nodes, XOR))
    assert {("t", "key"): frozenset({3})}.items() <= found[0].items()
    assert Span(excluded=frozenset({1}), has_null=True) in found[0].values()
    # MariaDB: the whole XOR is NULL, so it is not false either for its NOT.
    opposite = values(WhereNode(nodes, XOR, negated=True))
    assert _fits(opposite, 3, 1)
    assert _fits(opposite, 4, 2)
    assert not _fits(opposite, 3, 2)


def test_xor_with_what_django_leaves_out_says_nothing() -> None:
    full = not_(lookups.In(column(INTEGER), []))
    assert values(WhereNode([full, equal(INTEGER, 3)], XOR)) is ANYTHING


def test_branches_are_few() -> None:
    conditions = [
        any_(
            lookups.Exact(column(models.IntegerField(), f"a{n}"), 1),
            lookups.Exact(column(models.IntegerField(), f"b{n}"), 1),
        )
        for n in range(20)
    ]
    found = values(all_(equal(INTEGER, 3), *conditions))
    assert len(found) <= MAX_BRANCHES
    assert all(branch["t", "key"] == frozenset({3}) for branch in found)
    many = any_(*(all_(equal(INTEGER, n), conditions[n % 20]) for n in range(500)))
    assert len(values(many)) <= MAX_BRANCHES


def _fits(found: Values, number: int | None, age: int | None) -> bool:
    row = {("t", "key"): number, ("t", "age"): age}
    return any(_fits_branch(branch, row) for branch in found)


def _fits_branch(branch: Branch, row: dict[tuple[str, str], Any]) -> bool:
    return all(_has(allowed, row[name]) for name, allowed in branch.items())


def _has(allowed: Allowed, value: Any) -> bool:
    return allowed.has(value) if isinstance(allowed, Span) else value in allowed


# -- sets ------------------------------------------------------------------------------

WORLD = (None, *range(-8, 16))


def _sets(chance: random.Random) -> Iterator[Allowed]:
    while True:
        some = frozenset(chance.sample(WORLD, chance.randint(1, 5)))
        if chance.random() < 0.4:
            yield some
            continue
        low, high = sorted(chance.sample(range(8), 2))
        yield Span(
            chance.choice((None, low)),
            chance.choice((None, high)),
            some - {None},
            chance.random() < 0.5,
        )


def test_sets_never_lose_a_value() -> None:
    seed = int(os.environ.get("DBFLEET_SEED", random.randrange(1 << 31)))
    print(f"seed: {seed}")
    sets = _sets(random.Random(seed))
    for _ in range(3000):
        one, other = next(sets), next(sets)
        both, either = ranges.meet(one, other), ranges.join(one, other)
        for value in WORLD:
            in_one, in_other = _has(one, value), _has(other, value)
            assert _has(both, value) == (in_one and in_other), (one, other, value)
            assert _has(either, value) or not (in_one or in_other), (one, other, value)
            if ranges.joins_exactly(one, other):
                assert _has(either, value) == (in_one or in_other), (one, other, value)


def test_loose_sets_stay_loose() -> None:
    one, other = Loose({1}), Loose({2, 3})
    assert ranges.meet(one, other) == frozenset({1})
    assert ranges.meet(one, Span(excluded=frozenset({1}))) == frozenset({1})
    assert isinstance(ranges.join(one, other), Loose)
