"""Time-ordered 64-bit ids: their bits, and who may give which.

An id is a millisecond, a worker number and a sequence. Home's ledger has, for each
number, the last millisecond that was promised to somebody. A process raises it first
and gives ids of the milliseconds in between afterwards.

Guards one invariant: a millisecond of a number is promised once. So ids are unique
whatever clocks, pauses, forks and ends of processes do; clocks only order them. No I/O.

Source: Twitter's Snowflake (2010), whose layout this is: 41 bits, 10 bits, 12 bits.
There a number belongs to a machine by configuration and uniqueness rests on its clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

#: 2024-01-01T00:00:00Z, the millisecond 0 of ids, in milliseconds of Unix time
EPOCH_MS = 1_704_067_200_000
WORKER_BITS, SEQUENCE_BITS = 10, 12
WORKERS = 1 << WORKER_BITS
#: ids of one millisecond and number
PER_MS = 1 << SEQUENCE_BITS
#: 2093-09-06: ids stay positive in a signed column of 64 bits
END_MS = 1 << 41

#: promised at once, from home's time on: the use between two questions to home
WINDOW_MS = 10_000
#: promised at least, where ids are ahead of home's clock already
LEAST_MS = 1_000
#: how far ids may be ahead of home's clock, after it was set back
MAX_AHEAD_MS = 600_000


class Promise(NamedTuple):
    """Milliseconds of a number, both ends included; ``before_ms``: what the ledger
    has to have now, None for no row."""

    worker: int
    before_ms: int | None
    first_ms: int
    until_ms: int


def next_promise(
    ledger: Mapping[int, int],
    now_ms: int,
    *,
    mine: tuple[int, int] | None,
    given_ms: int,
    choose: Callable[[Sequence[int]], int],
    only_ms: int = 0,
) -> Promise:
    """What to ask the ledger for.

    ``ledger`` is number -> last promised millisecond, ``now_ms`` home's time; ``mine``
    is the number that this process had and what it was promised, ``given_ms`` its last
    millisecond used. Its own number serves until somebody else took it; otherwise a
    number whose promises have passed, or, if there is none, the one next to it.
    ``only_ms``: so many milliseconds and no more.
    """
    if mine is not None and ledger.get(mine[0], -1) <= mine[1]:
        # Less than was promised: the ledger is an older one, and learns it again.
        worker, floor_ms = mine
    else:
        free = [one for one in range(WORKERS) if ledger.get(one, -1) < now_ms]
        # By chance: where a promise was lost with its server, few would meet.
        worker = choose(free) if free else min(ledger, key=ledger.__getitem__)
        floor_ms = ledger.get(worker, -1)
    first_ms = max(now_ms, floor_ms + 1, given_ms + 1, 0)
    end_ms = first_ms + only_ms
    if not only_ms:
        end_ms = max(now_ms + WINDOW_MS, first_ms + LEAST_MS)
    until_ms = end_ms - 1
    return Promise(worker, ledger.get(worker), first_ms, until_ms)


class Window:
    """What is left of a promise. Not thread-safe."""

    def __init__(self, promise: Promise) -> None:
        self.worker, self.until_ms = promise.worker, promise.until_ms
        self._ms, self._sequence = promise.first_ms, 0

    @property
    def given_ms(self) -> int:
        """The last millisecond that ids may have been given of."""
        return self._ms

    def take(self, now_ms: int, count: int) -> list[int]:
        """Up to ``count`` ids, each above all before; fewer once the window is over.

        Of the present millisecond; of later ones where that has no more, or where the
        clock was ahead before.
        """
        found: list[int] = []
        if now_ms > self._ms:
            self._ms, self._sequence = min(now_ms, self.until_ms + 1), 0
        while len(found) < count and self._ms <= self.until_ms:
            some = min(count - len(found), PER_MS - self._sequence)
            first = (self._ms << WORKER_BITS | self.worker) << SEQUENCE_BITS
            first |= self._sequence
            found.extend(range(first, first + some))
            self._sequence += some
            if self._sequence == PER_MS:
                self._ms, self._sequence = self._ms + 1, 0
        return found
