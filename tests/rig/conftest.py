"""Clusters of the rig's own tests, which kill and pause what others share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from dbfleet.testing.rig import PostgresCluster, Rig, ServerCluster
from dbfleet.testing.rig.gtid_server import GtidReplica, GtidServer
from tests.conftest import start_or_skip
from tests.support.project import REPOSITORY

GtidCluster = ServerCluster[GtidServer, GtidReplica]


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment of an interpreter that can import this checkout."""
    path = [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


@pytest.fixture(scope="module")
def own_postgres(request: pytest.FixtureRequest, rig: Rig) -> PostgresCluster:
    """A PostgreSQL primary with one replica and a database ``shop``."""
    return start_or_skip(
        request,
        "PostgreSQL",
        lambda: rig.postgresql_cluster(1, name="own", databases=["shop"]),
    )


@pytest.fixture(scope="module", params=["MariaDB", "MySQL"])
def vendor(request: pytest.FixtureRequest) -> str:
    """The servers that share their rig's code."""
    return str(request.param)


@pytest.fixture(scope="module")
def start(
    request: pytest.FixtureRequest, rig: Rig, vendor: str
) -> Callable[..., GtidCluster]:
    """Start a cluster of a vendor with a database ``shop``."""
    is_newer = vendor == "MySQL"
    begin: Any = rig.mysql_cluster if is_newer else rig.mariadb_cluster

    def started(*args: Any, **options: Any) -> GtidCluster:
        options = {"databases": ["shop"], **options}
        found: GtidCluster = start_or_skip(
            request, vendor, lambda: begin(*args, **options), is_newer=is_newer
        )
        return found

    return started


@pytest.fixture(scope="module")
def own(start: Callable[..., GtidCluster]) -> GtidCluster:
    """A primary of MariaDB or MySQL with one replica and a database ``shop``."""
    return start(1, name="own-gtid")
