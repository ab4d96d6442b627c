"""A cluster of replicas and its readers on a clock that only tests move."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator

from dbfleet.health import Breaker
from dbfleet.health.load import Loads
from dbfleet.policies import Policy, Random

CLUSTER = "shop"
PRIMARY = "shop/primary"
NAMES = ("shop/replica1", "shop/replica2", "shop/replica3")


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


class Reader:
    """A breaker on its own clock, and one reader that uses it as a cursor does."""

    def __init__(self, names: tuple[str, ...] = NAMES) -> None:
        self.clock = Clock()
        self.loads = Loads(self.clock)
        self.breaker = Breaker(self.clock, self.loads)
        self.names = names

    def usable(self, share: float = 0.5) -> list[str]:
        return list(self.breaker.usable(CLUSTER, self.names, share))

    def read(self, name: str, taking_s: float, times: int = 1) -> None:
        for _ in range(times):
            start = self.loads.started(name)
            self.clock.pass_(taking_s)
            self.loads.finished(name, start)
            self.breaker.succeeded(name)

    def warm_up(self) -> None:
        for _ in range(20):
            for name in self.names:
                self.read(name, 0.001)
        self.clock.pass_(0.1)

    def eject(self, name: str) -> None:
        """Make a warm node slow until it is out."""
        self.read(name, 0.5, times=4)
        assert name not in self.usable()


class Load:
    """Readers in closed loops: each reads again as soon as it was answered.

    ``taking_s`` says how long a read takes that is sent now; infinite for one that is
    never answered.
    """

    def __init__(
        self,
        reader: Reader,
        readers: int,
        taking_s: Callable[[str, float], float],
        rng: random.Random,
        policy: Policy | None = None,
    ) -> None:
        self.reader, self.taking_s = reader, taking_s
        self.policy = policy or Random(rng=rng)
        self.answers: list[tuple[float, str, float]] = []
        now = reader.clock.now
        self._due: list[tuple[float, int, str, float]] = []
        self._number = 0
        for _ in range(readers):
            self._send(now + rng.random() / 1000)

    def _send(self, now: float) -> None:
        reader = self.reader
        reader.clock.now = now
        chosen = PRIMARY
        for name in self.policy.order(reader.usable()):
            if reader.breaker.admits(name):
                chosen = name
                break
        start = reader.loads.started(chosen)
        end = start + self.taking_s(chosen, start)
        self._number += 1
        heapq.heappush(self._due, (end, self._number, chosen, start))

    def run(self, until: float) -> Iterator[None]:
        """Let answers come, one at a time, until a moment."""
        while self._due and self._due[0][0] <= until:
            end, _, name, start = heapq.heappop(self._due)
            self.reader.clock.now = end
            self.reader.loads.finished(name, start)
            self.reader.breaker.succeeded(name)
            self.answers.append((end, name, end - start))
            self._send(end)
            yield
        self.reader.clock.now = until

    def run_to(self, until: float) -> None:
        for _ in self.run(until):
            pass

    def shares(self) -> Counter[str]:
        return Counter(name for _, name, _ in self.answers)


def seeded() -> random.Random:
    """A source of randomness whose seed a failing test prints."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)
