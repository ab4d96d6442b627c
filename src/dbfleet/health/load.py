"""How busy and how quick each node is, as this process sees it.

Process-wide, by node name (``default/replica1``). No lock: these are hints by which
reads are spread, and no answer becomes wrong when one of them is. What is written
without a lock is either one operation on a dict or a deque, which is atomic, or a
number that two threads may overwrite: then one of two samples is lost, and the next
read corrects it. Nothing is counted up and down, which a lost step would leave wrong
for good: the reads in flight are a dict of their own start times, and its size is
their number.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable

from dbfleet import policies

#: after so long without a slow read, half of what a slow one added is forgotten
HALF_LIFE_S = 2.0
#: so many finished reads of each node are remembered
WINDOW = 32
#: a read in flight for longer is no longer counted: its end was probably not reported
FORGET_S = 60.0
#: more reads in flight than this are looked through for ones to forget
MANY_IN_FLIGHT = 1000


class Load:
    """The load of one node."""

    __slots__ = ("average_s", "failures", "in_flight", "recent", "updated")

    def __init__(self) -> None:
        #: the start of each read in flight, oldest first
        self.in_flight: dict[float, bool] = {}
        #: the last reads that were answered: when, and after how many seconds
        self.recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self.average_s = 0.0
        self.updated = 0.0
        self.failures = 0

    def starts(self) -> list[float]:
        """The start times of the reads in flight, oldest first."""
        try:
            return list(self.in_flight)
        except RuntimeError:  # it changed meanwhile (builds without the GIL)
            return []

    def answered(self) -> list[tuple[float, float]]:
        """The last reads that were answered: when, and after how many seconds."""
        try:
            return list(self.recent)
        except RuntimeError:
            return []

    def forget_before(self, moment: float) -> None:
        """No longer count the reads in flight that started before ``moment``."""
        for start in self.starts():
            if start >= moment:
                break
            self.in_flight.pop(start, None)


class Loads:
    """The load of each node. ``clock`` counts seconds and never goes back."""

    __slots__ = ("_loads", "clock")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._loads: dict[str, Load] = {}

    def started(self, node: str) -> float:
        """A read is sent to ``node``; hand what this returns to :meth:`finished`."""
        load = self._loads.get(node) or self._loads.setdefault(node, Load())
        now = self.clock()
        in_flight = load.in_flight
        if len(in_flight) > MANY_IN_FLIGHT:
            load.forget_before(now - FORGET_S)
        in_flight[now] = True
        return now

    def finished(self, node: str, started: float, failed: bool = False) -> None:
        """The read was answered, or failed; a second call does nothing.

        The average is peak-sensitive, as Finagle's ``PeakEwma``: a slower read
        replaces it at once, a quicker one pulls it down the more the longer the
        average was left alone. A read that failed never makes a node look quicker.
        """
        load = self._loads.get(node)
        # Unknown: forgotten meanwhile, or sent by the process this one was forked from.
        if load is None or load.in_flight.pop(started, None) is None:
            return
        now = self.clock()
        latency = now - started
        if latency > load.average_s:
            load.average_s, load.updated = latency, now
        elif not failed:
            # Another thread's ``updated`` may be later than ``now``.
            kept = math.exp2(min(load.updated - now, 0.0) / HALF_LIFE_S)
            load.average_s = load.average_s * kept + latency * (1.0 - kept)
            load.updated = now
        if failed:
            load.failures += 1
        else:
            load.recent.append((now, latency))

    def in_flight(self, node: str) -> int:
        """How many reads were sent to ``node`` and are not answered yet."""
        load = self._loads.get(node)
        return len(load.in_flight) if load is not None else 0

    def latency_s(self, node: str) -> float:
        """The decayed average latency of ``node`` in seconds; 0 when unknown."""
        load = self._loads.get(node)
        if load is None:
            return 0.0
        age = max(self.clock() - load.updated, 0.0)
        return load.average_s * math.exp2(-age / HALF_LIFE_S)

    def failures(self, node: str) -> int:
        """How many reads of this process failed on ``node``."""
        load = self._loads.get(node)
        return load.failures if load is not None else 0

    def of(self, node: str) -> Load | None:
        """What is known about ``node``; None before its first read."""
        return self._loads.get(node)

    def forget(self, node: str) -> None:
        """Drop what is known about ``node``."""
        self._loads.pop(node, None)

    def reset(self) -> None:
        """Drop what is known about every node."""
        self._loads.clear()

    def leave_parent(self) -> None:
        """In a forked child: the reads in flight are those of the parent's threads.

        What the parent measured stays: the servers are the same.
        """
        for load in self._loads.values():
            load.in_flight = {}


loads = Loads()
started = loads.started
finished = loads.finished
in_flight = loads.in_flight
latency_s = loads.latency_s
failures = loads.failures

policies.measured_by(loads)
os.register_at_fork(after_in_child=loads.leave_parent)
