"""The servers of the store, started from nothing.

Guards one invariant: whatever starts here ends with ``stop()``, and each server
listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dbfleet.testing.rig import PostgresCluster, PostgresReplica, PostgresServer, Rig
from dbfleet.testing.rig.errors import ServerUnavailable

SHARDS = ("a", "b", "c")
REPLICAS = 2


class Servers(ABC):
    """Real servers, and what the settings need to know of them."""

    engine: str
    addresses: dict[str, Any]

    def __init__(self) -> None:
        self.rig = Rig(password=secrets.token_hex(12))

    @property
    def directory(self) -> Path:
        """Where everything lies; gone after ``stop()``."""
        return self.rig.directory

    @abstractmethod
    def described(self) -> list[tuple[str, str]]:
        """Aliases and where their nodes are, for a person."""

    def stop(self) -> None:
        """End every server and delete every file; may be called again."""
        self.rig.stop()

    def environment(self) -> str:
        """``EXAMPLE_SERVERS``. It holds passwords: for environments, not for eyes."""
        return json.dumps(self.addresses)


class PostgresServers(Servers):
    """A primary with two replicas, and one server for each shard.

    The catalogue's primary also holds the home of ``sales`` and, to compare with, the
    single database: six servers are enough for a small machine.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        require_drivers()
        with ThreadPoolExecutor(2) as pool:
            # Shards start beside the primary and its replicas.
            starting = pool.submit(self._start_shards)
            catalogue = self.rig.postgresql_cluster(
                REPLICAS,
                name="catalogue",
                databases=["catalogue", "sales_home", "single"],
            )
            shards = starting.result()
        version = catalogue.primary.execute("SHOW server_version")[0][0]
        self.engine = f"PostgreSQL {str(version).split()[0]}"
        self.primary: PostgresServer = catalogue.primary
        self.replicas: list[PostgresReplica] = catalogue.replicas
        self.shards = {name: shard.primary for name, shard in shards.items()}
        self.addresses = {
            "is_postgresql": True,
            "catalogue": catalogue.url("catalogue"),
            "catalogue_replicas": catalogue.replica_urls("catalogue"),
            "sales_home": catalogue.url("sales_home"),
            "sales_shards": {name: one.url("sales") for name, one in shards.items()},
            "single": catalogue.primary.settings("single"),
        }

    def _start_shards(self) -> dict[str, PostgresCluster]:
        return {
            name: self.rig.postgresql_cluster(name=f"shard-{name}", databases=["sales"])
            for name in SHARDS
        }

    def described(self) -> list[tuple[str, str]]:
        ports = ", ".join(str(replica.port) for replica in self.replicas)
        shards = ", ".join(f"{name} {one.port}" for name, one in self.shards.items())
        return [
            ("default", f"primary on port {self.primary.port}, replicas on {ports}"),
            ("sales", f"home on port {self.primary.port}, shards {shards}"),
        ]


class SQLiteServers(Servers):
    """One file for each node. SQLite has no replicas."""

    engine = "SQLite"

    def __init__(self) -> None:
        super().__init__()
        names = ["catalogue", "sales_home", "single", *(f"sales_{s}" for s in SHARDS)]
        files = self.rig.sqlite(databases=names)
        self.addresses = {
            "is_postgresql": False,
            "catalogue": files.settings("catalogue"),
            "catalogue_replicas": [],
            "sales_home": files.settings("sales_home"),
            "sales_shards": {name: files.settings(f"sales_{name}") for name in SHARDS},
            "single": files.settings("single"),
        }

    def described(self) -> list[tuple[str, str]]:
        return [
            ("default", "one file, no replicas"),
            ("sales", f"a file for home and one each for shards {', '.join(SHARDS)}"),
        ]


def require_drivers() -> None:
    """Raise ``ServerUnavailable`` where Django could not talk to PostgreSQL."""
    for module, package in (
        ("psycopg", "psycopg[binary]"),
        ("dj_database_url", "dj-database-url"),
    ):
        if importlib.util.find_spec(module) is None:
            raise ServerUnavailable(f"{module} is missing: pip install '{package}'")
