"""Migrations of a distributed alias: tables are laid out when their key is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.conftest import start_or_skip
from tests.distributed.conftest import empty_coordinator, make_stand_in
from tests.support.project import Project

DATABASES = """
from dbfleet import Sharded, databases

DATABASES = databases(default=Sharded(home={home!r}, engine="citus"))
"""
SETTINGS = """
DBFLEET = {
    "SHARD_KEYS": {
        "app.Order": "customer",
        "app.Line": "customer",  # as Item was called
        "app.Item": "customer",
    },
    "REFERENCE": ["app.Region"],
    "LOCAL": ["app.Setting"],
}
SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]
"""
MODELS = """
class Region(models.Model):
    name = models.CharField(max_length=30, unique=True)

class Setting(models.Model):
    name = models.CharField(max_length=30, unique=True)

class Customer(models.Model):
    name = models.CharField(max_length=30, unique=True)

class Order(models.Model):
    code = models.CharField(max_length=60, unique=True)
    customer = models.ForeignKey(Customer, models.CASCADE)
    remark = models.TextField(default="")
    count = models.PositiveIntegerField(default=1)
    region = models.ForeignKey(Region, models.SET_NULL, null=True)

    class Meta:
        unique_together = [("customer", "remark")]
        constraints = [models.UniqueConstraint(fields=["remark"], name="one_remark")]
        indexes = [models.Index(fields=["count"], name="by_count")]

class Item(models.Model):
    order = models.ForeignKey(Order, models.CASCADE)
    customer = models.ForeignKey(Customer, models.CASCADE)
"""
FIRST = """
from django.db import migrations, models

ID = ("id", models.BigAutoField(primary_key=True))
NAME = ("name", models.CharField(max_length=30, unique=True))

class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Region", [ID, NAME]),
        migrations.CreateModel("Setting", [
            ID, NAME,
            ("region", models.ForeignKey("app.Region", models.CASCADE, null=True)),
        ]),
        migrations.CreateModel("Customer", [ID, NAME]),
        migrations.CreateModel(
            "Order", [ID, ("code", models.CharField(max_length=30, unique=True))]
        ),
    ]
"""
SECOND = """
from django.db import migrations, models

def fill(apps, editor):
    for model in ("Region", "Customer"):
        apps.get_model("app", model).objects.create(name="first")

class Migration(migrations.Migration):
    dependencies = [("app", "0001_first")]
    operations = [
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
"""
THIRD = """
from django.db import migrations, models

def fill(apps, editor):
    customer = apps.get_model("app", "Customer").objects.get()
    Order = apps.get_model("app", "Order")
    for i in range(5):
        Order.objects.create(code=str(i), note=f"n{i}", customer=customer)

class Migration(migrations.Migration):
    dependencies = [("app", "0002_second")]
    operations = [
        migrations.AddField(
            "Order", "customer", models.ForeignKey("app.Customer", models.CASCADE)
        ),
        migrations.AddField(
            "Order", "note", models.CharField(max_length=9, default="")
        ),
        migrations.CreateModel("Line", [
            ("id", models.BigAutoField(primary_key=True)),
            ("order", models.ForeignKey("app.Order", models.CASCADE)),
            ("customer", models.ForeignKey("app.Customer", models.CASCADE)),
        ]),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
"""
FOURTH = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [("app", "0003_third")]
    operations = [
        migrations.RenameField("Order", "note", "remark"),
        migrations.AlterField("Order", "remark", models.TextField(default="")),
        migrations.AddField("Order", "count", models.PositiveIntegerField(default=1)),
        migrations.AddField(
            "Order", "region",
            models.ForeignKey("app.Region", models.SET_NULL, null=True),
        ),
        migrations.AlterField("Order", "code", models.CharField(max_length=60)),
        migrations.AlterField(
            "Order", "code", models.CharField(max_length=60, unique=True)
        ),
        migrations.AlterUniqueTogether("Order", [("customer", "remark")]),
        migrations.AddConstraint("Order", models.UniqueConstraint(
            fields=["remark"], name="one_remark"
        )),
        migrations.AddConstraint("Order", models.UniqueConstraint(
            fields=["customer", "code"], name="gone"
        )),
        migrations.RemoveConstraint("Order", "gone"),
        migrations.AddIndex("Order", models.Index(fields=["count"], name="by_count")),
        migrations.RemoveField("Setting", "region"),
        migrations.RenameModel("Line", "Item"),
        migrations.CreateModel("Gone", [("id", models.BigAutoField(primary_key=True))]),
        migrations.DeleteModel("Gone"),
    ]
"""


@pytest.fixture(params=["stand-in", "Citus"])
def home(
    request: pytest.FixtureRequest, new_database: Callable[..., str]
) -> tuple[str, bool]:
    """The URL of a coordinator's empty database, and whether it is Citus."""
    if request.param == "Citus":
        home = start_or_skip(request, "Citus", empty_coordinator, is_optional=True)
        return home, True
    server: Any = request.getfixturevalue("postgres")
    url = server.url(new_database(server))
    make_stand_in(url)
    return url, False


def build(project: Callable[..., Project], home: str) -> Project:
    built = project(
        databases=DATABASES.format(home=home), models=MODELS, settings=SETTINGS
    )
    built.write("app/migrations/__init__.py", "")
    steps = {"0001_first": FIRST, "0002_second": SECOND}
    steps |= {"0003_third": THIRD, "0004_fourth": FOURTH}
    for name, text in steps.items():
        built.write(f"app/migrations/{name}.py", text)
    return built


def kinds(home: str, *, is_citus: bool) -> dict[str, str]:
    """The tables that are laid out, and by which column."""
    sql = (
        "SELECT table_name::text, distribution_column FROM citus_tables "
        "WHERE citus_table_type <> 'local'"
        if is_citus
        else "SELECT logicalrelid::text, coalesce(partcolumn, '<none>') "
        "FROM pg_dist_partition WHERE (partmethod, repmodel) <> ('n', 's')"
    )
    with psycopg.connect(home) as connection:
        return dict(connection.execute(sql.encode()).fetchall())


def test_tables_follow_their_models(
    project: Callable[..., Project], home: tuple[str, bool]
) -> None:
    url, is_citus = home
    built = build(project, url)
    built.manage("migrate", "app", "0002")
    before = {"app_region": "<none>", "app_customer": "id"}
    assert kinds(url, is_citus=is_citus) == before
    built.manage("migrate", "app", "0003")
    assert kinds(url, is_citus=is_citus) == {
        **before,
        "app_order": "customer_id",
        "app_line": "customer_id",
    }
    built.manage("migrate")
    found = built.run("""
        from django.db import IntegrityError, connection
        from app.models import Customer, Order

        def refused(**values):
            try:
                Order.objects.create(customer_id=Customer.objects.get().pk, **values)
            except IntegrityError as error:
                return str(error)

        result = [
            list(Order.objects.order_by("code").values_list("code", "remark", "count")),
            refused(code="3", remark="x"),
            refused(code="new", remark="n3"),
            refused(code="new", remark="x", count=-1),
            refused(code="new", remark="x"),
        ]
    """)
    assert found[0] == [[str(i), f"n{i}", 1] for i in range(5)]
    assert "app_order_code" in found[1]
    assert "one_remark" in found[2] or "app_order_customer_id" in found[2]
    assert "check constraint" in found[3]
    assert found[4] is None
    # The column that rows are spread by is Citus' own; all the rest can go back.
    built.manage("migrate", "app", "0003")


def test_sql_of_a_migration_says_how_tables_are_laid_out(
    project: Callable[..., Project], home: tuple[str, bool]
) -> None:
    built = build(project, home[0])
    said = built.manage("sqlmigrate", "app", "0001").stdout
    assert """SELECT create_reference_table('"app_region"')""" in said
    assert (
        """SELECT create_distributed_table('"app_customer"', 'id', """
        """colocate_with => 'default')"""
    ) in said
    assert "app_order" in said
    assert "create_distributed_table('\"app_order\"'" not in said


def test_a_coordinator_without_the_extension_is_named(
    project: Callable[..., Project], new_database: Callable[..., str], postgres: Any
) -> None:
    built = build(project, postgres.url(new_database(postgres)))
    said = built.manage("migrate", check=False).stderr
    assert "default/primary is declared DISTRIBUTED_BY citus and lacks" in said
    assert "CREATE EXTENSION citus" in said
    status = built.manage("fleet", "status", check=False)
    assert status.returncode == 1
    assert "DISTRIBUTED_BY citus, which is not there" in status.stdout
