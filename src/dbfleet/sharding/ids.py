"""Ids for automatic primary keys: unique over shards.

Leased from home in blocks, unless ``DBFLEET["IDS"]`` says time-ordered
(:mod:`dbfleet.sharding.workers`). A lease is kept by the process and shared by its
threads; what is left of it when the process ends is lost, as with any cached sequence.
A forked child starts without.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any

from django.db.models import BigAutoField, UUIDField

from dbfleet.conf import TIME, UUID7
from dbfleet.sharding.ledger import control
from dbfleet.sharding.workers import TimeIds

#: ids leased at once; a larger block means fewer round trips and larger gaps
BLOCK = 50

_leases: dict[tuple[str, str, str], deque[int]] = {}
#: (alias, home's database) -> this process's time-ordered ids
_times: dict[tuple[str, str], TimeIds] = {}
#: guards ``_times``, ``_leases`` and its deques; held over the lease's own round trip,
#: so that concurrent threads share one block instead of each taking one
_lock = threading.Lock()


def _forget_all() -> None:
    global _lock
    _lock = threading.Lock()
    _leases.clear()
    _times.clear()  # the parent goes on with its number


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


def take_timed(wrapper: Any, count: int) -> list[int]:
    """``count`` time-ordered ids; see :meth:`TimeIds.take` for cost and errors."""
    key = _key(wrapper, "")[:2]
    with _lock:
        times = _times.get(key)
        if times is None:
            times = _times[key] = TimeIds()
    return times.take(wrapper, count)


def misfit(kind: str, opts: Any) -> str | None:
    """Why a model's primary key cannot hold ids of a kind, None if it can.

    A key that the project fills itself holds whatever it is given; no I/O.
    """
    field = opts.auto_field
    if field is None:
        return None
    if kind == TIME and not isinstance(field, BigAutoField):
        return (
            f"{field.name} is {type(field).__name__}, and time-ordered ids have 64 "
            "bits: make it a BigAutoField"
        )
    if kind == UUID7:
        return (
            f"{field.name} is {type(field).__name__}, which holds numbers: make it a "
            "UUIDField(primary_key=True)"
        )
    return None


def is_filled(kind: str, opts: Any) -> bool:
    """Whether a primary key without a value gets an id of this kind; no I/O."""
    if opts.auto_field is not None:
        return kind != UUID7
    return kind == UUID7 and uuid_field(opts) is not None


def uuid_field(opts: Any) -> Any:
    """The primary key that is given UUIDs if it has no value; None if there is none."""
    field = opts.pk
    has_default = field.has_default() or field.has_db_default()
    return field if isinstance(field, UUIDField) and not has_default else None


def took(wrapper: Any, table: str, column: str, value: int) -> None:
    """An explicit id was stored: later leases stay clear of it where the vendor's
    own counter would. Home is not asked about ids below those in hand: its counter is
    above these."""
    with _lock:
        left = _leases.get(_key(wrapper, table))
        if left and value < left[0]:
            return
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
        for home in [home for home in _times if home[0] == alias]:
            del _times[home]


def forget(wrapper: Any) -> None:
    """Drop the leases of an alias, after its counters were reset."""
    with _lock:
        for key in [key for key in _leases if key[:2] == _key(wrapper, "")[:2]]:
            del _leases[key]
