"""The nemesis: breaks servers and what leads to them, several at a time, and heals.

Guards one invariant: a server has one fault at a time, and each fault ends.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from dbfleet.testing.rig.proxy import DIRECTIONS
from tests.faults.replicas.promotions import Promotions
from tests.faults.replicas.recorder import Shared
from tests.faults.replicas.servers import Servers

#: how often of each fault, on a replica and on the primary
FAULTS: dict[str, tuple[float, float]] = {
    "pause": (12, 0),
    "late": (3, 0),
    "freeze": (3, 0.5),
    "kill": (0.7, 0.2),
    "regress": (0.3, 0),
    "cut": (2, 1),
    "delay": (2, 0.7),
    "silence": (2, 0.5),
    "lose": (6, 6),
    "mute": (0.5, 4),
    "unanswered": (0, 3),
    "refuse": (1, 0.5),
}
LASTS_S = (0.03, 0.4)
#: a replica stays behind for longer, now and then
LONG_PAUSE_S = (0.5, 2.0)
BETWEEN_S = (0.01, 0.12)
END_TIMEOUT_S = 120
PROMOTES_S = (3.0, 8.0)


class Nemesis:
    """Runs in a thread of its own until :meth:`stop`."""

    def __init__(
        self,
        servers: Servers,
        seed: str,
        kinds: list[str],
        shared: Shared,
        *,
        promotes: bool = False,
    ) -> None:
        self.servers, self.kinds = servers, kinds
        self.faults: Counter[str] = Counter()
        self.problems: list[str] = []
        self._chance = random.Random(f"{seed}-nemesis")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nemesis", daemon=True)
        self._promotions = Promotions(servers, shared) if promotes else None
        #: server -> when its fault ends
        self._ends: dict[str, float] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End every fault; returns once all servers serve."""
        self._is_over.set()
        self._thread.join(END_TIMEOUT_S)
        self.servers.heal_all()

    def _run(self) -> None:
        try:
            next_s = time.monotonic() + self._chance.uniform(*PROMOTES_S)
            while not self._is_over.wait(self._chance.uniform(*BETWEEN_S)):
                now = time.monotonic()
                for name in [n for n, end in self._ends.items() if end <= now]:
                    self.servers.heal(name)
                    del self._ends[name]
                self._break_one()
                if self._promotions is not None and time.monotonic() > next_s:
                    self._promote(self._promotions)
                    next_s = time.monotonic() + self._chance.uniform(*PROMOTES_S)
        except BaseException as error:
            self.problems.append(f"the nemesis died of {error!r}")
            raise

    def _promote(self, promotions: Promotions) -> None:
        self.servers.heal_all()
        self._ends.clear()
        is_lossy = self._chance.random() < 0.5
        names = [name for name in self.servers.by_name if name != self.servers.leader]
        self._chance.shuffle(names)
        promotions.promote(names, is_lossy=is_lossy)
        self.faults["promotion with loss" if is_lossy else "promotion"] += 1

    @property
    def lost(self) -> frozenset[int]:
        """Lines that were lost on purpose."""
        return frozenset(self._promotions.lost if self._promotions else ())

    def _break_one(self) -> None:
        names = [name for name in self.servers.by_name if name not in self._ends]
        if not names:
            return
        name = self._chance.choice(names)
        weights = [FAULTS[kind][name == self.servers.leader] for kind in self.kinds]
        if not any(weights):
            return
        kind = self._chance.choices(self.kinds, weights)[0]
        lasts_s = self._chance.uniform(*LASTS_S)
        if kind == "regress":
            lasts_s = self._chance.uniform(*LONG_PAUSE_S)
        if kind in ("pause", "late") and self._chance.random() < 0.2:
            lasts_s = self._chance.uniform(*LONG_PAUSE_S)
        actions: dict[str, Callable[[str], None]] = {
            "pause": lambda name: self.servers.by_name[name].pause_replay(),
            "freeze": lambda name: self.servers.by_name[name].pause(),
            "kill": lambda name: self.servers.by_name[name].kill(),
            "late": self.servers.delay_replay,
            "regress": self.servers.regress,
            "cut": lambda name: self.servers.proxies[name].cut(),
            "delay": lambda name: self.servers.proxies[name].delay(0.02),
            "silence": lambda name: self.servers.proxies[name].black_hole(),
            "lose": self._lose,
            "mute": lambda name: self.servers.proxies[name].cut_after(0),
            "unanswered": self._lose_commit,
            "refuse": self._refuse,
        }
        role = "primary" if name == self.servers.leader else "replica"
        self._ends[name] = time.monotonic() + lasts_s
        actions[kind](name)
        self.faults[f"{kind} {role}"] += 1

    def _lose(self, name: str) -> None:
        """Lose an answer, a request, or the end of one."""
        direction = self._chance.choice(DIRECTIONS)
        count = self._chance.choice((0, 0, 50, 300, 1500))
        self.servers.proxies[name].cut_after(count, direction)

    def _lose_commit(self, name: str) -> None:
        self.servers.proxies[name].cut_answer_to("COMMIT")

    def _refuse(self, name: str) -> None:
        self.servers.proxies[name].refuse()
        self.servers.proxies[name].cut()
