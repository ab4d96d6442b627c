"""Aggregates of all rows out of those of each shard's rows."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from decimal import Decimal
from functools import reduce
from operator import and_, or_, xor
from typing import Any

import pytest
from django.db.utils import DataError

from dbfleet.executor.combining import combined, total
from dbfleet.executor.ordering import Ranks, Row
from dbfleet.planner.merging import Column, Merge
from dbfleet.planner.partials import Combine, Partial


def answer(
    rows: list[Row],
    *combines: Combine,
    groups: tuple[Column, ...] = (),
    ranks: Ranks | None = None,
) -> list[Row]:
    width = len(rows[0]) if rows else 0
    partial = Partial(Merge(width), groups, combines)
    return combined(rows, partial, ranks or {}, lambda total, count: total / count)


def one(kind: str, *values: Any, parts: tuple[int, ...] = ()) -> Any:
    """The combined value of one column, one row of each shard; tuples have parts."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    column = Column(0) if kind in ("min", "max") else None
    [row] = answer(rows, Combine(0, 0, kind, parts, column))
    return row[0]


@pytest.mark.parametrize("kind", ["sum", "min", "max", "all", "any", "and", "or"])
def test_of_nothing_there_is_nothing(kind: str) -> None:
    assert one(kind, None, None, None) is None


def test_empty_shards_change_nothing() -> None:
    assert one("sum", None, 5, None) == 5
    assert one("min", None, 5, None, 3) == 3
    assert one("max", None, 5, None, 3) == 5
    assert one("count", 0, 3, 0) == 3
    assert one("count", 0, 0, 0) == 0
    assert one("all", None, True, None) is True
    assert one("any", None, False, None) is False
    assert one("avg", (None, None, 0), (2.5, 5, 2), parts=(1, 2)) == 2.5
    assert one("avg", (None, None, 0), (None, None, 0), parts=(1, 2)) is None


def test_counts_and_sums_stay_whole_numbers() -> None:
    assert one("count", 2, 3) == 5
    found = one("sum", 2**62, 2**62)
    assert (found, type(found)) == (2**63, int)


def test_sums_of_decimals_are_exact_and_keep_their_scale() -> None:
    assert str(one("sum", Decimal("1.10"), Decimal("2.9"))) == "4.00"
    found = one("sum", Decimal("1e40"), Decimal("1e-30"), Decimal("-1e40"))
    assert found == Decimal("1e-30")
    assert str(one("sum", 5, Decimal("0.50"))) == "5.50"


def test_sums_of_what_is_no_number() -> None:
    nan, inf = math.nan, math.inf
    assert math.isnan(one("sum", 1.0, nan))
    assert math.isnan(one("sum", inf, 1.0, -inf))
    assert one("sum", inf, 1.0, inf) == inf
    assert one("sum", Decimal("Infinity"), Decimal("-Infinity")).is_nan()
    assert one("sum", Decimal("NaN"), Decimal(1)).is_nan()
    with pytest.raises(DataError, match="out of range"):
        total([1e308, 1e308])


def test_sums_of_floats_do_not_depend_on_the_order_of_shards() -> None:
    values = [1e16, 1.0, -1e16, 1e-3]
    assert {one("sum", *values), one("sum", *reversed(values))} == {1.001}


def test_averages_weigh_each_shard_by_its_rows() -> None:
    # The mean of the means is 52.5.
    assert one("avg", (5.0, 15, 3), (100.0, 100, 1), parts=(1, 2)) == 28.75


def test_least_and_greatest() -> None:
    nan = math.nan
    assert one("min", 3.0, nan, -0.5) == -0.5
    assert math.isnan(one("max", 3.0, nan))
    assert one("max", Decimal("1.50"), Decimal("1.6")) == Decimal("1.6")
    text = Column(0, is_text=True)
    ranks: Ranks = {0: {"\u00e4": 0, "b": 1, "Z": 2}}
    rows: list[Row] = [("b",), ("\u00e4",), ("Z",), (None,)]
    assert answer(rows, Combine(0, 0, "min", (), text), ranks=ranks) == [("\u00e4",)]
    assert answer(rows, Combine(0, 0, "max", (), text), ranks=ranks) == [("Z",)]
    assert answer(rows, Combine(0, 0, "max", (), text)) == [("\u00e4",)]


@pytest.mark.parametrize(
    ("kind", "combine"), [("and", and_), ("or", or_), ("xor", xor)]
)
def test_bits(kind: str, combine: Any) -> None:
    values = [0b1100, 0b1010, 0b1001]
    assert one(kind, values[0], None, *values[1:]) == reduce(combine, values)


def test_booleans() -> None:
    assert one("all", True, True) is True
    assert one("all", True, None, False) is False
    assert one("any", False, None, True) is True
    assert one("any", False, False) is False


def test_defaults_stand_for_no_rows_alone() -> None:
    # The first column has the default where a shard has no rows, the second NULL.
    default = Combine(0, 1, "sum")
    assert answer([(0, None), (0, None)], default) == [(0, None)]
    assert answer([(7, None), (5, 5)], default)[0][0] == 5
    assert answer([(7, None), (0, 0)], default)[0][0] == 0
    least = Combine(0, 1, "min", (), Column(1))
    assert answer([(-1, None), (4, 4), (3, 3)], least)[0][0] == 3
    sample = Combine(0, 1, "var_samp", (2, 3, 4))
    rows: list[Row] = [(9.0, None, 1, 2.0, 0.0), (9.0, None, 0, None, None)]
    assert answer(rows, sample)[0][0] == 9.0, "one row in all has no sample's variance"
    rows = [(9.0, None, 1, 2.0, 0.0), (9.0, None, 1, 4.0, 0.0)]
    assert answer(rows, sample)[0][0] == 2.0


def test_groups_of_several_shards_are_one() -> None:
    rows: list[Row] = [
        ("a", 1, Decimal("1.0")),
        ("b", 2, Decimal("1.0")),
        ("a", 4, Decimal("1.00")),
        (None, 8, Decimal(2)),
        (None, 16, Decimal("2.0")),
    ]
    groups = Column(0, is_text=True), Column(2)
    found = answer(rows, Combine(1, 1, "sum"), groups=groups)
    assert [row[:2] for row in found] == [("a", 5), ("b", 2), (None, 24)]
    folded = answer(
        rows[:3], Combine(1, 1, "sum"), groups=groups[:1], ranks={0: {"a": 0, "b": 0}}
    )
    assert [row[:2] for row in folded] == [("a", 7)]
    zeroes: list[Row] = [(0.0, 1), (-0.0, 2), (math.nan, 4), (float("nan"), 8)]
    found = answer(zeroes, Combine(1, 1, "sum"), groups=(Column(0),))
    assert [row[1] for row in found] == [3, 12]


def test_no_groups_at_all() -> None:
    assert answer([], Combine(0, 0, "sum"), groups=(Column(1),)) == []


KINDS = {
    "var_pop": (statistics.pvariance, 1),
    "var_samp": (statistics.variance, 2),
    "stddev_pop": (statistics.pstdev, 1),
    "stddev_samp": (statistics.stdev, 2),
}


def _parts_of(kind: str, rows: list[float]) -> Row:
    """What a shard answers: the aggregate, count, average, population variance."""
    function, least = KINDS[kind]
    if not rows:
        return (None, 0, None, None)
    own = function(rows) if len(rows) >= least else None
    return (own, len(rows), statistics.fmean(rows), statistics.pvariance(rows))


@pytest.mark.parametrize("kind", KINDS)
def test_deviations_of_one_row_on_each_shard(kind: str) -> None:
    shards = [_parts_of(kind, [2.0]), _parts_of(kind, [4.0]), _parts_of(kind, [])]
    assert one(kind, *shards, parts=(1, 2, 3)) == KINDS[kind][0]([2.0, 4.0])


@pytest.mark.parametrize("kind", KINDS)
def test_deviations_of_no_row_and_of_one(kind: str) -> None:
    empty = _parts_of(kind, [])
    assert one(kind, empty, empty, parts=(1, 2, 3)) is None
    found = one(kind, empty, _parts_of(kind, [3.0]), parts=(1, 2, 3))
    assert found == (None if kind.endswith("samp") else 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_random_deviations_against_statistics(kind: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    function, least = KINDS[kind]
    for _ in range(200):
        middle = chance.choice([0, 1e3, -1e8])
        shards = [
            [chance.gauss(middle, 10) for _ in range(chance.choice([0, 1, 2, 30]))]
            for _ in range(chance.randrange(2, 6))
        ]
        rows = [value for shard in shards for value in shard]
        found = one(kind, *(_parts_of(kind, s) for s in shards), parts=(1, 2, 3))
        if len(rows) < least:
            assert found is None, seed
        else:
            assert found == pytest.approx(function(rows), rel=1e-6), seed


def test_random_groups_against_all_rows() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    combines = (
        Combine(1, 1, "count"),
        Combine(2, 2, "sum"),
        Combine(3, 3, "min", (), Column(3)),
        Combine(4, 4, "max", (), Column(4)),
        Combine(5, 5, "avg", (2, 1)),
    )
    for _ in range(200):
        rows: list[Row] = []
        everything: dict[Any, list[int]] = defaultdict(list)
        for _shard in range(chance.randrange(1, 5)):
            own: dict[Any, list[int]] = defaultdict(list)
            for _row in range(chance.randrange(12)):
                group = chance.choice([None, 1, 2, 3])
                values = [] if chance.random() < 0.3 else [chance.randrange(-9, 9)]
                own[group] += values
                everything[group] += values
            rows += [(group, *_plain(values)) for group, values in own.items()]
        found = answer(rows, *combines, groups=(Column(0),))
        assert {row[0]: row[1:] for row in found} == {
            group: _plain(values) for group, values in everything.items()
        }, seed
        assert len(found) == len(everything), seed


def _plain(values: list[int]) -> Row:
    if not values:
        return (0, None, None, None, None)
    least, greatest = min(values), max(values)
    average = sum(values) / len(values)
    return (len(values), sum(values), least, greatest, average)
