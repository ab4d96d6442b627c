"""A run-time database beside placements and the project's own routers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.project import Project

DATABASES = """
from dbfleet import databases

def sqlite(name):
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{BASE_DIR}/{name}.db"}

DATABASES = databases(default=sqlite("default"), placed=sqlite("placed"))
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
RUN_TIME = f"sqlite:///{BASE_DIR}/runtime.db"
"""

MODELS = """
class Country(models.Model):
    code = models.CharField(max_length=2)

    class Meta:
        using = "placed"

class Author(models.Model):
    name = models.CharField(max_length=20)
    country = models.ForeignKey(Country, models.CASCADE, db_constraint=False)

class Book(models.Model):
    title = models.CharField(max_length=20)
    author = models.ForeignKey(Author, models.CASCADE)
"""


@pytest.fixture
def library(project: Callable[..., Project]) -> Project:
    """A placed model, and unplaced ones that exist in a run-time database too."""
    built = project(databases=DATABASES, models=MODELS)
    built.manage("migrate", "--run-syncdb")
    built.manage("migrate", "--run-syncdb", "--database", "placed")
    built.run(
        """
        from django.conf import settings
        from django.core.management import call_command

        call_command("migrate", run_syncdb=True, verbosity=0,
                     database=settings.RUN_TIME)
        """
    )
    return built


def test_what_hangs_on_an_instance_stays_with_it(library: Project) -> None:
    found = library.run(
        """
        from django.conf import settings
        from dbfleet.runtime import safe_alias
        from app.models import Author, Book, Country

        there = settings.RUN_TIME
        country = Country.objects.using(there).create(code="no")
        author = Author.objects.using(there).create(name="one", country=country)
        author.book_set.create(title="first")
        book = Book.objects.using(there).get()
        runtime = safe_alias(there)
        result = {
            "here": Author.objects.count() + Country.objects.count(),
            "author": book.author._state.db == runtime,
            "books": author.book_set.all().db == runtime,
            "country": Author.objects.using(there).get().country._state.db == runtime,
            "placed": Country.objects.all().db,
        }
        book.author = Author.objects.using(there).create(name="two", country=country)
        result["refused"] = []
        home = Country.objects.create(code="fi")
        for assign in (
            lambda: setattr(book, "author", Author.objects.create(country=home)),
            lambda: setattr(author, "country", home),
        ):
            try:
                assign()
            except ValueError as error:
                result["refused"].append(str(error))
        """
    )
    refused = found.pop("refused")
    assert found == {
        "here": 0,
        "author": True,
        "books": True,
        "country": True,
        "placed": "placed",
    }
    assert len(refused) == 2
    for error in refused:
        assert "the current database router prevents this relation" in error


def test_explicit_value_wins_over_a_placement(library: Project) -> None:
    """using() says where, as with any alias, and migrate made the table there."""
    codes = library.run(
        """
        from django.conf import settings
        from app.models import Country

        Country.objects.using(settings.RUN_TIME).create(code="dk")
        Country.objects.create(code="no")
        result = [
            Country.objects.using(settings.RUN_TIME).get().code,
            Country.objects.get().code,
        ]
        """
    )
    assert codes == ["dk", "no"]
