"""A sampled share of merged answers is gathered as well, and compared.

Gathering runs Django's own SQL on one server, so it is the standard that every other
rung has to meet. What differs twice, with the merge repeated in between, was not a
write that came in meanwhile: it is logged and told as event ``self_check_failed``. The
caller always gets the merged answer.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any

from dbfleet.engines import GatheredRows
from dbfleet.errors import GatherLimitExceeded
from dbfleet.executor.ordering import is_nan
from dbfleet.observe import events
from dbfleet.planner.merging import Merge

logger = logging.getLogger("dbfleet")

#: binary fractions depend on the order in which they were added
_DIGITS = 9


def is_due(share: float) -> bool:
    """Whether this answer is one of the sampled ones."""
    return share > 0 and random.random() < share


def check(
    alias: str,
    merge: Merge,
    loose: Collection[int],
    merged: Callable[[], GatheredRows],
    gathered: Callable[[], GatheredRows],
    found: GatheredRows,
) -> bool:
    """Whether a gather answers like the merge did; a gather's round trips, or twice
    those and the merge's once more. An answer too large to be gathered is not checked,
    nor are the ``loose`` columns: of equal texts, such as 'a' and 'A', any may stand
    for its group.
    """
    try:
        if _agree(merge, loose, found.rows, gathered().rows):
            return True
        again = merged()
        if _agree(merge, loose, again.rows, gathered().rows):
            return True
    except GatherLimitExceeded:
        return True
    logger.error(
        "a merged answer of alias %r differs from the gathered one (%d and %d rows): "
        "report it with the query; SELF_CHECK found it. %s",
        alias,
        len(again.rows),
        len(found.rows),
        merge.describe(),
    )
    events.emit("self_check_failed", alias=alias, merge=merge.describe())
    return False


def _agree(
    merge: Merge, loose: Collection[int], one: list[Any], other: list[Any]
) -> bool:
    """Equal as sequences in the order's columns, and as wholes if nothing was cut."""
    if len(one) != len(other):
        return False
    strict = [at for at in range(merge.width) if at not in loose]
    is_cut = merge.low or merge.high is not None
    if not is_cut and Counter(_rows(one, strict)) != Counter(_rows(other, strict)):
        return False
    ordered = {key.column.at for key in merge.keys}.intersection(strict)
    if merge.is_implied or not ordered:
        return True
    places = sorted(ordered)
    return _rows(one, places) == _rows(other, places)


def _rows(rows: list[Any], places: list[int]) -> list[tuple[Any, ...]]:
    return [tuple(_value(row[at]) for at in places) for row in rows]


def _value(value: Any) -> Any:
    if isinstance(value, (float, Decimal)) and is_nan(value):
        return "NaN"
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, (memoryview, bytearray)):
        return bytes(value)
    return repr(value) if isinstance(value, (list, dict)) else value
