"""MariaDB servers of the rig: GTID replication, crashes, privileges."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import pymysql
import pytest
from pymysql.constants import ER

from dbfleet.testing.rig import (
    DeadlineExceeded,
    MariaDBCluster,
    Rig,
    ServerFailed,
    ServerUnavailable,
    mariadb_binaries,
    wait_until,
)
from tests.conftest import start_or_skip

TIMEOUT_S = 20.0


@contextlib.contextmanager
def connect(url: str) -> Iterator[pymysql.cursors.Cursor]:
    """A cursor in autocommit on the database of ``url``, as an application has it."""
    parts = urlsplit(url)
    with contextlib.closing(
        pymysql.connect(
            host=parts.hostname,
            port=parts.port or 0,
            user=parts.username,
            password=parts.password or "",
            database=parts.path[1:],
            autocommit=True,
            read_timeout=TIMEOUT_S,
        )
    ) as connection:
        yield connection.cursor()


@pytest.fixture
def table(own_mariadb: MariaDBCluster) -> str:
    """An empty table ``shop.item`` that the replica has too."""
    own_mariadb.primary.execute(
        "CREATE OR REPLACE TABLE shop.item (id int PRIMARY KEY)"
    )
    own_mariadb.wait_until_caught_up()
    return "shop.item"


def test_replica_sees_what_the_primary_wrote(
    own_mariadb: MariaDBCluster, table: str
) -> None:
    [replica] = own_mariadb.replicas
    with connect(own_mariadb.url("shop")) as cursor:
        cursor.execute(f"INSERT INTO {table} VALUES (1)")
    replica.wait_until_caught_up()
    assert replica.execute(f"SELECT id FROM {table}") == [(1,)]
    assert replica.has_caught_up()


def test_paused_replay_hides_writes_until_resumed(
    own_mariadb: MariaDBCluster, table: str
) -> None:
    [replica] = own_mariadb.replicas
    replica.pause_replay()
    own_mariadb.primary.execute(f"INSERT INTO {table} VALUES (1)")
    with pytest.raises(DeadlineExceeded, match=r"own-maria-replica1 catches up"):
        replica.wait_until_caught_up(deadline_s=0.3)
    assert not replica.has_caught_up()
    assert replica.execute(f"SELECT id FROM {table}") == []
    replica.resume_replay()
    replica.wait_until_caught_up()
    assert replica.execute(f"SELECT id FROM {table}") == [(1,)]


def test_replica_refuses_writes_of_the_application_user(
    own_mariadb: MariaDBCluster, table: str
) -> None:
    [url] = own_mariadb.replica_urls("shop")
    with connect(url) as cursor:
        with pytest.raises(pymysql.OperationalError) as caught:
            cursor.execute(f"INSERT INTO {table} VALUES (1)")
        assert caught.value.args[0] == ER.OPTION_PREVENTS_STATEMENT
        with pytest.raises(pymysql.OperationalError) as caught:
            cursor.execute("SET GLOBAL read_only = OFF")
        assert caught.value.args[0] == ER.SPECIFIC_ACCESS_DENIED_ERROR


def test_servers_of_a_cluster_share_a_gtid_domain_and_differ_in_id(
    own_mariadb: MariaDBCluster,
) -> None:
    rows = [
        server.execute("SELECT @@server_id, @@gtid_domain_id")[0]
        for server in own_mariadb.servers
    ]
    assert len({server_id for server_id, _ in rows}) == 2
    assert len({domain for _, domain in rows}) == 1


def test_prepared_transaction_outlives_a_kill(
    own_mariadb: MariaDBCluster, table: str
) -> None:
    with connect(own_mariadb.url("shop")) as cursor:
        cursor.execute("XA START 'survivor'")
        cursor.execute(f"INSERT INTO {table} VALUES (7)")
        cursor.execute("XA END 'survivor'")
        cursor.execute("XA PREPARE 'survivor'")
    own_mariadb.primary.kill()
    assert not own_mariadb.primary.is_running
    own_mariadb.primary.start()
    with connect(own_mariadb.url("shop")) as cursor:
        cursor.execute("XA RECOVER")
        assert [row[3] for row in cursor.fetchall()] == [b"survivor"]
        cursor.execute("XA COMMIT 'survivor'")
    own_mariadb.wait_until_caught_up()
    [replica] = own_mariadb.replicas
    assert replica.execute(f"SELECT id FROM {table}") == [(7,)]


def test_killed_server_keeps_what_it_acknowledged(
    own_mariadb: MariaDBCluster, table: str
) -> None:
    primary = own_mariadb.primary
    with connect(own_mariadb.url("shop")) as cursor:
        for number in range(50):
            cursor.execute(f"INSERT INTO {table} VALUES ({number})")
        primary.kill()
        with pytest.raises(pymysql.OperationalError):
            cursor.execute("SELECT 1")
    primary.start()
    assert primary.execute(f"SELECT count(*) FROM {table}") == [(50,)]
    own_mariadb.wait_until_caught_up()


def test_restarted_replica_follows_again(
    own_mariadb: MariaDBCluster, table: str
) -> None:
    [replica] = own_mariadb.replicas
    replica.stop()
    own_mariadb.primary.execute(f"INSERT INTO {table} VALUES (1)")
    replica.start()
    replica.wait_until_caught_up()
    assert replica.execute(f"SELECT id FROM {table}") == [(1,)]
    assert replica.execute("SELECT @@read_only") == [(1,)]


def test_promoted_replica_takes_writes(
    request: pytest.FixtureRequest, rig: Rig
) -> None:
    cluster = start_or_skip(
        request,
        "MariaDB",
        lambda: rig.mariadb_cluster(1, name="promoted-maria", databases=["shop"]),
    )
    [replica] = cluster.replicas
    cluster.primary.kill()
    replica.promote()
    replica.restart()
    with connect(replica.url("shop")) as cursor:
        cursor.execute("CREATE TABLE item (id int)")
        cursor.execute("SELECT count(*) FROM item")
        assert cursor.fetchone() == (0,)
    assert replica.execute("SHOW SLAVE STATUS") == []
    cluster.stop()


def test_broken_replication_is_told_at_once(
    request: pytest.FixtureRequest, rig: Rig
) -> None:
    cluster = start_or_skip(
        request,
        "MariaDB",
        lambda: rig.mariadb_cluster(1, name="broken-maria", databases=["shop"]),
    )
    [replica] = cluster.replicas
    cluster.primary.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    cluster.wait_until_caught_up()
    replica.execute("INSERT INTO shop.item VALUES (1)")
    cluster.primary.execute("INSERT INTO shop.item VALUES (1)")
    with pytest.raises(ServerFailed, match=r"replica1 ended: .*Duplicate entry"):
        replica.wait_until_caught_up()
    cluster.stop()


def test_time_zones_are_loaded(own_mariadb: MariaDBCluster) -> None:
    for server in own_mariadb.servers:
        assert server.execute(
            "SELECT CAST(CONVERT_TZ('2026-07-01 12:00', 'UTC', 'Europe/Paris') AS char)"
        ) == [("2026-07-01 14:00:00",)]


def test_databases_hold_any_character(own_mariadb: MariaDBCluster) -> None:
    with connect(own_mariadb.url("shop")) as cursor:
        cursor.execute("CREATE TEMPORARY TABLE words (word varchar(9))")
        cursor.execute("INSERT INTO words VALUES ('é🐬')")
        cursor.execute("SELECT word FROM words")
        assert cursor.fetchone() == ("é🐬",)


def test_dropped_database_ends_its_connections(own_mariadb: MariaDBCluster) -> None:
    own_mariadb.create_database("short_lived")
    with connect(own_mariadb.url("short_lived")) as cursor:
        own_mariadb.drop_database("short_lived")

        def is_cut_off() -> bool:
            try:
                cursor.execute("SELECT 1")
            except pymysql.Error:
                return True
            return False

        wait_until(is_cut_off, timeout_s=TIMEOUT_S, what="the connection ends")
    rows = own_mariadb.primary.execute("SHOW DATABASES LIKE 'short_lived'")
    assert rows == []
    own_mariadb.drop_database("short_lived")


def test_failed_start_quotes_the_log(request: pytest.FixtureRequest, rig: Rig) -> None:
    def start() -> None:
        rig.mariadb_cluster(name="failing", options={"innodb-page-size": "nonsense"})

    with pytest.raises(ServerFailed, match=r"innodb[-_]page[-_]size"):
        start_or_skip(request, "MariaDB", start)


@pytest.mark.parametrize("password", ["a'b", "a\\b", "é"])
def test_password_that_cannot_be_set_is_refused(
    request: pytest.FixtureRequest, password: str
) -> None:
    with Rig(password=password) as rig:
        with pytest.raises(ServerFailed, match="printable ASCII") as caught:
            start_or_skip(request, "MariaDB", rig.mariadb_cluster)
        assert password not in str(caught.value).replace("' and \\", "")


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(mariadb_binaries, "MORE_PATHS", ())
    with pytest.raises(ServerUnavailable, match="apt-get install mariadb-server"):
        rig.mariadb_cluster(name="absent-maria")
