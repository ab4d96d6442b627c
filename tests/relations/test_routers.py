"""A project's own routers keep working beside ``PlacementRouter``.

The pair is the one of Django's manual: one router pins the auth app to a database,
one sends reads to a random replica and writes to the primary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.project import Project

DATABASES = """
from dbfleet import Sharded, databases

def sqlite(name):
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{BASE_DIR}/{name}.db"}

# Replicas that replicate at once: they are the primary's own file.
DATABASES = {
    "default": {},
    "auth_db": sqlite("auth"),
    "primary": sqlite("primary"),
    "replica1": sqlite("primary"),
    "replica2": sqlite("primary"),
    **databases(
        default=sqlite("unused"),
        sales=Sharded(home=sqlite("home"), shards={"a": sqlite("a"), "b": sqlite("b")}),
    ),
}
DATABASES["default"] = {}
DATABASE_ROUTERS = {routers!r}
"""

ROUTERS = '''
import random


class AuthRouter:
    """As in Django's manual."""

    route_app_labels = {"auth", "contenttypes"}

    def db_for_read(self, model, **hints):
        if model._meta.app_label in self.route_app_labels:
            return "auth_db"

    db_for_write = db_for_read

    def allow_relation(self, obj1, obj2, **hints):
        labels = {obj1._meta.app_label, obj2._meta.app_label}
        if labels & self.route_app_labels:
            return True

    def allow_migrate(self, db, app_label, model_name=None, **hints):
        if app_label in self.route_app_labels:
            return db == "auth_db"


class PrimaryReplicaRouter:
    """As in Django's manual."""

    def db_for_read(self, model, **hints):
        return random.choice(["replica1", "replica2"])

    def db_for_write(self, model, **hints):
        return "primary"

    def allow_relation(self, obj1, obj2, **hints):
        pool = {"primary", "replica1", "replica2"}
        if obj1._state.db in pool and obj2._state.db in pool:
            return True

    def allow_migrate(self, db, app_label, model_name=None, **hints):
        return True
'''

MODELS = """
class Author(models.Model):
    name = models.CharField(max_length=20)


class Book(models.Model):
    title = models.CharField(max_length=20)
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")


class Order(models.Model):
    number = models.IntegerField()

    class Meta:
        using = "sales"
"""

SCENARIO = """
import random
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command
from django.db import connections, router
from app.models import Author, Book, Order

for alias in ("auth_db", "primary", "sales"):
    call_command("migrate", database=alias, run_syncdb=True, verbosity=0)


def tables(alias):
    names = connections[alias].introspection.table_names()
    return sorted(n for n in names if not n.startswith(("django_", "dbfleet_")))


random.seed(3)
author = Author.objects.create(name="one")
book = Book.objects.create(title="first", author=author)
user = User.objects.create_user("kari", password="x")
group = Group.objects.create(name="staff")
user.groups.add(group)
orders = Order.objects.bulk_create(Order(number=n) for n in range(6))
Book.objects.filter(pk=book.pk).update(title="changed")
found = Book.objects.select_related("author").get()
reads = {Author.objects.get(pk=author.pk)._state.db for _ in range(30)}
result = {
    "tables": {alias: tables(alias) for alias in ("auth_db", "primary", "sales")},
    "reads": sorted(reads),
    "writes": author._state.db,
    "joined": [found.title, found.author.name, found._state.db in reads],
    "reverse": [[b.title for b in author.books.all()], author.books.all().db],
    "user": [user._state.db, User.objects.get(groups__name="staff")._state.db],
    "orders": [Order.objects.count(), Order.objects.get(number=3)._state.db],
    "order's places": sorted(Order.objects.explain_route().clusters),
    "assigned": Book(title="x", author=Author.objects.get()).author.name,
    "deleted": Author.objects.all().delete()[0],
    "left": [Book.objects.count(), User.objects.count(), Order.objects.count()],
    "router": [
        router.db_for_write(User), router.db_for_write(Book), router.db_for_write(Order)
    ],
}
"""

ROUTER_PATHS = (
    "dbfleet.PlacementRouter",
    "routers.AuthRouter",
    "routers.PrimaryReplicaRouter",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    source = DATABASES.replace("{routers!r}", repr(list(ROUTER_PATHS)))
    built = Project(
        tmp_path_factory.mktemp("routers") / "project",
        databases=source,
        models=MODELS,
        apps=["django.contrib.contenttypes", "django.contrib.auth"],
        settings='PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]',
    )
    built.write("routers.py", ROUTERS)
    try:
        yield built.run(SCENARIO)
    finally:
        built.close()


def test_each_router_keeps_its_models(found: dict[str, Any]) -> None:
    assert found["router"] == ["auth_db", "primary", "sales"]
    assert found["user"] == ["auth_db", "auth_db"]
    assert found["writes"] == "primary"
    assert found["reads"] == ["replica1", "replica2"]


def test_tables_are_where_their_rows_go(found: dict[str, Any]) -> None:
    tables = found["tables"]
    assert {"auth_user", "auth_group"} <= set(tables["auth_db"])
    assert "app_order" not in [*tables["auth_db"], *tables["primary"]]
    assert {"app_author", "app_book"} <= set(tables["primary"])
    assert not {"auth_user", "auth_group"} & set(tables["primary"])
    assert "app_order" in tables["sales"]
    assert not {"auth_user", "auth_group"} & set(tables["sales"])


def test_joins_relations_and_cascades_work_as_before(found: dict[str, Any]) -> None:
    title, name, is_on_a_replica = found["joined"]
    assert (title, name, is_on_a_replica) == ("changed", "one", True)
    titles, alias = found["reverse"]
    assert titles == ["changed"]
    assert alias in {"replica1", "replica2"}  # a read, as without dbfleet
    assert found["assigned"] == "one"
    assert found["deleted"] == 2


def test_a_placed_model_is_a_fleets_beside_them(found: dict[str, Any]) -> None:
    assert found["orders"] == [6, "sales"]
    assert found["order's places"] == ["a", "b"]
    assert found["left"] == [0, 1, 6]
