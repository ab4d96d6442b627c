"""Sets of values that one column may have: listed ones, or all but a few in a range.

NULL is None in a listed set. A set may be too large, never too small: the operations
answer for every value of the exact result.
"""

from __future__ import annotations

import datetime
from typing import Any, NamedTuple

#: a range with at most so many values is listed
MAX_LISTED = 200


class Loose(frozenset[Any]):
    """Listed values that a server may call equal although Python does not, such as
    decimals before they are rounded: two such sets are never intersected."""


class Span(NamedTuple):
    """Every value from ``low`` to ``high`` (both included, None is no bound)."""

    low: Any = None
    high: Any = None
    excluded: frozenset[Any] = frozenset()
    has_null: bool = False

    def has(self, value: Any) -> bool:
        if value is None:
            return self.has_null
        if self.low is not None and value < self.low:
            return False
        if self.high is not None and value > self.high:
            return False
        return value not in self.excluded


Allowed = frozenset[Any] | Span

NULL: Allowed = frozenset({None})
NOT_NULL: Allowed = Span()
ALL: Allowed = Span(has_null=True)


def span(low: Any, high: Any, has_null: bool = False) -> Allowed:
    """A range of whole numbers or dates, listed if it is small; it may be empty."""
    return _settled(Span(low, high, frozenset(), has_null))


def can_be_null(allowed: Allowed) -> bool:
    return allowed.has_null if isinstance(allowed, Span) else None in allowed


def _settled(found: Span) -> Allowed:
    if found.low is None or found.high is None:
        return found
    size, one = found.high - found.low, 1
    if isinstance(size, datetime.timedelta):
        size, one = size.days, datetime.timedelta(days=1)  # type: ignore[assignment]
    if size >= MAX_LISTED:
        return found
    listed = {found.low + one * n for n in range(size + 1)}
    return frozenset(listed - found.excluded | ({None} if found.has_null else set()))


def meet(one: Allowed, other: Allowed) -> Allowed:
    """What is in both."""
    if type(one) is frozenset and type(other) is frozenset:
        return one & other
    if isinstance(one, Loose) or isinstance(other, Loose):
        if isinstance(one, Loose) and isinstance(other, Loose):
            return min(one, other, key=len)
        return one if isinstance(one, Loose) else other
    if isinstance(one, frozenset):
        one, other = other, one
    assert isinstance(one, Span)
    if isinstance(other, frozenset):
        return frozenset(filter(one.has, other))
    lows = [s.low for s in (one, other) if s.low is not None]
    highs = [s.high for s in (one, other) if s.high is not None]
    return _settled(
        Span(
            max(lows, default=None),
            min(highs, default=None),
            one.excluded | other.excluded,
            one.has_null and other.has_null,
        )
    )


def join(one: Allowed, other: Allowed) -> Allowed:
    """A set with everything of both; exact where :func:`joins_exactly` says so."""
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        is_loose = isinstance(one, Loose) or isinstance(other, Loose)
        return Loose(one | other) if is_loose else one | other
    if isinstance(one, frozenset):
        one, other = other, one
    assert isinstance(one, Span)
    if isinstance(other, frozenset):
        values = other - {None}
        low = one.low if one.low is None else min([one.low, *values])
        high = one.high if one.high is None else max([one.high, *values])
        has_null = one.has_null or None in other
        return Span(low, high, one.excluded - values, has_null)
    excluded = {v for v in one.excluded if not other.has(v)}
    excluded |= {v for v in other.excluded if not one.has(v)}
    return Span(
        None if one.low is None or other.low is None else min(one.low, other.low),
        None if one.high is None or other.high is None else max(one.high, other.high),
        frozenset(excluded),
        one.has_null or other.has_null,
    )


def joins_exactly(one: Allowed, other: Allowed) -> bool:
    """Whether :func:`join` adds nothing that is in neither."""
    return _is_unbounded(one) and _is_unbounded(other)


def _is_unbounded(allowed: Allowed) -> bool:
    if isinstance(allowed, Span):
        return allowed.low is None and allowed.high is None
    return True


def listed(allowed: Allowed | None) -> frozenset[Any] | None:
    """The values without NULL; None if there are too many."""
    if allowed is None or isinstance(allowed, Span):
        return None
    return allowed - {None} if None in allowed else allowed
