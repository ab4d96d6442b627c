"""Shards are clusters too: each with replicas, and a freshness of its own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dbfleet.testing.rig import PostgresCluster
from tests.clusters.console import Console
from tests.support.project import Project

DATABASES = """
from dbfleet import Cluster, Sharded, databases
from dbfleet.policies import RoundRobin

CLUSTERS = {{
    name: Cluster(url, replicas=replicas)
    for name, (url, replicas) in {clusters!r}.items()
}}
DATABASES = databases(
    default=Sharded(
        home=CLUSTERS["home"],
        shards={{"a": CLUSTERS["a"], "b": CLUSTERS["b"]}},
        policy=RoundRobin(),
    ),
)
SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]
"""

MODELS = """
import dbfleet


class Item(models.Model):
    id = models.IntegerField(primary_key=True)
    text = models.CharField(max_length=40)


class Word(models.Model):
    text = models.CharField(max_length=40)

    class Meta:
        shard_key = dbfleet.LOCAL


class Which(models.Model):
    port = models.IntegerField(primary_key=True)

    class Meta:
        managed = False
        db_table = "which"
"""

PRELUDE = """
import dbfleet
from dbfleet import sessions
from dbfleet.health import breaker
from django.db import connection, connections, transaction
from django.db.models.expressions import RawSQL
from app.models import Item, Which, Word

ROLES = {roles!r}
field = Item._meta.pk
ON = {{}}
for pk in range(1, 100):
    ON.setdefault(connection.routing.shard_of((field,), (pk,)), pk)


def where(shard):
    '''The server that answers what is pinned to a shard.'''
    row = Item.objects.filter(pk=ON[shard])
    port = row.annotate(port=RawSQL("inet_server_port()", ()))
    return ROLES[port.values_list("port", flat=True).get()]


def gathered():
    '''The servers that give the fragments of a gather.'''
    return [ROLES[port] for port in Which.objects.values_list("port", flat=True)]


def turns(count, read):
    found = []
    for _ in range(count):
        with dbfleet.session():
            found.append(read())
    return found


def texts():
    return dict(Item.objects.order_by("pk").values_list("pk", "text"))


def write(shard, text):
    Item.objects.filter(pk=ON[shard]).update(text=text)


def start():
    connections.close_all()
    sessions.forget()
    breaker.reset()
"""


@dataclass
class Shards:
    """The project's process and the servers of every cluster."""

    servers: PostgresCluster
    console: Console

    def run(self, code: str) -> Any:
        return self.console.run(code)

    def ask(self, expression: str) -> Any:
        return self.console.ask(expression)


@pytest.fixture(scope="module")
def started(
    postgres: PostgresCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shards]:
    run = secrets.token_hex(4)
    names = {node: f"test_{run}_{node}" for node in ("home", "a", "b")}
    for name in names.values():
        postgres.create_database(name)
    clusters = {
        node: (postgres.url(name), postgres.replica_urls(name))
        for node, name in names.items()
    }
    project = Project(
        tmp_path_factory.mktemp("shards") / "project",
        databases=DATABASES.format(clusters=clusters),
        models=MODELS,
    )
    roles = {postgres.primary.port: "primary"}
    for number, replica in enumerate(postgres.replicas, 1):
        roles[replica.port] = f"replica{number}"
    try:
        project.manage("migrate", "--run-syncdb", "--verbosity=0")
        for name in names.values():
            view = "CREATE VIEW which AS SELECT inet_server_port() AS port"
            postgres.primary.execute(view, dbname=name)
        postgres.wait_until_caught_up()
        console = Console(project)
        try:
            console.run(PRELUDE.format(roles=roles))
            yield Shards(postgres, console)
        finally:
            console.close()
    finally:
        project.close()
        for name in names.values():
            postgres.drop_database(name)


@pytest.fixture
def shards(started: Shards) -> Iterator[Shards]:
    """A row on each shard, replayed everywhere; a session that wrote nothing."""
    started.run(
        """
        start()
        Item.objects.all().delete()
        Word.objects.all().delete()
        Item.objects.bulk_create(Item(pk=pk, text="old") for pk in ON.values())
        """
    )
    started.servers.wait_until_caught_up()
    started.run("start()")
    yield started
    for server in started.servers.servers:
        server.start()
    for replica in started.servers.replicas:
        replica.resume_replay()
    started.servers.wait_until_caught_up()


def test_pinned_and_gathered_reads_are_the_replicas(shards: Shards) -> None:
    replicas = {"replica1", "replica2"}
    for shard in ("a", "b"):
        assert set(shards.ask(f"turns(4, lambda: where({shard!r}))")) == replicas
    found = shards.ask("turns(4, gathered)")
    assert all(len(one) == 2 for one in found)
    assert {name for one in found for name in one} <= replicas
    route = shards.ask("Item.objects.explain_route().nodes")
    assert route == [f"default/{s}/replica{n}" for s in "ab" for n in (1, 2)]


def test_transactions_are_the_primaries(shards: Shards) -> None:
    found = shards.run(
        """
        with transaction.atomic():
            result = where("a"), where("b"), gathered()
        """
    )
    assert found == ["primary", "primary", ["primary", "primary"]]


def test_each_shard_has_its_own_freshness(shards: Shards) -> None:
    for replica in shards.servers.replicas:
        replica.pause_replay()
    shards.run('write("a", "new")')
    assert shards.ask('where("a")') == "primary"
    assert shards.ask('where("b")') != "primary"
    assert shards.ask("gathered()").count("primary") == 1
    assert sorted(shards.ask("texts()").values()) == ["new", "old"]
    shards.run('write("b", "new")')
    assert shards.ask("gathered()") == ["primary", "primary"]
    assert set(shards.ask("texts()").values()) == {"new"}


def test_a_transaction_over_shards_is_seen_whole(shards: Shards) -> None:
    for replica in shards.servers.replicas:
        replica.pause_replay()
    found = shards.run(
        """
        with transaction.atomic():
            write("a", "both")
            write("b", "both")
            Word.objects.create(text="home")
        result = sorted(texts().values()), list(Word.objects.values_list("text"))
        """
    )
    assert found == [["both", "both"], [["home"]]]


def test_reads_go_on_when_a_replica_of_every_shard_is_killed(shards: Shards) -> None:
    shards.ask("turns(3, lambda: (gathered(), where('a')))")
    shards.servers.replicas[0].kill()
    for _ in range(4):
        assert set(shards.ask("texts()").values()) == {"old"}
        assert shards.ask("where('a'), where('b')") == ["replica2", "replica2"]
    shards.servers.replicas[1].kill()
    for _ in range(4):
        assert set(shards.ask("texts()").values()) == {"old"}
    assert shards.ask("where('a'), gathered()") == ["primary", ["primary", "primary"]]


def test_a_setting_of_the_session_is_not_left_behind(shards: Shards) -> None:
    """SET reaches every primary, so reads stay there."""
    found = shards.run(
        """
        with connection.cursor() as cursor:
            cursor.execute("SET application_name = 'mine'")
        result = where("a"), where("b"), gathered()
        """
    )
    assert found == ["primary", "primary", ["primary", "primary"]]


def test_a_gathered_read_has_its_querysets_level(shards: Shards) -> None:
    for replica in shards.servers.replicas:
        replica.pause_replay()
    found = shards.run(
        """
        import contextvars
        contextvars.Context().run(lambda: write("a", "new"))
        rows = Item.objects.order_by("pk").values_list("text", flat=True)
        result = (
            sorted(rows.consistency("strong")),
            sorted(rows.consistency("eventual")),
        )
        """
    )
    assert found == [["new", "old"], ["old", "old"]]
