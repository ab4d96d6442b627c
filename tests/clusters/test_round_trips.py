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
from dbfleet import Cluster, databases
from dbfleet.policies import First

DATABASES = databases(default=Cluster({url!r}, replicas=[{replica!r}], policy=First()))
DATABASES["plain"] = {{
    **{plain!r}, "ENGINE": "django.db.backends.postgresql", "OPTIONS": {{}},
}}
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


@pytest.fixture(scope="module")
def wire(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    database = f"test_{secrets.token_hex(6)}"
    postgres.create_database(database)
    urls = [postgres.url(database), postgres.replica_urls(database)[0]]
    urls.append(urls[0])
    proxies = [FaultProxy(*target_of(url)) for url in urls]
    url, replica, _ = map(rewrite_url, urls, proxies)
    settings = postgres.primary.settings(database) | {
        "HOST": proxies[2].host,
        "PORT": proxies[2].port,
    }
    project = Project(
        tmp_path_factory.mktemp("wire") / "project",
        databases=SETTINGS.format(url=url, replica=replica, plain=settings),
        models=MODELS,
    )
    try:
        project.manage("migrate", "--run-syncdb", "--verbosity=0")
        postgres.wait_until_caught_up()
        console = Console(project)
        try:
            console.run(PRELUDE)
            yield Wire(console, proxies[0], proxies[1], proxies[2], postgres)
        finally:
            console.close()
    finally:
        project.close()
        for proxy in proxies:
            proxy.stop()
        postgres.drop_database(database)


@pytest.mark.parametrize("what", ["write", "update", "atomic", "atomic_read"])
def test_a_commit_costs_no_more_than_djangos(wire: Wire, what: str) -> None:
    plain = wire.trips(f"{what}('plain')")["plain"]
    assert wire.trips(f"{what}()") == {"primary": plain}


def test_a_guarded_read_costs_one_round_trip(wire: Wire) -> None:
    assert wire.trips("read('plain')") == {"plain": 1}
    wire.console.run("write()")
    wire.servers.wait_until_caught_up()
    assert wire.trips("assert sessions.applied.of('default/replica1'); read()") == {
        "replica": 1
    }
    assert wire.trips("read()") == {"replica": 1}


def test_a_read_after_a_transaction_that_read_asks_nobody(wire: Wire) -> None:
    """The position comes with its COMMIT."""
    wire.console.run("atomic_read()")
    wire.servers.wait_until_caught_up()
    assert wire.trips("read()") == {"replica": 1}


def test_moving_from_the_primary_asks_it_once(wire: Wire) -> None:
    wire.console.run(
        """
        with dbfleet.consistency("strong"):
            read()
        """
    )
    wire.servers.wait_until_caught_up()
    assert wire.trips("read()") == {"primary": 1, "replica": 1}
    assert wire.trips("read()") == {"replica": 1}
