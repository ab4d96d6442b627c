"""Rows of several servers in the order that one server would give them.

Values compare as the driver's Python values where that is the server's order too; text
by the place that the server gives it. Pure: ranks are handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import takewhile
from operator import itemgetter
from typing import Any

from django.utils import timezone

from dbfleet.planner.merging import Column, Key

Row = tuple[Any, ...]
#: place in the order of each text, by the column's place in a row; none needed where
#: text is ordered by its characters' codes
Ranks = dict[int, dict[str, int]]


def in_order(rows: list[Row], keys: Sequence[Key], ranks: Ranks) -> list[Row]:
    """Sort in place: stable, one pass for each key from the last to the first.

    Rows that are made of sorted runs cost little more than one comparison each.
    """
    for key in reversed(keys):
        rows.sort(key=_sort_key(rows, key, ranks), reverse=key.descending)
    return rows


def _sort_key(rows: list[Row], key: Key, ranks: Ranks) -> Callable[[Row], Any]:
    at = key.column.at
    values = [row[at] for row in rows]
    value = comparable(key.column, ranks, values)
    if not any(one is None for one in values):
        return itemgetter(at) if value is _same else lambda row: value(row[at])
    # A reverse sort turns the places of NULL around as well.
    null = int(key.nulls_first == key.descending)

    def place(row: Row) -> Any:
        found = row[at]
        return (null, 0) if found is None else (1 - null, value(found))

    return place


def comparable(column: Column, ranks: Ranks, values: list[Any]) -> Callable[[Any], Any]:
    """What values of a column compare by; two that the server calls equal are equal.

    Not for NULL. NaN is above all numbers and equal to itself, as in PostgreSQL.
    """
    own = ranks.get(column.at)
    if own is not None:
        return lambda value: own[value] if isinstance(value, str) else value
    kinds = {type(value) for value in values if value is not None}
    if kinds <= _BYTES:
        return bytes
    if kinds == {datetime}:
        return _moments(values)
    if not kinds <= {float, Decimal} or not any(map(is_nan, values)):
        if len(kinds) <= 1 or kinds <= _NUMBERS:
            return _same
        return _by_kind
    return lambda value: (True, 0) if is_nan(value) else (False, value)


_NUMBERS = {int, float, bool, Decimal}
_BYTES = {bytes, bytearray, memoryview}


def is_nan(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, Decimal) and value.is_nan()


def _same(value: Any) -> Any:
    return value


def _moments(values: list[Any]) -> Callable[[Any], Any]:
    """Python compares moments of one zone by the clock on its wall, which shows an hour
    twice when summer time ends. Without USE_TZ they have that of the default zone."""
    if all(value is None or _is_plain(value) for value in values):
        return _same
    zone = timezone.get_default_timezone()

    def moment(value: datetime) -> datetime:
        return (value if value.tzinfo else value.replace(tzinfo=zone)).astimezone(UTC)

    return moment


def _is_plain(moment: datetime) -> bool:
    return moment.tzinfo is UTC or (moment.tzinfo is None and not moment.fold)


def _by_kind(value: Any) -> Any:
    """SQLite: numbers, then text, then bytes."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return 2, bytes(value)
    return int(isinstance(value, str)), value


def texts_of(rows: Sequence[Row], columns: Sequence[Column]) -> dict[Column, list[str]]:
    """The distinct texts in the columns that compare as text."""
    return {
        column: list(
            {row[column.at] for row in rows if isinstance(row[column.at], str)}
        )
        for column in columns
        if column.is_text
    }


class Distinct:
    """Tells the rows that are equal to none before, over some columns.

    Rows come in the order of ``keys``, in one portion or in several. Only those are
    remembered that one to come may be equal to.
    """

    def __init__(self, columns: Sequence[Column], keys: Sequence[Key] = ()) -> None:
        self.columns = columns
        compared = {column.at for column in columns}
        ordered = (key.column for key in keys)
        #: equal rows stand together by these
        self.ordered = list(takewhile(lambda one: one.at in compared, ordered))
        self.seen: set[Any] = set()
        self._place: Any = None

    def first_of(self, rows: Sequence[Row], ranks: Ranks) -> list[Row]:
        """The rows that are the first of their kind. ``ranks`` of one portion mean
        nothing in another: only where all rows come at once."""
        kept = []
        equal = grouping(rows, self.columns, ranks)
        places = grouping(rows, self.ordered, ranks)
        for row, key, place in zip(rows, equal, places, strict=True):
            if place != self._place:
                self.seen.clear()
                self._place = place
            if key not in self.seen:
                self.seen.add(key)
                kept.append(row)
        return kept


def grouping(
    rows: Sequence[Row], columns: Sequence[Column], ranks: Ranks
) -> list[tuple[Any, ...]]:
    """A key for each row, equal for rows that the server calls equal in ``columns``."""
    parts = [
        [_equal(row[column.at], ranks.get(column.at)) for row in rows]
        for column in columns
    ]
    return list(zip(*parts, strict=True)) if parts else [()] * len(rows)


#: NaN is equal to itself, and to nothing else
_NAN = object()


def _equal(value: Any, ranks: dict[str, int] | None) -> Any:
    if ranks is not None and isinstance(value, str):
        return ranks[value]
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, datetime) and not _is_plain(value):
        return value.astimezone(UTC) if value.tzinfo else (value, value.fold)
    return _NAN if is_nan(value) else value
