"""Engines that dbfleet does not know: subclasses of Django's, and other vendors."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

from dbfleet.testing.rig import ServerUnavailable
from tests.conftest import start_or_skip
from tests.support.project import Project

DATABASES = """
from dbfleet import Cluster, Sharded, databases

def node(name, engine="traced"):
    return {"ENGINE": engine, "NAME": f"{BASE_DIR}/{name}.db"}

DATABASES = databases(
    default=Sharded(home=node("home"), shards={"a": node("a"), "b": node("b")}),
    other=Cluster(node("other", "foreign"), replicas=[node("copy", "foreign")]),
)
"""
MODELS = """
class Note(models.Model):
    text = models.CharField(max_length=20)
"""
ENGINE = """
from django.db.backends.sqlite3.base import *
from django.db.backends.sqlite3 import base

opened = []


class DatabaseWrapper(base.DatabaseWrapper):
    {body}

    def get_new_connection(self, conn_params):
        opened.append(self.alias)
        return super().get_new_connection(conn_params)
"""


@pytest.fixture
def strangers(project: Callable[..., Project]) -> Project:
    """A sharded alias on a subclassed engine, a cluster on an unknown vendor."""
    built = project(databases=DATABASES, models=MODELS)
    built.write("traced/__init__.py", "")
    built.write("traced/base.py", ENGINE.format(body='display_name = "Traced"'))
    built.write("foreign/__init__.py", "")
    built.write("foreign/base.py", ENGINE.format(body='vendor = "foreign"'))
    built.manage("migrate", "--run-syncdb", "--verbosity=0")
    built.manage("migrate", "--run-syncdb", "--verbosity=0", "--database=other")
    return built


def test_a_subclassed_engine_opens_every_node(strangers: Project) -> None:
    found: dict[str, Any] = strangers.run(
        """
        from app.models import Note
        from django.db import connections
        from traced.base import DatabaseWrapper, opened

        Note.objects.bulk_create(Note(text=str(i)) for i in range(20))
        result = {
            "is_one": isinstance(connections["default"], DatabaseWrapper),
            "name": connections["default"].display_name,
            "rows": list(Note.objects.order_by("pk").values_list("text", flat=True)),
            "opened": sorted(set(opened)),
        }
        """
    )
    assert found["is_one"]
    assert found["name"] == "Traced"
    assert found["rows"] == [str(i) for i in range(20)]
    assert {"default", "default/a/primary", "default/b/primary"} <= {*found["opened"]}


def test_an_unknown_vendor_reads_its_own_writes_from_the_primary(
    strangers: Project,
) -> None:
    """A copy that never catches up is read before a write and not after it."""
    found = strangers.run(
        """
        import sqlite3
        from app.models import Note
        from django.conf import settings

        copy = sqlite3.connect(settings.BASE_DIR / "copy.db")
        copy.execute("CREATE TABLE app_note (id integer primary key, text varchar(20))")
        copy.execute("INSERT INTO app_note VALUES (1, 'of the copy')")
        copy.commit()
        notes = Note.objects.using("other")
        before = list(notes.values_list("text", flat=True))
        notes.create(text="of the primary")
        result = [before, list(notes.values_list("text", flat=True))]
        """
    )
    assert found == [["of the copy"], ["of the primary"]]


def _installed(packages: tuple[str, ...], how: str) -> None:
    if not all(map(find_spec, packages)):
        raise ServerUnavailable(how)


@pytest.mark.parametrize(
    ("packages", "how"),
    [
        (
            ("django_cockroachdb",),
            "pip install 'django-cockroachdb==5.2.*' (of Django's own version)",
        ),
        (
            ("django_yugabytedb", "psycopg2"),
            "pip install django-yugabytedb psycopg2-binary",
        ),
    ],
)
def test_an_engine_of_a_distributed_database_is_wrapped(
    request: pytest.FixtureRequest,
    project: Callable[..., Project],
    packages: tuple[str, ...],
    how: str,
) -> None:
    """Offline: the class is made, its features stay, SQL is the engine's own."""
    package = packages[0]
    start_or_skip(request, package, lambda: _installed(packages, how), is_optional=True)
    node = {"ENGINE": package, "NAME": "shop", "HOST": "127.0.0.1", "PORT": 1}
    replica = {"HOST": "127.0.0.2"}
    built = project(
        databases=f"""
            from dbfleet import Cluster, databases

            DATABASES = databases(default=Cluster({node!r}, replicas=[{replica!r}]))
            DATABASES["plain"] = {node!r}
        """,
        models=MODELS,
    )
    found = built.run(
        f"""
        from app.models import Note
        from django.db import connections
        from {package}.base import DatabaseWrapper

        fleet, plain = connections["default"], connections["plain"]
        query = Note.objects.filter(text__startswith="a").order_by("-pk").query
        sql = [query.get_compiler(connection=one).as_sql() for one in (fleet, plain)]
        result = [
            isinstance(fleet, DatabaseWrapper),
            type(fleet.features) is type(plain.features),
            fleet.vendor == plain.vendor,
            isinstance(fleet.ops, type(plain.ops)),
            sql[0] == sql[1],
            fleet.nodes.clusters["home"].replicas,
        ]
        """
    )
    assert found == [True] * 5 + [["default/replica1"]]
