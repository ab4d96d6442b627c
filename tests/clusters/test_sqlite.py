"""Clusters of SQLite files: a primary, and copies of it that follow when told to.

``follow()`` copies a primary into its replica, as LiteFS does all the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.console import Console
from tests.support.project import Project

_HEAD = """
from dbfleet import Cluster, Sharded, databases

def lite(name):
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / name}

def cluster(name):
    return Cluster(lite(name), replicas=[lite(f"{name}_copy")])

DBFLEET = {"WAIT_TIMEOUT_S": 0.05}
SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]
"""
_CLUSTER = "DATABASES = databases(default=cluster('home'))"
_SHARDED = """
DATABASES = databases(
    default=Sharded(
        home=cluster("home"),
        shards={"a": cluster("a"), "b": cluster("b")},
        commit="best_effort",
    ),
)
"""
_MODELS = """
class Note(models.Model):
    id = models.IntegerField(primary_key=True)
    text = models.CharField(max_length=40)


class Tag(models.Model):
    id = models.AutoField(primary_key=True)
"""

_PRELUDE = """
import contextlib
import sqlite3

import dbfleet
from dbfleet import sessions
from dbfleet.errors import WriteLost
from dbfleet.executor import replicas
from dbfleet.health import breaker
from dbfleet.observe import events
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections, transaction
from app.models import Note, Tag

sent = []
events.subscribers.append(
    lambda event: event.name == "sent" and sent.append(event.fields["node"])
)


def copied(source, target):
    with (
        contextlib.closing(sqlite3.connect(settings.BASE_DIR / source)) as old,
        contextlib.closing(sqlite3.connect(settings.BASE_DIR / target)) as new,
    ):
        old.backup(new)


def follow(name="home"):
    copied(name, f"{name}_copy")


def read(rows=None):
    '''What a read finds, and the node that answered it.'''
    sent.clear()
    rows = Note.objects.order_by("pk") if rows is None else rows
    return [list(rows.values_list("text", flat=True)), sent[-1]]


def at(name, columns="number"):
    with contextlib.closing(sqlite3.connect(settings.BASE_DIR / name)) as one:
        return one.execute(f"SELECT {columns} FROM dbfleet_commits").fetchone()[0]


def lost(action):
    try:
        return action()
    except WriteLost as error:
        return str(error)


def start():
    '''A session that wrote nothing; replicas are waited for again.'''
    connections.close_all()
    sessions.forget()
    breaker.reset()
    replicas._unwaited.clear()


def later():
    '''The session asks for a replica again.'''
    for state in sessions.current().clusters.values():
        state.stays_until = 0.0
    replicas._unwaited.clear()
"""

COPY, PRIMARY = "default/replica1", "default/primary"


def _console(root: Path, databases: str) -> Iterator[Console]:
    project = Project(root, databases=_HEAD + databases, models=_MODELS)
    project.manage("migrate", "--run-syncdb", "--verbosity=0")
    console = Console(project)
    try:
        console.run(_PRELUDE)
        yield console
    finally:
        console.close()
        project.close()


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    """A cluster with one row, its replica a copy of that."""
    for found in _console(tmp_path / "project", _CLUSTER):
        found.run("Note.objects.create(id=1, text='old'); follow(); start()")
        yield found


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Console]:
    """Two shards, each with a replica."""
    yield from _console(tmp_path / "project", _SHARDED)


def test_a_session_that_wrote_nothing_reads_the_replica(console: Console) -> None:
    assert console.ask("read()") == [["old"], COPY]


def test_own_write_is_read_on_the_primary_until_the_replica_has_it(
    console: Console,
) -> None:
    console.run("Note.objects.create(id=2, text='new')")
    found = console.ask("read()")
    assert found[0] == ["old", "new"]
    assert found[1] == PRIMARY
    console.run("follow(); later()")
    assert console.ask("read()") == [["old", "new"], COPY]


def test_a_table_that_the_replica_lacks_is_read_on_the_primary(
    console: Console,
) -> None:
    console.run(
        """
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE app_note ADD COLUMN more integer DEFAULT 7")
        Note.objects.create(id=2, text='new')

        def more():
            with connection.cursor() as cursor:
                cursor.execute("SELECT more FROM app_note ORDER BY id")
                return [number for (number,) in cursor.fetchall()]
        """
    )
    assert console.ask("read()")[1] == PRIMARY
    console.run("later()")
    assert console.ask("more()") == [7, 7]


def test_other_sessions_go_on_with_the_replica(console: Console) -> None:
    console.run("Note.objects.create(id=2, text='new')")
    assert console.run("""
        with dbfleet.session():
            result = read()
    """) == [["old"], COPY]


WRITES = {
    "create": "Note.objects.create(id=2, text='new')",
    "update": "Note.objects.update(text='new')",
    "delete": "Note.objects.all().delete()",
    "bulk": "Note.objects.bulk_create([Note(id=n, text='n') for n in range(2, 9)])",
    "atomic": """
with transaction.atomic():
    Note.objects.create(id=2, text='new')
    with transaction.atomic():
        Note.objects.create(id=3, text='newer')
""",
    "raw": """
with connection.cursor() as cursor:
    cursor.execute("INSERT INTO app_note VALUES (2, 'new')")
""",
    "raw, many": """
with connection.cursor() as cursor:
    cursor.executemany("INSERT INTO app_note VALUES (%s, %s)", [(2, "a"), (3, "b")])
""",
    "raw, returning": """
with connection.cursor() as cursor:
    cursor.execute("INSERT INTO app_note VALUES (2, 'new'), (3, 'b') RETURNING id")
    assert cursor.fetchall() == [(2,), (3,)]
""",
    "raw, a transaction by hand": """
with connection.cursor() as cursor:
    cursor.execute("BEGIN")
    cursor.execute("INSERT INTO app_note VALUES (2, 'new')")
    cursor.execute("COMMIT")
connections.close_all()  # which such a statement keeps reads on
""",
    "ddl": """
with connection.cursor() as cursor:
    cursor.execute("ALTER TABLE app_note RENAME TO app_gone")
    cursor.execute("CREATE TABLE app_note AS SELECT * FROM app_gone")
""",
}


@pytest.mark.parametrize("kind", WRITES)
def test_every_write_is_counted_in_its_own_transaction(
    console: Console, kind: str
) -> None:
    console.run("before = at('home')")
    console.run(WRITES[kind])
    assert console.ask("at('home') > before")
    rows = console.ask("read()")
    assert rows[1] == PRIMARY
    console.run("follow(); later()")
    assert console.ask("read()") == [rows[0], COPY]


def test_every_one_of_many_writers_is_counted(console: Console) -> None:
    """As with plain Django, each waits for the one before it."""
    assert console.run("""
        import threading

        before, failures = at("home"), []

        def write(start):
            try:
                for pk in range(start, start + 20):
                    if pk % 2:
                        Note.objects.create(id=pk, text="x")
                    else:
                        with transaction.atomic():
                            Note.objects.create(id=pk, text="x")
            except Exception as error:
                failures.append(repr(error))
            finally:
                connections.close_all()

        threads = [
            threading.Thread(target=write, args=(100 * n,)) for n in range(1, 5)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join(30)
        found = Note.objects.consistency("strong").count() - 1
        result = [failures, found, at("home") - before]
        sessions.forget()
    """) == [[], 80, 80]


def test_a_rolled_back_write_counts_nothing(console: Console) -> None:
    assert console.run("""
        before = at("home")
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            Note.objects.create(id=2, text="new")
            1 / 0
        with contextlib.suppress(Exception):
            Note.objects.create(id=1, text="a second one")
        result = [at("home") - before, connection.connection.in_transaction]
    """) == [0, False]


def test_a_transaction_that_only_reads_does_not_write(console: Console) -> None:
    assert (
        console.run("""
        before = at("home")
        with transaction.atomic():
            Note.objects.count()
        Note.objects.select_for_update().first()
        result = at("home") - before
    """)
        == 0
    )


def test_number_and_rows_are_of_one_snapshot(console: Console) -> None:
    """A replica that changes between the two, or later, goes on with what it proved."""
    assert console.run("""
        from dbfleet.engines import counter

        copied("home", "before")
        Note.objects.bulk_create(Note(id=n, text="x") for n in range(2, 2000))
        follow()
        with contextlib.closing(
            sqlite3.connect(settings.BASE_DIR / "home_copy")
        ) as other:
            other.execute("PRAGMA journal_mode = wal")
        later()
        execute = counter.execute

        def late(cursor, sql, params):
            copied("before", "home_copy")
            execute(cursor, sql, params)

        counter.execute = late
        try:
            steps = Note.objects.order_by("pk").iterator(chunk_size=10)
            first = next(steps).pk
        finally:
            counter.execute = execute
        with contextlib.closing(
            sqlite3.connect(settings.BASE_DIR / "home_copy")
        ) as other:
            now, = other.execute("SELECT count(*) FROM app_note").fetchone()
        result = [now, first + len(list(steps)), sent[-1]]
    """) == [1, 1999, COPY]


def test_a_replica_that_goes_back_is_not_believed(console: Console) -> None:
    console.run("""
        copied("home", "before")
        Note.objects.create(id=2, text="new")
        follow()
    """)
    assert console.ask("read()") == [["old", "new"], COPY]
    console.run("copied('before', 'home_copy')")
    found = console.ask("read()")
    assert found[0] == ["old", "new"]
    assert found[1] == PRIMARY


def test_a_replica_of_another_database_serves_no_session_that_wrote(
    console: Console,
) -> None:
    console.run("""
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM dbfleet_commits")
        follow_of = at("home_copy", "epoch")
        Note.objects.create(id=2, text="new")
    """)
    assert console.ask("at('home', 'epoch') != follow_of")
    found = console.ask("read()")
    assert found[0] == ["old", "new"]
    assert found[1] == PRIMARY


@pytest.mark.parametrize("follows", [True, False])
def test_an_older_backup_as_the_primary_is_a_lost_write(
    console: Console, *, follows: bool
) -> None:
    console.run("""
        copied("home", "backup")
        Note.objects.create(id=2, text="new")
        copied("backup", "home")
    """)
    if follows:
        console.run("follow()")
    found = console.ask("lost(read)")
    assert "a write of this session to default/home" in found
    assert "database that took its place" in found
    assert console.ask("lost(read)")[0] == ["old"]  # it is said once


def test_numbers_of_a_restored_primary_are_not_taken_for_those_before(
    console: Console,
) -> None:
    """The writes after it would reach the number that the lost one had."""
    found = console.run("""
        copied("home", "backup")
        Note.objects.create(id=2, text="lost")
        token = sessions.peek()
        copied("backup", "home")
        sessions.forget()
        for n in range(3, 6):
            Note.objects.create(id=n, text="after")
        follow()
        sessions.restore(token)
        result = lost(read)
    """)
    assert "cannot be found in the history of the database" in found


def test_an_empty_file_as_the_primary_is_a_lost_write(console: Console) -> None:
    found = console.run("""
        Note.objects.create(id=2, text="lost")
        connections.close_all()
        for name in ("home", "home_copy"):
            with contextlib.closing(sqlite3.connect(settings.BASE_DIR / name)) as one:
                one.execute("DROP TABLE dbfleet_commits")
        result = lost(read)
    """)
    assert "a write of this session to default/home" in found


def test_a_replica_is_waited_for(console: Console) -> None:
    """What catches up within WAIT_TIMEOUT_S is read there."""
    assert console.run("""
        import threading

        from dbfleet import conf
        from django.test import override_settings

        with override_settings(DBFLEET={"WAIT_TIMEOUT_S": 20}):
            Note.objects.create(id=2, text="new")
            behind = threading.Event()

            def catch_up():
                behind.wait(20)
                follow()

            thread = threading.Thread(target=catch_up)
            thread.start()
            engine = type(connection.engine)
            asked = engine.applied

            def applied(self, replica):
                behind.set()
                return asked(self, replica)

            engine.applied = applied
            try:
                result = read()
            finally:
                engine.applied = asked
            thread.join(20)
    """) == [["old", "new"], COPY]


def test_bounded_reads_take_a_replica_that_has_followed(console: Console) -> None:
    console.run("Note.objects.create(id=2, text='new'); start()")
    bounded = """
        with dbfleet.consistency(dbfleet.bounded(max_lag_s=0.001)):
            result = read()
    """
    assert console.run(bounded) == [["old", "new"], PRIMARY]
    console.run("follow()")
    assert console.run(bounded) == [["old", "new"], COPY]


def test_a_token_carries_the_number(console: Console) -> None:
    assert console.run("""
        Note.objects.create(id=2, text="new")
        floor, = sessions.current().of("default/home").floors
        engine = connection.engine
        result = engine.load(engine.dump(floor)) == floor
    """)


def test_tools_leave_the_table_alone(console: Console) -> None:
    assert console.run("""
        import io

        Tag.objects.create()
        before = at("home")
        call_command("flush", "--noinput", verbosity=0)
        found = io.StringIO()
        call_command("inspectdb", stdout=found)
        result = [at("home") > before, "commits" in found.getvalue().lower()]
    """) == [True, False]


def test_shards_count_for_themselves(sharded: Console) -> None:
    found = sharded.run("""
        field = Note._meta.pk
        ON = {}
        for pk in range(1, 100):
            ON.setdefault(connection.routing.shard_of((field,), (pk,)), pk)
        with transaction.atomic():
            for pk in ON.values():
                Note.objects.create(id=pk, text="old")
        Note.objects.filter(id=ON["b"]).update(text="once")
        for name in ("home", "a", "b"):
            follow(name)
        start()
        before = [at("a"), at("b")]
        with transaction.atomic():
            Note.objects.filter(id=ON["a"]).update(text="new")
        result = [
            [at("a") - before[0], at("b") - before[1]],
            read(Note.objects.filter(id=ON["a"]))[0],
            read(Note.objects.filter(id=ON["b"])),
        ]
        follow("a")
        later()
        result.append(read(Note.objects.filter(id=ON["a"])))
        with connection.cursor() as cursor:
            cursor.execute("UPDATE app_note SET text = 'raw'")
        result.append([at("a") - before[0], at("b") - before[1]])
    """)
    assert found == [
        [1, 0],
        ["new"],
        [["once"], "default/b/replica1"],
        [["new"], "default/a/replica1"],
        [2, 1],
    ]
