"""A project whose ``default`` is spread over three shards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.project import REPOSITORY, Project

ENGINES = ("postgresql", "mariadb", "sqlite")
SHARDS = ("a", "b", "c")

_DATABASES = """
{head}
from dbfleet import Sharded, databases

URLS = {urls!r}
DATABASES = databases(
    default=Sharded(
        home=URLS["home"],
        shards={{name: url for name, url in URLS.items() if name != "home"}},
        OPTIONS={options!r},
        {more}
    )
)
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
"""

_SETTINGS = """
SILENCED_SYSTEM_CHECKS = [
    "dbfleet.W105",  # unique over all shards, which is what is tested
    "models.W036", "models.W044", "models.W047",  # what a vendor leaves out
]
"""


class ShardedProject:
    """The project, its tables made, and the databases behind it."""

    def __init__(
        self, root: Path, server: Any, names: Mapping[str, str], more: str = ""
    ) -> None:
        self.server, self.names, self.engine = server, names, server_engine(server)
        self.shards = SHARDS
        head, options = "", {}
        if self.engine == "sqlite":
            options = {"init_command": "PRAGMA synchronous = OFF"}
        if self.engine in ("mariadb", "mysql"):
            head = "import pymysql\n\npymysql.install_as_MySQLdb()"
        urls = {node: server.url(name) for node, name in names.items()}
        self.project = Project(
            root,
            databases=_DATABASES.format(
                head=head, urls=urls, options=options, more=more
            ),
            settings=_SETTINGS,
            apps=["tests.sharding.shop.apps.ShopConfig"],
        )
        self.env = {
            "PYTHONPATH": os.pathsep.join(
                [str(root), str(REPOSITORY / "src"), str(REPOSITORY)]
            )
        }
        self._failures: dict[str, dict[str, str | None]] = {}
        self.project.manage("migrate", "--run-syncdb", env=self.env)

    def run(self, code: str, **options: Any) -> Any:
        """Run code in the project; return its ``result``."""
        return self.project.run(code, env=self.env, **options)

    def pass_or_fail(self, module: str, check: str) -> None:
        """The test of one check of ``tests.sharding.scenarios``; modules run once."""
        if module not in self._failures:
            self._failures[module] = self.run(
                f"from tests.sharding import scenarios\n"
                f"result = scenarios.run({module!r})",
                timeout_s=110,
            )
        failure = self._failures[module][check]
        if failure is not None:
            pytest.fail(failure, pytrace=False)

    def rows(self, node: str, sql: str) -> list[tuple[Any, ...]]:
        """Ask a node's own database, past the alias."""
        found = self.server if self.engine == "sqlite" else self.server.primary
        return list(found.execute(sql, dbname=self.names[node]))


def server_engine(server: Any) -> str:
    """The engine of a cluster or of a directory of files."""
    return str(getattr(server, "engine", None) or server.primary.engine)
