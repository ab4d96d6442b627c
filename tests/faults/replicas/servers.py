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
REGISTERS = 24
#: a query of a replica that a paused or killed server may not answer
HEAL_TIMEOUT_S = 60.0


class Servers:
    """The servers of a run, by name: ``primary``, ``replica1``, ..."""

    def __init__(self, rig: Rig, engine: str) -> None:
        self.engine = engine
        start: Callable[..., Any] = (
            rig.postgresql_cluster if engine == "postgresql" else rig.mariadb_cluster
        )
        self.cluster = start(replicas=REPLICAS, name="fleet", databases=[DATABASE])
        self.by_name = {"primary": self.cluster.primary}
        for number, replica in enumerate(self.cluster.replicas, 1):
            self.by_name[f"replica{number}"] = replica
        self.proxies: dict[str, FaultProxy] = {}
        self.urls: dict[str, str] = {}
        for name, server in self.by_name.items():
            self.proxies[name], self.urls[name] = rig.proxy(server.url(DATABASE))

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the primary itself."""
        return list(self.by_name["primary"].execute(sql, dbname=DATABASE))

    def heal(self, name: str) -> None:
        """Undo whatever was done to one server; returns once it serves."""
        server = self.by_name[name]
        self.proxies[name].forward()
        server.resume()
        server.start()
        if name == "primary":
            return

        def replays() -> bool:
            with contextlib.suppress(Exception):
                server.resume_replay()
                return True
            return False

        wait_until(replays, timeout_s=HEAL_TIMEOUT_S, what=f"{name} replays again")

    def heal_all(self) -> None:
        for name in self.by_name:
            self.heal(name)
