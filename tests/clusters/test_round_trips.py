"""What freshness costs on the wire, counted by a proxy before each server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dbfleet.testing.rig.proxy import FaultProxy, rewrite_url, target_of
from tests.clusters.console import Console
from tests.support.project import Project

SETTINGS = """
{head}
from dbfleet import Cluster, databases
from dbfleet.policies import First

DATABASES = databases(default=Cluster({url!r}, replicas=[{replica!r}], policy=First()))
DATABASES["plain"] = {{**{plain!r}, "OPTIONS": {{}}}}
"""

MODELS = """
class Note(models.Model):
    text = models.CharField(max_length=40)
"""

PRELUDE = """
import dbfleet
from dbfleet import sessions
from django.db import connections, transaction
from app.models import Note


def read(using="default"):
    return list(Note.objects.using(using).filter(text="new"))


def write(using="default"):
    Note.objects.using(using).create(text="new")


def update(using="default"):
    Note.objects.using(using).filter(text="none").update(text="none")


def atomic(using="default"):
    with transaction.atomic(using=using):
        write(using)


def atomic_read(using="default"):
    with transaction.atomic(using=using):
        read(using)


for alias in ("default", "plain"):  # connect, and learn what is learned once
    read(alias), write(alias), read(alias), atomic(alias)
"""


@dataclass
class Wire:
    """A process whose servers are behind proxies that count."""

    console: Console
    primary: FaultProxy
    replica: FaultProxy
    plain: FaultProxy
    servers: Any

    @property
    def guarded(self) -> int:
        """Round trips of a read whose replica has to prove a position."""
        return 1 if self.servers.primary.engine == "postgresql" else 2

    def trips(self, code: str) -> dict[str, int]:
        """Round trips of a step, by server."""
        proxies = {
            "primary": self.primary,
            "replica": self.replica,
            "plain": self.plain,
        }
        before = {name: p.counts.round_trips for name, p in proxies.items()}
        self.console.run(code)
        found = {n: p.counts.round_trips - before[n] for n, p in proxies.items()}
        return {name: count for name, count in found.items() if count}


@pytest.fixture(scope="module", params=["postgres", "mariadb", "mysql", "postgres19"])
def wire(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Wire]:
    servers = request.getfixturevalue(request.param)
    head = ""
    if servers.primary.scheme == "mysql":
        head = "import pymysql\n\npymysql.install_as_MySQLdb()"
    database = f"test_{secrets.token_hex(6)}"
    servers.create_database(database)
    urls = [servers.url(database), servers.replica_urls(database)[0]]
    urls.append(urls[0])
    proxies = [FaultProxy(*target_of(url)) for url in urls]
    url, replica, _ = map(rewrite_url, urls, proxies)
    settings = servers.primary.settings(database) | {
        "HOST": proxies[2].host,
        "PORT": proxies[2].port,
    }
    project = Project(
        tmp_path_factory.mktemp("wire") / "project",
        databases=SETTINGS.format(head=head, url=url, replica=replica, plain=settings),
        models=MODELS,
    )
    try:
        project.manage("migrate", "--run-syncdb", "--verbosity=0")
        servers.wait_until_caught_up()
        console = Console(project)
        try:
            console.run(PRELUDE)
            yield Wire(console, proxies[0], proxies[1], proxies[2], servers)
        finally:
            console.close()
    finally:
        project.close()
        for proxy in proxies:
            proxy.stop()
        servers.drop_database(database)


@pytest.mark.parametrize("what", ["write", "update", "atomic", "atomic_read"])
def test_a_commit_costs_no_more_than_djangos(wire: Wire, what: str) -> None:
    plain = wire.trips(f"{what}('plain')")["plain"]
    assert wire.trips(f"{what}()") == {"primary": plain}


def test_a_guarded_read_costs_one_round_trip(wire: Wire) -> None:
    """Two of MariaDB and MySQL, whose position is not asked in the same message."""
    assert wire.trips("read('plain')") == {"plain": 1}
    wire.console.run("read(); atomic()")
    wire.servers.wait_until_caught_up()
    assert wire.trips("assert sessions.applied.of('default/replica1'); read()") == {
        "replica": wire.guarded
    }
    assert wire.trips("read()") == {"replica": 1}


def test_a_read_after_a_write_in_autocommit_asks_nobody(wire: Wire) -> None:
    """But for MariaDB's INSERT, which answers with rows and tells nothing else."""
    wire.console.run("write()")
    wire.servers.wait_until_caught_up()
    asked = {"primary": 1} if wire.servers.primary.engine == "mariadb" else {}
    assert wire.trips("read()") == {**asked, "replica": wire.guarded}


def test_a_read_after_a_transaction_that_read_asks_nobody(wire: Wire) -> None:
    """The position comes with its COMMIT; of MariaDB and MySQL only if it wrote."""
    wire.console.run("write('plain'); atomic_read()")
    wire.servers.wait_until_caught_up()
    asked = {} if wire.servers.primary.engine == "postgresql" else {"primary": 1}
    assert wire.trips("read()") == {**asked, "replica": wire.guarded}


def test_moving_from_the_primary_asks_it_once(wire: Wire) -> None:
    wire.console.run(
        """
        write("plain")
        with dbfleet.consistency("strong"):
            read()
        """
    )
    wire.servers.wait_until_caught_up()
    assert wire.trips("read()") == {"primary": 1, "replica": wire.guarded}
    assert wire.trips("read()") == {"replica": 1}
