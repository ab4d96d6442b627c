"""What gathers cost lately: measured by this process, kept for a while, in memory.

Bounded in statements and in age; shared by the threads of the process.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from dbfleet.planner.sources import Measure

#: statements that are remembered, those that ran last
MAX_TEXTS = 1000
#: tables grow, servers change: what is older was measured of something else
MAX_AGE_S = 600.0
#: for how long foreign tables that were found useless are not looked at again
FAULT_S = 30.0
#: how much the latest measurement counts
_WEIGHT = 0.3

_lock = threading.Lock()
#: (alias, hash of the text) -> when it was first measured, what it costs
_known: OrderedDict[tuple[str, int], tuple[float, Measure]] = OrderedDict()
#: alias -> until when, what is wrong with its foreign tables
_faults: dict[str, tuple[float, str]] = {}


def measured(alias: str, text: str) -> Measure:
    """What is known of a statement."""
    key = alias, hash(text)
    with _lock:
        since, found = _known.get(key, (0.0, Measure()))
        if time.monotonic() - since > MAX_AGE_S:
            _known.pop(key, None)
            return Measure()
        return found


def by_rows(alias: str, text: str, seconds: float, rows: int) -> None:
    """A statement ran over rows that the process fetched."""
    before = measured(alias, text)
    took = _decayed(before.by_rows_s, seconds)
    _note(alias, text, before._replace(rows=rows, by_rows_s=took, is_too_large=False))


def too_large(alias: str, text: str) -> None:
    """Its rows passed the limits."""
    _note(alias, text, measured(alias, text)._replace(is_too_large=True))


def by_fdw(alias: str, text: str, seconds: float) -> None:
    """A statement ran over foreign tables; infinite where that failed."""
    before = measured(alias, text)
    _note(alias, text, before._replace(by_fdw_s=_decayed(before.by_fdw_s, seconds)))


def _decayed(before: float | None, seconds: float) -> float:
    if before is None or float("inf") in (before, seconds):
        return seconds
    return before + _WEIGHT * (seconds - before)


def _note(alias: str, text: str, measure: Measure) -> None:
    key, now = (alias, hash(text)), time.monotonic()
    with _lock:
        since, _ = _known.get(key, (now, measure))
        if now - since > MAX_AGE_S:
            since = now
        _known[key] = since, measure
        _known.move_to_end(key)
        while len(_known) > MAX_TEXTS:
            _known.popitem(last=False)


def fault(alias: str) -> str | None:
    """What was wrong with an alias's foreign tables, if that was a moment ago."""
    until, text = _faults.get(alias, (0.0, ""))
    return text if time.monotonic() < until else None


def note_fault(alias: str, text: str) -> None:
    """Leave an alias's foreign tables alone for a while."""
    _faults[alias] = time.monotonic() + FAULT_S, text


def forget(alias: str) -> None:
    """Look again: foreign tables were made or removed."""
    _faults.pop(alias, None)
    with _lock:
        for key in [one for one in _known if one[0] == alias]:
            del _known[key]
