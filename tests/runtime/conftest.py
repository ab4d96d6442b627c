"""A project that names one database, and others that it meets at run time."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dbfleet.testing.rig import PostgresCluster
from tests.support.project import Project

PASSWORD = "s3cr3t-Pw"

MODELS = """
class Author(models.Model):
    name = models.CharField(max_length=50, unique=True)

class Book(models.Model):
    title = models.CharField(max_length=50)
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")
    tags = models.ManyToManyField("Tag")

    class Meta:
        order_with_respect_to = "author"

class Tag(models.Model):
    word = models.CharField(max_length=20)
"""


def with_password(url: str) -> str:
    """The URL with a password in it; the servers of the rig accept any."""
    return url.replace("@", f":{PASSWORD}@", 1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project on one plain SQLite file, with dbfleet installed."""
    root: Path = tmp_path_factory.mktemp("runtime") / "shop"
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(root / "default.db"),
    }
    built = Project(
        root,
        databases={"default": database},
        models=MODELS,
        apps=["django.contrib.contenttypes", "django.contrib.auth"],
    )
    built.manage("migrate", "--run-syncdb")
    yield built
    built.close()


@pytest.fixture(scope="module")
def database(postgres: PostgresCluster) -> Iterator[Callable[[], str]]:
    """Create empty PostgreSQL databases; returns their names."""
    names: list[str] = []

    def create() -> str:
        names.append(f"test_{secrets.token_hex(6)}")
        postgres.create_database(names[-1])
        return names[-1]

    yield create
    for name in names:
        postgres.drop_database(name)


def migrate(project: Project, value: str) -> None:
    """Create the project's tables in a database, given as Python source."""
    project.run(
        f"""
        from django.core.management import call_command
        import dbfleet
        from dbfleet import Cluster, Sharded

        call_command("migrate", run_syncdb=True, verbosity=0, database={value})
        """
    )
