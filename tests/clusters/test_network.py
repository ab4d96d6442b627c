"""A replica that the network swallows: connections stay open, and nothing comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dbfleet.testing.rig import PostgresCluster, Rig
from dbfleet.testing.rig.proxy import FaultProxy
from tests.clusters.console import Console
from tests.support.project import Project

#: without a watch nothing ends, or after two minutes
DEADLINE_S = 25

SETTINGS = """
from dbfleet import Cluster, databases
from dbfleet.policies import First

DATABASES = databases(
    default=Cluster({url!r}, replicas={replicas!r}, policy=First(), {options})
)
DBFLEET = {{{settings}}}
"""

PRELUDE = """
import dbfleet
from dbfleet.health import breaker, silence
from django.db import connection, connections

PORTS = {ports!r}


def where():
    with dbfleet.session(), connection.cursor() as cursor:
        cursor.execute("SELECT port FROM which")
        return PORTS[cursor.fetchone()[0]]
"""


@dataclass
class Cluster:
    """A process that reads from ``far``, behind a proxy, rather than from ``near``."""

    console: Console
    proxy: FaultProxy

    def where(self) -> Any:
        return self.console.run("result = where()", timeout_s=DEADLINE_S)


@pytest.fixture
def started(
    rig: Rig,
    postgres: PostgresCluster,
    new_database: Callable[..., str],
    tmp_path: Any,
) -> Iterator[Callable[..., Cluster]]:
    made: list[Any] = []

    def start(
        options: str = "", settings: str = "", *, breaks_primary: bool = False
    ) -> Cluster:
        database = new_database(postgres)
        view = "CREATE VIEW which AS SELECT inet_server_port() AS port"
        postgres.primary.execute(view, dbname=database)
        postgres.wait_until_caught_up()
        far, near = postgres.replica_urls(database)
        primary = postgres.url(database)
        if breaks_primary:
            proxy, primary = rig.proxy(primary)
        else:
            proxy, far = rig.proxy(far)
        source = SETTINGS.format(
            url=primary,
            replicas=[far, near],
            options=options,
            settings=settings,
        )
        project = Project(tmp_path / "project", databases=source)
        console = Console(project)
        made.extend([console, project])
        servers = (postgres.primary, *postgres.replicas)
        names = ("primary", "far", "near")
        ports = {one.port: name for one, name in zip(servers, names, strict=True)}
        console.run(PRELUDE.format(ports=ports))
        return Cluster(console, proxy)

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "options",
    [
        "CONN_MAX_AGE=600",
        "CONN_MAX_AGE=600, CONN_HEALTH_CHECKS=True",
        'OPTIONS={"pool": {"min_size": 1, "max_size": 2}}',
    ],
    ids=["kept", "checked", "pooled"],
)
def test_a_read_goes_elsewhere(started: Callable[..., Cluster], options: str) -> None:
    cluster = started(options)
    assert cluster.where() == "far"
    cluster.proxy.black_hole()
    assert cluster.where() == "near"
    cluster.console.run("connections.close_all()", timeout_s=DEADLINE_S)
    assert cluster.where() == "near"
    cluster.proxy.forward()
    cluster.console.until("where()", "far", timeout_s=60)


def test_connecting_goes_elsewhere(started: Callable[..., Cluster]) -> None:
    """Nothing is known yet; the server takes the connection and says nothing."""
    cluster = started()
    cluster.proxy.deaf()
    assert cluster.where() == "near"


def test_a_silent_primary_does_not_keep_replicas_from_serving(
    started: Callable[..., Cluster],
) -> None:
    """A process that starts compares the two, and cannot."""
    cluster = started(breaks_primary=True)
    cluster.proxy.deaf()
    assert cluster.where() == "far"
    cluster.proxy.forward()
    assert cluster.where() == "far"


def test_a_probe_may_come_later(started: Callable[..., Cluster]) -> None:
    cluster = started("CONN_MAX_AGE=600", '"PROBE_AFTER_S": 3')
    assert cluster.where() == "far"
    cluster.proxy.black_hole()
    found = cluster.console.run(
        """
        import time
        start = time.monotonic()
        result = where(), time.monotonic() - start
        """,
        timeout_s=DEADLINE_S,
    )
    assert found[0] == "near"
    assert found[1] >= 3


def test_it_is_ejected_though_every_thread_is_stuck(
    started: Callable[..., Cluster],
) -> None:
    """Nobody is left who could choose a replica, and judge this one."""
    cluster = started("CONN_MAX_AGE=600", '"PROBE_AFTER_S": None')
    assert cluster.where() == "far"
    cluster.console.run(
        """
        import threading

        opened, slowed = threading.Barrier(6), threading.Event()
        found = []


        def read():
            with dbfleet.session(), connection.cursor() as cursor:
                cursor.execute("SELECT port FROM which")
                opened.wait(20)
                slowed.wait(20)
                cursor.execute("SELECT port FROM which")
                found.append(PORTS[cursor.fetchone()[0]])
            connection.close()


        threads = [threading.Thread(target=read) for _ in range(5)]
        for thread in threads:
            thread.start()
        opened.wait(20)
        """,
        timeout_s=DEADLINE_S,
    )
    assert cluster.console.ask("sorted(breaker.ejected())") == []
    cluster.proxy.delay(0.8)
    found = cluster.console.run(
        """
        slowed.set()
        for thread in threads:
            thread.join()
        result = found, sorted(breaker.ejected())
        """,
        timeout_s=DEADLINE_S,
    )
    assert found == [["far"] * 5, ["default/replica1"]]


def test_what_a_project_says_itself_stays(started: Callable[..., Cluster]) -> None:
    cluster = started('OPTIONS={"connect_timeout": 7}')
    params = "connection.nodes.node({!r}, is_replica=True).get_connection_params()"
    found = cluster.console.ask(
        params.format("default/replica1") + "['connect_timeout']"
    )
    assert found == 7
    cluster.console.run(
        "connection.settings_dict['NODES']['default/replica2']['OPTIONS'].clear()"
    )
    found = cluster.console.ask(
        params.format("default/replica2") + "['connect_timeout']"
    )
    assert found == 3
