"""Tokens of MariaDB and MySQL: sets of transaction ids, from one process to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.project import Project

DATABASES = """
import pymysql

pymysql.install_as_MySQLdb()
from dbfleet import Cluster, databases

DATABASES = databases(default=Cluster({url!r}, replicas={replicas!r}))
"""

MODELS = """
class Note(models.Model):
    text = models.CharField(max_length=40)
"""


@pytest.mark.parametrize("which", ["mariadb", "mysql"])
def test_what_was_written_is_seen_elsewhere(
    request: pytest.FixtureRequest,
    project: Callable[..., Project],
    new_database: Callable[..., str],
    which: str,
) -> None:
    servers = request.getfixturevalue(which)
    name = new_database(servers)
    urls: dict[str, Any] = {
        "url": servers.url(name),
        "replicas": servers.replica_urls(name),
    }
    shop = project(databases=DATABASES.format(**urls), models=MODELS)
    shop.manage("migrate", "--run-syncdb", "--verbosity=0")
    servers.wait_until_caught_up()
    for replica in servers.replicas:
        replica.pause_replay()
    try:
        told = shop.run(
            """
            import dbfleet
            from app.models import Note

            with dbfleet.session():
                Note.objects.create(text="new")
                result = [dbfleet.token()]
            with dbfleet.session() as session:
                from django.db import connection

                session.demand(
                    "default/home",
                    [connection.engine.position(connection)],
                    connection.engine.merge,
                )
                result.append(dbfleet.token())
            """
        )
        assert "#" not in told[1]
        seen = shop.run(
            f"""
            import dbfleet
            from app.models import Note

            result = []
            for token in ["", *{told!r}]:
                with dbfleet.resume(token, merge=False):
                    result.append(Note.objects.count())
            """
        )
        assert seen == [0, 1, 1]
    finally:
        for replica in servers.replicas:
            replica.resume_replay()
