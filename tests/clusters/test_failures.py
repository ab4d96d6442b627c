"""Servers of a cluster that go away and come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dbfleet.health import MAX_PAUSE_S
from dbfleet.testing.rig import wait_until
from tests.clusters.conftest import Fleet

#: a pause, its jitter, and the time that a server takes to answer
BACK_TIMEOUT_S = MAX_PAUSE_S * 1.2 + 10


def test_reads_go_on_when_a_replica_is_killed(fleet: Fleet) -> None:
    fleet.run('Note.objects.create(text="one")')
    fleet.servers.wait_until_caught_up()
    fleet.run("sessions.forget()")
    assert set(fleet.ask("turns(4)")) == set(fleet.replicas)
    fleet.servers.replicas[0].kill()
    left = set(fleet.replicas[1:]) or {"primary"}
    for _ in range(6):
        assert fleet.ask("texts()") == ["one"]
        assert fleet.ask("raw('SELECT text FROM app_note')") == [["one"]]
    assert set(fleet.ask("turns(4)")) == left
    assert fleet.ask("raw_where('SELECT port FROM which')") in left
    # Meanwhile a session still never misses its own write.
    fleet.run('Note.objects.create(text="two")')
    assert fleet.ask("texts()") == ["one", "two"]


def test_raw_reads_go_on_when_the_connection_to_a_replica_is_lost(fleet: Fleet) -> None:
    """The statement itself meets the loss; the next node answers it."""
    for statement in ("texts()", "raw('SELECT text FROM app_note')", "where()"):
        fleet.run("start()\n[texts() for _ in range(4)]")
        for replica in fleet.servers.replicas:
            replica.restart("immediate")
        assert fleet.ask(f"refused(lambda: {statement})") is None, statement


def test_a_replica_that_came_back_serves_again(fleet: Fleet) -> None:
    assert set(fleet.ask("turns(4)")) == set(fleet.replicas)
    replica, name = fleet.servers.replicas[0], fleet.replicas[0]
    replica.kill()
    for _ in range(4):
        assert fleet.ask("where()") != name
    replica.start()
    fleet.console.until(f"{name!r} in turns(2)", True, timeout_s=BACK_TIMEOUT_S)


def test_a_failed_replica_is_left_alone_for_a_while(fleet: Fleet) -> None:
    """Reads do not wait for a server that has just failed."""
    fleet.ask("turns(4)")
    fleet.servers.replicas[0].kill()
    found = fleet.run(
        """
        opened = []
        node = type(connection.nodes.node("default/replica1", is_replica=True))
        connect = node.connect

        def counting(self):
            opened.append(self.alias)
            return connect(self)

        node.connect = counting
        try:
            for _ in range(30):
                texts()
        finally:
            node.connect = connect
        result = opened.count("default/replica1")
        """
    )
    assert found <= 3


@pytest.fixture
def headless(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet without its primary; rows were written and replayed before."""
    fleet.run('Note.objects.create(text="one")')
    fleet.servers.wait_until_caught_up()
    fleet.run("start()\ntexts()")
    fleet.servers.primary.stop("fast")
    yield fleet
    fleet.servers.primary.start()


def test_replicas_serve_without_their_primary(headless: Fleet) -> None:
    fleet = headless
    for _ in range(4):
        assert fleet.ask("texts()") == ["one"]
    assert fleet.ask("raw('SELECT text FROM app_note')") == [["one"]]
    error = fleet.ask('refused(Note.objects.create, text="two")')
    assert error[:2] == ["NodeUnavailable", "dbfleet.E204"]
    assert "default/primary of alias 'default'" in error[2]
    in_transaction = fleet.run(
        """
        def work():
            with transaction.atomic():
                return texts()
        result = refused(work)
        """
    )
    assert in_transaction[:2] == ["NodeUnavailable", "dbfleet.E204"]
    fleet.servers.primary.start()
    wait_until(
        lambda: fleet.ask('refused(Note.objects.create, text="two")') is None,
        timeout_s=20,
        what="the primary takes writes",
    )
    assert fleet.ask("texts()") == ["one", "two"]


def test_a_new_process_reads_without_the_primary(headless: Fleet) -> None:
    """Also the first connections of a process, which verify their servers, go on."""
    headless.run("start()\nfrom dbfleet.executor import nodes\nnodes._verified.clear()")
    assert headless.ask("texts()") == ["one"]


def test_a_session_that_wrote_does_not_read_less_than_it_wrote(fleet: Fleet) -> None:
    for replica in fleet.servers.replicas:
        replica.pause_replay()
    fleet.run('Note.objects.create(text="mine")')
    fleet.servers.primary.stop("fast")
    error = fleet.ask("refused(texts)")
    assert error[:2] == ["NodeUnavailable", "dbfleet.E204"], error
    assert fleet.ask("contextvars.Context().run(texts)") == []  # others go on
    fleet.servers.primary.start()
    fleet.run("from django.db import close_old_connections")
    # The end of a request closes what was lost, as with any Django connection.
    wait_until(
        lambda: fleet.ask("close_old_connections(), refused(texts)")[1] is None,
        timeout_s=20,
        what="the primary serves again",
    )
    assert fleet.ask("texts()") == ["mine"]


def test_a_session_stays_on_its_replica_while_the_primary_is_down(fleet: Fleet) -> None:
    """Its policy would have it move; nobody can tell what it saw."""
    if len(fleet.replicas) < 2:
        return
    before = fleet.ask("where()")
    fleet.servers.primary.kill()
    fleet.run("sessions.current().of('default/home').stays_until = 0")
    assert fleet.ask("[where(), where()]") == [before, before]


def test_a_transaction_that_could_not_begin_demands_nothing(fleet: Fleet) -> None:
    before = fleet.ask("where()")
    fleet.servers.primary.kill()
    fleet.run("connection.close()")
    found = fleet.run(
        """
        def both():
            with transaction.atomic():
                Note.objects.create(text="x")

        result = refused(both)[1], where()
        """
    )
    assert found == ["dbfleet.E204", before]


def test_a_replica_that_runs_anew_has_to_prove_what_was_seen(fleet: Fleet) -> None:
    """After a crash it may show less than it did: it starts where it is consistent."""
    if fleet.engine != "postgresql":
        return
    name = fleet.ask("where()")
    replica = fleet.servers.replicas[int(name[-1]) - 1]
    token = fleet.ask("dbfleet.token()")
    assert fleet.ask("sessions.current().of('default/home').floors") == []
    replica.kill()
    replica.start()
    fleet.servers.wait_until_caught_up()
    fleet.run("connections.close_all(); breaker.reset()")
    assert fleet.ask("len(texts())") == 0
    floors = "len(sessions.current().of('default/home').floors)"
    assert fleet.ask(floors) == 1  # the primary said what may have been seen
    found = fleet.run(
        f"""
        with dbfleet.session():
            dbfleet.resume({token!r})
            texts()
            result = {floors}
        """
    )
    assert found == 1
