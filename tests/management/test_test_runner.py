"""Django's test runner makes a test database for every node and drops them all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.management.conftest import KINDS, FleetProject

pytestmark = pytest.mark.timeout(300)

TESTS = """
import os

from django.db import connection, connections
from django.test import TestCase, TransactionTestCase

from app.models import Article, Author, Tag


class InTransaction(TestCase):
    databases = {"default"}

    @classmethod
    def setUpTestData(cls):
        cls.author = Author.objects.create(name="shared")

    def test_rolls_back(self):
        for n in range(6):
            Article.objects.create(title=str(n), author=self.author)
        self.assertEqual(Article.objects.count(), 6)

    def test_sees_nothing_of_the_other(self):
        self.assertEqual(Article.objects.count(), 0)
        self.assertEqual(Author.objects.get(), self.author)
        with self.assertNumQueries(1):
            list(Article.objects.all())
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            from django.db import transaction
            transaction.on_commit(lambda: Tag.objects.create(word="committed"))
        self.assertEqual(len(callbacks), 1)
        self.assertEqual(Tag.objects.filter(word="committed").count(), 1)

    def test_names(self):
        nodes = connection.settings_dict["NODES"]
        for name, node in nodes.items():
            # an SQLite test database is in memory and shared by name
            self.assertRegex(str(node["NAME"]), "test_|mode=memory", name)


class Restarting(TransactionTestCase):
    reset_sequences = True
    serialized_rollback = True

    def test_first_id(self):
        self.assertEqual(Author.objects.create(name="one").pk, 1)
        self.assertEqual(Author.objects.get().name, "one")

    def test_first_id_again(self):
        self.assertEqual(Author.objects.create(name="two").pk, 1)


class Restored(TransactionTestCase):
    serialized_rollback = True

    def test_migrated_rows(self):
        self.assertEqual(Tag.objects.filter(word__startswith="initial").count(), 8)
        Tag.objects.all().delete()

    def test_migrated_rows_again(self):
        self.assertEqual(Tag.objects.filter(word__startswith="initial").count(), 8)
        Tag.objects.all().delete()


class Emptied(TransactionTestCase):
    serialized_rollback = True  # as Django wants it: of every such class, or of none

    def test_commits(self):
        Tag.objects.bulk_create(Tag(word=f"more {n}") for n in range(9))
        self.assertEqual(Tag.objects.filter(word__startswith="more").count(), 9)
"""
ROWS = """
from django.db import migrations


def fill(apps, editor):
    Tag = apps.get_model("app", "Tag")
    Tag.objects.bulk_create(Tag(word=f"initial {n}") for n in range(8))


class Migration(migrations.Migration):
    dependencies = [("app", "0001_initial")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
"""


def databases(fleet: FleetProject) -> set[str]:
    """Every database of the servers, or every file."""
    home = fleet.nodes["home"]
    if fleet.engine == "postgresql":
        return {row[0] for row in home("SELECT datname FROM pg_database")}
    if fleet.engine == "mariadb":
        return {row[0] for row in home("SHOW DATABASES")}
    (path,) = {row[2] for row in home("PRAGMA database_list")}
    return {file.name for file in Path(path).parent.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_runner(kind: str, make_fleet: Callable[[str], FleetProject]) -> None:
    fleet = make_fleet(kind)
    project = fleet.project
    project.write("app/tests.py", TESTS)
    project.manage("makemigrations", "app", "-v0")
    project.write("app/migrations/0002_rows.py", ROWS)
    before = databases(fleet)

    finished = project.manage("test", "--noinput", timeout_s=200)
    assert "Ran 8 tests" in finished.stderr
    assert databases(fleet) == before

    finished = project.manage("test", "--noinput", "--keepdb", timeout_s=200)
    assert "Ran 8 tests" in finished.stderr
    if fleet.engine != "sqlite":  # there a test database is in memory
        made = databases(fleet) - before
        assert made == {f"test_{name}" for name in fleet.names.values()}
    finished = project.manage("test", "--noinput", "--parallel", "2", timeout_s=200)
    assert "Ran 8 tests" in finished.stderr
    assert databases(fleet) == before
    assert not any("app_tag" in tables for tables in fleet.tables().values())
