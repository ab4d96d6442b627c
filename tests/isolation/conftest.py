"""A fleet of every kind on PostgreSQL, in a project that servers can serve."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import pytest

from dbfleet.testing.rig import PostgresCluster
from tests.isolation.fleet import Fleet
from tests.support.project import Project


@pytest.fixture(scope="module")
def databases(postgres: PostgresCluster) -> Iterator[list[str]]:
    """The databases of the fleet: default's, sales' home, a and b, a run-time one."""
    names = [f"test_{secrets.token_hex(6)}" for _ in range(5)]
    for name in names:
        postgres.create_database(name)
    yield names
    for name in names:
        postgres.drop_database(name)


@pytest.fixture
def fleet(
    project: Callable[..., Project],
    postgres: PostgresCluster,
    databases: list[str],
    request: pytest.FixtureRequest,
) -> Callable[..., Fleet]:
    """Build the fleet's project; its sessions carry the name of the test."""

    def build(**options: str) -> Fleet:
        return Fleet(project, postgres, databases, request.node.name[:50], **options)

    return build
