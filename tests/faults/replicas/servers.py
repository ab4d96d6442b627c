"""A primary with three replicas, each behind a proxy.

Guards one invariant: what the harness itself asks goes past the proxies and past the
alias under test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from dbfleet.testing.rig import FaultProxy, Rig, wait_until

DATABASE = "faults"
REPLICAS = 3
#: clients of each kind of process, and so registers: each has one
CLIENTS = {"threads": 6, "tasks": 8, "jobs": 4}
REGISTERS = sum(CLIENTS.values())
#: how late commits are applied, and how old a state a killed replica comes back with
LATE_S, REGRESS_S = 0.15, 3
#: a query of a replica that a paused or killed server may not answer
HEAL_TIMEOUT_S = 60.0
#: how long a replica may take to catch up beside clients that keep the machine busy
CATCH_UP_S = 120.0


class Servers:
    """The servers of a run, by name: ``primary``, ``replica1``, ..."""

    def __init__(self, rig: Rig, engine: str) -> None:
        self.engine, self._rig = engine, rig
        #: the name of the server that is the primary now
        self.leader = "primary"
        start: dict[str, Callable[..., Any]] = {
            "postgresql": rig.postgresql_cluster,
            "mariadb": rig.mariadb_cluster,
            "mysql": rig.mysql_cluster,
        }
        self.cluster = start[engine](
            replicas=REPLICAS, name="fleet", databases=[DATABASE]
        )
        self.by_name: dict[str, Any] = {"primary": self.cluster.primary}
        for number, replica in enumerate(self.cluster.replicas, 1):
            self.by_name[f"replica{number}"] = replica
        self.proxies: dict[str, FaultProxy] = {}
        self.urls: dict[str, str] = {}
        for name, server in self.by_name.items():
            self.proxies[name], self.urls[name] = rig.proxy(server.url(DATABASE))

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the primary itself."""
        return list(self.by_name[self.leader].execute(sql, dbname=DATABASE))

    def heal(self, name: str) -> None:
        """Undo whatever was done to one server; returns once it serves."""
        server = self.by_name[name]
        self.proxies[name].forward()
        server.resume()
        server.start()
        if name == self.leader:
            return

        def replays() -> bool:
            with contextlib.suppress(Exception):
                if self.engine == "postgresql":
                    server.delay_replay(0)
                server.resume_replay()
                return True
            return False

        wait_until(replays, timeout_s=HEAL_TIMEOUT_S, what=f"{name} replays again")

    def delay_replay(self, name: str) -> None:
        """Apply each commit late, and all that comes before it in time."""
        server: Any = self.by_name[name]
        if self.engine == "postgresql":
            server.delay_replay(LATE_S)
        else:
            server.pause_replay()

    def regress(self, name: str) -> None:
        """Kill a replica and start it with a state from before: PostgreSQL serves
        once it is consistent, and goes on with the log it had from there."""
        server: Any = self.by_name[name]
        if self.engine == "postgresql":
            # In force at the next start only.
            late = f"ALTER SYSTEM SET recovery_min_apply_delay = '{REGRESS_S}s'"
            server.execute(late)
        server.kill()
        server.start()

    def directs(self) -> list[str]:
        """The addresses of all servers past the proxies, in order."""
        return [server.url(DATABASE) for server in self.by_name.values()]

    def followers(self) -> list[Any]:
        return [one for name, one in self.by_name.items() if name != self.leader]

    def rejoin(self, name: str) -> None:
        """Replace a server by a new replica of the leader, under the same address."""
        old, leader = self.by_name[name], self.by_name[self.leader]
        self.by_name[name] = self._rig.rejoin(old, leader)

    def settle(self) -> None:
        """All servers have all there is, and come back with no less than that."""
        self.wait_until_caught_up()
        if self.engine == "postgresql":
            for server in [self.by_name[self.leader], *self.followers()]:
                server.execute("CHECKPOINT")
                self.wait_until_caught_up()

    def wait_until_caught_up(self) -> None:
        for server in self.followers():
            server.wait_until_caught_up(CATCH_UP_S)

    def heal_all(self) -> None:
        for name in self.by_name:
            self.heal(name)
