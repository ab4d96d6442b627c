"""A replica that is nearly there is waited for, and never for longer than said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from dbfleet.testing.rig import DatabaseServer, wait_until
from tests.clusters.conftest import Fleet

DEADLINE_S = 25

_WAITING = """
from django.conf import settings
from django.test import override_settings
from dbfleet.executor import replicas


def waiting(timeout_s):
    replicas._unwaited.clear()
    return override_settings(DBFLEET={**settings.DBFLEET, "WAIT_TIMEOUT_S": timeout_s})


def on_replicas(sql):
    for name, node in connection.nodes._open.items():
        if "replica" in name and node.connection is not None:
            connection.engine.run(node, sql).close()
"""

_READ = """
with waiting({timeout_s}):
    Note.objects.create(text="new")
    result = texts(), where()
"""

#: statements of others that wait, or, where the server cannot wait, ask
_WAITS = {
    "mariadb": "SELECT 1 FROM information_schema.processlist WHERE "
    "id <> CONNECTION_ID() AND info LIKE '%MASTER_GTID_WAIT%'",
    "mysql": "SELECT 1 FROM information_schema.processlist WHERE "
    "id <> CONNECTION_ID() AND info LIKE '%WAIT_FOR_EXECUTED_GTID_SET%'",
    "postgresql": "SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
    "AND (query LIKE 'WAIT FOR LSN%' AND state = 'active' OR "
    "current_setting('server_version_num')::int < 190000 "
    "AND query LIKE '%pg_last_wal_replay_lsn%')",
}


def is_waited_for(server: DatabaseServer) -> bool:
    return bool(server.execute(_WAITS[server.engine]))


def pause_all(fleet: Fleet) -> None:
    fleet.servers.wait_until_caught_up()
    for replica in fleet.servers.replicas:
        replica.pause_replay()


def test_what_is_applied_in_time_is_read_on_a_replica(fleet: Fleet) -> None:
    fleet.run(_WAITING)
    fleet.run("where()")
    pause_all(fleet)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(fleet.run, _READ.format(timeout_s=20))
        try:
            wait_until(
                lambda: any(map(is_waited_for, fleet.servers.replicas)),
                timeout_s=DEADLINE_S,
                what="a replica is waited for",
            )
        finally:
            for replica in fleet.servers.replicas:
                replica.resume_replay()
        texts, where = read.result(DEADLINE_S)
    assert texts == ["new"]
    assert where in fleet.replicas


def test_the_least_wait_ends(fleet: Fleet) -> None:
    """It is never rounded to 0, which means for ever to some servers."""
    fleet.run(_WAITING)
    fleet.run("where()")
    pause_all(fleet)
    for timeout_s in (1e-6, 0.0004):
        assert fleet.run(_READ.format(timeout_s=timeout_s))[1] == "primary"
        fleet.run("Note.objects.all().delete(); start()")


def test_a_server_that_may_not_wait_so_long_is_not_broken(fleet: Fleet) -> None:
    """The role's own limit of a statement ends the wait."""
    if fleet.engine != "postgresql":
        return
    fleet.run(_WAITING)
    fleet.run("turns(4)")
    fleet.run("on_replicas(\"SET statement_timeout = '20ms'\")")
    pause_all(fleet)
    # Polling ends by its own clock: a wait that short ends both ways.
    assert fleet.run(_READ.format(timeout_s=0.2)) == [["new"], "primary"]
    assert fleet.ask("breaker.is_troubled()") is False


def test_a_wait_holds_no_snapshot(fleet: Fleet) -> None:
    """With whatever isolation the connection has."""
    if fleet.engine != "postgresql":
        return
    fleet.run(_WAITING)
    fleet.run("turns(4)")
    fleet.run("on_replicas(\"SET default_transaction_isolation = 'serializable'\")")
    fleet.run("on_replicas(\"SET default_transaction_isolation = 'repeatable read'\")")
    found = fleet.run(
        """
        Note.objects.create(text="new")
        engine = connection.engine
        wants = sessions.current().of("default/home").floors
        node = next(
            node
            for name, node in connection.nodes._open.items()
            if "replica" in name and node.connection is not None
        )
        result = engine.covers(engine.wait(node, wants, 20), wants)
        """
    )
    assert found is True
