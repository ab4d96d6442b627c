"""A project whose models are placed in every way there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.project import Project

DATABASES = """
from dbfleet import Cluster, Sharded, databases
from dbfleet.policies import First, Random

def sqlite(name):
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{BASE_DIR}/{name}.db"}

DATABASES = databases(
    default=sqlite("default"),
    db1=sqlite("db1"),
    db2=sqlite("db2"),
    sales=Sharded(home=sqlite("home"), shards={"a": sqlite("a"), "b": sqlite("b")}),
    erp=Cluster(sqlite("erp"), read_only=True),
)
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
"""


@pytest.fixture
def fleet(project: Callable[..., Project]) -> Callable[..., Project]:
    """Build a project on a fleet of SQLite files."""

    def build(models: str = "", settings: str = "", **options: Any) -> Project:
        options.setdefault("databases", DATABASES)
        return project(models=models, settings=settings, **options)

    return build
