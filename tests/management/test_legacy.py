"""Django's commands on somebody else's database, which is only read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dbfleet.testing.rig import Rig, ServerCluster
from tests.support.project import Project

pytestmark = pytest.mark.timeout(200)

MODELS = """
class Invoice(models.Model):
    number = models.CharField(max_length=20)

    class Meta:
        managed = False
        db_table = "invoices"

class Note(models.Model):
    text = models.TextField()
"""


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def legacy(request: pytest.FixtureRequest, rig: Rig) -> str:
    """The URL of a database with a table and two rows."""
    files: Any
    if request.param == "sqlite":
        files = rig.sqlite(databases=["legacy"])
        name, execute = "legacy", files.execute
    else:
        server = "postgres" if request.param == "postgresql" else "mariadb"
        files = request.getfixturevalue(server)
        new: Callable[[ServerCluster[Any, Any]], str]
        new = request.getfixturevalue("new_database")
        name, execute = new(files), files.primary.execute
    execute(
        "CREATE TABLE invoices (id integer PRIMARY KEY, number varchar(20))",
        dbname=name,
    )
    execute("INSERT INTO invoices VALUES (1, 'A-1'), (2, 'A-2')", dbname=name)
    return str(files.url(name))


def test_commands(legacy: str, project: Callable[..., Project]) -> None:
    shop = project(
        databases="import pymysql\npymysql.install_as_MySQLdb()\n"
        "from dbfleet import Cluster, databases\n"
        "DATABASES = databases(default=Cluster('sqlite:///default.sqlite3'), "
        f"erp=Cluster({legacy!r}, read_only=True))\n"
        'DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]\n'
        'DBFLEET = {"PLACEMENT": {"app.Invoice": "erp"}}\n',
        models=MODELS,
    )
    shop.manage("makemigrations", "app", "-v0")
    shop.manage("migrate", "-v0")
    assert shop.manage("makemigrations", "--check").returncode == 0
    assert "class Invoices(" in shop.manage("inspectdb", "--database", "erp").stdout
    shop.manage("check", "--database", "erp")
    dumped = shop.manage("dumpdata", "app.Invoice", "--database", "erp").stdout
    assert '"A-2"' in dumped
    route = shop.manage("fleet", "route", "app.Invoice").stdout
    assert "alias:    erp" in route
    # as everywhere, flush is about the tables that migrations made
    shop.manage("flush", "--noinput", "--database", "erp")
    shop.write("rows.json", dumped.replace("A-2", "B-2"))

    for refused in (
        ("loaddata", "rows.json", "--database", "erp"),
        ("migrate", "--database", "erp"),
    ):
        finished = shop.manage(*refused, check=False)
        assert finished.returncode == 1, refused
        assert "read-only" in finished.stderr, refused
    found = shop.run(
        """
        from app.models import Invoice
        from django.db import connections
        with connections["erp"].cursor() as cursor:
            tables = connections["erp"].introspection.table_names(cursor)
        result = [sorted(tables), sorted(Invoice.objects.values_list("number"))]
        """
    )
    assert found == [["invoices"], [["A-1"], ["A-2"]]]
