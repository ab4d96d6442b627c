"""Real database clusters, started from Python.

Guards two invariants: all that a rig makes lies in one directory of its own, and
``stop()`` leaves neither a process nor a file. Needs no settings of Django's.

::

    with Rig() as rig:
        shop = rig.postgresql_cluster(replicas=2, databases=["shop"])
        proxy, url = rig.proxy(shop.url("shop"))
        shop.replicas[0].pause_replay()
        proxy.black_hole()
"""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from dbfleet.testing.rig.clusters import (
    MariaDBCluster,
    MySQLCluster,
    PostgresCluster,
    ServerCluster,
)
from dbfleet.testing.rig.errors import (
    DeadlineExceeded,
    RigError,
    ServerFailed,
    ServerUnavailable,
)
from dbfleet.testing.rig.identity import make_base_directory, unprivileged
from dbfleet.testing.rig.mariadb import MariaDBReplica, MariaDBServer
from dbfleet.testing.rig.mysql import MySQLReplica, MySQLServer
from dbfleet.testing.rig.postgresql import PostgresReplica, PostgresServer
from dbfleet.testing.rig.postgresql_binaries import postgresql_in
from dbfleet.testing.rig.processes import guarded
from dbfleet.testing.rig.proxy import FaultProxy, rewrite_url, target_of
from dbfleet.testing.rig.server import DatabaseServer, ReplicaServer
from dbfleet.testing.rig.sqlite import SQLiteDirectory
from dbfleet.testing.rig.waiting import wait_until

__all__ = [
    "DatabaseServer",
    "DeadlineExceeded",
    "FaultProxy",
    "MariaDBCluster",
    "MariaDBReplica",
    "MariaDBServer",
    "MySQLCluster",
    "MySQLReplica",
    "MySQLServer",
    "PostgresCluster",
    "PostgresReplica",
    "PostgresServer",
    "ReplicaServer",
    "Rig",
    "RigError",
    "SQLiteDirectory",
    "ServerCluster",
    "ServerFailed",
    "ServerUnavailable",
    "wait_until",
]

ClusterT = TypeVar("ClusterT", PostgresCluster, MariaDBCluster, MySQLCluster)
#: the kind of replica of each engine
REPLICAS: dict[str, Callable[..., ReplicaServer]] = {
    "postgresql": PostgresReplica,
    "mariadb": MariaDBReplica,
    "mysql": MySQLReplica,
}


class Rig:
    """Starts database servers and ends them all; a context manager.

    Everything lies in a fresh directory below ``base_dir``, or below the directory
    for temporary files when none is given or the servers' user cannot enter it.
    ``durable=False`` trades safety against a loss of power, and nothing else, for
    speed. Without ``password`` PostgreSQL trusts every user of this machine;
    MariaDB and MySQL get a random one.
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str] | None = None,
        durable: bool = False,
        *,
        password: str | None = None,
    ) -> None:
        self.durable = durable
        self.password = password
        self.directory = make_base_directory(
            Path(base_dir) if base_dir is not None else None,
            [unprivileged("postgres"), unprivileged("mysql")],
        )
        guarded.add_directory(self.directory)
        self.servers: list[DatabaseServer] = []
        self._proxies: list[FaultProxy] = []
        self._names: set[str] = set()
        self._owner = os.getpid()
        self._is_stopped = False
        atexit.register(self.stop)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def postgresql_cluster(
        self,
        replicas: int = 0,
        *,
        name: str = "postgresql",
        databases: Iterable[str] = (),
        options: dict[str, str] | None = None,
        programs: str | os.PathLike[str] | None = None,
    ) -> PostgresCluster:
        """Start a PostgreSQL primary with streaming replicas.

        ``databases`` are created; ``options`` are settings of all its servers;
        ``programs`` is the directory of another PostgreSQL than the machine's.
        Raises ``ServerUnavailable`` or ``ServerFailed``.
        """
        found = None
        if programs is not None:
            found = postgresql_in(Path(programs), unprivileged("postgres"))
        primary = self._primary(PostgresServer, name, options, binaries=found)
        followers = self._followers(PostgresReplica, primary, replicas)
        return self._complete(PostgresCluster(primary, followers), databases)

    def mariadb_cluster(
        self,
        replicas: int = 0,
        *,
        name: str = "mariadb",
        databases: Iterable[str] = (),
        options: dict[str, str] | None = None,
    ) -> MariaDBCluster:
        """Start a MariaDB primary with GTID replicas, which are read-only.

        ``databases`` are created; ``options`` are settings of all its servers.
        Raises ``ServerUnavailable`` or ``ServerFailed``.
        """
        primary = self._primary(MariaDBServer, name, options)
        followers = self._followers(MariaDBReplica, primary, replicas)
        return self._complete(MariaDBCluster(primary, followers), databases)

    def mysql_cluster(
        self,
        replicas: int = 0,
        *,
        name: str = "mysql",
        databases: Iterable[str] = (),
        options: dict[str, str] | None = None,
    ) -> MySQLCluster:
        """Start a MySQL primary with GTID replicas, which are read-only.

        ``databases`` are created; ``options`` are settings of all its servers.
        Raises ``ServerUnavailable`` or ``ServerFailed``.
        """
        primary = self._primary(MySQLServer, name, options)
        followers = self._followers(MySQLReplica, primary, replicas)
        return self._complete(MySQLCluster(primary, followers), databases)

    def _primary(
        self, kind: Any, name: str, options: dict[str, str] | None, **more: Any
    ) -> Any:
        primary = kind(
            f"{self._unique(name)}-primary",
            self.directory,
            durable=self.durable,
            password=self.password,
            options=options,
            **more,
        )
        self._start(primary)
        return primary

    def _followers(self, kind: Any, primary: Any, count: int) -> list[Any]:
        name = primary.name.removesuffix("-primary")
        return [
            kind(f"{name}-replica{number}", primary) for number in range(1, count + 1)
        ]

    def rejoin(self, server: DatabaseServer, primary: DatabaseServer) -> ReplicaServer:
        """End a server and start a replica of ``primary`` in its place, on its port.

        Its data is copied anew: an old primary may hold what the new one lacks.
        """
        # However often: a name is part of a path, whose length has a limit.
        name = self._unique(f"{server.name.partition('-again')[0]}-again")
        replica = REPLICAS[server.engine](name, primary)
        server.kill()
        replica.port = server.port
        if server.engine in ("mariadb", "mysql"):
            # A replica passes over what a server of its own number wrote.
            number = server.port + 100_000 * len(self.servers)
            replica.options["server-id"] = str(number)
        self._start(replica)
        return replica

    def sqlite(
        self, *, name: str = "sqlite", databases: Iterable[str] = ()
    ) -> SQLiteDirectory:
        """Make a directory of SQLite files and create ``databases`` in it."""
        files = SQLiteDirectory(self._unique(name), self.directory)
        files.start()
        for database in databases:
            files.create_database(database)
        return files

    def proxy(self, url: str) -> tuple[FaultProxy, str]:
        """Start a fault proxy before the server of ``url``; return it and its URL."""
        proxy = FaultProxy(*target_of(url))
        self._proxies.append(proxy)
        return proxy, rewrite_url(url, proxy)

    def stop(self) -> None:
        """End every server and proxy and delete every file; may be called again."""
        if self._is_stopped or os.getpid() != self._owner:
            return
        while self._proxies:
            self._proxies.pop().stop()
        while self.servers:
            self.servers.pop().discard()
        shutil.rmtree(self.directory, ignore_errors=True)
        guarded.keep_directory(self.directory)
        self._is_stopped = True
        atexit.unregister(self.stop)

    def detach(self) -> None:
        """Let servers and files outlive this interpreter; ends the proxies.

        Who detaches must know each server's process to end it later. ``stop()``
        does nothing then.
        """
        while self._proxies:
            self._proxies.pop().stop()
        while self.servers:
            self.servers.pop().detach()
        guarded.keep_directory(self.directory)
        self._is_stopped = True
        atexit.unregister(self.stop)

    def _start(self, server: DatabaseServer) -> None:
        # Known before it starts: a server that fails half-way is ended too.
        self.servers.append(server)
        server.start()

    def _complete(self, cluster: ClusterT, databases: Iterable[str]) -> ClusterT:
        for replica in cluster.replicas:
            self._start(replica)
        for database in databases:
            cluster.create_database(database)
        return cluster

    def _unique(self, name: str) -> str:
        number, unique = 1, name
        while unique in self._names:
            number += 1
            unique = f"{name}{number}"
        self._names.add(unique)
        return unique
