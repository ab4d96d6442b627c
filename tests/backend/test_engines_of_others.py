"""Engines that dbfleet does not know: subclasses of Django's, and other vendors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

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
