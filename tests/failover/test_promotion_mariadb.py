"""The same on MariaDB and MySQL, whose positions have no timelines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dbfleet.testing.rig import Rig
from tests.clusters.console import Console
from tests.conftest import start_or_skip
from tests.failover import test_promotion as promotion
from tests.failover.test_promotion import (
    DEADLINE_S,
    MODELS,
    PRELUDE,
    SETTINGS,
    eventually,
)
from tests.support.project import Project

HEAD = "import pymysql\n\npymysql.install_as_MySQLdb()\n"


class Fleet(promotion.Fleet):
    """A process that has used a primary and its two replicas."""

    def follow(self, replica: Any, primary: Any) -> None:
        """Have a replica stream from another primary, as an operator would."""
        replica.follow(primary)


@pytest.fixture(params=["MariaDB", "MySQL"])
def fleet(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Fleet]:
    with Rig(durable=False) as rig:
        is_newer = request.param == "MySQL"
        start = rig.mysql_cluster if is_newer else rig.mariadb_cluster
        servers: Any = start_or_skip(
            request,
            request.param,
            lambda: start(replicas=2, databases=["shop"]),
            is_newer=is_newer,
        )
        project = Project(
            tmp_path / "project",
            databases=HEAD
            + SETTINGS.format(
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


def test_writes_follow_the_promoted_replica(fleet: Fleet) -> None:
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    primary.kill()
    assert fleet.ask('write("refused")') == "dbfleet.E602"
    one.promote()
    eventually(lambda: fleet.ask('write("two")'), "written")
    assert fleet.ask("leader()") == "default/replica1"
    assert fleet.rows(one) == ["one", "two"]
    assert fleet.ask("texts()") == ["one", "two"]
    fleet.follow(two, one)
    eventually(lambda: fleet.rows(two), ["one", "two"])
    fleet.run("sessions.forget()")
    eventually(lambda: fleet.ask("texts()"), ["one", "two"])


def test_a_lost_write_is_told_once(fleet: Fleet) -> None:
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    for replica in (one, two):
        replica.execute("STOP REPLICA")
    found = fleet.run(
        """
        with transaction.atomic():
            write("lost")
        result = len(sessions.current().of("default/home").floors)
        """
    )
    assert found == 1
    primary.kill()
    one.promote()
    for _ in range(5):  # the domain's sequence passes the lost one
        one.execute("INSERT INTO app_note (text) VALUES ('new')", dbname="shop")
    fleet.follow(two, one)
    eventually(lambda: len(fleet.rows(two)), 6)
    answers = [fleet.ask("texts()") for _ in range(3)]
    assert answers[0] == "dbfleet.E207"
    assert answers[1:] == [["new"] * 5 + ["one"]] * 2


def test_what_was_replicated_before_is_not_lost(fleet: Fleet) -> None:
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    fleet.run('with transaction.atomic(): write("kept")')
    fleet.servers.wait_until_caught_up()
    primary.kill()
    one.promote()
    one.execute("INSERT INTO app_note (text) VALUES ('new')", dbname="shop")
    fleet.follow(two, one)
    eventually(lambda: fleet.ask("texts()"), ["kept", "new", "one"])


def switch_back(primary: Any, one: Any) -> None:
    """Have the old primary take what a promoted replica has, and lead again."""
    type(one)._point_to(primary, one)
    primary.execute("START REPLICA")
    [(sets,)] = one.execute("SELECT @@global.gtid_executed")
    caught_up = f"SELECT WAIT_FOR_EXECUTED_GTID_SET('{sets}', {DEADLINE_S})"
    assert primary.execute(caught_up) == [(0,)]
    primary.execute("STOP REPLICA")
    primary.execute("RESET REPLICA ALL")
    one.execute("SET GLOBAL read_only = ON")
    one.follow(primary)


def test_a_write_that_is_on_its_way_is_not_lost(fleet: Fleet) -> None:
    """Roles were switched and switched back, and a replica has a table of its own:
    its set has what the primary that wrote before did not."""
    primary, (one, two) = fleet.servers.primary, fleet.servers.replicas
    if primary.engine != "mysql":
        return  # there sequences go on over all servers
    two.execute("CREATE TABLE own (n int)", dbname="shop")
    one.promote()
    one.execute("INSERT INTO app_note (text) VALUES ('two')", dbname="shop")
    switch_back(primary, one)
    fleet.servers.wait_until_caught_up()
    for replica in (one, two):
        replica.pause_replay()
    assert fleet.ask('write("three")') == "written"
    for _ in range(3):
        assert fleet.ask("texts()") == ["one", "three", "two"]
        fleet.run("from dbfleet.executor import replicas; replicas._unwaited.clear()")
    for replica in (one, two):
        replica.resume_replay()
    fleet.servers.wait_until_caught_up()
    assert fleet.run("with dbfleet.session(): result = texts()") == [
        "one",
        "three",
        "two",
    ]
