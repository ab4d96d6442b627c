"""Replicas that stop in the middle of a read: the read goes on elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dbfleet.testing.rig import wait_until
from tests.clusters.conftest import Fleet

#: far below what a read without a watch takes, which is for ever
DEADLINE_S = 25

_LISTEN = """
from dbfleet.executor import nodes
from dbfleet.health import silence
from dbfleet.observe import events

failures = []


def note(event):
    if event.name == "node_failed":
        failures.append(event.fields["node"])


listening = events.subscribed(note)
listening.__enter__()
silence.reset()
"""


@pytest.fixture
def watched(fleet: Fleet) -> Iterator[Fleet]:
    """A fleet whose replicas were read once, and whose servers may be stopped."""
    fleet.run('Note.objects.create(text="one")')
    fleet.servers.wait_until_caught_up()
    fleet.run("start()")
    fleet.run(_LISTEN)
    assert set(fleet.ask("turns(4)")) == set(fleet.replicas)
    try:
        yield fleet
    finally:
        for server in fleet.servers.servers:
            server.resume()
        fleet.run("listening.__exit__(None, None, None)")


def server_of(fleet: Fleet, name: str) -> Any:
    return fleet.servers.replicas[int(name[-1]) - 1]


def test_a_read_on_a_replica_that_stops_is_answered_by_another(watched: Fleet) -> None:
    before = watched.ask("where()")
    server_of(watched, before).pause()
    found = watched.run("result = where(), texts()", timeout_s=DEADLINE_S)
    assert found[0] in {*watched.replicas, "primary"} - {before}
    assert found[1] == ["one"]
    assert watched.ask("failures") == [f"default/{before}"]


def test_raw_reads_and_streams_are_watched(watched: Fleet) -> None:
    for read in (
        "raw('SELECT text FROM app_note')",
        "[[n.text] for n in Note.objects.iterator()]",
    ):
        watched.run("start(); silence.reset(); failures.clear()")
        before = watched.ask("where()")
        server_of(watched, before).pause()
        assert watched.run(f"result = {read}", timeout_s=DEADLINE_S) == [["one"]]
        assert watched.ask("failures") == [f"default/{before}"]
        server_of(watched, before).resume()


def test_a_long_read_on_a_healthy_replica_is_waited_for(watched: Fleet) -> None:
    """It lasts longer than a lost server would be waited for, several times over."""
    sleep = "pg_sleep(4)::text" if watched.engine == "postgresql" else "sleep(4)"
    before = watched.ask("where()")
    found = watched.run(
        f"""
        slept = Which.objects.annotate(slept=RawSQL({sleep!r}, ()))
        result = ROLES[slept.values_list("port", "slept").get()[0]]
        """
    )
    assert found == before
    assert watched.ask("failures") == []


# Other drivers have read all rows before the first is handed out.
@pytest.mark.parametrize(
    "started", ["postgres", "postgres19"], indirect=True, scope="package"
)
def test_after_the_first_rows_the_read_is_interrupted(watched: Fleet) -> None:
    watched.run(
        """
        Note.objects.bulk_create(Note(text="many") for _ in range(500))
        """
    )
    # The position behind the commit may be one that the primary has yet to flush.
    wait_until(
        lambda: watched.ask("where()") != "primary",
        timeout_s=DEADLINE_S,
        what="a replica has the rows",
    )
    before = watched.ask("where()")
    watched.run("rows = Note.objects.iterator(chunk_size=10); next(rows)")
    server_of(watched, before).pause()
    found = watched.run("result = refused(list, rows)", timeout_s=DEADLINE_S)
    assert found[:2] == ["ReadInterrupted", "dbfleet.E208"]
    assert watched.run("result = where()", timeout_s=DEADLINE_S) != before


def test_health_checks_and_closing_do_not_wait(watched: Fleet) -> None:
    before = watched.ask("where()")
    server_of(watched, before).pause()
    found = watched.run(
        f"""
        node = connection.nodes.node("default/{before}")
        node.health_check_enabled, node.health_check_done = True, False
        result = where()
        connections.close_all()
        """,
        timeout_s=DEADLINE_S,
    )
    assert found != before
    assert watched.ask("failures") == [f"default/{before}"]


def test_connecting_to_a_stopped_replica_does_not_wait(watched: Fleet) -> None:
    """Also where nothing is known against it: no process has a connection yet."""
    name = watched.replicas[0]
    server_of(watched, name).pause()
    watched.run("start(); silence.reset()")
    found = watched.run("result = turns(6)", timeout_s=DEADLINE_S)
    assert name not in found
    assert f"default/{name}" in watched.ask("failures")


def test_a_replica_that_goes_on_serves_again(watched: Fleet) -> None:
    before = watched.ask("where()")
    server_of(watched, before).pause()
    assert watched.run("result = where()", timeout_s=DEADLINE_S) != before
    server_of(watched, before).resume()
    watched.console.until(f"{before!r} in turns(2)", True, timeout_s=DEADLINE_S)
