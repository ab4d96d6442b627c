"""What crosses aliases is refused before it is sent, and what need not join works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.project import Project

DATABASES = """
from dbfleet import Sharded, databases

def sqlite(name):
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{BASE_DIR}/{name}.db"}

DATABASES = databases(
    default=sqlite("default"),
    other=sqlite("other"),
    sales=Sharded(home=sqlite("home"), shards={"a": sqlite("a"), "b": sqlite("b")}),
)
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
DBFLEET = {"PLACEMENT": {"app.Country": "other"}}
DEBUG = True  # queries are counted
"""

MODELS = """
class Country(models.Model):
    name = models.CharField(max_length=20)


class Author(models.Model):
    '''On no alias in particular.'''
    name = models.CharField(max_length=20)
    country = models.ForeignKey(Country, models.CASCADE, null=True, db_constraint=False)


class Book(models.Model):
    title = models.CharField(max_length=20)
    author = models.ForeignKey(Author, models.CASCADE)

    class Meta:
        using = "default"


class Order(models.Model):
    book = models.ForeignKey(Book, models.CASCADE, null=True)
    number = models.IntegerField(default=0)
    countries = models.ManyToManyField(Country)

    class Meta:
        using = "sales"


class Line(models.Model):
    order = models.ForeignKey(Order, models.CASCADE)
    country = models.ForeignKey(Country, models.DO_NOTHING, null=True)

    class Meta:
        using = "sales"
"""

PRELUDE = """
from django.core.management import call_command
from django.db import connections, transaction
from django.db.models import Count, Exists, F, FilteredRelation, OuterRef, Prefetch, Q
from django.db.models import Subquery
from app.models import Author, Book, Country, Line, Order


def sent():
    '''How many statements every alias has sent.'''
    for alias in connections:
        connections[alias].ensure_connection()
    return sum(len(connections[alias].queries_log) for alias in connections)


def outcome(action):
    before = sent()
    try:
        found = action()
    except Exception as error:
        code = getattr(error, "code", type(error).__name__)
        return [code, str(error), sent() - before]
    return found
"""

FILL = """
for alias in ("default", "other", "sales"):
    call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
norway, france = (Country.objects.create(name=name) for name in ("Norway", "France"))
one = Author.objects.create(name="one", country=norway)
two = Author.objects.create(name="two", country=france)
books = [Book.objects.create(title=str(n), author=(one, two)[n % 2]) for n in range(4)]
orders = [Order.objects.create(book=book, number=n) for n, book in enumerate(books)]
for order in orders:
    Line.objects.create(order=order, country=norway)
result = [Country.objects.count(), Author.objects.count(), Order.objects.count()]
"""

#: an expression that needs a join -> the models and aliases that the error names
CROSSING = {
    'list(Author.objects.filter(country__name="x"))': ("app.Country", "'other'"),
    'list(Author.objects.exclude(country__name="x"))': ("app.Country", "'other'"),
    'list(Author.objects.order_by("country__name"))': ("app.Country", "'other'"),
    'list(Author.objects.values("country__name"))': ("app.Country", "'other'"),
    'list(Author.objects.select_related("country"))': ("app.Country", "'other'"),
    'Author.objects.filter(country__name="x").count()': ("app.Country", "'other'"),
    'Author.objects.filter(country__name="x").exists()': ("app.Country", "'other'"),
    'Author.objects.aggregate(n=Count("country__name"))': ("app.Country", "'other'"),
    'Author.objects.filter(country__name="x").update(name="y")': ("app.Country",),
    'Author.objects.filter(country__name="x").delete()': ("app.Country",),
    'list(Author.objects.filter(country__isnull=False, country__name=F("name")))': (
        "app.Country",
    ),
    'list(Author.objects.annotate(c=FilteredRelation("country", '
    'condition=Q(country__name="x"))).filter(c__name="x"))': ("app.Country",),
    'list(Country.objects.filter(author__name="x"))': ("app.Author", "'default'"),
    'list(Country.objects.annotate(n=Count("author")))': ("app.Author",),
    "list(Author.objects.filter(country__in=Country.objects.filter(name='x')))": (
        "app.Country",
    ),
    "list(Author.objects.filter(Exists(Country.objects.filter("
    "pk=OuterRef('country')))))": ("app.Country",),
    'list(Author.objects.annotate(n=Subquery(Country.objects.values("name")[:1])))': (
        "app.Country",
    ),
    'Author.objects.update(name=Subquery(Country.objects.values("name")[:1]))': (
        "app.Country",
    ),
    'list(Order.objects.filter(book__title="x"))': ("app.Book", "'sales'", "'default'"),
    'list(Order.objects.select_related("book"))': ("app.Book",),
    "list(Book.objects.filter(order__number=1))": ("app.Order", "'sales'"),
    'Order.objects.filter(book__title="x").update(number=1)': ("app.Book",),
    'Order.objects.filter(book__title="x").delete()': ("app.Book",),
    'list(Line.objects.filter(order__book__title="x"))': ("app.Book",),
    "list(orders[0].countries.all())": ("app.Country",),
    'Order.objects.filter(book__title="x").explain()': ("app.Book",),
    "list(Book.objects.filter(pk__in=Order.objects.values('book')))": ("app.Order",),
}

#: what Django does without a join -> what it finds
SEPARATE = {
    "one.country.name": "Norway",
    "Author.objects.get(pk=one.pk).country.name": "Norway",
    "[a.name for a in norway.author_set.all()]": ["one"],
    "norway.author_set.count()": 1,
    "Author.objects.filter(country=norway).count()": 1,
    "Author.objects.filter(country__pk=norway.pk).count()": 1,
    "Author.objects.filter(country__in=[norway, france]).count()": 2,
    "Author.objects.filter(country__isnull=True).count()": 0,
    "Author.objects.filter(country__in=list(Country.objects.values_list('pk', "
    "flat=True))).count()": 2,
    "[a.country.name for a in Author.objects.prefetch_related('country')"
    ".order_by('pk')]": ["Norway", "France"],
    "[[a.name for a in c.author_set.all()] for c in Country.objects.prefetch_related("
    "'author_set').order_by('pk')]": [["one"], ["two"]],
    "[o.book.author.country.name for o in Order.objects.prefetch_related("
    "'book__author__country').order_by('number')]": ["Norway", "France"] * 2,
    "[b.title for b in Book.objects.filter(author__name='one').order_by('pk')]": [
        "0",
        "2",
    ],
    "Book.objects.select_related('author').get(title='1').author.name": "two",
    "sorted(l.order.number for l in Line.objects.select_related('order'))": [
        0,
        1,
        2,
        3,
    ],
    "orders[1].book.title": "1",
    "[o.number for o in books[2].order_set.all()]": [2],
    "Line.objects.filter(order__number__gt=1).count()": 2,
    "Line.objects.filter(country=norway).count()": 4,
    # Whoever says where, knows where.
    "Country.objects.using('other').count()": 2,
    "Author.objects.using('default').filter(country=norway).count()": 1,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    built = Project(
        tmp_path_factory.mktemp("guard") / "project", databases=DATABASES, models=MODELS
    )
    assert built.run(PRELUDE + FILL) == [2, 2, 4]
    yield built
    built.close()


LOAD = """
norway, france = Country.objects.order_by("pk")[:2]
one, two = Author.objects.order_by("pk")
books = list(Book.objects.order_by("pk"))
orders = list(Order.objects.order_by("number"))
"""


@pytest.fixture(scope="module")
def found(project: Project) -> dict[str, Any]:
    """Every expression's outcome: its value, or [code, message, statements sent]."""
    expressions = [*CROSSING, *SEPARATE]
    answer: dict[str, Any] = project.run(
        f"{PRELUDE}{LOAD}\n"
        f"result = {{e: outcome(lambda e=e: eval(e)) for e in {expressions!r}}}"
    )
    return answer


@pytest.mark.parametrize("expression", CROSSING)
def test_a_join_across_aliases_is_refused(
    found: dict[str, Any], expression: str
) -> None:
    code, message, sent = found[expression]
    assert code == "dbfleet.E301", message
    for name in CROSSING[expression]:
        assert name in message
    assert "prefetch_related" in message
    assert sent == 0, "something was sent"


def test_a_prefetch_over_a_join_table_is_refused(project: Project) -> None:
    """The table that joins lives with the model that declares the field."""
    code, message, sent = project.run(
        f"{PRELUDE}{LOAD}"
        'result = outcome(lambda: list(Order.objects.prefetch_related("countries")))'
    )
    assert (code, sent) == ("dbfleet.E301", 1), message  # the orders themselves
    assert "app.Country" in message


@pytest.mark.parametrize("expression", SEPARATE)
def test_what_needs_no_join_works(found: dict[str, Any], expression: str) -> None:
    assert found[expression] == SEPARATE[expression]


def test_a_cascade_across_aliases_is_refused_whole(project: Project) -> None:
    found = project.run(
        PRELUDE
        + LOAD
        + """
extra = Country.objects.create(name="extra")
def counts():
    return [model.objects.count() for model in (Country, Author, Book, Order, Line)]
before = counts()
result = {
    "country": outcome(norway.delete),
    "countries": outcome(Country.objects.all().delete),
    "author": outcome(one.delete),
    "book": outcome(books[0].delete),
    "unrelated": outcome(Line.objects.filter(order=orders[3]).delete),
    "counts": [before, counts()],
}
"""
    )
    before, after = found.pop("counts")
    assert found.pop("unrelated") == [1, {"app.Line": 1}]
    assert after == [*before[:4], before[4] - 1]
    for what, needed in {
        "country": "'sales'",
        "countries": "'sales'",
        "author": "app.Order",
        "book": "app.Order",
    }.items():
        code, message, _ = found[what]
        assert code == "dbfleet.E301", message
        assert needed in message
        assert "nothing was deleted" in message


def test_a_foreign_key_that_does_nothing_lets_its_row_go(project: Project) -> None:
    found = project.run(
        PRELUDE
        + LOAD
        + """
order = Order.objects.create(number=100)
gone = Country.objects.create(name="gone")
Line.objects.create(order=order, country=gone)
result = outcome(order.delete)
"""
    )
    assert found[0] == 2
    assert found[1]["app.Line"] == 1


@pytest.mark.parametrize("placed", [False, True])
def test_a_project_that_places_nothing_is_left_alone(
    tmp_path_factory: pytest.TempPathFactory, placed: bool
) -> None:
    """Django's own class is wrapped only where a placement was declared."""
    databases = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    }
    meta = "    class Meta:\n        using = 'default'\n" if placed else ""
    built = Project(
        tmp_path_factory.mktemp("plain") / "project",
        databases=databases,
        models=f"class Note(models.Model):\n    text = models.TextField()\n{meta}",
        settings='DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]',
    )
    try:
        module = built.run(
            """
            from django.db.models import deletion
            from django.db.models.sql.compiler import SQLCompiler
            result = [
                SQLCompiler.get_from_clause.__code__.co_filename,
                deletion.Collector.related_objects.__code__.co_filename,
            ]
            """
        )
    finally:
        built.close()
    assert all(("dbfleet" in path) is placed for path in module), module
