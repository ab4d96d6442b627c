"""A project whose ``default`` is spread over three shards, beside ``plain``: one
database of the same server, whose answers are the right ones."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.project import REPOSITORY, Project

SHARDS = ("a", "b", "c")
NODES = ("home", *SHARDS)
#: kind of fleet -> its server; ``icu`` orders text by the rules of a language, and in
#: ``mixed`` one shard does so while the others do not
KINDS = {
    "postgresql": "postgres",
    "icu": "postgres",
    "mixed": "postgres",
    "mariadb": "mariadb",
    "sqlite": "sqlite",
}
_ICU = " TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"

_DATABASES = """
{head}
from dbfleet import Sharded, databases

URLS = {urls!r}
DATABASES = databases(
    default=Sharded(
        home=URLS["home"],
        shards={{name: URLS[name] for name in {shards!r}}},
        OPTIONS={options!r},
    ),
    plain=URLS["plain"],
)
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
"""
_SETTINGS = """
SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]
"""


class MergingProject:
    """The project, its tables made, and the databases behind it."""

    def __init__(
        self, root: Path, kind: str, server: Any, names: dict[str, str]
    ) -> None:
        self.kind, self.server, self.names = kind, server, names
        head, options = "", {}
        if kind == "sqlite":
            options = {"init_command": "PRAGMA synchronous = OFF"}
        if kind == "mariadb":
            head = "import pymysql\n\npymysql.install_as_MySQLdb()"
        urls = {node: server.url(name) for node, name in names.items()}
        self.project = Project(
            root,
            databases=_DATABASES.format(
                head=head, urls=urls, options=options, shards=SHARDS
            ),
            settings=_SETTINGS,
            apps=["tests.merging.app.apps.MergingConfig"],
        )
        self.env = {
            "PYTHONPATH": os.pathsep.join(
                [str(root), str(REPOSITORY / "src"), str(REPOSITORY)]
            )
        }
        self._failures: dict[str, dict[str, str | None]] = {}
        self.project.manage("migrate", "--run-syncdb", env=self.env)
        self.project.manage(
            "migrate", "--run-syncdb", "--database", "plain", env=self.env
        )

    def run(self, code: str, **options: Any) -> Any:
        """Run code in the project; return its ``result``."""
        return self.project.run(code, env=self.env, **options)

    def pass_or_fail(self, module: str, check: str) -> None:
        """The test of one check of ``tests.merging.scenarios``; modules run once."""
        if module not in self._failures:
            self._failures[module] = self.run(
                f"from tests.merging import scenarios\n"
                f"result = scenarios.run({module!r}, {self.kind!r})",
                timeout_s=110,
            )
        failure = self._failures[module][check]
        if failure is not None:
            pytest.fail(failure, pytrace=False)

    def rows(self, node: str, sql: str, params: Any = None) -> list[tuple[Any, ...]]:
        """Ask a node's own database, past the alias."""
        found = self.server if self.kind == "sqlite" else self.server.primary
        return list(found.execute(sql, params, dbname=self.names[node]))


@contextmanager
def serve(request: pytest.FixtureRequest, root: Path, kind: str) -> Iterator[Any]:
    """The fleet of a kind, its databases dropped at the end."""
    name = KINDS[kind]
    if name == "sqlite":
        server: Any = request.getfixturevalue("rig").sqlite()
    else:
        server = request.getfixturevalue(name)
    run = secrets.token_hex(4)
    names = {node: f"test_{run}_{node}" for node in (*NODES, "plain")}
    for node, database in names.items():
        if kind == "icu" or (kind == "mixed" and node == "b"):
            server.primary.execute(f'CREATE DATABASE "{database}"{_ICU}')
        else:
            server.create_database(database)
    built = None
    try:
        built = MergingProject(root / "project", kind, server, names)
        yield built
    finally:
        if built is not None:
            built.project.close()
        for database in names.values():
            server.drop_database(database)
