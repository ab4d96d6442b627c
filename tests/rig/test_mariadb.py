"""MariaDB and MySQL servers of the rig: GTID replication, crashes, privileges."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest
from pymysql.constants import ER

from dbfleet.testing.rig import (
    DeadlineExceeded,
    Rig,
    ServerFailed,
    ServerUnavailable,
    mariadb_binaries,
    mysql_binaries,
    wait_until,
)
from dbfleet.testing.rig.mariadb_binaries import find_mariadb
from tests.conftest import start_or_skip
from tests.rig.conftest import GtidCluster

TIMEOUT_S = 20.0
Start = Callable[..., GtidCluster]


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
def table(own: GtidCluster) -> str:
    """An empty table ``shop.item`` that the replica has too."""
    own.primary.execute("DROP TABLE IF EXISTS shop.item")
    own.primary.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    own.wait_until_caught_up()
    return "shop.item"


def test_replica_sees_what_the_primary_wrote(own: GtidCluster, table: str) -> None:
    [replica] = own.replicas
    with connect(own.url("shop")) as cursor:
        cursor.execute(f"INSERT INTO {table} VALUES (1)")
    replica.wait_until_caught_up()
    assert replica.execute(f"SELECT id FROM {table}") == [(1,)]
    assert replica.has_caught_up()


def test_paused_replay_hides_writes_until_resumed(own: GtidCluster, table: str) -> None:
    [replica] = own.replicas
    replica.pause_replay()
    own.primary.execute(f"INSERT INTO {table} VALUES (1)")
    with pytest.raises(DeadlineExceeded, match=r"replica1 catches up"):
        replica.wait_until_caught_up(deadline_s=0.3)
    assert not replica.has_caught_up()
    assert replica.execute(f"SELECT id FROM {table}") == []
    replica.resume_replay()
    replica.wait_until_caught_up()
    assert replica.execute(f"SELECT id FROM {table}") == [(1,)]


def test_replica_refuses_writes_of_the_application_user(
    own: GtidCluster, table: str
) -> None:
    [url] = own.replica_urls("shop")
    with connect(url) as cursor:
        with pytest.raises(pymysql.OperationalError) as caught:
            cursor.execute(f"INSERT INTO {table} VALUES (1)")
        assert caught.value.args[0] == ER.OPTION_PREVENTS_STATEMENT
        with pytest.raises(pymysql.OperationalError) as caught:
            cursor.execute("SET GLOBAL read_only = OFF")
        assert caught.value.args[0] == ER.SPECIFIC_ACCESS_DENIED_ERROR


def test_servers_of_a_cluster_differ_in_name_and_share_a_history(
    own: GtidCluster, table: str
) -> None:
    names = {server.execute("SELECT @@server_id")[0][0] for server in own.servers}
    assert len(names) == 2
    if own.primary.engine == "mariadb":
        shared = [server.execute("SELECT @@gtid_domain_id") for server in own.servers]
        assert shared[0] == shared[1]
        return
    uuids = {server.execute("SELECT @@server_uuid")[0][0] for server in own.servers}
    assert len(uuids) == 2
    sets = [server.execute("SELECT @@gtid_executed")[0][0] for server in own.servers]
    # Nothing that a replica wrote by itself, at its start or later.
    assert sets[0] == sets[1]
    assert sets[0].count(":") == 1


def test_prepared_transaction_outlives_a_kill(own: GtidCluster, table: str) -> None:
    with connect(own.url("shop")) as cursor:
        cursor.execute("XA START 'survivor'")
        cursor.execute(f"INSERT INTO {table} VALUES (7)")
        cursor.execute("XA END 'survivor'")
        cursor.execute("XA PREPARE 'survivor'")
    own.primary.kill()
    assert not own.primary.is_running
    own.primary.start()
    with connect(own.url("shop")) as cursor:
        cursor.execute("XA RECOVER")
        assert [row[3] for row in cursor.fetchall()] in (["survivor"], [b"survivor"])
        cursor.execute("XA COMMIT 'survivor'")
    own.wait_until_caught_up()
    [replica] = own.replicas
    assert replica.execute(f"SELECT id FROM {table}") == [(7,)]


def test_killed_server_keeps_what_it_acknowledged(own: GtidCluster, table: str) -> None:
    primary = own.primary
    with connect(own.url("shop")) as cursor:
        for number in range(50):
            cursor.execute(f"INSERT INTO {table} VALUES ({number})")
        primary.kill()
        with pytest.raises(pymysql.OperationalError):
            cursor.execute("SELECT 1")
    primary.start()
    assert primary.execute(f"SELECT count(*) FROM {table}") == [(50,)]
    own.wait_until_caught_up()


def test_restarted_replica_follows_again(own: GtidCluster, table: str) -> None:
    [replica] = own.replicas
    replica.stop()
    own.primary.execute(f"INSERT INTO {table} VALUES (1)")
    replica.start()
    replica.wait_until_caught_up()
    assert replica.execute(f"SELECT id FROM {table}") == [(1,)]
    assert replica.execute("SELECT @@read_only") == [(1,)]


def test_promoted_replica_takes_writes(start: Start) -> None:
    cluster = start(1, name="promoted-gtid")
    [replica] = cluster.replicas
    cluster.primary.kill()
    replica.promote()
    replica.restart()
    with connect(replica.url("shop")) as cursor:
        cursor.execute("CREATE TABLE item (id int)")
        cursor.execute("SELECT count(*) FROM item")
        assert cursor.fetchone() == (0,)
    assert replica.execute("SHOW REPLICA STATUS") == []
    cluster.stop()


def test_broken_replication_is_told_at_once(start: Start) -> None:
    cluster = start(1, name="broken-gtid")
    [replica] = cluster.replicas
    cluster.primary.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    cluster.wait_until_caught_up()
    replica.execute("INSERT INTO shop.item VALUES (1)")
    cluster.primary.execute("INSERT INTO shop.item VALUES (1)")
    # MySQL's coordinator says that a worker failed, and where the reason is told.
    with pytest.raises(ServerFailed, match=r"replica1 ended: .*(Duplicate|worker)"):
        replica.wait_until_caught_up()
    cluster.stop()


def test_time_zones_are_loaded(own: GtidCluster) -> None:
    for server in own.servers:
        assert server.execute(
            "SELECT CAST(CONVERT_TZ('2026-07-01 12:00', 'UTC', 'Europe/Paris') AS char)"
        ) == [("2026-07-01 14:00:00",)]


def test_databases_hold_any_character(own: GtidCluster) -> None:
    with connect(own.url("shop")) as cursor:
        cursor.execute("CREATE TEMPORARY TABLE words (word varchar(9))")
        cursor.execute("INSERT INTO words VALUES ('é🐬')")
        cursor.execute("SELECT word FROM words")
        assert cursor.fetchone() == ("é🐬",)


def test_dropped_database_ends_its_connections(own: GtidCluster) -> None:
    own.create_database("short_lived")
    with connect(own.url("short_lived")) as cursor:
        own.drop_database("short_lived")

        def is_cut_off() -> bool:
            try:
                cursor.execute("SELECT 1")
            except pymysql.Error:
                return True
            return False

        wait_until(is_cut_off, timeout_s=TIMEOUT_S, what="the connection ends")
    rows = own.primary.execute("SHOW DATABASES LIKE 'short_lived'")
    assert rows == []
    own.drop_database("short_lived")


def test_failed_start_quotes_the_log(start: Start) -> None:
    with pytest.raises(ServerFailed, match=r"innodb[-_]page[-_]size"):
        start(name="failing", options={"innodb-page-size": "nonsense"})


@pytest.mark.parametrize("password", ["a'b", "a\\b", "é"])
def test_password_that_cannot_be_set_is_refused(
    request: pytest.FixtureRequest, vendor: str, password: str
) -> None:
    is_newer = vendor == "MySQL"
    with Rig(password=password) as rig:
        begin: Any = rig.mysql_cluster if is_newer else rig.mariadb_cluster
        with pytest.raises(ServerFailed, match="printable ASCII") as caught:
            start_or_skip(request, vendor, begin, is_newer=is_newer)
        assert password not in str(caught.value).replace("' and \\", "")


def test_replica_of_a_promoted_server_has_all(start: Start, rig: Rig) -> None:
    cluster = start(1, name="rejoined-gtid")
    old, [new] = cluster.primary, cluster.replicas
    old.execute("CREATE TABLE shop.item (id int PRIMARY KEY)")
    cluster.wait_until_caught_up()
    new.promote()
    new.execute("INSERT INTO shop.item VALUES (1)")
    again = rig.rejoin(old, new)
    again.wait_until_caught_up()
    assert again.port == old.port
    assert again.execute("SELECT id FROM shop.item") == [(1,)]


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(mariadb_binaries, "MORE_PATHS", ())
    with pytest.raises(ServerUnavailable, match="apt-get install mariadb-server"):
        rig.mariadb_cluster(name="absent-maria")


def test_missing_mysql_is_named(
    monkeypatch: pytest.MonkeyPatch, rig: Rig, tmp_path: Path
) -> None:
    monkeypatch.setenv(mysql_binaries.VARIABLE, str(tmp_path))
    with pytest.raises(ServerUnavailable, match=mysql_binaries.VARIABLE):
        rig.mysql_cluster(name="absent-mysql")
    monkeypatch.delenv(mysql_binaries.VARIABLE)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(mysql_binaries, "MORE_PATHS", ())
    with pytest.raises(ServerUnavailable, match="install mysql-server"):
        rig.mysql_cluster(name="absent-mysql")


def test_a_mariadb_is_not_taken_for_mysql(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    rig: Rig,
    tmp_path: Path,
) -> None:
    server = start_or_skip(request, "MariaDB", find_mariadb).server
    (tmp_path / "mysqld").symlink_to(server)
    (tmp_path / mysql_binaries.TIME_ZONES).touch()
    monkeypatch.setenv(mysql_binaries.VARIABLE, str(tmp_path))
    with pytest.raises(ServerUnavailable, match="is none"):
        rig.mysql_cluster(name="no-mysql")
