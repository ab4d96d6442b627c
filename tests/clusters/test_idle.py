"""Connections that the server ended because nobody used them."""

from __future__ import annotations

import functools
from typing import Any

from dbfleet.testing.rig import wait_until
from tests.clusters.conftest import Fleet

DEADLINE_S = 25

_IDLE = """
def soon_ended(word):
    found = []
    for name, node in {"primary": connection, **connection.nodes._open}.items():
        if word in name and node.connection is not None:
            engine = connection.engine
            found.append(engine.fetch(node, "SELECT CONNECTION_ID()")[0][0])
            engine.run(node, "SET SESSION wait_timeout = 1").close()
    return found
"""


def end(fleet: Fleet, word: str, servers: list[Any]) -> None:
    """Have servers end what is open and not used; returns once they have."""
    fleet.run(_IDLE)
    ids = fleet.ask(f"soon_ended({word!r})")
    assert ids
    for server in servers:
        wait_until(
            functools.partial(_are_gone, server, fleet.database, {*ids}),
            timeout_s=DEADLINE_S,
            what=f"{server.name} ends idle connections",
        )


def _are_gone(server: Any, database: str, ids: set[int]) -> bool:
    sql = "SELECT id FROM information_schema.processlist WHERE db = %s"
    return not ids & {number for (number,) in server.execute(sql, (database,))}


def test_a_read_goes_on_when_its_connection_was_idle_too_long(fleet: Fleet) -> None:
    if fleet.engine == "postgresql":
        return
    fleet.run("turns(4)")
    end(fleet, "replica", fleet.servers.replicas)
    fleet.run("sessions.forget()")
    assert fleet.ask("raw_where('SELECT port FROM which')") in {
        *fleet.replicas,
        "primary",
    }
    assert fleet.ask("texts()") == []


def test_a_write_on_a_connection_that_was_idle_too_long(fleet: Fleet) -> None:
    """The node is named; the next statement connects anew."""
    if fleet.engine == "postgresql":
        return
    fleet.run('Note.objects.create(text="one")')
    end(fleet, "primary", [fleet.servers.primary])
    found = fleet.ask('refused(Note.objects.create, text="two")')
    assert found[1] in ("dbfleet.E204", "dbfleet.E602"), found
    fleet.run('Note.objects.create(text="three")')
    assert fleet.ask("texts()") == ["one", "three"]
