"""A project on a coordinator: Citus where ``CITUS_DSN`` names one, and a stand-in."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbfleet.testing.rig import ServerUnavailable
from tests.conftest import start_or_skip
from tests.support.project import REPOSITORY, Project

HOW_TO_GET = (
    "CITUS_DSN names no coordinator: give the URL of an empty database of one, with "
    "workers, whose tables may be dropped (postgres://user@host:port/database)"
)
#: the tables that these tests make, and may drop
_OWN = ("depot_", "app_", "django_", "dbfleet_")

_DATABASES = """
from dbfleet import Sharded, databases

DATABASES = databases(
    default=Sharded(home={home!r}, engine="citus"), plain={plain!r}
)
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
"""


class Depot:
    """The project of the scenarios, its tables made on both aliases."""

    def __init__(self, root: Path, home: str, plain: str) -> None:
        self.home = home
        self.project = Project(
            root,
            databases=_DATABASES.format(home=home, plain=plain),
            settings='SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]',
            apps=["tests.distributed.depot.apps.DepotConfig"],
        )
        paths = [str(root), str(REPOSITORY / "src"), str(REPOSITORY)]
        self.env = {"PYTHONPATH": os.pathsep.join(paths)}
        for alias in ("default", "plain"):
            self.manage("migrate", "--run-syncdb", "--database", alias)
        self._failures: dict[str, str | None] | None = None

    def manage(self, *args: str) -> Any:
        return self.project.manage(*args, env=self.env)

    def pass_or_fail(self, check: str, *kinds: str) -> None:
        """The test of one scenario; all of these kinds run once, in one process."""
        if self._failures is None:
            self._failures = self.project.run(
                "from tests.distributed import scenarios\n"
                f"result = scenarios.run(*{kinds!r})",
                env=self.env,
                timeout_s=110,
            )
        failure = self._failures[check]
        if failure is not None:
            pytest.fail(failure, pytrace=False)

    def laid_out(self, sql: str) -> list[tuple[Any, ...]]:
        """What the coordinator's catalogue says."""
        with psycopg.connect(self.home) as connection:
            return connection.execute(sql.encode()).fetchall()


def make_stand_in(url: str) -> None:
    """Give a PostgreSQL database the functions of ``stand_in.sql``."""
    sql = Path(__file__).with_name("stand_in.sql").read_bytes()
    with psycopg.connect(url) as connection:
        connection.execute(sql)


def empty_coordinator() -> str:
    """The URL of ``CITUS_DSN``, whose database is emptied."""
    url = os.environ.get("CITUS_DSN", "")
    if not url:
        raise ServerUnavailable(HOW_TO_GET)
    with psycopg.connect(url, autocommit=True) as connection:
        sql = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        names = [row[0] for row in connection.execute(sql)]
        others = [name for name in names if not name.startswith(_OWN)]
        if others:
            pytest.fail(f"CITUS_DSN has tables that are not of these tests: {others}")
        order = "SELECT logicalrelid::text FROM pg_dist_partition ORDER BY repmodel"
        known = [row[0] for row in connection.execute(order)]  # reference tables last
        for name in sorted(names, key=lambda n: known.index(n) if n in known else -1):
            connection.execute(f'DROP TABLE IF EXISTS "{name}" CASCADE'.encode())
    return url


@pytest.fixture(scope="session")
def citus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Depot]:
    """The project on a real Citus coordinator."""
    home = start_or_skip(request, "Citus", empty_coordinator, is_optional=True)
    yield from _depot(request, tmp_path_factory, home)


@pytest.fixture(scope="session")
def stand_in(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Depot]:
    """The project on a PostgreSQL database that records what a coordinator is told."""
    server = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(6)}"
    server.create_database(name)
    make_stand_in(server.url(name))
    try:
        yield from _depot(request, tmp_path_factory, server.url(name))
    finally:
        server.drop_database(name)


def _depot(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, home: str
) -> Iterator[Depot]:
    server = request.getfixturevalue("postgres")
    name = f"test_{secrets.token_hex(6)}"
    server.create_database(name)
    built = Depot(tmp_path_factory.mktemp("depot") / "project", home, server.url(name))
    try:
        yield built
    finally:
        built.project.close()
        server.drop_database(name)
