"""Replicas that a source finds while the project runs: added, removed, unknown.

Names are ``default/127.0.0.1:<port>``; ``where()`` is the port of the server read from.
"""

from __future__ import annotations

import json
import secrets
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dbfleet.testing.rig import PostgresCluster
from dbfleet.testing.rig.waiting import wait_until
from tests.clusters.console import Console
from tests.clusters.nameserver import NameServer
from tests.support.project import Finished, Project

DEADLINE_S = 20

_SETTINGS = """
from dbfleet import Cluster, databases
from dbfleet.policies import RoundRobin
from dbfleet.replicas import Call, Dns, File, Source, Srv

DATABASES = databases(
    default=Cluster({url!r}, replicas={source}, policy=RoundRobin(), CONN_MAX_AGE=None),
)
DBFLEET = {{"WAIT_TIMEOUT_S": 0.05, "DRAINS": True}}
"""

_MODELS = """
class Note(models.Model):
    text = models.CharField(max_length=40)
"""

_PRELUDE = """
import threading

import dbfleet
from dbfleet import sessions
from dbfleet.executor import discovery
from dbfleet.health import breaker, drain
from dbfleet.observe import events
from django.core.signals import request_finished
from django.db import connection, connections, transaction
from django.db.models.expressions import RawSQL
from app.models import Note

told = []
events.subscribers.append(
    lambda one: one.name.startswith("replica") and told.append([one.name, one.fields])
)
nodes = connection.nodes


def where():
    '''The port of the server that answers a read of the session.'''
    rows = Note.objects.annotate(port=RawSQL("inet_server_port()", ()))
    return rows.values_list("port", flat=True)[0]


def seen(count=6):
    '''The servers that as many new sessions read from.'''
    found = set()
    for _ in range(count):
        with dbfleet.session():
            found.add(where())
    return sorted(found)


def names():
    return list(nodes.current("home", is_asked=True).replicas)


def due():
    for state in discovery._states.values():
        state.due = 0.0


def texts():
    return sorted(Note.objects.values_list("text", flat=True))
"""


@dataclass
class Fleet:
    """A project whose replicas are found, its process, and the servers."""

    servers: PostgresCluster
    project: Project
    console: Console
    database: str
    file: Path

    @property
    def ports(self) -> list[int]:
        return sorted(one.port for one in self.servers.replicas)

    def url(self, number: int) -> str:
        return self.servers.replicas[number].url(self.database)

    def name(self, number: int) -> str:
        return f"default/127.0.0.1:{self.servers.replicas[number].port}"

    def port(self, number: int) -> int:
        return self.servers.replicas[number].port

    def list(self, *urls: Any) -> None:
        """Replace the file as a whole, and have it read by the next decision."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(urls))
        new.rename(self.file)
        self.ask("due()")

    def ask(self, expression: str) -> Any:
        return self.console.ask(expression)

    def run(self, code: str) -> Any:
        return self.console.run(textwrap.dedent(code))

    def connections(self, number: int) -> int:
        """How many connections of the project a replica has."""
        (row,) = self.servers.replicas[number].execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s "
            "AND pid <> pg_backend_pid()",
            [self.database],
        )
        return int(row[0])

    def status(self) -> Finished:
        return self.project.manage("fleet", "status", check=False)


@pytest.fixture
def database(postgres: PostgresCluster) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    postgres.create_database(name)
    try:
        yield name
    finally:
        postgres.drop_database(name)


@pytest.fixture
def fleet_of(
    postgres: PostgresCluster, database: str, tmp_path: Path
) -> Iterator[Callable[..., Fleet]]:
    """A function: a fleet with this source, given as Python."""
    opened: list[Any] = []
    file = tmp_path / "replicas.json"

    def build(source: str, files: dict[str, str] | None = None) -> Fleet:
        url = postgres.url(database)
        source = source.format(
            file=str(file), port=postgres.replicas[0].port, urls=urls
        )
        project = Project(
            tmp_path / "project",
            databases=_SETTINGS.format(url=url, source=source),
            models=_MODELS,
        )
        opened.append(project)
        for path, text in (files or {}).items():
            project.write(path, text)
        project.manage("migrate", "--run-syncdb", "--verbosity=0")
        console = Console(project)
        opened.append(console)
        console.run(_PRELUDE)
        console.run("Note.objects.create(text='one'); sessions.forget()")
        postgres.wait_until_caught_up()
        return Fleet(postgres, project, console, database, file)

    urls = postgres.replica_urls(database)
    file.write_text(json.dumps(urls[:1]))
    try:
        yield build
    finally:
        for one in reversed(opened):
            one.close()
        for replica in postgres.replicas:
            replica.resume_replay()


@pytest.fixture
def fleet(fleet_of: Callable[..., Fleet]) -> Fleet:
    return fleet_of("File({file!r}, every_s=60)")


def test_a_replica_is_added_and_removed_while_reads_go_on(fleet: Fleet) -> None:
    assert fleet.ask("seen()") == [fleet.port(0)]
    fleet.list(fleet.url(0), fleet.url(1))
    assert fleet.ask("seen()") == fleet.ports
    fleet.list(fleet.url(1))
    assert fleet.ask("seen()") == [fleet.port(1)]
    assert fleet.ask("names()") == [fleet.name(1)]
    added = {"cluster": "default", "added": [fleet.name(0)], "removed": []}
    assert fleet.ask("told")[0] == ["replicas_changed", added]
    removed = {"cluster": "default", "added": [], "removed": [fleet.name(0)]}
    assert fleet.ask("told")[-1] == ["replicas_changed", removed]


def test_a_session_leaves_a_removed_replica_at_once(fleet: Fleet) -> None:
    """It would have stayed ten seconds; another thread's read finds the answer."""
    assert fleet.ask("where()") == fleet.port(0)
    fleet.list(fleet.url(1))
    assert fleet.ask("where()") == fleet.port(0)  # nobody has asked yet
    assert fleet.run("""
        result = []

        def read():
            result.extend(seen(1))
            connections.close_all()

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(20)
    """) == [fleet.port(1)]
    assert fleet.ask("where()") == fleet.port(1)


def test_a_session_that_moves_keeps_what_it_wrote(fleet: Fleet) -> None:
    other = fleet.servers.replicas[1]
    fleet.run("Note.objects.create(text='two')")
    fleet.servers.wait_until_caught_up()
    assert fleet.ask("[where(), texts()]") == [fleet.port(0), ["one", "two"]]
    other.pause_replay()
    fleet.run("Note.objects.create(text='three')")
    fleet.servers.replicas[0].wait_until_caught_up()
    assert fleet.ask("[where(), texts()]") == [fleet.port(0), ["one", "three", "two"]]
    fleet.list(fleet.url(1))
    fleet.ask("seen(1)")
    found = fleet.ask("[where(), texts()]")
    assert found == [fleet.servers.primary.port, ["one", "three", "two"]]
    other.resume_replay()
    fleet.console.until("where()", fleet.port(1), timeout_s=DEADLINE_S)
    assert fleet.ask("texts()") == ["one", "three", "two"]


def test_rows_that_are_being_read_are_read_to_the_end(fleet: Fleet) -> None:
    fleet.run("""
        Note.objects.bulk_create(Note(text=str(n)) for n in range(999))
        sessions.forget()
    """)
    fleet.servers.wait_until_caught_up()
    fleet.run("rows = Note.objects.iterator(chunk_size=10); first = next(rows)")
    assert fleet.connections(0) == 1
    fleet.list(fleet.url(1))
    assert fleet.ask("seen(1)") == [fleet.port(1)]
    assert fleet.connections(0) == 1
    assert fleet.ask("1 + sum(1 for row in rows)") == 1000
    fleet.ask("due()")
    assert fleet.ask("seen(1)") == [fleet.port(1)]
    wait_until(
        lambda: fleet.connections(0) == 0,
        timeout_s=DEADLINE_S,
        what="the removed replica has no connection left",
    )


def test_the_end_of_a_request_closes_a_removed_replica(fleet: Fleet) -> None:
    """Also in a thread that reads nothing any more."""
    fleet.run("""
        ready, go, ended = (threading.Event() for _ in range(3))

        def serve():
            where()
            ready.set()
            go.wait(20)
            request_finished.send(None)
            ended.set()
            go.clear()
            go.wait(90)
            connections.close_all()

        thread = threading.Thread(target=serve)
        thread.start()
        assert ready.wait(20)
    """)
    assert fleet.connections(0) == 1
    fleet.list(fleet.url(1))
    fleet.run("seen(1); go.set(); assert ended.wait(20)")
    wait_until(
        lambda: fleet.connections(0) == 0,
        timeout_s=DEADLINE_S,
        what="the removed replica has no connection left",
    )
    fleet.run("go.set(); thread.join(20)")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("[half", "is no JSON"),
        (None, "cannot be read"),
        ('["postgres://app:hush@127.0.0.1:x/shop"]', "cannot be read"),
        ('["mysql://app:hush@127.0.0.1/shop"]', "its primary of"),
        ('[{"PASSWORT": "hush"}]', "did you mean 'PASSWORD'"),
        ("[7]", "give a URL or a dict"),
    ],
)
def test_a_source_that_fails_leaves_the_replicas(
    fleet: Fleet, text: str | None, reason: str
) -> None:
    assert fleet.ask("seen()") == [fleet.port(0)]
    if text is None:
        fleet.file.unlink()
    else:
        fleet.file.write_text(text)
    fleet.ask("due()")
    assert fleet.ask("seen()") == [fleet.port(0)]
    (name, fields), *_ = fleet.ask("told[1:]")
    assert name == "replicas_unknown"
    assert reason in fields["reason"]
    found = fleet.status()
    assert found.returncode == 1
    assert "default/replicas" in found.stdout
    for shown in (fields["reason"], found.stdout, found.stderr):
        assert "hush" not in shown


def test_an_empty_answer_is_the_primary(fleet: Fleet) -> None:
    assert fleet.ask("seen()") == [fleet.port(0)]
    fleet.list()
    assert fleet.ask("seen()") == [fleet.servers.primary.port]
    assert fleet.ask("breaker.is_troubled()") is True  # sessions are told
    fleet.list(fleet.url(0))
    assert fleet.ask("seen()") == [fleet.port(0)]
    assert fleet.ask("breaker.is_troubled()") is False


def test_what_is_told_of_a_removed_replica_ends(fleet: Fleet) -> None:
    assert fleet.ask("seen()") == [fleet.port(0)]
    fleet.list(fleet.url(1))
    assert fleet.run("""
        seen(1)
        before = list(drain.current)
        drain.settle(clock=lambda: drain._left[before[0]])
        nodes.failed(before[0], OSError())  # as a read does that ends late
        result = [before, list(drain.current), breaker.is_troubled()]
    """) == [[fleet.name(0)], [], False]


def test_the_primary_among_what_is_found_is_left_out(fleet: Fleet) -> None:
    primary = urlsplit(fleet.servers.url(fleet.database))
    user = primary.netloc.rpartition("@")[0]
    other = primary._replace(netloc=f"{user}@localhost:{primary.port}").geturl()
    fleet.list(primary.geturl(), other, fleet.url(0))
    assert fleet.ask("seen()") == [fleet.port(0)]
    assert fleet.ask("names()") == [f"default/localhost:{primary.port}", fleet.name(0)]
    told = [fields["node"] for name, fields in fleet.ask("told") if "refused" in name]
    assert told == [f"default/localhost:{primary.port}"]
    assert fleet.ask("breaker.is_troubled()") is False  # which would slow every read
    found = fleet.status()
    assert found.returncode == 0, found.stderr
    assert "left out: is declared as replica, the server says primary" in found.stdout


def test_a_replica_that_is_found_is_drained_by_its_name(fleet: Fleet) -> None:
    fleet.list(fleet.url(0), fleet.url(1))
    fleet.project.manage("fleet", "drain", fleet.name(0))
    fleet.ask("drain.reset()")
    assert fleet.ask("seen()") == [fleet.port(1)]
    fleet.project.manage("fleet", "undrain", fleet.name(0))
    fleet.ask("drain.reset()")
    assert fleet.ask("seen()") == fleet.ports


def test_the_same_server_has_the_same_name_in_every_process(fleet: Fleet) -> None:
    """So a token leads to it, whatever its place in the list."""
    token = fleet.run("""
        Note.objects.create(text="two")
        result = None
    """)
    fleet.servers.wait_until_caught_up()
    token = fleet.run("where(); result = dbfleet.token()")
    fleet.list(fleet.url(1), fleet.url(0))
    assert fleet.project.run(f"""
        import dbfleet
        from dbfleet import sessions
        from django.db import connection
        connection.nodes.current("home", is_asked=True)
        dbfleet.resume({token!r})
        state = sessions.current().of("default/home")
        result = [state.node, list(connection.nodes.current("home").replicas)]
    """) == [fleet.name(0), [fleet.name(1), fleet.name(0)]]


def test_a_function_finds_them(fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of(
        "{{'CALL': 'found.replicas', 'EVERY_S': 60, 'TIMEOUT_S': 5}}",
        {
            "found.py": """
                answer, calls = [], []

                def replicas():
                    from app.models import Note

                    calls.append(Note.objects.count())  # it may read the cluster itself
                    if isinstance(answer[0], Exception):
                        raise answer[0]
                    return iter(answer)
            """
        },
    )
    fleet.run("import found")
    fleet.run(f"found.answer[:] = [{fleet.url(0)!r}]")
    assert fleet.ask("seen()") == [fleet.port(0)]
    fleet.run(f"found.answer.append({{'PORT': {fleet.port(1)}}}); due()")
    assert fleet.ask("seen()") == fleet.ports
    fleet.run("found.answer[:] = [ValueError('postgres://app:hush@db/shop')]; due()")
    assert fleet.ask("seen()") == fleet.ports
    assert fleet.ask("[told[-1][1]['reason'], len(found.calls)]") == [
        "it raised ValueError",
        3,
    ]


def test_one_read_asks_and_waits_and_the_others_go_on(
    fleet_of: Callable[..., Fleet],
) -> None:
    fleet = fleet_of(
        "Call('found.replicas', every_s=60, timeout_s=0.2)",
        {
            "found.py": """
                import threading

                answer, calls, slow = [], [], threading.Event()

                def replicas():
                    calls.append(1)
                    slow.wait(20)
                    return answer
            """
        },
    )
    fleet.run("import found")
    fleet.run(f"found.answer[:] = [{fleet.url(0)!r}]; found.slow.set()")
    assert fleet.ask("seen()") == [fleet.port(0)]
    fleet.run(f"found.slow.clear(); found.answer[:] = [{fleet.url(1)!r}]; due()")
    found = fleet.run("""
        ports = []

        def read():
            ports.extend(seen(1))
            connections.close_all()

        threads = [threading.Thread(target=read) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(20)
        result = [sorted(set(ports)), len(ports), len(found.calls), told[-1][1]]
    """)
    reason = "it did not answer within 0.2 s"
    failed = {"cluster": "default", "reason": reason}
    assert found == [[fleet.port(0)], 8, 2, failed]
    # It is the same question that is waited for again, not a second one.
    fleet.run("due(); seen(1); found.slow.set()")
    fleet.console.until("due() or seen(1)", [fleet.port(1)], timeout_s=DEADLINE_S)
    assert fleet.ask("len(found.calls)") <= 4


def test_addresses_of_a_name(fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of("Dns('localhost:{port}', every_s=60)")
    assert fleet.ask("seen()") == [fleet.port(0)]
    assert fleet.name(0) in fleet.ask("names()")


def test_a_name_without_an_address(fleet_of: Callable[..., Fleet]) -> None:
    fleet = fleet_of("{{'DNS': {{'HOST': 'replicas.invalid'}}}}")
    assert fleet.ask("seen()") == [fleet.servers.primary.port]
    assert "replicas.invalid" in fleet.ask("told[0][1]['reason']")


def test_records_of_a_service(fleet_of: Callable[..., Fleet]) -> None:
    pytest.importorskip("dns", reason="dnspython is not installed")
    with NameServer() as server:
        fleet = fleet_of(
            "Srv('_db._tcp.fleet.test', every_s=60, timeout_s=5, "
            f"nameservers=['127.0.0.1:{server.port}'])"
        )
        server.records = [(10, fleet.port(0), "localhost")]
        assert fleet.ask("seen()") == [fleet.port(0)]
        server.records = [
            (10, fleet.port(0), "localhost"),
            (10, fleet.port(1), "localhost"),
            (20, 1, "backup.fleet.test"),
        ]
        fleet.ask("due()")
        assert fleet.ask("seen()") == fleet.ports
        assert fleet.ask("names()") == [
            f"default/localhost:{port}" for port in fleet.ports
        ]
        server.records = []
        fleet.ask("due()")
        assert fleet.ask("seen()") == fleet.ports
        assert "no SRV record of _db._tcp" in fleet.ask("told[-1][1]['reason']")
