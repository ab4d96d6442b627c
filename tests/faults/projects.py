"""Projects whose every node stands behind a fault proxy of the project's own process.

Guards one invariant: code run in such a project breaks exactly the node it names, in
its own process, so that no timing between processes decides a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.project import Project

if TYPE_CHECKING:
    from dbfleet.testing.rig import MariaDBCluster, PostgresCluster

MODELS = """
class Account(models.Model):
    id = models.IntegerField(primary_key=True)
    balance = models.IntegerField(default=0)


class Person(models.Model):
    id = models.IntegerField(primary_key=True)
    email = models.CharField(max_length=50, unique=True)


class Order(models.Model):
    customer = models.IntegerField(null=True)
    text = models.TextField(default="")


class Note(models.Model):
    text = models.CharField(max_length=50, unique=True)
"""

SETTINGS = """
DBFLEET = {"LOCAL": ["app.Note"], "SHARD_KEYS": {"app.Order": "customer"}}
SILENCED_SYSTEM_CHECKS = ["dbfleet.E104", "dbfleet.W105"]
"""

#: what code run in the project begins with
PRELUDE = """\
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections, transaction

from app.models import *

proxies = settings.PROXIES


def create_tables():
    call_command("migrate", run_syncdb=True, verbosity=0)
    connection.close()  # what a migration sets keeps reads on its connection


def ids(shard, count=3):
    '''Primary keys that live on a shard.'''
    field = Account._meta.pk
    found = (n for n in range(1, 10_000) if shard_of(n) == shard)
    return [next(found) for _ in range(count)]


def shard_of(pk):
    return connection.routing.shard_of((Account._meta.pk,), (pk,))


def refused(action, *args, **kwargs):
    try:
        action(*args, **kwargs)
    except Exception as error:
        return {
            "type": type(error).__name__,
            "code": getattr(error, "code", None),
            "text": str(error),
        }
    return None


def balances():
    return sorted(Account.objects.values_list("id", "balance"))
"""

_SOURCE = """\
from dbfleet import Cluster, Sharded, databases
from dbfleet.testing.rig import FaultProxy, rewrite_url, target_of

URLS = {urls!r}
PROXIES = {{name: FaultProxy(*target_of(url)) for name, url in URLS.items()}}
NODES = {{
    name: rewrite_url(url, PROXIES[name]) + {query!r} for name, url in URLS.items()
}}
DATABASES = databases(default={declaration})
DATABASES["default"].update({more!r})
"""


def database_source(
    urls: Mapping[str, str],
    declaration: str,
    *,
    query: str = "",
    more: Mapping[str, Any] | None = None,
) -> str:
    """Return settings: ``declaration`` is an expression over ``NODES[name]``."""
    head = ""
    if any(url.startswith("mysql") for url in urls.values()):
        head = "import pymysql\n\npymysql.install_as_MySQLdb()\n"
    return head + _SOURCE.format(
        urls=dict(urls), declaration=declaration, query=query, more=dict(more or {})
    )


def sharded_source(
    urls: Mapping[str, str], *, claims: str = "home", **options: Any
) -> str:
    """Return settings of a sharded alias: home, and a shard for each other URL."""
    shards = ", ".join(f"{n!r}: NODES[{n!r}]" for n in urls if n != "home")
    declaration = f"Sharded(home=NODES['home'], shards={{{shards}}}, claims={claims!r})"
    return database_source(urls, declaration, **options)


@dataclass(frozen=True)
class Fleet:
    """A project on a sharded alias, and the servers behind it."""

    project: Project
    cluster: PostgresCluster | MariaDBCluster
    #: node -> name of its database
    databases: dict[str, str]
    #: the nodes that may hold the decision of a commit
    deciders: tuple[str, ...] = ("home",)

    @property
    def engine(self) -> str:
        return str(self.cluster.primary.engine)

    def run(self, code: str, **options: Any) -> Any:
        """Run code after :data:`PRELUDE`; return its ``result``."""
        return self.project.run(PRELUDE + code, **options)

    def rows(self, node: str, sql: str) -> list[tuple[Any, ...]]:
        """Ask a node's own database, past the alias under test."""
        return self.cluster.primary.execute(sql, dbname=self.databases[node])

    def prepared(self) -> dict[str, list[str]]:
        """Node -> transactions that are prepared there."""
        if self.engine == "postgresql":
            sql = (
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
            )
            found = {node: self.rows(node, sql) for node in self.databases}
            return {
                node: [gid for (gid,) in rows] for node, rows in found.items() if rows
            }
        # MariaDB does not say of which database a branch is; its number is its shard's.
        shards = [node for node in self.databases if node != "home"]
        held: dict[str, list[str]] = {}
        for *_, name in self.cluster.primary.execute("XA RECOVER"):
            gid = name.decode() if isinstance(name, bytes) else str(name)
            number = int(gid.rsplit("_", 1)[1].removeprefix("c"))
            held.setdefault(shards[number], []).append(gid)
        return held


def make_fleet(
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
    cluster: PostgresCluster | MariaDBCluster,
    nodes: Sequence[str] = ("home", "a", "b"),
    *,
    models: str = MODELS,
    settings: str = SETTINGS,
    **options: Any,
) -> Fleet:
    """Build a project on a sharded alias over fresh databases of one server."""
    names = {node: new_database(cluster) for node in nodes}
    urls = {node: cluster.url(name) for node, name in names.items()}
    built = project(
        databases=sharded_source(urls, **options), models=models, settings=settings
    )
    is_spread = options.get("claims") == "shards"
    return Fleet(built, cluster, names, tuple(names) if is_spread else ("home",))
