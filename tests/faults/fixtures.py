"""Fixtures of the tests that break servers, for several packages' ``conftest``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import start_or_skip
from tests.faults.projects import Fleet, make_fleet
from tests.support.project import Project

if TYPE_CHECKING:
    from dbfleet.testing.rig import Rig


@pytest.fixture(params=["postgresql", "mariadb"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each server engine in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def lone_servers(request: pytest.FixtureRequest, rig: Rig) -> Callable[[str], Any]:
    """One server of each engine without replicas, started when it is first named."""
    started: dict[str, Any] = {}

    def server(name: str) -> Any:
        if name not in started:
            start = (
                rig.postgresql_cluster if name == "postgresql" else rig.mariadb_cluster
            )
            started[name] = start_or_skip(request, name, start)
        return started[name]

    return server


@pytest.fixture
def cluster(lone_servers: Callable[[str], Any], engine: str) -> Any:
    """The server of the engine at hand."""
    return lone_servers(engine)


@pytest.fixture
def sharded(
    cluster: Any,
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
) -> Callable[..., Fleet]:
    """Build a project on a sharded alias over two shards of the engine at hand."""
    return partial(make_fleet, project, new_database, cluster)
