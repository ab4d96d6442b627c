"""Clusters of the rig's own tests, which kill and pause what others share."""

from __future__ import annotations

import os

import pytest

from dbfleet.testing.rig import MariaDBCluster, PostgresCluster, Rig
from tests.conftest import start_or_skip
from tests.support.project import REPOSITORY


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


@pytest.fixture(scope="module")
def own_mariadb(request: pytest.FixtureRequest, rig: Rig) -> MariaDBCluster:
    """A MariaDB primary with one replica and a database ``shop``."""
    return start_or_skip(
        request,
        "MariaDB",
        lambda: rig.mariadb_cluster(1, name="own-maria", databases=["shop"]),
    )
