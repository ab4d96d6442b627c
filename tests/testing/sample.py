"""A small project and its own tests, which use what is under test here."""

from __future__ import annotations

MODELS = """
from django.db import connection

#: one that takes A and a for the same, where the server has one without being asked
COLLATION = {"sqlite": "NOCASE", "mysql": "utf8mb4_general_ci"}.get(connection.vendor)


class Author(models.Model):
    name = models.CharField(max_length=40)
    born = models.DateTimeField(null=True)
    is_known = models.BooleanField(default=False)


class Tag(models.Model):
    word = models.CharField(max_length=40, unique=True)
    label = models.CharField(max_length=40, db_collation=COLLATION, default="Ab")


class Book(models.Model):
    title = models.CharField(max_length=40)
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")
    tags = models.ManyToManyField(Tag)
    price = models.DecimalField(max_digits=8, decimal_places=2, default=0)
    details = models.JSONField(default=dict)
"""

VIEWS = """
from django.db import transaction
from django.http import HttpResponse, HttpResponseRedirect

from app.models import Author


def add(request):
    author = Author.objects.create(name=request.GET["name"])
    return HttpResponseRedirect(f"/show/{author.pk}")


def add_atomic(request):
    with transaction.atomic():
        return add(request)


def answer(author):
    if author is None:
        return HttpResponse("nobody", status=404)
    return HttpResponse(author.name)


def show(request, pk):
    author = Author.objects.filter(pk=pk).first()
    return answer(author)


async def show_async(request, pk):
    author = await Author.objects.filter(pk=pk).afirst()
    return answer(author)
"""

URLS = """
from django.urls import path

from app import views

urlpatterns = [
    path("add", views.add),
    path("add_atomic", views.add_atomic),
    path("show/<int:pk>", views.show),
    path("show_async/<int:pk>", views.show_async),
]
"""

HEAD = """
import datetime
from decimal import Decimal

import dbfleet
from dbfleet.testing import (
    assert_routed_to, primary_down, replica_down, replica_lag,
)
from django.db import NotSupportedError, connection, models, transaction
from django.test import TestCase, TransactionTestCase
from app.models import Author, Book, Tag
"""

#: what every kind of TestCase has to show, on every engine
COMMON = """
class Lagging:
    def setUp(self):
        self.old = Author.objects.create(
            name="old", is_known=True,
            born=datetime.datetime(1900, 1, 2, tzinfo=datetime.UTC),
        )
        self.tag = Tag.objects.create(word="t")
        self.book = Book.objects.create(
            title="first", author=self.old, price=Decimal("1.50"), details={"a": [1]}
        )
        self.book.tags.add(self.tag)

    def names(self):
        return sorted(Author.objects.values_list("name", flat=True))

    def test_writer_sees_its_write_others_the_past(self):
        with replica_lag() as lag:
            Author.objects.create(name="new")
            self.assertEqual(self.names(), ["new", "old"])
            with dbfleet.session():
                self.assertEqual(self.names(), ["old"])
            self.assertEqual(self.names(), ["new", "old"])
            lag.catch_up()
            with dbfleet.session():
                self.assertEqual(self.names(), ["new", "old"])
                Author.objects.create(name="newer")
            with dbfleet.session():
                self.assertEqual(self.names(), ["new", "old"])
        with dbfleet.session():
            self.assertEqual(self.names(), ["new", "newer", "old"])

    def test_updates_and_deletes(self):
        with replica_lag():
            Author.objects.filter(pk=self.old.pk).update(name="renamed")
            with dbfleet.session():
                self.assertEqual(self.names(), ["old"])
            self.old.delete()  # the books as well
            with dbfleet.session():
                self.assertEqual(Book.objects.count(), 1)
                found = Book.objects.select_related("author").get()
                self.assertEqual(found.author.name, "old")
                self.assertEqual(found.author.born, self.old.born)
                self.assertIs(found.author.is_known, True)
                self.assertEqual(found.price, Decimal("1.50"))
                self.assertEqual(found.details, {"a": [1]})
            self.assertEqual(Book.objects.count(), 0)

    def test_every_kind_of_read(self):
        with replica_lag():
            two = Author.objects.create(name="two")
            book = Book.objects.create(title="second", author=two)
            book.tags.add(self.tag)
            self.book.tags.clear()
            with dbfleet.session(), assert_routed_to("replica"):
                one = Book.objects.prefetch_related("tags").get()
                self.assertEqual([t.word for t in one.tags.all()], ["t"])
                self.assertEqual(Tag.objects.filter(book__title="first").count(), 1)
                if connection.vendor != "postgresql":
                    self.assertEqual(Tag.objects.filter(label="aB").count(), 1)
                counted = Author.objects.annotate(n=models.Count("books")).order_by("n")
                self.assertEqual([(a.name, a.n) for a in counted], [("old", 1)])
                self.assertEqual(
                    Book.objects.aggregate(n=models.Sum("price"))["n"], Decimal("1.50")
                )
                inner = Book.objects.filter(author=models.OuterRef("pk"))
                self.assertEqual(
                    Author.objects.filter(models.Exists(inner)).count(), 1
                )
                self.assertEqual(
                    Author.objects.annotate(
                        title=models.Subquery(inner.values("title")[:1])
                    ).get().title,
                    "first",
                )
                both = Author.objects.filter(name="old").union(
                    Author.objects.filter(name="two")
                )
                self.assertEqual([a.name for a in both], ["old"])
                self.assertEqual(list(Author.objects.filter(
                    name__contains="%").values_list("pk")), [])
                self.assertEqual([a.name for a in Author.objects.iterator()], ["old"])
                again = Author.objects.filter(
                    pk__in=Book.objects.values("author"), books__author__name="old")
                self.assertEqual(again.count(), 1)
            with dbfleet.session(), connection.cursor() as cursor:
                cursor.execute(
                    "SELECT a.*, b.title FROM app_author a "
                    "LEFT JOIN app_book b ON b.author_id = a.id ORDER BY a.id"
                )
                self.assertEqual([row[-1] for row in cursor], ["first"])
                cursor.execute(
                    "WITH mine AS (SELECT id FROM app_author WHERE name <> %s) "
                    "SELECT count(*) FROM mine", ["x"]
                )
                self.assertEqual(cursor.fetchone()[0], 1)
                schema = {"postgresql": "public", "sqlite": "main"}.get(
                    connection.vendor, connection.settings_dict["NAME"]
                )
                with self.assertRaises(NotSupportedError):
                    cursor.execute(f"SELECT count(*) FROM {schema}.app_author")

    def test_code_in_a_transaction_sees_the_primary(self):
        with replica_lag():
            with dbfleet.session():
                Author.objects.create(name="new")
            with dbfleet.session(), transaction.atomic():
                self.assertEqual(self.names(), ["new", "old"])
            with dbfleet.session():
                with transaction.atomic():
                    self.assertEqual(self.names(), ["new", "old"])
                self.assertEqual(self.names(), ["new", "old"])  # no way back
            with dbfleet.session():
                with transaction.atomic():
                    Author.objects.create(name="newer")
                self.assertEqual(self.names(), ["new", "newer", "old"])
            with dbfleet.session():
                self.assertEqual(self.names(), ["old"])

    def test_undone_write_leaves_the_past(self):
        with replica_lag():
            with dbfleet.session():
                try:
                    with transaction.atomic():
                        Author.objects.create(name="never")
                        raise KeyError
                except KeyError:
                    pass
            with dbfleet.session():
                self.assertEqual(self.names(), ["old"])
                with self.assertRaises(Exception):
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT nothing FROM app_author")
                self.assertEqual(self.names(), ["old"])

    def test_levels(self):
        with replica_lag():
            Author.objects.create(name="new")
            with dbfleet.consistency("eventual"):
                self.assertEqual(self.names(), ["old"])
            with dbfleet.session(), dbfleet.consistency("strong"):
                self.assertEqual(self.names(), ["new", "old"])

    def test_locking_read(self):
        with replica_lag():
            with dbfleet.session():
                Author.objects.create(name="new")
            with dbfleet.session(), transaction.atomic():
                locked = Author.objects.select_for_update().filter(name="new")
                self.assertEqual(len(locked), 1)

    def test_requests_are_sessions(self):
        with replica_lag():
            for add in ("/add", "/add_atomic"):
                found = self.client.get(add, {"name": "mine"})
                self.assertEqual(self.client.get(found.url).status_code, 404)
            self.assertEqual(self.names(), ["mine", "mine", "old"])
        self.assertEqual(self.client.get(found.url).status_code, 200)
        with replica_lag(shares_session=True):
            found = self.client.get("/add", {"name": "other"})
            self.assertEqual(self.client.get(found.url).status_code, 200)

    async def test_async_client(self):
        async with replica_lag():
            found = await self.async_client.get("/add", {"name": "mine"})
            pk = found.url.rsplit("/", 1)[1]
            found = await self.async_client.get(f"/show_async/{pk}")
            self.assertEqual(found.status_code, 404)
        found = await self.async_client.get(f"/show_async/{pk}")
        self.assertEqual(found.status_code, 200)

    @replica_lag()
    def test_decorator(self):
        Author.objects.create(name="new")
        with dbfleet.session():
            self.assertEqual(self.names(), ["old"])

    @replica_lag()
    async def test_async_decorator(self):
        author = await Author.objects.acreate(name="new")
        response = await self.async_client.get(f"/show_async/{author.pk}")
        self.assertEqual(response.status_code, 404)
        self.assertEqual(await Author.objects.acount(), 2)

    def test_down(self):
        with dbfleet.session(), replica_down("replica1"):
            with assert_routed_to("default/replica2", queries=6):
                for _ in range(6):
                    Author.objects.count()
        with dbfleet.session(), replica_down():
            with assert_routed_to("default/primary"):
                self.assertEqual(self.names(), ["old"])
        with dbfleet.session(), replica_down("default/replica2"):
            with assert_routed_to("default/replica1"):
                self.assertEqual(self.names(), ["old"])
        with self.assertRaisesRegex(ValueError, "default/replica2"):
            replica_down("replica9").__enter__()

    def test_primary_down(self):
        from dbfleet.errors import NodeUnavailable

        to_replica = assert_routed_to("replica", kind="read")
        with dbfleet.session(), primary_down(), to_replica:
            self.assertEqual(self.names(), ["old"])
            with self.assertRaisesRegex(NodeUnavailable, "E204") as caught:
                Author.objects.create(name="new")
            self.assertEqual(caught.exception.code, "dbfleet.E204")
            self.assertEqual(self.names(), ["old"])
        with dbfleet.session(), primary_down():
            with self.assertRaises(NodeUnavailable), transaction.atomic():
                Author.objects.count()
            with self.assertRaises(NodeUnavailable):
                with dbfleet.consistency("strong"):
                    Author.objects.count()
        Author.objects.create(name="new")
        self.assertEqual(self.names(), ["new", "old"])

    def test_routed(self):
        with dbfleet.session():
            with assert_routed_to("replica", queries=2) as routed:
                Author.objects.count()
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1 FROM app_author")
            self.assertEqual({one.level for one in routed.statements}, {"session"})
            with assert_routed_to("default/primary", queries=1):
                Author.objects.create(name="new")
            with assert_routed_to("primary", kind="write"):
                Author.objects.update(name="x")
                Author.objects.count()
            with self.assertNumQueries(1), assert_routed_to("default", queries=1):
                Author.objects.count()
        with self.assertRaises(AssertionError) as caught:
            with dbfleet.session(), assert_routed_to("replica"):
                list(Author.objects.filter(name="secret"))
                with transaction.atomic():
                    Author.objects.count()
                Author.objects.create(name="y")
        text = str(caught.exception)
        self.assertIn("2 of 3 statements went elsewhere", text)
        self.assertIn("default/primary (read at 'session', one node)", text)
        self.assertIn("inside a transaction", text)
        self.assertIn("a write goes to its primary", text)
        self.assertNotIn("secret", text)
        with self.assertRaisesRegex(AssertionError, "no statement"):
            with assert_routed_to("primary"):
                pass
        with self.assertRaisesRegex(ValueError, "default/replica1"):
            assert_routed_to("default/replica9").__enter__()

    def test_behind_is_said(self):
        with replica_lag(), self.assertRaises(AssertionError) as caught:
            Author.objects.create(name="new")
            with assert_routed_to("replica"):
                Author.objects.count()
        self.assertIn("could not serve it", str(caught.exception))

    def test_without_helpers_everything_is_the_primary(self):
        for number in range(3):
            Author.objects.create(name=f"n{number}")
            with dbfleet.session():
                self.assertEqual(Author.objects.count(), 2 + number)
        self.assertFalse(
            [n for n in connection.nodes.opened() if n.alias.startswith("default/rep")]
        )


class InTestCase(Lagging, TestCase):
    pass


class InTransactionTestCase(Lagging, TransactionTestCase):
    def test_threads_see_the_past(self):
        import threading

        found = []

        def read():
            found.append(self.names())
            connection.close()

        with replica_lag():
            Author.objects.create(name="new")
            for _ in range(2):
                thread = threading.Thread(target=read)
                thread.start()
                thread.join(30)
        self.assertEqual(found, [["old"], ["old"]])
"""

#: beside the example of the documentation
STALE = """
class AddingAnAuthorAsync(TestCase):
    @replica_lag()
    async def test_shows_the_new_author_async(self):
        response = await self.async_client.get("/add", {"name": "Ursula"}, follow=True)
        self.assertContains(response, "Ursula")

    @replica_lag()
    def test_shows_the_past_to_others(self):
        Author.objects.create(name="Ursula")
        self.client.get("/show/1")
        self.assertEqual(self.client.get("/show/1").status_code, 404)
"""

#: the same test file, run by pytest-django
PYTEST = """
import pytest

import dbfleet
from dbfleet.testing import assert_routed_to, replica_lag
from app.models import Author


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.django_db
@replica_lag()
def test_decorated(name, client):
    author = Author.objects.create(name=name)
    assert client.get(f"/show/{author.pk}").status_code == 404


@pytest.mark.django_db
def test_function(client):
    with replica_lag() as lag:
        author = Author.objects.create(name="x")
        assert client.get(f"/show/{author.pk}").status_code == 404
        lag.catch_up()
        assert client.get(f"/show/{author.pk}").status_code == 200


@pytest.fixture
def lagging(db):
    with replica_lag() as lag:
        yield lag


def test_fixture(lagging):
    Author.objects.create(name="x")
    with dbfleet.session(), assert_routed_to("replica", queries=1):
        assert Author.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_transactional(lagging, client):
    author = Author.objects.create(name="x")
    assert client.get(f"/show/{author.pk}").status_code == 404
"""

#: what replicas that are really there show to a test run that asks for them
LIVE = """
import time


class Live(TransactionTestCase):
    def test_reads_own_writes_and_reaches_a_replica(self):
        found = set()
        deadline = time.monotonic() + 30
        for number in range(1000):
            with dbfleet.session():
                Author.objects.create(name=str(number))
                self.assertEqual(Author.objects.count(), number + 1)
            found = {
                n.alias for n in connection.nodes.opened()
                if n.alias.startswith("default/replica") and n.connection is not None
            }
            if found:
                break
            self.assertLess(time.monotonic(), deadline)
        self.assertTrue(found)

    def test_lag_is_emulated_all_the_same(self):
        with replica_lag():
            Author.objects.create(name="x")
            with dbfleet.session():
                self.assertEqual(Author.objects.count(), 0)


class InOneTransaction(TestCase):
    def test_everything_is_on_the_primary(self):
        for number in range(20):
            Author.objects.create(name=str(number))
            with dbfleet.session():
                self.assertEqual(Author.objects.count(), number + 1)
"""

MIRROR = """
class Mirrored(TransactionTestCase):
    databases = {"default", "copy", "plain"}

    def test_mirrors_show_the_database_of_default(self):
        for number in range(5):
            Author.objects.create(name=str(number))
            self.assertEqual(Author.objects.using("copy").count(), number + 1)
            self.assertEqual(Author.objects.using("plain").count(), number + 1)
"""

#: shards are clusters, too; ``Word`` stays in home, ``Country`` is everywhere
SHARDED_MODELS = """
import dbfleet


class Country(models.Model):
    name = models.CharField(max_length=40)

    class Meta:
        shard_key = dbfleet.REFERENCE


class Customer(models.Model):
    name = models.CharField(max_length=40)
    country = models.ForeignKey(Country, models.CASCADE, null=True)


class Word(models.Model):
    text = models.CharField(max_length=40)

    class Meta:
        shard_key = dbfleet.LOCAL
"""

SHARDED = """
import dbfleet
from dbfleet.testing import assert_routed_to, primary_down, replica_down, replica_lag
from django.db import connection, models, transaction
from django.db.models import F
from django.test import TestCase, TransactionTestCase
from app.models import Country, Customer, Word


class Sharded:
    def setUp(self):
        self.country = Country.objects.create(name="old")
        for number in range(1, 21):
            Customer.objects.create(
                pk=number, name=f"c{number}", country=self.country
            )
        self.shard = {
            shard: next(
                pk for pk in range(1, 21)
                if self.where(pk) == shard
            )
            for shard in ("a", "b")
        }
        Word.objects.create(text="old")

    def where(self, pk):
        with assert_routed_to("default") as routed:
            Customer.objects.get(pk=pk)
        return routed.statements[0].nodes[0].split("/")[1]

    def test_each_shard_lags(self):
        with replica_lag():
            for shard, pk in self.shard.items():
                Customer.objects.filter(pk=pk).update(name="new")
                with dbfleet.session(), assert_routed_to(f"default/{shard}/replica1"):
                    self.assertEqual(Customer.objects.get(pk=pk).name, f"c{pk}")
                with assert_routed_to(f"default/{shard}/primary"):
                    self.assertEqual(Customer.objects.get(pk=pk).name, "new")
            Word.objects.all().update(text="new")
            with dbfleet.session():
                self.assertEqual(Word.objects.get().text, "old")
            self.assertEqual(Word.objects.get().text, "new")

    def test_gathered_reads_see_the_past(self):
        with replica_lag() as lag:
            Customer.objects.filter(pk__in=self.shard.values()).delete()
            with dbfleet.session():
                self.assertEqual(Customer.objects.count(), 20)
                total = Customer.objects.aggregate(n=models.Count("country__name"))
                self.assertEqual(total["n"], 20)
            self.assertEqual(Customer.objects.count(), 18)
            lag.catch_up()
            with dbfleet.session():
                self.assertEqual(Customer.objects.count(), 18)

    def test_writes_pick_their_rows_from_the_present(self):
        with replica_lag():
            Customer.objects.update(name="x")
            with dbfleet.session():
                Customer.objects.filter(
                    name__in=Customer.objects.values("name")
                ).update(name="y")
                self.country.delete()  # finds its customers
            self.assertEqual(Customer.objects.count(), 0)
            with dbfleet.session():
                self.assertEqual(Customer.objects.filter(name="c1").count(), 1)

    def test_in_a_transaction(self):
        pk = self.shard["a"]
        with replica_lag():
            with dbfleet.session():
                Customer.objects.filter(pk=pk).update(name="new")
            with dbfleet.session(), transaction.atomic():
                self.assertEqual(Customer.objects.get(pk=pk).name, "new")
            with dbfleet.session():
                self.assertEqual(Customer.objects.get(pk=pk).name, f"c{pk}")

    def test_one_shard_down(self):
        from dbfleet.errors import NodeUnavailable

        with dbfleet.session(), primary_down("a/primary"):
            Customer.objects.get(pk=self.shard["a"])
            Customer.objects.filter(pk=self.shard["b"]).update(name="new")
            with self.assertRaises(NodeUnavailable):
                Customer.objects.filter(pk=self.shard["a"]).update(name="new")
        with dbfleet.session(), replica_down("a/replica1"):
            with assert_routed_to("default/a/primary"):
                Customer.objects.get(pk=self.shard["a"])
            with assert_routed_to("replica"):
                Customer.objects.get(pk=self.shard["b"])


class ShardedTestCase(Sharded, TestCase):
    pass


class ShardedTransactionTestCase(Sharded, TransactionTestCase):
    pass
"""
