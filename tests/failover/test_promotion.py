"""A replica is promoted: writes follow it, and what was lost is told."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dbfleet.testing.rig import Rig
from dbfleet.testing.rig.waiting import wait_until
from tests.clusters.console import Console
from tests.support.project import Project

DEADLINE_S = 20

SETTINGS = """
from dbfleet import Cluster, databases
from dbfleet.policies import First

DATABASES = databases(
    default=Cluster({url!r}, replicas={replicas!r}, policy=First()),
)
DBFLEET = {{"WAIT_TIMEOUT_S": 0.2}}
"""

MODELS = """
class Note(models.Model):
    text = models.CharField(max_length=40)
"""

PRELUDE = """
import dbfleet
from dbfleet import sessions
from dbfleet.executor import leaders
from django.db import connection, transaction
from app.models import Note


def write(text):
    try:
        Note.objects.create(text=text)
    except Exception as error:
        return getattr(error, "code", None) or repr(error)
    return "written"


def texts():
    try:
        return sorted(Note.objects.values_list("text", flat=True))
    except Exception as error:
        return getattr(error, "code", None) or repr(error)


def leader():
    found = leaders.leader_of("default/home")
    return found and found.name
"""


@dataclass
class Fleet:
    """A process that has used a primary and its two replicas."""

    servers: Any
    console: Console

    def ask(self, expression: str) -> Any:
        return self.console.ask(expression)

    def run(self, code: str) -> Any:
        return self.console.run(textwrap.dedent(code))

    def rows(self, server: Any) -> list[str]:
        found = server.execute("SELECT text FROM app_note ORDER BY text", dbname="shop")
        return [text for (text,) in found]

    def follow(self, replica: Any, primary: Any) -> None:
        """Have a replica stream from another primary, as an operator would."""
        target = f"host={primary.host} port={primary.port} user={primary.user}"
        replica.execute(f"ALTER SYSTEM SET primary_conninfo = '{target}'")
        replica.execute("SELECT pg_reload_conf()")
        wait_until(
            lambda: self._streams_from(replica, primary.port),
            timeout_s=DEADLINE_S,
            what=f"{replica.name} follows {primary.name}",
        )

    def _streams_from(self, replica: Any, port: int) -> bool:
        found = replica.execute(
            "SELECT sender_port, received_tli FROM pg_stat_wal_receiver"
        )
        return bool(found) and found[0][0] == port and found[0][1] == 2

    def isolate(self, replica: Any) -> None:
        """Have a replica stream from nobody."""
        replica.execute("ALTER SYSTEM SET primary_conninfo = ''")
        replica.execute("SELECT pg_reload_conf()")
        wait_until(
            lambda: not replica.execute("SELECT 1 FROM pg_stat_wal_receiver"),
            timeout_s=DEADLINE_S,
            what=f"{replica.name} streams from nobody",
        )


@pytest.fixture
def fleet(tmp_path: Any, programs: Path | None) -> Iterator[Fleet]:
    with Rig(durable=False) as rig:
        servers = rig.postgresql_cluster(
            replicas=2, databases=["shop"], programs=programs
        )
        project = Project(
            tmp_path / "project",
            databases=SETTINGS.format(
                url=servers.url("shop"), replicas=servers.replica_urls("shop")
            ),
            models=MODELS,
        )
        project.manage("migrate", "--run-syncdb", "--verbosity=0")
        console = Console(project)
        try:
            console.run(PRELUDE)
            found = Fleet(servers, console)
            assert found.ask('write("one")') == "written"
            servers.wait_until_caught_up()
            assert found.ask("texts()") == ["one"]
            yield found
        finally:
            console.close()
            project.close()


@pytest.fixture
def programs() -> Path | None:
    """Where another PostgreSQL lies than the machine's."""
    return None


def eventually(action: Callable[[], Any], expected: Any) -> None:
    seen: list[Any] = []

    def holds() -> bool:
        seen[:] = [action()]
        return bool(seen[0] == expected)

    try:
        wait_until(holds, timeout_s=DEADLINE_S, what=f"{expected!r}")
    except Exception as error:
        raise AssertionError(f"{seen} is not {expected!r}") from error


def test_writes_follow_the_promoted_replica(fleet: Fleet) -> None:
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    primary.kill()
    assert fleet.ask('write("refused")') == "dbfleet.E602"  # it may have happened
    assert fleet.ask("texts()") == "dbfleet.E204"
    assert fleet.run("with dbfleet.session(): result = texts()") == ["one"]
    one.promote()
    eventually(lambda: fleet.ask('write("two")'), "written")
    assert fleet.ask("leader()") == "default/replica1"
    assert fleet.rows(one) == ["one", "two"]
    assert fleet.ask("texts()") == ["one", "two"]
    fleet.follow(two, one)
    eventually(
        lambda: fleet.run(
            """
            from dbfleet.health import breaker
            breaker.reset()
            state = sessions.current().of("default/home")
            state.stays_until = 0
            result = texts(), state.node
            """
        ),
        [["one", "two"], "default/replica2"],
    )


def test_another_process_finds_the_new_primary_when_it_starts(fleet: Fleet) -> None:
    fleet.servers.primary.kill()
    fleet.servers.replicas[0].promote()
    fleet.run("connection.close(); leaders.forget()")
    assert fleet.ask('write("two")') == "written"
    assert fleet.rows(fleet.servers.replicas[0]) == ["one", "two"]


def test_a_lost_write_is_told_once(fleet: Fleet) -> None:
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    fleet.isolate(one)
    fleet.isolate(two)
    assert fleet.ask('write("lost")') == "written"
    token = fleet.ask("[list(p) for p in sessions.current().of('default/home').floors]")
    assert token
    primary.kill()
    one.promote()
    # The new timeline passes the lost position.
    one.execute(
        "INSERT INTO app_note (text) SELECT 'new' FROM generate_series(1, 2000)",
        dbname="shop",
    )
    fleet.follow(two, one)
    two_is_there = "SELECT count(*) FROM app_note WHERE text = 'new'"
    eventually(lambda: two.execute(two_is_there, dbname="shop"), [(2000,)])
    answers = [fleet.ask("texts()") for _ in range(3)]
    assert answers[0] == "dbfleet.E207", answers[0] if len(answers[0]) < 9 else "rows"
    for later in answers[1:]:
        assert later.count("new") == 2000
        assert "lost" not in later
    assert fleet.ask('write("again")') == "written"
    assert "again" in fleet.rows(one)


def test_what_was_replicated_before_the_fork_is_not_lost(fleet: Fleet) -> None:
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    assert fleet.ask('write("kept")') == "written"
    fleet.servers.wait_until_caught_up()
    primary.kill()
    one.promote()
    fleet.follow(two, one)
    eventually(lambda: fleet.ask("texts()"), ["kept", "one"])


def test_an_old_primary_is_not_written_to(fleet: Fleet) -> None:
    """It still accepts writes; a replica shows that another one was promoted."""
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    one.promote()
    one.execute("INSERT INTO app_note (text) VALUES ('new')", dbname="shop")
    fleet.follow(two, one)
    # A write that the process cannot know to be late goes to the old one; the read
    # that has to prove it on a replica tells.
    assert fleet.ask('write("late")') == "written"
    eventually(lambda: fleet.ask("texts(), leader()")[1], "default/replica1")
    assert fleet.ask('write("two")') == "written"
    assert "two" in fleet.rows(one)
    assert "two" not in fleet.rows(primary)


def test_a_transaction_does_not_change_its_server(fleet: Fleet) -> None:
    primary = fleet.servers.primary
    found = fleet.run(
        """
        from dbfleet.executor.leaders import Leader
        answers = []
        try:
            with transaction.atomic():
                answers.append(write("inside"))
                leaders._of("default/home").leader = Leader("default/replica1", 2)
        except Exception as error:
            answers.append(error.code)
        leaders.forget()
        result = answers
        """
    )
    assert found == ["written", "dbfleet.E209"]
    assert fleet.rows(primary) == ["one"]


def test_a_lost_write_is_told_before_the_new_primary_is_used(fleet: Fleet) -> None:
    """In a transaction as well, whose statements never look at a replica."""
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    fleet.isolate(one)
    fleet.isolate(two)
    assert fleet.ask('write("lost")') == "written"
    primary.kill()
    one.promote()
    eventually(
        lambda: fleet.run('with dbfleet.session(): result = write("new")'), "written"
    )
    found = fleet.run(
        """
        def inside():
            with transaction.atomic():
                return texts()

        result = [inside(), inside()]
        """
    )
    assert found == ["dbfleet.E207", ["new", "one"]]


def test_a_session_whose_position_is_not_known_is_told(fleet: Fleet) -> None:
    """Raw SQL tells no position, so nobody can say whether the new primary has it."""
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    fleet.run(
        """
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO app_note (text) VALUES ('raw')")
        """
    )
    fleet.servers.wait_until_caught_up()
    primary.kill()
    one.promote()
    fleet.follow(two, one)
    eventually(
        lambda: fleet.run('with dbfleet.session(): result = write("new")'), "written"
    )
    answers = [fleet.ask("texts()") for _ in range(2)]
    assert answers == ["dbfleet.E207", ["new", "one", "raw"]]


def test_a_token_of_before_is_judged_in_a_session_of_now(fleet: Fleet) -> None:
    """The session has used the new primary, at a position that nobody told either."""
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    fleet.run(
        """
        def raw(text):
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO app_note (text) VALUES (%s)", [text])

        with dbfleet.session():
            raw("before")
            token = dbfleet.token()
        """
    )
    fleet.servers.wait_until_caught_up()
    primary.kill()
    one.promote()
    fleet.follow(two, one)
    eventually(
        lambda: fleet.run('with dbfleet.session(): result = write("new")'), "written"
    )
    found = fleet.run(
        """
        with dbfleet.session():
            raw("now")
            dbfleet.resume(token)
            result = [texts(), texts()]
        """
    )
    assert found == ["dbfleet.E207", ["before", "new", "now", "one"]]


def test_an_old_primary_that_comes_back_is_not_used(fleet: Fleet) -> None:
    """It answers under its own address again, and takes writes; nothing has shown the
    process a later timeline."""
    primary, (one, _) = fleet.servers.primary, fleet.servers.replicas
    primary.kill()
    assert fleet.ask('write("refused")') == "dbfleet.E602"
    one.promote()
    primary.start()
    eventually(lambda: fleet.ask('write("two")'), "written")
    assert "two" in fleet.rows(one)
    assert "two" not in fleet.rows(primary)


def test_a_new_connection_to_an_old_primary_is_refused(fleet: Fleet) -> None:
    """The timeline is known, and no declared node is on it."""
    found = fleet.run(
        """
        leaders.saw_timeline("default/home", 2)
        connection.close()
        result = [write("one more"), write("one more")]
        leaders.forget()
        result.append(write("two"))
        """
    )
    assert found == ["dbfleet.E209", "dbfleet.E209", "written"]
    assert fleet.rows(fleet.servers.primary) == ["one", "two"]


def test_a_role_that_may_not_ask_still_writes_and_sees_it(fleet: Fleet) -> None:
    """Its commits tell nothing; none of them may look as if it had failed."""
    refuse = "REVOKE EXECUTE ON FUNCTION pg_walfile_name(pg_lsn) FROM PUBLIC"
    primary = fleet.servers.primary
    primary.execute(refuse, dbname="shop")
    primary.execute("CREATE ROLE plain LOGIN", dbname="shop")
    primary.execute(
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO plain; "
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO plain",
        dbname="shop",
    )
    fleet.servers.wait_until_caught_up()
    found = fleet.run(
        """
        connection.close()
        for node in connection.settings_dict["NODES"].values():
            node["USER"] = "plain"
        connection.settings_dict["USER"] = "plain"
        sessions.forget()
        result = write("two"), texts()
        """
    )
    assert found == ["written", ["one", "two"]]
