"""Aggregates of all rows out of the aggregates of each shard's rows. Pure.

A deviation is combined by count, mean and squared distances (Chan, Golub and LeVeque,
"Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).
"""

from __future__ import annotations

import decimal
import math
import operator
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import reduce
from typing import Any

from django.db.utils import DataError

from dbfleet.executor.ordering import (
    Distinct,
    Ranks,
    Row,
    comparable,
    grouping,
    is_nan,
)
from dbfleet.planner.partials import Combine, Partial

#: sums are exact: no server rounds them; opposite infinities make NaN
_EXACT = decimal.Context(
    prec=147455, Emax=10**6, Emin=-(10**6), traps=[decimal.Overflow]
)
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "all": lambda a, b: a and b,
    "any": lambda a, b: a or b,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
}

#: (total, count) -> average, with a server's own digits
Average = Callable[[Any, int], Any]


def combined(
    rows: Sequence[Row], partial: Partial, ranks: Ranks, average: Average
) -> list[Row]:
    """One row for each group of all shards, in the order in which groups came."""
    if not rows and partial.empty is not None:
        return [partial.empty]
    groups: dict[Any, list[Row]] = {}
    for row, key in zip(rows, grouping(rows, partial.groups, ranks), strict=True):
        groups.setdefault(key, []).append(row)
    return [_row(members, partial, ranks, average) for members in groups.values()]


def _row(members: list[Row], partial: Partial, ranks: Ranks, average: Average) -> Row:
    if len(members) == 1:
        return members[0]
    found = list(members[0])
    for combine in partial.combines:
        value = _value(members, combine, ranks, average)
        if value is None and combine.bare != combine.at:
            continue  # every shard has the default
        found[combine.at] = value
    return tuple(found)


def _value(members: list[Row], combine: Combine, ranks: Ranks, average: Average) -> Any:
    if combine.distinct is not None:
        members = Distinct([combine.distinct]).first_of(members, ranks)
    if combine.kind.startswith(("var", "stddev")):
        return _deviation(members, combine)  # one row of a shard alone has none
    values = [v for row in members if (v := row[combine.bare]) is not None]
    if not values:
        return None
    match combine.kind:
        case "count" | "sum":
            return total(values)
        case "min" | "max":
            assert combine.column is not None
            key = comparable(combine.column, ranks, values)
            return (min if combine.kind == "min" else max)(values, key=key)
        case "avg":
            sums, counts = _parts(members, combine)
            return average(total(sums), sum(counts))
        case "all" | "any" | "and" | "or" | "xor":
            return reduce(_OPERATORS[combine.kind], values)
    raise AssertionError(combine.kind)


def _parts(members: list[Row], combine: Combine) -> list[list[Any]]:
    """The hidden columns, of the shards that had values."""
    parts = combine.parts
    rows = [row for row in members if all(row[at] is not None for at in parts)]
    return [[row[at] for row in rows] for at in parts]


def total(values: Sequence[Any]) -> Any:
    """Their sum, exact for all but binary fractions."""
    if any(isinstance(value, Decimal) for value in values):
        return reduce(_EXACT.add, map(Decimal, values))
    if any(isinstance(value, float) for value in values):
        return _float_total(values)
    return reduce(operator.add, values)


def _float_total(values: Sequence[float]) -> float:
    infinite = {value for value in values if math.isinf(value)}
    if any(map(is_nan, values)) or len(infinite) > 1:
        return math.nan
    try:
        return infinite.pop() if infinite else math.fsum(values)
    except OverflowError:
        raise DataError("value out of range: overflow of a sum over shards") from None


def _deviation(members: list[Row], combine: Combine) -> float | None:
    counts, means, variances = _parts(members, combine)
    count, mean, squares = 0, 0.0, 0.0
    for n, average, variance in zip(counts, means, variances, strict=True):
        step = float(average) - mean
        both = count + n
        squares += float(variance) * n + step * step * count * n / both
        mean += step * n / both
        count = both
    is_sample = combine.kind.endswith("samp")
    if count < 1 + is_sample:
        return None
    variance = squares / (count - 1 if is_sample else count)
    return math.sqrt(variance) if combine.kind.startswith("stddev") else variance
