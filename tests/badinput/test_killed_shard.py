"""The primary of one shard is killed in the middle of a statement or of a commit.

What is in the middle is certain: the statement waits on that shard, for a lock of its
table that the test holds, or the commit stands still before a step, when the server is
killed. The same process goes on once the server is back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from dbfleet.testing.rig import Rig
from dbfleet.testing.rig.waiting import wait_until
from tests.clusters.console import Console
from tests.conftest import start_or_skip
from tests.faults.projects import MODELS, PRELUDE, SETTINGS, sharded_source
from tests.faults.settling import settle
from tests.support.project import Project

TIMEOUT_S = 20

SETUP = """
create_tables()
import io
import json
from pathlib import Path
from django.db.models import F, Sum, Value
from django.db.models.functions import Concat
from dbfleet.testing.rig.waiting import wait_until
from dbfleet.transactions.transaction import FleetTransaction

ENGINE = type(connection.engine)
FULL = [[n, 10] for n in range(1, 31)]
A, B, C = (ids(shard)[0] for shard in "abc")
Account.objects.bulk_create([Account(id=n, balance=10) for n, _ in FULL])
for pk, email in (A, "1"), (B, "2"), (C, "3"):
    Person.objects.create(id=pk, email=email)
NEW = range(100, 130)


def state():
    rows = [list(row) for row in balances()]
    emails = sorted(Person.objects.values_list("email", flat=True))
    return ["untouched" if rows == FULL else rows, emails]


def in_block(action):
    with transaction.atomic():
        Account.objects.filter(pk=A).update(balance=1)
        action()


def rename():
    return Person.objects.update(email=Concat("email", Value("!")))


def rename_table(name, other):
    connection.engine.run(connection, f"ALTER TABLE {name} RENAME TO {other}").close()


def create():
    return Account.objects.bulk_create([Account(id=n) for n in NEW])


actions = {
    "count": lambda: Account.objects.aggregate(n=Sum("balance")),
    "page": lambda: list(Account.objects.order_by("-balance", "id")[:5]),
    "gather": lambda: list(
        Person.objects.filter(id__in=Account.objects.filter(balance=10).values("id"))
    ),
    "update": lambda: Account.objects.update(balance=F("balance") + 1),
    "delete": lambda: Account.objects.filter(balance=10)._raw_delete("default"),
    "delete()": lambda: Account.objects.filter(balance=10).delete(),
    "bulk_create": create,
    "bulk_update": lambda: Account.objects.bulk_update(
        [Account(id=n, balance=7) for n, _ in FULL], ["balance"]
    ),
}


def told():
    '''What ``fleet status`` says that shards hold prepared.'''
    table, found = io.StringIO(), io.StringIO()
    call_command("fleet", "status", stdout=table)
    call_command("fleet", "status", "--json", stdout=found)
    nodes = json.loads(found.getvalue())
    named = {one["node"]: one["prepared"] for one in nodes if one["prepared"]}
    return named, "holds prepared: dbfleet_" in table.getvalue()


def hold_before(owner, name, cluster):
    '''The next call of a method for a cluster waits until the test says so.'''
    original = getattr(owner, name)

    def method(self, *args, **kwargs):
        told = args[0] if args else None
        alias = getattr(told, "cluster", None) or getattr(told, "alias", cluster)
        if cluster in alias.split("/"):
            setattr(owner, name, original)
            Path("held").touch()
            wait_until(Path("go").exists, timeout_s=20, what="the test goes on")
        return original(self, *args, **kwargs)

    setattr(owner, name, method)
"""

READS = ("count", "page", "gather")
WRITES = ("update", "delete", "delete()", "bulk_create", "bulk_update")


@dataclass
class Killing:
    """A process on home, a and c of one server, and b of a server that is killed."""

    console: Console
    root: Any
    #: the server of b
    server: Any
    others: Any
    databases: dict[str, str]

    @property
    def engine(self) -> str:
        return str(self.server.engine)

    def rows(self, node: str, sql: str) -> list[tuple[Any, ...]]:
        found = self.server if node == "b" else self.others.primary
        return list(found.execute(sql, dbname=self.databases[node]))

    def prepared(self) -> dict[str, list[str]]:
        is_postgresql = self.engine == "postgresql"
        sql = (
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
            if is_postgresql
            else "XA RECOVER"
        )
        found = {}
        for node in self.databases:
            names = [row[-1] for row in self.rows(node, sql)]
            if names:
                found[node] = [
                    name.decode() if isinstance(name, bytes) else name for name in names
                ]
        return found

    @contextlib.contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Statements of b that use the table wait."""
        name = self.databases["b"]
        connection: Any
        if self.engine == "postgresql":
            import psycopg

            connection = psycopg.connect(self.server.url(name))
            connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        else:
            import pymysql

            given = self.server.settings(name)
            connection = pymysql.connect(
                host=given["HOST"],
                port=int(given["PORT"]),
                user=given["USER"],
                password=given["PASSWORD"],
                database=name,
            )
            connection.cursor().execute(f"LOCK TABLES {table} WRITE")
        try:
            yield
        finally:
            with contextlib.suppress(Exception):
                connection.close()

    def is_waiting(self) -> bool:
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            if self.engine == "postgresql"
            else "SELECT count(*) FROM information_schema.processlist "
            "WHERE state LIKE 'Waiting for table%%lock%%'"
        )
        return bool(self.server.execute(sql, None)[0][0])

    def killed_in(self, action: str, table: str = "app_account") -> Any:
        """The error of an action whose server is killed while it works there."""
        with ThreadPoolExecutor(1) as pool, self.locked(table):
            found = pool.submit(self.console.ask, f"refused({action})")
            try:
                wait_until(
                    lambda: self.is_waiting() or found.done(),
                    timeout_s=TIMEOUT_S,
                    what=f"{action} waits on b",
                )
                assert not found.done(), "b was not asked"
            finally:
                self.server.kill()
            error = found.result(TIMEOUT_S)
        self.server.start()
        return error

    def killed_before(self, owner: str, method: str, action: str) -> Any:
        """The error of an action whose server is killed before a step of its commit."""
        for name in ("held", "go"):
            (self.root / name).unlink(missing_ok=True)
        self.console.run(f"hold_before({owner}, {method!r}, 'b')")
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(self.console.ask, f"refused({action})")
            wait_until(
                (self.root / "held").exists,
                timeout_s=TIMEOUT_S,
                what=f"before {method}",
            )
            self.server.kill()
            (self.root / "go").touch()
            error = found.result(TIMEOUT_S)
        self.server.start()
        return error


@pytest.fixture(scope="module")
def fragile(request: pytest.FixtureRequest, rig: Rig) -> Callable[[str], Any]:
    """A server of each engine that tests of this module kill."""
    started: dict[str, Any] = {}

    def server(engine: str) -> Any:
        if engine not in started:
            start = (
                rig.postgresql_cluster
                if engine == "postgresql"
                else rig.mariadb_cluster
            )
            started[engine] = start_or_skip(
                request, engine, lambda: start(name=f"fragile_{engine}")
            )
        return started[engine]

    return server


@pytest.fixture
def killing(
    engine: str,
    cluster: Any,
    fragile: Callable[[str], Any],
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
) -> Iterator[Killing]:
    other = fragile(engine)
    servers = {"home": cluster, "a": cluster, "b": other, "c": cluster}
    names = {node: new_database(server) for node, server in servers.items()}
    urls = {node: server.url(names[node]) for node, server in servers.items()}
    built = project(databases=sharded_source(urls), models=MODELS, settings=SETTINGS)
    console = Console(built)
    try:
        console.run(PRELUDE + SETUP)
        yield Killing(console, built.root, other.primary, cluster, names)
    finally:
        console.close()
        other.primary.start()


def assert_names_shard(error: Any, *codes: str) -> None:
    assert error is not None, "the failure was hidden"
    assert error["code"] in {f"dbfleet.{code}" for code in codes}, error
    assert "default/b/primary" in error["text"]


UNTOUCHED = ["untouched", ["1", "2", "3"]]


def test_reads_of_several_shards(killing: Killing) -> None:
    before = {name: killing.console.ask(f"actions[{name!r}]()") for name in ("count",)}
    for name in READS:
        error = killing.killed_in(f"actions[{name!r}]")
        assert_names_shard(error, "E204")
        assert killing.console.ask("state()") == UNTOUCHED, name
        assert killing.console.ask(f"refused(actions[{name!r}])") is None, name
    assert killing.console.ask("actions['count']()") == before["count"]


@pytest.mark.parametrize("is_atomic", [False, True])
def test_writes_of_several_shards(killing: Killing, is_atomic: bool) -> None:
    """Each happens nowhere; the same write works when the server is back."""
    for name in WRITES:
        action = f"actions[{name!r}]"
        if is_atomic:
            action = f"lambda: in_block({action})"
        error = killing.killed_in(action)
        assert_names_shard(error, "E204")
        assert killing.console.ask("state()") == UNTOUCHED, name
        assert killing.prepared() == {}, name
    works = killing.console.ask("[refused(actions[n]) for n in ('update', 'delete')]")
    assert works == [None, None]
    assert killing.console.ask("Account.objects.filter(balance=11).count()") == 30


def test_a_write_with_claims(killing: Killing) -> None:
    """What home had taken for it is let go of."""
    error = killing.killed_in("rename", "app_person")
    assert_names_shard(error, "E204")
    assert killing.console.ask("state()") == UNTOUCHED
    assert killing.console.ask("rename()") == 3
    assert killing.console.ask("state()") == ["untouched", ["1!", "2!", "3!"]]


def test_before_it_prepares(killing: Killing) -> None:
    for action in ("rename", "lambda: in_block(actions['update'])", "create"):
        error = killing.killed_before("FleetTransaction", "_prepare", action)
        assert_names_shard(error, "E204", "E604")
        if error["code"] == "dbfleet.E604":  # it may have been prepared, and was not
            settle(killing, error["text"])
        assert killing.prepared() == {}
        assert killing.console.ask("state()") == UNTOUCHED, action


def test_what_was_rolled_back_stays_so(killing: Killing) -> None:
    """InnoDB answers XA ROLLBACK before its log has it, and would prepare it again."""
    console = killing.console
    for _ in range(4):  # a log that is written by chance hides it
        console.run("rename_table('dbfleet_decision', 'hidden')")
        error = console.ask("refused(actions['update'])")
        killing.server.kill()
        console.run("rename_table('hidden', 'dbfleet_decision')")
        killing.server.start()
        assert "dbfleet_decision" in error["text"]
        assert killing.prepared() == {}
        console.ask("refused(actions['count'])")  # that connections were lost
        assert console.ask("state()") == UNTOUCHED


def test_after_the_decision(killing: Killing) -> None:
    """The others have it, b has it prepared, and the error says how to finish."""
    assert killing.console.ask("told()") == [{}, False]
    changed = ["untouched", ["1", "2", "3"]]
    for action in ("rename", "lambda: in_block(rename)", "create"):
        error = killing.killed_before("ENGINE", "commit_prepared", action)
        assert_names_shard(error, "E603")
        assert error["type"] == "CommitPending"
        held = killing.prepared()
        assert list(held) == ["b"]
        # Who was not told of the error finds it by the command.
        shown = killing.console.ask("told()")
        assert shown == [{"default/b/primary": held["b"]}, True]
        assert settle(killing, error["text"]) == ["b"]
        assert killing.prepared() == {}
        if action == "create":
            made = killing.console.ask("[pk for pk, _ in balances() if pk in NEW]")
            assert made == list(range(100, 130))
        else:
            changed[1] = [f"{email}!" for email in changed[1]]
            found = killing.console.ask("state()")
            assert found[1] == changed[1]
            killing.console.run("Account.objects.filter(pk=A).update(balance=10)")
