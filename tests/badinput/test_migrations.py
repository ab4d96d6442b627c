"""Migrations that stop between shards: all back where the server can, else resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.projects import PRELUDE, Fleet
from tests.support.project import Finished, Project

MODELS = """
class Account(models.Model):
    id = models.IntegerField(primary_key=True)
    balance = models.IntegerField(default=0)
"""

FIRST = """
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Account", [
            ("id", models.IntegerField(primary_key=True)),
            ("balance", models.IntegerField(default=0)),
        ]),
    ]
"""

SECOND = """
import os
from django.conf import settings
from django.db import migrations, models


def fail(apps, editor):
    match os.environ.get("FAIL"):
        case "cut b":
            settings.PROXIES["b"].refuse()
            settings.PROXIES["b"].cut()
        case "die":
            os._exit(9)


class Migration(migrations.Migration):
    dependencies = [("app", "0001_initial")]
    operations = [
        migrations.AddField("account", "note", models.IntegerField(default=1)),
        migrations.RunPython(fail),
        migrations.AddConstraint("account", models.CheckConstraint(
            condition=models.Q(balance__gte=0), name="not_negative"
        )),
        migrations.AddField("account", "last", models.IntegerField(null=True)),
    ]
"""

OTHER = """
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("app", "0001_initial")]
    operations = [
        migrations.AddField("account", "other", models.IntegerField(default=1)),
    ]
"""

NODES = ("home", "a", "b")


@pytest.fixture
def fleet(sharded: Callable[..., Fleet]) -> Fleet:
    """A migrated fleet with rows, and a second migration that waits."""
    fleet = sharded(models=MODELS, settings="")
    prepare(fleet.project)
    return fleet


def prepare(project: Project) -> None:
    project.write("app/migrations/__init__.py", "")
    project.write("app/migrations/0001_initial.py", FIRST)
    project.manage("migrate", "-v0")
    project.write("app/migrations/0002_more.py", SECOND)
    project.run(
        PRELUDE + "Account.objects.bulk_create([Account(id=n) for n in range(20)])"
    )


def migrate(fleet: Fleet, fail: str = "") -> Finished:
    return fleet.project.manage("migrate", "-v0", check=False, env={"FAIL": fail})


def columns(fleet: Fleet) -> list[set[str]]:
    """The columns of the table on each node."""
    sql = (
        "SELECT column_name FROM information_schema.columns WHERE "
        "table_name = 'app_account' AND table_schema IN (DATABASE(), 'public')"
    )
    if fleet.cluster.primary.engine == "postgresql":
        sql = sql.replace("DATABASE()", "current_schema()")
    return [{name for (name,) in fleet.rows(node, sql)} for node in NODES]


BEFORE = {"id", "balance"}
AFTER = {*BEFORE, "note", "last"}

SPOIL = PRELUDE + "Account.objects.filter(id=ids('b')[0]).update(balance=-1)\n"
REPAIR = SPOIL.replace("balance=-1", "balance=1")
APPLIED = "SELECT count(*) FROM django_migrations WHERE name = '0002_more'"
STOPPED = "SELECT count(*) FROM dbfleet_ddl"


def assert_finished(fleet: Fleet) -> None:
    done = migrate(fleet)
    assert done.returncode == 0, done.stderr
    assert columns(fleet) == [AFTER] * 3
    assert fleet.rows("home", APPLIED) == [(1,)]
    assert fleet.rows("home", STOPPED) == [(0,)]
    assert fleet.prepared() == {}
    refused = fleet.run("result = refused(Account.objects.update, balance=-1)")
    assert refused["text"].count("not_negative"), "the constraint is missing"


def assert_stopped(failed: Finished, *texts: str) -> None:
    assert failed.returncode != 0
    last = failed.stderr.strip().splitlines()[-1]
    assert "SchemaChangeStopped" in last
    for text in ("(dbfleet.E406)", "run migrate again", "alias 'default'", *texts):
        assert text in last


def test_data_of_the_second_shard_refuses(fleet: Fleet, engine: str) -> None:
    fleet.project.run(SPOIL)
    failed = migrate(fleet)
    assert failed.returncode != 0
    assert "not_negative" in failed.stderr
    assert fleet.rows("home", APPLIED) == [(0,)]
    if engine == "postgresql":
        assert columns(fleet) == [BEFORE] * 3
    else:
        assert columns(fleet) == [{*BEFORE, "note"}] * 3
        assert_stopped(
            failed,
            "stopped at default/b/primary",
            "done on default/a/primary and not on default/b/primary, "
            "default/home/primary",
        )
        assert_stopped(migrate(fleet), "stopped at default/b/primary")
    fleet.project.run(REPAIR)
    assert_finished(fleet)


def test_a_shard_is_lost_on_the_way(fleet: Fleet, engine: str) -> None:
    failed = migrate(fleet, "cut b")
    assert failed.returncode != 0
    assert "default/b/primary" in failed.stderr.strip().splitlines()[-1]
    if engine == "postgresql":
        assert columns(fleet) == [BEFORE] * 3
        assert fleet.prepared() == {}
    else:
        assert_stopped(failed, "stopped at default/b/primary")
    assert_finished(fleet)


def test_the_process_dies_on_the_way(fleet: Fleet, engine: str) -> None:
    assert migrate(fleet, "die").returncode == 9
    if engine == "mariadb":
        assert columns(fleet) == [{*BEFORE, "note"}] * 3
    assert_finished(fleet)


@pytest.mark.parametrize("engine", ["mariadb"], indirect=True)
def test_another_change_waits_for_the_one_that_stopped(fleet: Fleet) -> None:
    fleet.project.run(SPOIL)
    assert_stopped(migrate(fleet), "default/b/primary")
    other = fleet.project.write("app/migrations/0002_more.py", OTHER)
    refused = migrate(fleet)
    assert refused.returncode != 0
    last = refused.stderr.strip().splitlines()[-1]
    for text in (
        "(dbfleet.E406)",
        "Nothing was sent",
        "done on default/a/primary",
        "DELETE FROM dbfleet_ddl",
    ):
        assert text in last
    assert columns(fleet) == [{*BEFORE, "note"}] * 3
    # Given up by hand, as the message says.
    for node in NODES:
        fleet.rows(node, "ALTER TABLE app_account DROP COLUMN note")
    fleet.rows("a", "ALTER TABLE app_account DROP CONSTRAINT not_negative")
    fleet.rows("home", "DELETE FROM dbfleet_ddl")
    assert other.exists()
    assert migrate(fleet).returncode == 0
    assert columns(fleet) == [{*BEFORE, "other"}] * 3


@pytest.mark.parametrize("engine", ["mariadb"], indirect=True)
def test_what_every_node_refuses_is_an_ordinary_error(fleet: Fleet) -> None:
    found = fleet.run(
        """
def twice():
    with connection.schema_editor() as editor:
        editor.create_model(Account)


result = refused(twice), refused(twice)
"""
    )
    assert [error["type"] for error in found] == ["OperationalError"] * 2
    assert fleet.rows("home", STOPPED) == [(0,)]


def test_files_of_sqlite_go_back(
    project: Callable[..., Project], tmp_path: Any
) -> None:
    import sqlite3

    files = {node: str(tmp_path / f"{node}.sqlite3") for node in NODES}
    nodes = {
        node: {"ENGINE": "django.db.backends.sqlite3", "NAME": name}
        for node, name in files.items()
    }
    shards = {node: nodes[node] for node in ("a", "b")}
    source = (
        "from dbfleet import Sharded, databases\n"
        f"home, shards = {nodes['home']!r}, {shards!r}\n"
        "DATABASES = databases(default=Sharded(home=home, shards=shards))\n"
        "PROXIES = {}\n"
    )
    built = project(databases=source, models=MODELS)
    prepare(built)
    built.run(SPOIL)
    failed = built.manage("migrate", "-v0", check=False)
    assert failed.returncode != 0
    assert "not_negative" in failed.stderr

    def table(node: str) -> set[str]:
        with sqlite3.connect(files[node]) as file:
            rows = file.execute("PRAGMA table_info(app_account)").fetchall()
        file.close()
        return {row[1] for row in rows}

    assert [table(node) for node in NODES] == [BEFORE] * 3
    built.run(REPAIR)
    built.manage("migrate", "-v0")
    assert [table(node) for node in NODES] == [AFTER] * 3
