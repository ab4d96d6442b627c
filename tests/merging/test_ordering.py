"""Rows of several shards in one server's order, and which of them are equal."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from decimal import Decimal
from functools import cmp_to_key, partial
from typing import Any

import pytest

from dbfleet.executor.ordering import Distinct, Ranks, Row, grouping, in_order
from dbfleet.planner.merging import Column, Key

NAN = float("nan")


def column(rows: Iterable[Row], at: int = 0) -> list[Any]:
    return [row[at] for row in rows]


def ordered(values: Iterable[Any], *, descending: bool, nulls_first: bool) -> list[Any]:
    key = Key(Column(0), descending, nulls_first)
    return column(in_order([(value,) for value in values], [key], {}))


@pytest.mark.parametrize(
    ("descending", "nulls_first", "expected"),
    [
        (False, False, [1, 2, 3, None, None]),
        (False, True, [None, None, 1, 2, 3]),
        (True, False, [3, 2, 1, None, None]),
        (True, True, [None, None, 3, 2, 1]),
    ],
)
def test_the_places_of_null(
    descending: bool, nulls_first: bool, expected: list[int | None]
) -> None:
    given = [2, None, 3, None, 1]
    assert ordered(given, descending=descending, nulls_first=nulls_first) == expected


@pytest.mark.parametrize("nulls_first", [False, True])
@pytest.mark.parametrize("descending", [False, True])
def test_nothing_but_null(descending: bool, nulls_first: bool) -> None:
    found = ordered([None, None], descending=descending, nulls_first=nulls_first)
    assert found == [None, None]


def test_no_rows() -> None:
    assert in_order([], [Key(Column(0))], {}) == []
    assert Distinct([Column(0)]).first_of([], {}) == []
    assert grouping([], [Column(0)], {}) == []


def test_without_an_order_rows_stay_as_they_come() -> None:
    assert in_order([(3,), (1,), (2,)], [], {}) == [(3,), (1,), (2,)]


@pytest.mark.parametrize("descending", [False, True])
def test_ties_stay_in_the_order_of_the_shards(descending: bool) -> None:
    rows = [(n % 2, shard, n) for shard in "abc" for n in range(6)]
    found = in_order(list(rows), [Key(Column(0), descending)], {})
    for value in (0, 1):
        ties = [row[1:] for row in found if row[0] == value]
        assert ties == [row[1:] for row in rows if row[0] == value]
    assert column(found) == sorted(column(rows), reverse=descending)


def test_directions_are_mixed() -> None:
    rows = [(1, "a", None), (2, "b", 1.5), (1, "b", 2.5), (1, "a", 7.0), (2, "a", 0.0)]
    keys = [
        Key(Column(0), descending=True),
        Key(Column(1)),
        Key(Column(2), descending=True, nulls_first=True),
    ]
    assert in_order(rows, keys, {}) == [
        (2, "a", 0.0),
        (2, "b", 1.5),
        (1, "a", None),
        (1, "a", 7.0),
        (1, "b", 2.5),
    ]


def test_nan_is_above_every_number() -> None:
    given = [NAN, 1.0, math.inf, NAN, -math.inf]
    found = ordered(given, descending=False, nulls_first=False)
    assert found[:3] == [-math.inf, 1.0, math.inf]
    assert all(map(math.isnan, found[3:]))
    found = ordered([*given, None], descending=True, nulls_first=False)
    assert all(map(math.isnan, found[:2]))
    assert found[2:] == [math.inf, 1.0, -math.inf, None]
    decimals = [Decimal("NaN"), Decimal(3), Decimal("Infinity")]
    found = ordered(decimals, descending=False, nulls_first=False)
    assert [str(one) for one in found] == ["3", "Infinity", "NaN"]


def test_zeroes_and_decimals_of_other_scales_are_ties() -> None:
    assert ordered([0.0, -0.0], descending=False, nulls_first=False) == [0.0, 0.0]
    rows = [(Decimal("1.50"), 1), (Decimal("1.5"), 2), (Decimal("1.499"), 3)]
    assert column(in_order(rows, [Key(Column(0))], {}), 1) == [3, 1, 2]


def test_values_of_several_types_are_in_sqlites_order() -> None:
    given = ["b", b"a", 2, "a", 1.5, memoryview(b"b"), None, True]
    found = ordered(given, descending=False, nulls_first=True)
    assert found[:6] == [None, True, 1.5, 2, "a", "b"]
    assert [bytes(one) for one in found[6:]] == [b"a", b"b"]


def test_bytes_are_compared_whatever_the_driver_wraps_them_in() -> None:
    given = [memoryview(b"b"), None, memoryview(b"a"), memoryview(b"ab")]
    found = ordered(given, descending=True, nulls_first=False)
    assert [bytes(one) for one in found[:3]] == [b"b", b"ab", b"a"]
    assert found[3] is None


def test_text_is_in_the_order_of_its_ranks() -> None:
    ranks: Ranks = {0: {"a": 0, "B": 1, "b": 1, "\u00e4": 0, "z": 2}}
    rows = [("z", 1), ("b", 2), ("\u00e4", 3), ("B", 4), ("a", 5), (None, 6)]
    text = Column(0, is_text=True)
    assert column(in_order(list(rows), [Key(text)], ranks), 1) == [3, 5, 2, 4, 1, 6]
    found = in_order(list(rows), [Key(text, True, True)], ranks)
    assert column(found, 1) == [6, 1, 2, 4, 3, 5]
    # Where codes decide, there are no ranks.
    assert column(in_order(rows, [Key(text)], {})) == [
        "B",
        "a",
        "b",
        "z",
        "\u00e4",
        None,
    ]


def test_equal_rows_are_told_as_the_server_tells_them() -> None:
    rows = [
        (0.0, "x"),
        (-0.0, "x"),
        (Decimal("2.50"), "x"),
        (Decimal("2.5"), "X"),
        (NAN, "y"),
        (float("nan"), "y"),
        (Decimal("NaN"), "y"),
        (None, "z"),
        (None, None),
        (None, None),
        (memoryview(b"1"), "m"),
        (b"1", "m"),
    ]
    both = [Column(0), Column(1, is_text=True)]
    assert len(Distinct(both).first_of(rows, {})) == 7
    folded: Ranks = {1: {"x": 0, "X": 0, "y": 1, "z": 2, "m": 3}}
    kept = Distinct(both).first_of(rows, folded)
    assert len(kept) == 6
    assert kept[1] == (Decimal("2.50"), "x"), "the first of equal ones is kept"


def test_distinct_over_portions_is_as_over_all_rows_and_forgets() -> None:
    keys = [Key(Column(0))]
    rows = [(n // 40, n % 3) for n in range(400)]
    told = Distinct([Column(0), Column(1)], keys)
    found = []
    for start in range(0, 400, 7):
        found += told.first_of(rows[start : start + 7], {})
        assert len(told.seen) <= 3, "what cannot come again is remembered"
    assert sorted(found) == sorted(set(rows))


def test_distinct_on_remembers_no_more_than_its_fields_need() -> None:
    told = Distinct([Column(0)], [Key(Column(0)), Key(Column(1))])
    found = told.first_of([(1, 1), (1, 2)], {})
    found += told.first_of([(1, 3), (2, 1)], {})
    assert found == [(1, 1), (2, 1)]


def test_distinct_of_nan_over_portions() -> None:
    told = Distinct([Column(0)])
    found = told.first_of([(1.0,), (NAN,)], {})
    found += told.first_of([(1.0,), (float("nan"),), (2.0,)], {})
    assert [str(row[0]) for row in found] == ["1.0", "nan", "2.0"]


# -- random ones, against a comparison written down anew ----------------------------


def _compare(keys: list[Key], one: Row, other: Row) -> int:
    for key in keys:
        a, b = one[key.column.at], other[key.column.at]
        if a is None or b is None:
            if (a is None) != (b is None):
                return -1 if (a is None) == key.nulls_first else 1
            continue
        if a != b:
            return (-1 if a < b else 1) * (-1 if key.descending else 1)
    return 0


def test_random_rows_against_a_comparison() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    makers = (
        lambda: chance.randrange(5),
        lambda: Decimal(chance.randrange(50)).scaleb(-chance.randrange(3)),
        lambda: chance.choice([-1.5, -0.0, 0.0, 2.5, math.inf]),
        lambda: chance.choice("abcABC\u00e4"),
    )
    for _ in range(300):
        width = chance.randrange(1, 5)
        made = [chance.choice(makers) for _ in range(width)]
        rows = [
            (*(None if chance.random() < 0.2 else make() for make in made), n)
            for n in range(chance.randrange(40))
        ]
        keys = [
            Key(Column(at), chance.random() < 0.5, chance.random() < 0.5)
            for at in chance.sample(range(width), chance.randrange(width + 1))
        ]
        expected = sorted(rows, key=cmp_to_key(partial(_compare, keys)))
        assert in_order(list(rows), keys, {}) == expected, seed
        columns = [Column(at) for at in range(width)]
        told = Distinct(columns, keys)
        kept = [row[-1] for row in told.first_of(expected, {})]
        firsts: dict[Any, int] = {}
        for row in expected:
            firsts.setdefault(row[:-1], row[-1])
        assert kept == list(firsts.values()), seed
