"""The nemesis: breaks a node, heals it, settles what errors asked for, again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from dbfleet.testing.rig.proxy import DIRECTIONS
from tests.faults.settling import settle
from tests.faults.sharded.clients import Clients
from tests.faults.sharded.servers import NODES, Servers


class Nemesis:
    """Runs in a thread of its own until :meth:`stop`."""

    def __init__(self, servers: Servers, clients: Clients, seed: str) -> None:
        self.servers, self.clients = servers, clients
        self.faults = 0
        self.problems: list[str] = []
        self._chance = random.Random(f"{seed}-nemesis")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nemesis")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(120)

    def _run(self) -> None:
        try:
            while not self._is_over.wait(self._chance.uniform(0.02, 0.15)):
                self._choose()(self._chance.choice(NODES))
                self.faults += 1
                self._is_over.wait(self._chance.uniform(0.02, 0.2))
                self.servers.heal()
                self.settle()
        except BaseException as error:
            self.problems.append(f"the nemesis died of {error!r}")
            raise

    def settle(self) -> None:
        """Do what the errors say; a text is done with once all its nodes answered."""
        while self.clients.unsettled:
            settle(self.servers, self.clients.unsettled[0])
            self.clients.unsettled.pop(0)

    def _choose(self) -> Callable[[str], None]:
        kinds = {
            self._lose_bytes: 10,
            self._cut: 4,
            self._delay: 2,
            self._refuse: 2,
            self._silence: 2,
            self._pause_replica: 4,
            self._kill: 1,
        }
        return self._chance.choices(list(kinds), list(kinds.values()))[0]

    def _lose_bytes(self, node: str) -> None:
        direction = self._chance.choice(DIRECTIONS)
        count = self._chance.choice((0, 0, 50, 300, 1500))
        self.servers.proxies[node].cut_after(count, direction)

    def _cut(self, node: str) -> None:
        self.servers.proxies[node].cut()

    def _delay(self, node: str) -> None:
        self.servers.proxies[node].delay(0.02)

    def _refuse(self, node: str) -> None:
        self.servers.proxies[node].refuse()
        self.servers.proxies[node].cut()

    def _silence(self, node: str) -> None:
        self.servers.proxies[node].black_hole()

    def _pause_replica(self, node: str) -> None:
        self.servers.replica.pause_replay()

    def _kill(self, node: str) -> None:
        self.servers.clusters[node].primary.kill()
