"""Time-ordered ids of one process: worker numbers, taken from home's ledger.

``dbfleet_worker`` has one row for each number that was ever used: the last millisecond
that was promised. It is raised, and committed, before an id is given
(:mod:`dbfleet.sharding.clock_ids`). Between two questions to home the time is home's
own, as it was answered, and what has passed since by the process's monotonic clock; the
machine's wall clock is in no id.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from django.db.utils import IntegrityError, OperationalError, ProgrammingError

from dbfleet.errors import IdsUnavailable
from dbfleet.sharding.clock_ids import (
    END_MS,
    EPOCH_MS,
    LEAST_MS,
    MAX_AHEAD_MS,
    PER_MS,
    Promise,
    Window,
    next_promise,
)
from dbfleet.sharding.ledger import control, create_tables

#: how often in a row others may be faster, or a window be over before it is used
ATTEMPTS = 10
#: clocks of the process that disagree by so much: it slept, or was copied
_JUMP_S = 1.0


class TimeIds:
    """The ids of one process in one home. Thread-safe; not for a forked child."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic, self._wall = monotonic, wall
        self._lock = threading.Lock()
        self._window: Window | None = None
        #: home's time when the window began, and both clocks then
        self._start = (0, 0.0, 0.0)
        #: the number that was used last, and what it was promised
        self._mine: tuple[int, int] | None = None
        self._given_ms = -1

    def take(self, wrapper: Any, count: int) -> list[int]:
        """``count`` ids, each above all that this process gave before.

        Two round trips to home, on a connection of its own, for each
        :data:`~dbfleet.sharding.clock_ids.WINDOW_MS` of use; none in between. In a
        transaction on SQLite a promise would be part of it and serves one call, in
        three statements. Raises IdsUnavailable E407, E408; no id is given then.
        """
        found: list[int] = []
        with self._lock:
            for _ in range(ATTEMPTS + count // (LEAST_MS * PER_MS)):
                window = self._current()
                if window is not None:
                    found += window.take(self._now_ms(), count - len(found))
                    self._given_ms = window.given_ms
                    if len(found) == count:
                        return found
                if _is_undone_with_caller(wrapper):
                    return found + self._take_once(wrapper, count - len(found))
                self._window = self._promised(wrapper)
        raise IdsUnavailable(
            "E407",
            f"alias {wrapper.alias!r}: no time-ordered id, since what home promised "
            f"was over {ATTEMPTS} times before it could be used: this process stands "
            "still for seconds at a time; nothing was written",
        )

    def _take_once(self, wrapper: Any, count: int) -> list[int]:
        """From a promise that a rollback takes back, which is as long as needed."""
        self._window = None
        window = self._promised(wrapper, only_ms=-(-count // PER_MS))
        found = window.take(0, count)
        self._given_ms = window.given_ms
        return found

    def _current(self) -> Window | None:
        """The window, unless the process slept or was copied since it began."""
        _, monotonic, wall = self._start
        passed_s = self._monotonic() - monotonic
        if abs(self._wall() - wall - passed_s) > _JUMP_S:
            self._window = None
        return self._window

    def _now_ms(self) -> int:
        home_ms, monotonic, _ = self._start
        return home_ms + int((self._monotonic() - monotonic) * 1000)

    def _promised(self, wrapper: Any, only_ms: int = 0) -> Window:
        """A new window; raises IdsUnavailable."""
        with control(wrapper) as node:
            for _ in range(ATTEMPTS):
                now_ms, promised = self._ask_or_make(wrapper, node)
                promise = next_promise(
                    promised,
                    now_ms,
                    mine=self._mine,
                    given_ms=self._given_ms,
                    choose=secrets.choice,
                    only_ms=only_ms,
                )
                _check(wrapper, promise, now_ms)
                if _is_promised(wrapper.engine, node, promise):
                    self._start = now_ms, self._monotonic(), self._wall()
                    self._mine = promise.worker, promise.until_ms
                    return Window(promise)
        raise IdsUnavailable(
            "E407",
            f"alias {wrapper.alias!r}: no worker number for time-ordered ids, since "
            f"other processes were faster {ATTEMPTS} times; nothing was written",
        )

    def _ask_or_make(self, wrapper: Any, node: Any) -> tuple[int, dict[int, int]]:
        engine = wrapper.engine
        try:
            if _is_undone_with_caller(wrapper):
                # A file's transaction that reads first cannot write after another did.
                sql = "UPDATE dbfleet_worker SET promised_ms = 0 WHERE number = -1"
                engine.run(node, sql).close()
            return self._ask(engine, node)
        except (ProgrammingError, OperationalError) as error:
            if engine.gathers_at_home and isinstance(error, OperationalError):
                raise  # from a server it does not mean a missing table
        create_tables(engine, node)
        return self._ask(engine, node)

    def _ask(self, engine: Any, node: Any) -> tuple[int, dict[int, int]]:
        """Home's time, and what the ledger promised; one round trip."""
        rows = engine.fetch(
            node,
            f"SELECT {engine.clock_ms_sql}, number, promised_ms "
            "FROM (SELECT 1 AS one) one LEFT JOIN dbfleet_worker ON 1 = 1",
        )
        promised = {int(row[1]): int(row[2]) for row in rows if row[1] is not None}
        return int(rows[0][0]) - EPOCH_MS, promised


def _is_undone_with_caller(wrapper: Any) -> bool:
    """Whether ``control`` gives the caller's own transaction."""
    if wrapper.engine.gathers_at_home:
        return False
    return wrapper.in_atomic_block or not wrapper.get_autocommit()


def _check(wrapper: Any, promise: Promise, now_ms: int) -> None:
    """Refuse ids whose time would be far from home's, or needs more bits."""
    ahead_s = (promise.first_ms - now_ms) / 1000
    if promise.first_ms - now_ms > MAX_AHEAD_MS:
        raise IdsUnavailable(
            "E408",
            f"alias {wrapper.alias!r}: time-ordered ids were given for {ahead_s:g} s "
            "after home's time, so its clock was set back: set it right, or, if it is, "
            "start this process anew; nothing was written",
        )
    if promise.until_ms >= END_MS:
        raise IdsUnavailable(
            "E408",
            f"alias {wrapper.alias!r}: home's clock is past 2093, for which time-"
            "ordered ids have no bits: set it right; nothing was written",
        )


def _is_promised(engine: Any, node: Any, promise: Promise) -> bool:
    """Raise the ledger's row, unless another process did; one round trip.

    Rows only grow, so a row as it was read was not changed meanwhile.
    """
    worker, before_ms, _, until_ms = promise
    if before_ms is None:
        sql = "INSERT INTO dbfleet_worker (number, promised_ms) VALUES (%s, %s)"
        try:
            engine.run(node, sql, [worker, until_ms]).close()
        except IntegrityError:
            return False
        return True
    cursor = engine.run(
        node,
        "UPDATE dbfleet_worker SET promised_ms = %s "
        "WHERE number = %s AND promised_ms = %s",
        [until_ms, worker, before_ms],
    )
    is_promised: bool = cursor.rowcount == 1
    cursor.close()
    return is_promised
