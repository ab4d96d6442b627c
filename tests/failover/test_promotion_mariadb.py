"""The same on MariaDB, whose positions have no timelines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dbfleet.testing.rig import Rig
from tests.clusters.console import Console
from tests.failover import test_promotion as promotion
from tests.failover.test_promotion import MODELS, PRELUDE, SETTINGS, eventually
from tests.support.project import Project

HEAD = "import pymysql\n\npymysql.install_as_MySQLdb()\n"


class Fleet(promotion.Fleet):
    """A process that has used a primary and its two replicas."""

    def follow(self, replica: Any, primary: Any) -> None:
        """Have a replica stream from another primary, as an operator would."""
        replica.execute("STOP SLAVE")
        replica.execute(
            "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s",
            (primary.host, primary.port),
        )
        replica.execute("START SLAVE")


@pytest.fixture
def fleet(tmp_path: Any) -> Iterator[Fleet]:
    with Rig(durable=False) as rig:
        servers = rig.mariadb_cluster(replicas=2, databases=["shop"])
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
    assert fleet.ask('write("refused")') == "dbfleet.E204"
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
        replica.execute("STOP SLAVE")
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
