"""Where reads of a cluster go, and what they may see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.project import Project

DATABASES = """
from dbfleet import Cluster, databases

DATABASES = databases(default=Cluster({primary!r}, replicas={replicas!r}))
"""
MODELS = """
class Note(models.Model):
    text = models.CharField(max_length=20)
"""
SETUP = """
import dbfleet
from dbfleet.observe import events
from app.models import Note
from django.db import connection, transaction

def port(cursor=None):
    '''The port of the server that answers, asked by the ORM's own way.'''
    with connection.execute_wrapper(note):
        list(Note.objects.all())
    return seen[-1]

seen = []

def note(execute, sql, params, many, context):
    result = execute(sql, params, many, context)
    seen.append(context["cursor"].cursor.connection.info.port)
    return result

def texts():
    return sorted(Note.objects.values_list("text", flat=True))
"""


@pytest.fixture
def cluster(postgres: Any) -> Any:
    """A PostgreSQL primary whose two replicas replay again afterwards."""
    yield postgres
    for replica in postgres.replicas:
        replica.resume_replay()
    postgres.wait_until_caught_up(30)


@pytest.fixture
def notes(
    project: Callable[..., Project], cluster: Any, new_database: Callable[[Any], str]
) -> tuple[Project, Any]:
    """A project whose only alias is the cluster."""
    name = new_database(cluster)
    built = project(
        databases=DATABASES.format(
            primary=cluster.url(name), replicas=cluster.replica_urls(name)
        ),
        models=MODELS,
    )
    built.manage("migrate", "--run-syncdb", "-v0")
    cluster.wait_until_caught_up(30)
    return built, cluster


def test_reads_go_to_replicas_and_transactions_to_the_primary(
    notes: tuple[Project, Any],
) -> None:
    built, cluster = notes
    found = built.run(
        SETUP
        + """
free = {port() for _ in range(5)}
with transaction.atomic():
    inside = port()
with dbfleet.consistency("strong"):
    strong = port()
with dbfleet.pin("primary"):
    pinned = port()
result = [sorted(free), inside, strong, pinned]
"""
    )
    replicas = {replica.port for replica in cluster.replicas}
    assert found[0]
    assert set(found[0]) <= replicas
    assert found[1:] == [cluster.primary.port] * 3


def test_a_session_never_misses_its_own_write(notes: tuple[Project, Any]) -> None:
    """With replay paused on both replicas the primary answers the session that
    wrote, and a replica any other one, which may see the past."""
    built, cluster = notes
    for replica in cluster.replicas:
        replica.pause_replay()
    found = built.run(
        SETUP
        + """
import contextvars

before = texts()
fresh = contextvars.Context()
own = []
for n in range(20):
    Note.objects.create(text=f"n{n:02}")
    own.append(len(texts()) == n + 1)
with transaction.atomic():
    Note.objects.create(text="x")
own.append("x" in texts())
with connection.cursor() as cursor:
    cursor.execute("INSERT INTO app_note (text) VALUES ('raw')")
own.append("raw" in texts())
Note.objects.filter(text="x").update(text="y")
own.append("y" in texts())
Note.objects.filter(text="y").delete()
own.append("y" not in texts())
result = [before, own, port(), fresh.run(texts)]
with dbfleet.consistency("eventual"):
    result.append(texts())
"""
    )
    assert found[0] == []
    assert found[1] == [True] * 24
    assert found[2] == cluster.primary.port
    assert found[3] == []
    assert found[4] == []


def test_one_replica_that_has_caught_up_is_enough(notes: tuple[Project, Any]) -> None:
    built, cluster = notes
    cluster.replicas[0].pause_replay()
    found = built.run(
        SETUP
        + f"""
import time

Note.objects.create(text="a")
deadline = time.monotonic() + 20
while port() != {cluster.replicas[1].port}:
    assert time.monotonic() < deadline, "the second replica never served"
result = [texts(), sorted({{port() for _ in range(10)}})]
"""
    )
    assert found == [["a"], [cluster.replicas[1].port]]


def test_raw_sql_goes_where_it_may(notes: tuple[Project, Any]) -> None:
    """A plain read to a replica; what may write, and what has state, to home."""
    built, cluster = notes
    found = built.run(
        SETUP
        + """
def ask(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()

ask("SELECT 1")  # connects
result = [
    ask("SELECT setting::int FROM pg_settings WHERE name = 'port'"),
    ask("SELECT count(*) FROM app_note"),
]
with connection.cursor() as cursor:
    cursor.execute("CREATE FUNCTION add_note() RETURNS int LANGUAGE sql AS "
                   "'INSERT INTO app_note (text) VALUES (''f''); SELECT 1'")
    cursor.execute("SELECT add_note()")
result.append(texts())
with connection.cursor() as cursor:
    cursor.execute("CREATE TEMPORARY TABLE here (n int)")
    cursor.execute("SELECT count(*) FROM here")
    result.append(cursor.fetchone()[0])
"""
    )
    assert found[0][0] == cluster.primary.port
    assert found[2] == ["f"]
    assert found[3] == 0


def test_reads_go_on_when_replicas_die(
    project: Callable[..., Project], rig: Any
) -> None:
    servers = rig.postgresql_cluster(replicas=2, name="dying", databases=("shop",))
    built = project(
        databases=DATABASES.format(
            primary=servers.url("shop"), replicas=servers.replica_urls("shop")
        ),
        models=MODELS,
    )
    built.manage("migrate", "--run-syncdb", "-v0")
    servers.wait_until_caught_up(30)
    pids = [replica.pid for replica in servers.replicas]
    found = built.run(
        SETUP
        + f"""
import os, signal

Note.objects.create(text="a")
result = []
for pid in {pids}:
    for _ in range(3):
        result.append(texts())
    os.kill(pid, signal.SIGQUIT)
    for _ in range(3):
        result.append(texts())
result.append(port() == {servers.primary.port})
"""
    )
    assert found == [["a"]] * 12 + [True]
    servers.stop()
