"""A replica that a source found is promoted: writes follow it, and nobody else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dbfleet.testing.rig import Rig
from tests.clusters.console import Console
from tests.failover.test_promotion import MODELS, PRELUDE, Fleet, eventually
from tests.support.project import Project

FOUND = """
from dbfleet import Cluster, databases
from dbfleet.policies import First
from dbfleet.replicas import File

DATABASES = databases(
    default=Cluster({url!r}, replicas=File({file!r}, every_s=60), policy=First()),
)
DBFLEET = {{"WAIT_TIMEOUT_S": 0.2}}
"""


@pytest.fixture
def found_fleet(tmp_path: Any) -> Iterator[Fleet]:
    with Rig(durable=False) as rig:
        servers = rig.postgresql_cluster(replicas=2, databases=["shop"])
        stranger = rig.postgresql_cluster(
            replicas=0, databases=["shop"], name="stranger"
        )
        file = tmp_path / "replicas.json"
        urls = [*servers.replica_urls("shop"), stranger.url("shop")]
        file.write_text(json.dumps(urls))
        project = Project(
            tmp_path / "project",
            databases=FOUND.format(url=servers.url("shop"), file=str(file)),
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


def test_a_replica_that_was_found_is_followed_when_it_is_promoted(
    found_fleet: Fleet,
) -> None:
    """And not a server of another system, which accepts writes as well."""
    fleet = found_fleet
    one = fleet.servers.replicas[0]
    fleet.servers.primary.kill()
    assert fleet.ask('write("refused")') == "dbfleet.E602"
    assert fleet.ask('write("refused")') == "dbfleet.E204"
    one.promote()
    eventually(lambda: fleet.ask('write("two")'), "written")
    assert fleet.ask("leader()") == f"default/127.0.0.1:{one.port}"
    assert fleet.rows(one) == ["one", "two"]
