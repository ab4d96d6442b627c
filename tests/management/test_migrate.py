"""Migrations on every kind of fleet: code once, DDL on every node."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.management.conftest import KINDS, FleetProject

# Counts its runs where no database can hide one.
SECOND = """
from pathlib import Path

from django.db import migrations, models

RUNS = Path(__file__).resolve().parents[2] / "runs.txt"


def forwards(apps, editor):
    with RUNS.open("a") as runs:
        runs.write("forwards ")
    Tag = apps.get_model("app", "Tag")
    Tag.objects.bulk_create(Tag(word=f"word {n}") for n in range(12))


def backwards(apps, editor):
    with RUNS.open("a") as runs:
        runs.write("backwards ")
    apps.get_model("app", "Tag").objects.all().delete()


class Migration(migrations.Migration):
    dependencies = [("app", "0001_initial")]
    operations = [
        migrations.RunPython(forwards, backwards),
        migrations.RunSQL(
            "CREATE TABLE journal (line varchar(20))", "DROP TABLE journal"
        ),
        migrations.RunSQL(
            "INSERT INTO journal (line) VALUES ('once')", "DELETE FROM journal"
        ),
        migrations.RunSQL(
            [("UPDATE app_tag SET word = %s WHERE word = %s", ["changed", "word 7"])],
            "",
        ),
    ]
"""
THIRD = """
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("app", "0002_code")]
    operations = [
        migrations.AddField("tag", "weight", models.IntegerField(default=3)),
        migrations.RenameField("tag", "weight", "rank"),
        migrations.AlterField("tag", "rank", models.BigIntegerField(default=4)),
        migrations.AddIndex("tag", models.Index(fields=["rank"], name="tag_rank")),
    ]
"""
MODEL_STATE = """
    rank = models.BigIntegerField(default=4)

    class Meta:
        indexes = [models.Index(fields=["rank"], name="tag_rank")]
"""


def write_migrations(fleet: FleetProject) -> None:
    fleet.project.manage("makemigrations", "app", "-v0")
    fleet.project.write("app/migrations/0002_code.py", SECOND)
    fleet.project.write("app/migrations/0003_fields.py", THIRD)
    models = fleet.project.root / "app/models.py"
    head, tag, tail = models.read_text().partition(
        "    word = models.CharField(max_length=20)\n"
    )
    models.write_text(head + tag + MODEL_STATE + tail)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(300)
def test_migrations_forwards_and_backwards(
    kind: str, make_fleet: Callable[[str], FleetProject]
) -> None:
    fleet = make_fleet(kind)
    write_migrations(fleet)
    project = fleet.project
    runs = project.root / "runs.txt"

    plan = project.manage("migrate", "--plan").stdout
    assert "app.0002_code" in plan
    assert "Raw SQL operation" in plan
    assert all("app_tag" not in tables for tables in fleet.tables().values())

    project.manage("migrate", "-v0")
    project.manage("migrate", "-v0")  # nothing is left to do
    assert runs.read_text() == "forwards "
    tables = fleet.tables()
    expected = {"app_tag", "auth_user", "django_content_type", "django_session"}
    for name, found in tables.items():
        assert expected | {"journal"} <= found, name
    assert sum(fleet.count("journal").values()) == 1
    tags = fleet.count("app_tag")
    assert sum(tags.values()) == 12
    if fleet.is_sharded:
        assert tags["home"] == 0
    assert project.run(
        "from app.models import Tag\n"
        "result = [Tag.objects.filter(word='changed').count(),"
        " Tag.objects.filter(rank=3).count()]"
    ) == [1, 12]
    assert project.manage("makemigrations", "--check", "--dry-run").returncode == 0
    shown = project.manage("showmigrations", "app").stdout
    assert shown.count("[X]") == 3

    project.manage("migrate", "app", "0001", "-v0")
    assert runs.read_text() == "forwards backwards "
    for name, found in fleet.tables().items():
        assert "journal" not in found, name
        assert "app_tag" in found, name
    project.manage("migrate", "app", "zero", "-v0")
    for name, found in fleet.tables().items():
        assert not any(table.startswith("app_") for table in found), name

    project.manage("migrate", "app", "--fake", "-v0")
    assert runs.read_text() == "forwards backwards "
    assert project.manage("showmigrations", "app").stdout.count("[X]") == 3
    assert all("app_tag" not in tables for tables in fleet.tables().values())


@pytest.mark.parametrize("kind", KINDS)
def test_sqlmigrate_sends_nothing(
    kind: str, make_fleet: Callable[[str], FleetProject]
) -> None:
    fleet = make_fleet(kind)
    write_migrations(fleet)
    output = fleet.project.manage("sqlmigrate", "app", "0001").stdout
    assert "CREATE TABLE" in output
    assert "app_article" in output
    assert all("app_article" not in tables for tables in fleet.tables().values())
