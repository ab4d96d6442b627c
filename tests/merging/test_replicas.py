"""Shards with replicas, some of them on servers of their own: reads of several shards
see what their session wrote, and a primary that is killed is an error or no loss."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from dbfleet.testing.rig import PostgresCluster, Rig
from tests.clusters.console import Console
from tests.conftest import start_or_skip
from tests.support.project import Project

DATABASES = """
from dbfleet import Cluster, Sharded, databases

CLUSTERS = {{
    name: Cluster(url, replicas=replicas)
    for name, (url, replicas) in {clusters!r}.items()
}}
DATABASES = databases(
    default=Sharded(
        home=CLUSTERS["home"],
        shards={{name: CLUSTERS[name] for name in "abc"}},
        CONN_HEALTH_CHECKS=True,
    ),
)
SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]
"""

MODELS = """
class Item(models.Model):
    id = models.IntegerField(primary_key=True)
    text = models.CharField(max_length=40)
    number = models.IntegerField(default=0)
"""

PRELUDE = """
import contextlib
import threading
import time
import dbfleet
from dbfleet import sessions
from dbfleet.errors import FleetError
from dbfleet.health import breaker
from dbfleet.observe import events
from django.db import close_old_connections, connection, connections
from django.db import reset_queries, transaction
from django.db.models import Count, Sum
from django.db.utils import DatabaseError
from app.models import Item

field = Item._meta.pk
ON = {}
for pk in range(1, 100):
    ON.setdefault(connection.routing.shard_of((field,), (pk,)), pk)


def start():
    connections.close_all()
    sessions.forget()
    breaker.reset()


@contextlib.contextmanager
def asked():
    '''The nodes that the block's reads are sent to, by shard; the last of each.'''
    found = {}

    def listen(event):
        if event.name == "sent":
            found[event.fields["cluster"]] = event.fields["node"].rpartition("/")[2]

    with events.subscribed(listen):
        yield found


def scattered(query):
    '''Rows of a read of all shards, and who was asked.'''
    assert str(query.explain_route().rung) != "gather"
    with asked() as nodes:
        rows = list(query)
    nodes.pop("home", None)
    return rows, nodes


def texts():
    rows, nodes = scattered(Item.objects.order_by("pk").values_list("pk", "text"))
    return [text for pk, text in rows if pk in ON.values()], nodes


def total():
    rows, nodes = scattered(Item.objects.values_list("text").annotate(s=Sum("number")))
    return sorted(rows), nodes


def streamed():
    query = Item.objects.order_by("pk")
    with asked() as nodes:
        rows = [one.text for one in query.iterator(7) if one.pk in ON.values()]
    nodes.pop("home", None)
    return rows, nodes


def write(shard, text):
    Item.objects.filter(pk=ON[shard]).update(text=text)
"""


@dataclass
class Shards:
    """The project's process; home and shard a of one cluster, b and c of another."""

    first: PostgresCluster
    second: PostgresCluster
    console: Console

    def run(self, code: str) -> Any:
        return self.console.run(code)

    def ask(self, expression: str) -> Any:
        return self.console.run(f"result = {expression}")

    def catch_up(self) -> None:
        for cluster in (self.first, self.second):
            cluster.wait_until_caught_up()


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, rig: Rig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shards]:
    first, second = (
        start_or_skip(request, "PostgreSQL", lambda: rig.postgresql_cluster(replicas=1))
        for _ in range(2)
    )
    run = secrets.token_hex(4)
    clusters = {}
    for node in ("home", "a", "b", "c"):
        name = f"test_{run}_{node}"
        server = first if node in ("home", "a") else second
        server.create_database(name)
        clusters[node] = (server.url(name), server.replica_urls(name))
    with ExitStack() as stack:
        stack.callback(first.stop, "immediate")
        stack.callback(second.stop, "immediate")
        project = Project(
            tmp_path_factory.mktemp("merging") / "project",
            databases=DATABASES.format(clusters=clusters),
            models=MODELS,
        )
        stack.callback(project.close)
        project.manage("migrate", "--run-syncdb", "--verbosity=0")
        for cluster in (first, second):
            cluster.wait_until_caught_up()
        console = Console(project)
        stack.callback(console.close)
        console.run(PRELUDE)
        yield Shards(first, second, console)


@pytest.fixture
def shards(started: Shards) -> Iterator[Shards]:
    """A hundred rows, replayed everywhere; a session that wrote nothing."""
    started.run(
        """
        start()
        Item.objects.all().delete()
        Item.objects.bulk_create(Item(pk=pk, text="old", number=pk)
                                 for pk in range(1, 101))
        """
    )
    started.catch_up()
    started.run("start()")
    yield started
    for cluster in (started.first, started.second):
        for server in cluster.servers:
            server.start()
        for replica in cluster.replicas:
            replica.resume_replay()
    started.catch_up()


ALL_REPLICAS = dict.fromkeys("abc", "replica1")
READS = ("texts", "streamed")


@pytest.mark.parametrize("read", READS)
def test_each_shard_is_read_where_it_has_what_the_session_wrote(
    shards: Shards, read: str
) -> None:
    assert shards.ask(f"{read}()") == [["old"] * 3, ALL_REPLICAS]
    for cluster in (shards.first, shards.second):
        for replica in cluster.replicas:
            replica.pause_replay()
    shards.run('write("b", "new")')
    found, nodes = shards.ask(f"{read}()")
    assert sorted(found) == ["new", "old", "old"]
    assert nodes == {"a": "replica1", "b": "primary", "c": "replica1"}
    shards.run('write("a", "new"); write("c", "new")')
    assert shards.ask(f"{read}()") == [["new"] * 3, dict.fromkeys("abc", "primary")]
    for cluster in (shards.first, shards.second):
        for replica in cluster.replicas:
            replica.resume_replay()
    shards.catch_up()
    assert shards.ask(f"{read}()")[0] == ["new"] * 3
    assert shards.run("sessions.forget(); result = texts()") == [
        ["new"] * 3,
        ALL_REPLICAS,
    ]


def test_sums_of_groups_see_what_the_session_wrote(shards: Shards) -> None:
    for cluster in (shards.first, shards.second):
        for replica in cluster.replicas:
            replica.pause_replay()
    assert shards.ask("total()") == [[["old", 5050]], ALL_REPLICAS]
    found, nodes = shards.run(
        """
        Item.objects.filter(pk=ON["c"]).update(number=1000 + ON["c"])
        result = total()
        """
    )
    assert found == [["old", 6050]]
    assert nodes == {"a": "replica1", "b": "replica1", "c": "primary"}
    # Another session, in the same process, demands nothing.
    assert shards.run(
        """
        with dbfleet.session():
            result = total()
        """
    ) == [[["old", 5050]], ALL_REPLICAS]


def test_a_transaction_reads_the_primaries(shards: Shards) -> None:
    assert shards.run(
        """
        with transaction.atomic():
            write("a", "mine")
            found, nodes = texts()
        result = sorted(found), nodes
        """
    ) == [["mine", "old", "old"], dict.fromkeys("abc", "primary")]


def test_replicas_that_are_killed_are_replaced(shards: Shards) -> None:
    shards.ask("texts()")
    shards.second.replicas[0].kill()
    found, nodes = shards.ask("texts()")
    assert found == ["old"] * 3
    assert nodes == {"a": "replica1", "b": "primary", "c": "primary"}
    assert shards.ask("streamed()")[0] == ["old"] * 3


WHOLE = """
stop, wrong, errors, good = threading.Event(), [], [], []
expected = list(range(1, 101))


def loop(n):
    try:
        while not stop.is_set():
            try:
                close_old_connections()
                with dbfleet.consistency(%(level)r):
                    if n %% 2:
                        query = Item.objects.order_by("pk")
                        found = list(query.values_list("pk", flat=True))
                    else:
                        found = Item.objects.aggregate(s=Sum("number"))["s"]
                if found not in (expected, sum(expected)):
                    wrong.append(found)
                good.append(time.monotonic())
            except (FleetError, DatabaseError) as error:
                named = any(f"default/{s}/primary" in str(error) for s in "abc")
                errors.append((type(error).__name__, named, str(error)))
            except Exception as error:
                wrong.append(repr(error))
    finally:
        connections.close_all()


readers = [threading.Thread(target=loop, args=[n]) for n in range(4)]
for one in readers:
    one.start()


def go_on(enough=20, within_s=20):
    '''So many more reads succeed.'''
    before, ends_at = len(good), time.monotonic() + within_s
    while len(good) < before + enough:
        if time.monotonic() > ends_at:
            raise AssertionError((errors[-3:], wrong[-3:]))
        time.sleep(0.01)


def fail(within_s=20):
    '''A read fails.'''
    ends_at = time.monotonic() + within_s
    while not errors:
        if time.monotonic() > ends_at:
            raise AssertionError("no read failed")
        time.sleep(0.01)


go_on()
"""


@pytest.mark.parametrize("level", ["strong", "session"])
def test_a_primary_that_is_killed_in_the_midst_of_reads(
    shards: Shards, level: str
) -> None:
    shards.run(WHOLE % {"level": level})
    try:
        shards.second.primary.kill()
        if level == "strong":
            shards.run("fail()")
        else:
            shards.run("go_on()")  # the replicas answer
        shards.second.primary.start()
        shards.run("go_on(100)")
    finally:
        shards.run("stop.set()\nfor one in readers:\n    one.join(20)")
    wrong, errors = shards.ask("wrong[:5], errors")
    assert wrong == []
    unnamed = [error for error in errors if not error[1]]
    assert unnamed == []
    if level == "session":
        assert errors == [], "no read needs a primary"
    assert shards.ask("texts()")[0] == ["old"] * 3
