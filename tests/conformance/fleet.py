"""The servers of a run, and the settings modules that name their databases.

The plain engine and the alias under test use the same servers in the same way, so
that their times compare: on PostgreSQL and MariaDB databases of one primary, on
SQLite files (never in-memory databases) opened with the same pragmas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import TYPE_CHECKING, Any

from tests.conformance.sources import CannotRun
from tests.support import newer  # noqa: F401  (names MySQL where it was fetched)

if TYPE_CHECKING:
    from dbfleet.testing.rig import MariaDBCluster, MySQLCluster, PostgresCluster

    Cluster = PostgresCluster | MariaDBCluster | MySQLCluster

CLUSTER_REPLICAS = 2
# Neither run keeps its files, so neither waits for the disk.
SQLITE_PRAGMAS = "PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY"
COMMON_SETTINGS = """\
SECRET_KEY = "conformance"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
TEST_RUNNER = "conformance_recorder.RecordingRunner"
"""
# PyMySQL makes a TLS context for each connection, which takes longer than most tests.
MYSQL_SETTINGS = """\
import functools
import ssl

import pymysql

ssl.create_default_context = functools.lru_cache(ssl.create_default_context)
pymysql.install_as_MySQLdb()
"""
# Django 5.2's own test settings say so; on 6.1 it is the default of the tests' models
# that counts, and setting it makes tests fail.
AUTO_FIELD = 'DEFAULT_AUTO_FIELD = "django.db.models.AutoField"\n'


@dataclass(frozen=True)
class Databases:
    """The expressions of one run's ``DATABASES``, as Python source."""

    plain: str
    subject: str


@contextlib.contextmanager
def serve(
    alias: str, engine: str, shards: int, path: Path, *, keep: bool
) -> Iterator[Databases]:
    """Start what the run needs; stop it at the end unless it is kept."""
    if engine == "sqlite":
        yield databases(alias, SQLiteNodes(path), shards, replicas=0)
        return
    from dbfleet.testing.rig import Rig, RigError

    replicas = CLUSTER_REPLICAS if alias == "cluster" else 0
    cluster: Cluster
    try:
        with Rig() as rig:
            if engine == "postgresql":
                cluster = rig.postgresql_cluster(replicas=replicas)
            elif engine == "mariadb":
                cluster = rig.mariadb_cluster(replicas=replicas)
            else:
                cluster = rig.mysql_cluster(replicas=replicas)
            yield databases(alias, ServerNodes(cluster), shards, replicas)
            if keep:
                pids = " ".join(str(server.pid) for server in rig.servers)
                print(f"servers kept; end them: kill {pids}; rm -rf {rig.directory}")
                rig.detach()
    except RigError as error:
        raise CannotRun(str(error)) from error


def databases(
    alias: str, nodes: SQLiteNodes | ServerNodes, shards: int, replicas: int
) -> Databases:
    """``default`` and ``other`` on the plain engine, and on the alias under test."""
    plain = {"default": nodes.plain("plain"), "other": nodes.plain("plain_other")}
    other = pformat(nodes.plain("other"))
    if alias in ("plain", "placement"):
        again = {"default": nodes.plain("again"), "other": nodes.plain("other")}
        subject = pformat(again)
    elif alias == "cluster":
        on_replicas = [nodes.replica("home", number) for number in range(replicas)]
        default = (
            f"Cluster({nodes.node('home')!r}, replicas={on_replicas!r}, "
            "TEST={'REPLICAS': True})"
        )
        subject = f"{{**databases(default={default}), 'other': {other}}}"
    else:
        spread = {f"s{n}": nodes.node(f"s{n}") for n in range(1, shards + 1)}
        default = f"Sharded(home={nodes.node('home')!r}, shards={spread!r})"
        subject = f"{{**databases(default={default}), 'other': {other}}}"
    return Databases(pformat(plain), subject)


class SQLiteNodes:
    """Databases as SQLite files in one directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def plain(self, name: str) -> dict[str, Any]:
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(self.path / f"{name}.sqlite3"),
            "OPTIONS": {"init_command": SQLITE_PRAGMAS},
            "TEST": {"NAME": str(self.path / f"test_{name}.sqlite3")},
        }

    def node(self, name: str) -> dict[str, Any]:
        return self.plain(name)

    def replica(self, name: str, number: int) -> dict[str, Any]:
        raise LookupError(f"SQLite does not replicate {name} to replica {number}")


class ServerNodes:
    """Databases of one cluster of the rig, created when they are first named."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.created: set[str] = set()

    def plain(self, name: str) -> dict[str, Any]:
        self.create(name)
        return self.cluster.primary.settings(name)

    def node(self, name: str) -> str:
        self.create(name)
        return self.cluster.primary.url(name)

    def replica(self, name: str, number: int) -> str:
        self.create(name)
        return self.cluster.replicas[number].url(name)

    def create(self, name: str) -> None:
        # The tests use databases of their own; some features are asked before.
        if name not in self.created:
            self.cluster.create_database(name)
            self.created.add(name)


def write_settings(
    path: Path, alias: str, engine: str, django: str, expression: str
) -> Path:
    """Write one settings module; ``alias`` is ``plain`` for the plain engine."""
    parts = ['"""Settings of a conformance run; written by it."""\n']
    if engine in ("mariadb", "mysql"):
        parts.append(MYSQL_SETTINGS)
    if alias in ("cluster", "sharded"):
        parts.append("from dbfleet import Cluster, Sharded, databases\n")
    parts.append(COMMON_SETTINGS)
    if django == "5.2":
        parts.append(AUTO_FIELD)
    if alias == "placement":
        parts.append('DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]\n')
    parts.append(f"DATABASES = {expression}\n")
    path.write_text("\n".join(parts), encoding="utf-8")
    return path
