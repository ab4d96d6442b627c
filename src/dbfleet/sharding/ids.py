"""Ids for automatic primary keys: leased from home in blocks, unique over shards.

A lease is kept by the process and shared by its threads; what is left of it when
the process ends is lost, as with any cached sequence. A forked child starts without.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any

from dbfleet.sharding.ledger import control

#: ids leased at once; a larger block means fewer round trips and larger gaps
BLOCK = 50

_leases: dict[tuple[str, str, str], deque[int]] = {}
#: guards ``_leases`` and its deques; held over the lease's own round trip, so that
#: concurrent threads share one block instead of each taking one
_lock = threading.Lock()


def _forget_all() -> None:
    global _lock
    _lock = threading.Lock()
    _leases.clear()


os.register_at_fork(after_in_child=_forget_all)


def _key(wrapper: Any, table: str) -> tuple[str, str, str]:
    return wrapper.alias, str(wrapper.settings_dict["NAME"]), table


def take(wrapper: Any, table: str, column: str, count: int) -> list[int]:
    """``count`` ids that no other insert gets; one round trip for each block.

    On SQLite ids come one lease at a time inside the caller's transaction.
    """
    engine = wrapper.engine

    def lease(wanted: int) -> list[int]:
        return list(
            engine.lease_ids(wrapper, lambda: control(wrapper), table, column, wanted)
        )

    if not engine.gathers_at_home:
        return lease(count)
    with _lock:
        left = _leases.setdefault(_key(wrapper, table), deque())
        if len(left) < count:
            left.extend(lease(max(BLOCK, count - len(left))))
        return [left.popleft() for _ in range(count)]


def took(wrapper: Any, table: str, column: str, value: int) -> None:
    """An explicit id was stored: later leases stay clear of it where the vendor's
    own counter would."""
    with _lock:
        left = _leases.get(_key(wrapper, table))
        wrapper.engine.ensure_ids_above(
            wrapper, lambda: control(wrapper), table, column, value
        )
        if left and value >= left[0]:
            left.clear()


def restart(wrapper: Any, table: str, highest: int | None = None) -> None:
    """The next lease starts above ``highest``; two round trips to home."""
    with control(wrapper) as home:
        sql = "DELETE FROM dbfleet_sequence WHERE name = %s"
        wrapper.engine.run(home, sql, [table]).close()
    if highest and highest > 0:
        wrapper.engine.ensure_ids_above(
            wrapper, lambda: control(wrapper), table, "", highest
        )


def forget_alias(alias: str) -> None:
    """Give up the ids that were leased for an alias, whatever its database."""
    with _lock:
        for key in [key for key in _leases if key[0] == alias]:
            del _leases[key]


def forget(wrapper: Any) -> None:
    """Drop the leases of an alias, after its counters were reset."""
    with _lock:
        for key in [key for key in _leases if key[:2] == _key(wrapper, "")[:2]]:
            del _leases[key]
