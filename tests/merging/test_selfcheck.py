"""A merged answer that a gather contradicts is told; one that agrees is not."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from dbfleet.engines import GatheredRows
from dbfleet.errors import GatherLimitExceeded
from dbfleet.executor import selfcheck
from dbfleet.observe import events
from dbfleet.planner.merging import Column, Key, Merge

ORDERED = Merge(2, (Key(Column(0)),))
PAGE = Merge(2, (Key(Column(0)),), high=2)
UNORDERED = Merge(2, (Key(Column(0)),), is_implied=True)


def rows(*found: tuple[Any, ...]) -> GatheredRows:
    return GatheredRows(list(found), None, len(found))


def checked(
    merge: Merge, merged: GatheredRows, gathered: GatheredRows, **more: Any
) -> bool:
    told: list[str] = []
    with events.subscribed(lambda event: told.append(event.name)):
        agrees = selfcheck.check(
            "default",
            merge,
            more.get("loose", ()),
            lambda: more.get("again", merged),
            lambda: gathered,
            merged,
        )
    assert told == ([] if agrees else ["self_check_failed"])
    return agrees


def test_the_same_answer_agrees() -> None:
    found = rows((1, "a"), (2, None))
    assert checked(ORDERED, found, rows((1, "a"), (2, None)))


@pytest.mark.parametrize(
    ("merge", "gathered"),
    [
        (ORDERED, rows((1, "a"))),
        (ORDERED, rows((1, "a"), (2, "b"), (3, "c"))),
        (ORDERED, rows((1, "a"), (2, "other"))),
        (ORDERED, rows((2, "b"), (1, "a"))),
        (PAGE, rows((1, "a"), (3, "b"))),
        (UNORDERED, rows((1, "a"), (3, "b"))),
    ],
)
def test_another_answer_is_told(merge: Merge, gathered: GatheredRows) -> None:
    assert not checked(merge, rows((1, "a"), (2, "b")), gathered)


def test_what_one_database_leaves_open_is_no_difference() -> None:
    found = rows((1, "a"), (2, "b"))
    assert checked(UNORDERED, found, rows((2, "b"), (1, "a")))
    # Of rows that are equal in the order, a page may end with either.
    assert checked(PAGE, found, rows((1, "a"), (2, "c")))
    assert checked(ORDERED, found, rows((1, "A"), (2, "b")), loose={1})
    assert checked(ORDERED, rows((1, 0.1 + 0.2)), rows((1, 0.3)))
    assert checked(ORDERED, rows((1, Decimal("NaN"))), rows((1, Decimal("NaN"))))


def test_a_write_in_between_is_no_difference() -> None:
    merged, gathered = rows((1, "a")), rows((1, "a"), (2, "new"))
    assert checked(ORDERED, merged, gathered, again=rows((1, "a"), (2, "new")))


def test_an_answer_too_large_to_be_gathered_is_not_checked() -> None:
    def too_large() -> GatheredRows:
        raise GatherLimitExceeded("E501", "too many rows")

    found = rows((1, "a"))
    assert selfcheck.check("default", ORDERED, (), lambda: found, too_large, found)
