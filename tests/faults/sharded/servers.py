"""The servers of a run: one for each node, each behind a proxy.

Guards one invariant: what the harness itself asks goes past the proxies and past the
alias under test.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dbfleet.testing.rig import FaultProxy, Rig
from tests.support import newer  # noqa: F401  (names MySQL where it was fetched)

NODES = ("home", "a", "b")
DATABASE = "faults"


class Servers:
    """A primary for each node, and a replica for one of them."""

    def __init__(self, rig: Rig, engine: str, claims: str = "home") -> None:
        self.engine, self.claims = engine, claims
        #: the nodes that may hold the decision of a commit
        self.deciders = NODES if claims == "shards" else ("home",)
        start: Any = getattr(rig, f"{engine}_cluster")
        self.clusters = {
            node: start(replicas=int(node == "a"), name=node, databases=[DATABASE])
            for node in NODES
        }
        self.proxies: dict[str, FaultProxy] = {}
        self.urls: dict[str, str] = {}
        for node, cluster in self.clusters.items():
            self.proxies[node], self.urls[node] = rig.proxy(cluster.url(DATABASE))
        self.replica = self.clusters["a"].replicas[0]
        self.replica_url = self.replica.url(DATABASE)

    def rows(self, node: str, sql: str) -> list[tuple[Any, ...]]:
        """Ask a node's own server."""
        return list(self.clusters[node].primary.execute(sql, dbname=DATABASE))

    def prepared(self) -> dict[str, list[str]]:
        """Node -> transactions that are prepared there."""
        is_postgresql = self.engine == "postgresql"
        sql = "SELECT gid FROM pg_prepared_xacts" if is_postgresql else "XA RECOVER"
        held = {}
        for node in NODES:
            names = [row[-1] for row in self.rows(node, sql)]
            if names:
                held[node] = [
                    name.decode() if isinstance(name, bytes) else str(name)
                    for name in names
                ]
        return held

    def heal(self) -> None:
        """Bring every server back and let everything pass."""
        for node in NODES:
            self.clusters[node].primary.start()
            self.proxies[node].forward()
        self.replica.resume_replay()

    def options(self) -> dict[str, Any]:
        """Options of each connection: no lock and no connect is waited for long."""
        if self.engine == "postgresql":
            return {"connect_timeout": 5, "options": "-c lock_timeout=500ms"}
        return {
            "connect_timeout": 5,
            "init_command": "SET innodb_lock_wait_timeout = 1",
        }

    def gather(
        self, sql: str, nodes: Iterable[str] = ("a", "b")
    ) -> list[tuple[Any, ...]]:
        """Rows of several nodes."""
        return [row for node in nodes for row in self.rows(node, sql)]
