"""UUIDs of version 7: in the order of their making, without a question to anybody.

Guards one invariant: UUIDs of one process rise, whatever its clock does, and no two
processes rely on each other's clocks or numbers: 62 random bits are in each.

Source: RFC 9562, section 5.7 (layout) and 6.2, method 1 (a counter in ``rand_a``).
Python has ``uuid.uuid7`` from 3.14 on.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import uuid

#: a clock that was set back by more is believed; by less, its time stands still
_MAX_AHEAD_MS = 10_000
_COUNTER_BITS = 12
_RANDOM_BITS = 62
_VERSION, _VARIANT = 7, 2

_lock = threading.Lock()
#: the millisecond and the counter of the last UUID
_last = (0, 0)


def _forget() -> None:
    global _lock, _last
    _lock = threading.Lock()
    _last = (0, 0)


os.register_at_fork(after_in_child=_forget)


def _after(last: tuple[int, int], now_ms: int, seed: int) -> tuple[int, int]:
    """The millisecond and counter that follow ``last``; ``seed`` is below half of the
    counter's range, so that a millisecond has room for 2048 at least."""
    last_ms, counter = last
    if now_ms > last_ms or now_ms < last_ms - _MAX_AHEAD_MS:
        return now_ms, seed
    if counter + 1 < 1 << _COUNTER_BITS:
        return last_ms, counter + 1
    return last_ms + 1, seed


def uuid7() -> uuid.UUID:
    """A UUID of version 7, above those that this process made before.

    Made of Unix time in milliseconds, a counter of 12 bits and 62 random ones. A clock
    that is set back by up to 10 s changes nothing; by more, the order begins anew.
    Fork-safe, thread-safe, no I/O. Good as a field's ``default``.
    """
    global _last
    with _lock:
        now_ms = time.time_ns() // 1_000_000
        _last = ms, counter = _after(_last, now_ms, secrets.randbits(_COUNTER_BITS - 1))
    value = ms << _COUNTER_BITS + 4 | _VERSION << _COUNTER_BITS | counter
    value = (value << 2 | _VARIANT) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    return uuid.UUID(int=value)


# Migrations name a default by its module: the public one, which stays.
uuid7.__module__ = "dbfleet"
