"""Fixtures of every test: real servers, started once per run, and Django projects.

Guards two invariants: a server starts only when a test asks for it and ends with the
run, and a server that is missing is never a silent pass: it is a skip that says how
to get it, or a failure where ``DBFLEET_REQUIRE_SERVERS`` is set (for the servers of
``tools/newer_servers``: ``DBFLEET_REQUIRE_NEWER``).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import django
import pytest

from tests.support import newer
from tests.support.project import Project

if TYPE_CHECKING:
    from dbfleet.testing.rig import (
        MariaDBCluster,
        MySQLCluster,
        PostgresCluster,
        Rig,
        ServerCluster,
    )

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

REQUIRE_SERVERS = os.environ.get("DBFLEET_REQUIRE_SERVERS", "") not in {"", "0"}

Started = TypeVar("Started")
_missing = pytest.StashKey[dict[str, str]]()


def start_or_skip(
    request: pytest.FixtureRequest,
    name: str,
    start: Callable[[], Started],
    *,
    is_newer: bool = False,
    is_optional: bool = False,
) -> Started:
    """Start a server; where its programs are missing, skip or fail with the reason.

    ``is_newer``: stable distributions do not have it. ``is_optional``: none has it, so
    it is skipped, and said, wherever it is missing.
    """
    from dbfleet.testing.rig.errors import ServerUnavailable

    try:
        return start()
    except ServerUnavailable as unavailable:
        reason = f"{newer.HOW_TO_GET}: {unavailable}" if is_newer else str(unavailable)
        is_required = newer.REQUIRED if is_newer else REQUIRE_SERVERS
        if is_required and not is_optional:
            pytest.fail(f"{name} is required here: {reason}", pytrace=False)
        request.config.stash.setdefault(_missing, {})[name] = reason
        pytest.skip(f"no {name}: {reason}")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say loudly which servers were missing, and how to get them."""
    for name, reason in config.stash.get(_missing, {}).items():
        terminalreporter.write_line(
            f"NOT TESTED: {name} is missing. {reason}", yellow=True, bold=True
        )


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """The rig of this run; everything it started ends with the run."""
    from dbfleet.testing.rig import Rig

    with Rig() as started:
        yield started


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest, rig: Rig) -> PostgresCluster:
    """A PostgreSQL primary with two streaming replicas."""
    return start_or_skip(
        request, "PostgreSQL", lambda: rig.postgresql_cluster(replicas=2)
    )


@pytest.fixture(scope="session")
def mariadb(request: pytest.FixtureRequest, rig: Rig) -> MariaDBCluster:
    """A MariaDB primary with one GTID replica."""
    return start_or_skip(request, "MariaDB", lambda: rig.mariadb_cluster(replicas=1))


@pytest.fixture(scope="session")
def mysql(request: pytest.FixtureRequest, rig: Rig) -> MySQLCluster:
    """A MySQL primary with one GTID replica."""
    return start_or_skip(
        request, "MySQL", lambda: rig.mysql_cluster(replicas=1), is_newer=True
    )


@pytest.fixture(scope="session")
def postgres19(request: pytest.FixtureRequest, rig: Rig) -> PostgresCluster:
    """A PostgreSQL 19 primary with two streaming replicas."""
    return start_or_skip(
        request,
        "PostgreSQL 19",
        lambda: rig.postgresql_cluster(
            replicas=2, name="postgresql19", programs=newer.POSTGRESQL
        ),
        is_newer=True,
    )


@pytest.fixture
def new_database() -> Iterator[Callable[[ServerCluster[Any, Any]], str]]:
    """Create empty databases on a cluster and name them; they go with the test."""
    created: list[tuple[ServerCluster[Any, Any], str]] = []

    def create(cluster: ServerCluster[Any, Any]) -> str:
        name = f"test_{secrets.token_hex(6)}"
        cluster.create_database(name)
        created.append((cluster, name))
        return name

    yield create
    for cluster, name in created:
        cluster.drop_database(name)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Callable[..., Project]]:
    """Build temporary Django projects (:class:`tests.support.project.Project`)."""
    built: list[Project] = []

    def build(**options: object) -> Project:
        root = tmp_path / f"project{len(built) + 1}"
        built.append(Project(root, **options))  # type: ignore[arg-type]
        return built[-1]

    yield build
    for one in built:
        one.close()
