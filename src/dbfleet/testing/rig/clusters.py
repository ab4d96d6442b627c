"""A running primary with its replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from dbfleet.testing.rig.mariadb import MariaDBReplica, MariaDBServer
from dbfleet.testing.rig.mysql import MySQLReplica, MySQLServer
from dbfleet.testing.rig.postgresql import PostgresReplica, PostgresServer
from dbfleet.testing.rig.server import DatabaseServer, ReplicaServer

PrimaryT = TypeVar("PrimaryT", bound=DatabaseServer)
ReplicaT = TypeVar("ReplicaT", bound=ReplicaServer)


class ServerCluster(Generic[PrimaryT, ReplicaT]):
    """A primary server and its replicas; each database exists on all of them."""

    def __init__(self, primary: PrimaryT, replicas: Sequence[ReplicaT]) -> None:
        self.primary = primary
        self.replicas = list(replicas)

    @property
    def servers(self) -> list[DatabaseServer]:
        """The primary and the replicas."""
        return [self.primary, *self.replicas]

    def create_database(self, name: str) -> None:
        """Create an empty database; returns once every replica has it."""
        self.primary.create_database(name)
        self.wait_until_caught_up()

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending its connections."""
        self.primary.drop_database(name)

    def url(self, dbname: str) -> str:
        """Return the URL of a database on the primary."""
        return self.primary.url(dbname)

    def replica_urls(self, dbname: str) -> list[str]:
        """Return the URLs of a database on each replica."""
        return [replica.url(dbname) for replica in self.replicas]

    def wait_until_caught_up(self, deadline_s: float = 30.0) -> None:
        """Return once each replica shows all that the primary has acknowledged."""
        for replica in self.replicas:
            replica.wait_until_caught_up(deadline_s)

    def stop(self, mode: str = "fast") -> None:
        """Stop the replicas, then the primary; they can be started again."""
        for server in reversed(self.servers):
            server.stop(mode)


PostgresCluster = ServerCluster[PostgresServer, PostgresReplica]
MariaDBCluster = ServerCluster[MariaDBServer, MariaDBReplica]
MySQLCluster = ServerCluster[MySQLServer, MySQLReplica]
