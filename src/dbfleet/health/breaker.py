"""Which nodes may be asked: one that failed or is slow is left alone for a while.

Process-wide, since every thread sees the same servers. No thread and no probe: a node
is tried again by one read after its pause. A node is

- closed: asked as any other;
- open: left alone, for a pause that doubles up to a bound; jitter spreads the returns;
- half-open: its pause is over, and one read at a time may try it.

An error opens it at once. Slowness is judged by comparison, at most every
``CHECK_S``: a read is slow when it takes longer than ``FLOOR_S``, than ``FACTOR``
times the median of the node's peers, and clearly longer than all but the slowest of
the peers' reads. A node is ejected when its last ``IN_A_ROW`` reads were slow, or half
of the last ``MANY``. A read that is still unanswered counts with its age, so a node
that hangs is noticed before it answers. What slows all replicas alike ejects none.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence

from dbfleet.health import drain
from dbfleet.health.load import FORGET_S, Loads, loads
from dbfleet.observe import events

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 15.0
#: the first pause of a node that was ejected because it is slow
SLOW_PAUSE_S = 2.0
#: a trial that reported nothing after this time is forgotten; another may begin
TRIAL_S = 5.0

#: slowness is judged at most once in this time, for each cluster
CHECK_S = 0.05
#: no read that is quicker is slow, whatever the peers do
FLOOR_S = 0.1
FACTOR = 3.0
RARE_FACTOR = 1.5
#: in place of ``FLOOR_S`` when there is no peer to compare with
ALONE_FLOOR_S = 1.0
#: older reads say nothing about how a node is now
RECENT_S = 10.0
IN_A_ROW = 4
MANY = 16
MAX_EJECTED_SHARE = 0.5
MANY_CLUSTERS = 1000


class Pause:
    """How long a node is left alone, and the trial after it."""

    __slots__ = ("times", "trial", "until")

    def __init__(self) -> None:
        #: how many pauses in a row
        self.times = 0
        self.until = 0.0
        #: when the one read that may try the node was let through
        self.trial: float | None = None

    def begin(self, now: float, first_s: float) -> None:
        """Leave the node alone from ``now``, twice as long as the last time."""
        pause_s = min(first_s * 2 ** min(self.times, 10), MAX_PAUSE_S)
        self.times += 1
        self.until = now + pause_s * random.uniform(0.8, 1.2)
        self.trial = None

    def may_try(self, now: float) -> bool:
        """Whether the pause is over and no trial is under way."""
        if now < self.until:
            return False
        return self.trial is None or now >= self.trial + TRIAL_S


class Breaker:
    """The state of every node. ``clock`` counts seconds and never goes back.

    ``loads`` tells how quick the nodes are, by the same clock.
    """

    __slots__ = ("_failed", "_lock", "_next_check", "_slow", "clock", "loads")

    def __init__(
        self, clock: Callable[[], float] | None = None, loads: Loads | None = None
    ) -> None:
        self.clock = clock or time.monotonic
        self.loads = loads or Loads(self.clock)
        #: nodes that failed, and nodes that were slow; a node may be in both
        self._failed: dict[str, Pause] = {}
        self._slow: dict[str, Pause] = {}
        #: cluster -> when slowness is judged next
        self._next_check: dict[str, float] = {}
        #: guards the dicts and their pauses; nothing waits while it is held
        self._lock = threading.Lock()

    # -- which nodes may be asked ---------------------------------------------

    def usable(
        self,
        cluster: str,
        names: Sequence[str],
        max_ejected_share: float = MAX_EJECTED_SHARE,
    ) -> Sequence[str]:
        """Those of ``names``, a cluster's replicas, that may be asked now.

        ``names`` itself when nothing is wrong; drained nodes are left out. Of a
        cluster's replicas at most ``max_ejected_share`` are left alone for being slow,
        but one may always be; 0 ejects none. Pass all replicas, since they are compared
        with each other; for one of them ask :meth:`is_usable`. Call :meth:`admits`
        before reading from the one that was chosen. No round trip.
        """
        now = self.clock()
        if now >= self._next_check.get(cluster, now):
            self._check(cluster, names, now, max_ejected_share)
        if not (self._failed or self._slow or drain.current):
            return names
        left = tuple(name for name in names if self._may_try(name, now))
        return names if len(left) == len(names) else left

    def is_troubled(self) -> bool:
        """Whether anything at all is known against any node."""
        return bool(self._failed or self._slow or drain.current)

    def is_usable(self, name: str) -> bool:
        """Whether this node is one that :meth:`usable` would leave in."""
        if not (self._failed or self._slow or drain.current):
            return True
        return self._may_try(name, self.clock())

    def is_open(self, name: str) -> bool:
        """Whether the node is to be left alone because it failed or is slow."""
        now = self.clock()
        return not all(pause.may_try(now) for pause in self._pauses(name))

    def admits(self, name: str) -> bool:
        """Whether this read may go to the node, asked just before it does.

        True for a closed node. The trial of a half-open node is given to one caller,
        who has to read from it and report :meth:`succeeded` or :meth:`failed`.
        """
        if not (name in self._failed or name in self._slow):
            return True
        with self._lock:
            now = self.clock()
            pauses = self._pauses(name)
            if not all(pause.may_try(now) for pause in pauses):
                return False
            for pause in pauses:
                pause.trial = now
            return True

    def _may_try(self, name: str, now: float) -> bool:
        if name in drain.current:
            return False
        return all(pause.may_try(now) for pause in self._pauses(name))

    def _pauses(self, name: str) -> list[Pause]:
        found = self._failed.get(name), self._slow.get(name)
        return [pause for pause in found if pause is not None]

    # -- reports --------------------------------------------------------------

    def failed(self, name: str) -> None:
        """The node could not serve; leave it alone, longer each time.

        Reads that were under way when it failed count once.
        """
        with self._lock:
            now = self.clock()
            pause = self._failed.setdefault(name, Pause())
            if now >= pause.until:
                pause.begin(now, FIRST_PAUSE_S)

    def succeeded(self, name: str) -> None:
        """The node served: forget its failures. Whether it is slow is measured."""
        if name in self._failed:
            with self._lock:
                self._failed.pop(name, None)

    def forget(self, name: str) -> None:
        """Drop what is known about a node that is gone."""
        with self._lock:
            self._failed.pop(name, None)
            self._slow.pop(name, None)
        self.loads.forget(name)

    def reset(self) -> None:
        """Forget every failure, every ejection and every measurement."""
        with self._lock:
            self._failed.clear()
            self._slow.clear()
            self._next_check.clear()
        self.loads.reset()

    def ejected(self) -> frozenset[str]:
        """The nodes that are left alone, or on trial, because they are slow."""
        return frozenset(tuple(self._slow))

    def renew_lock(self) -> None:
        """In a forked child: a thread that stayed behind may have held the lock."""
        self._lock = threading.Lock()

    # -- slowness -------------------------------------------------------------

    def _check(
        self, cluster: str, names: Sequence[str], now: float, share: float
    ) -> None:
        """Judge every replica of a cluster; a check that runs elsewhere is enough."""
        if not self._lock.acquire(blocking=False):
            return
        changed = []
        try:
            if len(self._next_check) > MANY_CLUSTERS:
                self._next_check.clear()  # those of run-time databases come and go
            self._next_check[cluster] = now + CHECK_S
            for name in names:
                load = self.loads.of(name)
                if load is not None and load.in_flight:
                    load.forget_before(now - FORGET_S)
            for name in names:
                if name in self._slow and self._judge_trial(name, names, now):
                    changed.append(("replica_returned", name))
            for name in names:
                if self._is_slow(name, names, now) and self._may_eject(
                    name, names, now, share
                ):
                    self._slow.setdefault(name, Pause()).begin(now, SLOW_PAUSE_S)
                    changed.append(("replica_ejected", name))
        finally:
            self._lock.release()
        for event, name in changed:
            events.emit(event, node=name)

    def _may_eject(
        self, name: str, names: Sequence[str], now: float, share: float
    ) -> bool:
        if share <= 0:
            return False
        ejected = sum(other in self._slow for other in names)
        if ejected >= max(int(share * len(names)), 1):
            return False
        # The last of several is slow because it has the others' readers: without it
        # the primary would be next.
        return len(names) == 1 or any(
            self._may_try(other, now) for other in names if other != name
        )

    def _is_slow(self, name: str, names: Sequence[str], now: float) -> bool:
        if name in self._slow or not _mostly_above(FLOOR_S, self._taken(name, now)):
            return False  # the usual end, before comparing
        bound = self._bound(name, names, now)
        return _mostly_above(bound, self._taken(name, now, bound))

    def _judge_trial(self, name: str, names: Sequence[str], now: float) -> bool:
        """End a trial that has a result; whether the node is back."""
        pause = self._slow[name]
        if pause.trial is None:
            return False
        # Older reads may end meanwhile: they were sent before the pause.
        tried = [s for start, s in self._samples(name, now) if start >= pause.trial]
        if not tried:
            return False
        if tried[-1] > self._bound(name, names, now):
            pause.begin(now, SLOW_PAUSE_S)
            return False
        load = self.loads.of(name)
        if load is None or not any(
            at - taken >= pause.trial for at, taken in load.answered()
        ):
            return False  # not slow so far, but not answered either
        load.recent.clear()
        del self._slow[name]
        return True

    def _taken(self, name: str, now: float, late_s: float = FLOOR_S) -> list[float]:
        return [taken for _, taken in self._samples(name, now, late_s)]

    def _samples(
        self, name: str, now: float, late_s: float = FLOOR_S
    ) -> list[tuple[float, float]]:
        """When recent reads of a node started, and how long they took or are taking.

        In the order of their starts: long reads are in flight for long, so at any
        moment most of those in flight may be long ones though few reads are. The
        quick ones that started after them show that the node is well. Of those in
        flight only the ones that take longer than ``late_s`` already are known.
        """
        load = self.loads.of(name)
        if load is None:
            return []
        answered, starts = load.answered(), load.starts()
        samples = [(at - s, s) for at, s in answered if now - at <= RECENT_S]
        samples += [(at, now - at) for at in starts if now - at > late_s]
        samples.sort()
        return samples

    def _bound(self, name: str, names: Sequence[str], now: float) -> float:
        """How long a read may take, going by the node's peers, in seconds."""
        peers = [
            other
            for other in names
            if other != name and not self._pauses(other) and other not in drain.current
        ]
        known = [found for peer in peers if (found := self._seconds(peer, now))]
        if not known:
            primary = f"{name.rpartition('/')[0]}/primary"
            known = [found for found in [self._seconds(primary, now)] if found]
        if not known:
            return ALONE_FLOOR_S
        # The lower median over the peers: half of them may be slow themselves.
        middle = (len(known) - 1) // 2
        typical = sorted(found[len(found) // 2] for found in known)[middle]
        rare = sorted(found[int(0.95 * (len(found) - 1))] for found in known)[middle]
        return max(FLOOR_S, FACTOR * typical, RARE_FACTOR * rare)

    def _seconds(self, name: str, now: float) -> list[float]:
        """How long recent reads took, quickest first; empty when too few are known."""
        seconds = sorted(self._taken(name, now))
        return seconds if len(seconds) >= IN_A_ROW else []


def _mostly_above(bound: float, seconds: list[float]) -> bool:
    """Whether the newest of ``seconds`` all are, or half of the last many."""
    if len(seconds) < IN_A_ROW:
        return False
    if all(taken > bound for taken in seconds[-IN_A_ROW:]):
        return True
    return sum(taken > bound for taken in seconds[-MANY:]) * 2 >= MANY


breaker = Breaker(loads.clock, loads)
usable = breaker.usable
is_usable = breaker.is_usable
admits = breaker.admits
is_open = breaker.is_open
failed = breaker.failed
succeeded = breaker.succeeded
forget = breaker.forget
reset = breaker.reset

os.register_at_fork(after_in_child=breaker.renew_lock)
