"""Rows in and out: fixtures, flush, sequences, the database cache, sessions, users."""

from __future__ import annotations

import json

import pytest

from tests.management.conftest import FleetProject

pytestmark = pytest.mark.timeout(300)

FILL = """
from app.models import Article, Author, Restaurant, Tag
from django.contrib.auth.models import Group, Permission, User

authors = [Author.objects.create(name=f"Author {n}") for n in range(7)]
tags = [Tag.objects.create(word=f"word {n}") for n in range(5)]
for n in range(11):
    article = Article.objects.create(title=f"Title {n}", author=authors[n % 7])
    article.tags.set(tags[n % 3 : n % 3 + 2])
Restaurant.objects.create(name="Bistro", stars=2)
Restaurant.objects.create(pk=41, name="Casa", stars=3)
user = User.objects.create_user("anna", password="x")
group = Group.objects.create(name="editors")
group.permissions.set(Permission.objects.order_by("pk")[:4])
user.groups.add(group)
"""

STATE = """
from app.models import Article, Author, Restaurant
from django.contrib.auth.models import Group, User

result = {
    "articles": sorted(
        [a.title, a.author.name, sorted(t.word for t in a.tags.all())]
        for a in Article.objects.select_related("author").prefetch_related("tags")
    ),
    "restaurants": sorted(Restaurant.objects.values_list("pk", "name", "stars")),
    "users": sorted(
        [u.username, [g.name for g in u.groups.all()]] for u in User.objects.all()
    ),
    "permissions": sorted(
        Group.objects.values_list("permissions__codename", flat=True)
    ),
}
"""
INSERT = """
from app.models import Article, Author, Place, Restaurant, Tag

made = [Author.objects.create(name=f"Later {n}") for n in range(6)]
Tag.objects.bulk_create(Tag(word=f"later {n}") for n in range(6))
for author in made:
    article = Article.objects.create(title="later", author=author)
    article.tags.set(Tag.objects.all())
Restaurant.objects.create(name="Later", stars=1)
pks = [a.pk for a in Author.objects.all()]
result = [
    len(pks) == len(set(pks)),
    Author.objects.filter(name__startswith="Later").count(),
    Article.objects.filter(title="later").count(),
    Restaurant.objects.filter(place_ptr__name="Later").count(),
]
"""


def empty(fleet: FleetProject) -> None:
    fleet.call("flush", interactive=False, verbosity=0)


@pytest.mark.parametrize("natural", [False, True])
def test_dumpdata_loaddata_round_trip(fleet: FleetProject, natural: bool) -> None:
    empty(fleet)
    project = fleet.project
    project.run(FILL)
    before = project.run(STATE)
    assert len(before["articles"]) == 11
    dump = project.root / f"dump-{natural}.json"
    options = {
        "natural_foreign": natural,
        "natural_primary": natural,
        "exclude": ["contenttypes", "auth.permission"] if natural else [],
        "output": str(dump),
    }
    fleet.call("dumpdata", **options)
    kinds = {one["model"] for one in json.loads(dump.read_text())}
    assert {"app.article", "app.place", "app.restaurant", "auth.user"} <= kinds
    assert not any("dbfleet" in kind for kind in kinds)

    if natural:
        empty(fleet)
    else:
        project.run(
            """
            from django.apps import apps
            for model in reversed(list(apps.get_models())):
                model.objects.all().delete()
            """
        )
    fleet.call("loaddata", str(dump), verbosity=0)
    assert project.run(STATE) == before
    fleet.call("loaddata", str(dump), verbosity=0)  # again: nothing doubles
    assert project.run(STATE) == before
    assert project.run(INSERT) == [True, 6, 6, 1]
    if fleet.is_sharded:
        counts = fleet.count("app_author")
        assert counts["home"] == 0
        assert sum(counts.values()) == 13


def test_flush_empties_every_node_and_restarts_ids(fleet: FleetProject) -> None:
    empty(fleet)
    fleet.project.run(FILL)
    empty(fleet)
    for table in ("app_author", "app_article_tags", "app_restaurant", "auth_user"):
        assert not any(fleet.count(table).values()), table
    # what post_migrate makes is there again, once
    made = fleet.project.run(
        """
        from app.models import Author
        from django.contrib.auth.models import Permission
        from django.contrib.contenttypes.models import ContentType
        from django.db import connection
        from django.core.management.color import no_style

        names = list(ContentType.objects.values_list("app_label", "model"))
        first = [len(names) == len(set(names)) > 5, Permission.objects.exists()]
        Author.objects.create(name="before")
        sql = connection.ops.sql_flush(
            no_style(), ["app_author"], reset_sequences=True, allow_cascade=True
        )
        connection.ops.execute_sql_flush(sql)
        author = Author.objects.create(name="before")
        result = [*first, author.pk, Author.objects.count()]
        """
    )
    assert made == [True, True, 1, 1]


def test_sqlflush_names_every_table(fleet: FleetProject) -> None:
    sql = fleet.project.manage("sqlflush").stdout
    assert "app_article" in sql
    assert "auth_user" in sql
    assert "dbfleet_" not in sql


def test_sqlsequencereset_runs_through_a_cursor(fleet: FleetProject) -> None:
    empty(fleet)
    found = fleet.project.run(
        """
        import io
        from app.models import Author
        from django.core.management import call_command
        from django.db import connection

        Author.objects.bulk_create(
            Author(pk=pk, name=f"explicit {pk}") for pk in (3, 700, 55)
        )
        out = io.StringIO()
        call_command("sqlsequencereset", "app", stdout=out, no_color=True)
        sql = out.getvalue()
        with connection.cursor() as cursor:
            for statement in sql.split(";"):
                statement = statement.strip()
                if statement and statement not in ("BEGIN", "COMMIT"):
                    cursor.execute(statement)
        fresh = [Author.objects.create(name=f"fresh {n}").pk for n in range(4)]
        result = [bool(sql.strip()), min(fresh) > 700, len(set(fresh))]
        """
    )
    assert found == [fleet.engine == "postgresql", True, 4]


def test_database_cache(fleet: FleetProject) -> None:
    fleet.call("createcachetable", verbosity=0)
    fleet.call("createcachetable", verbosity=0)
    assert all("cache_entries" in tables for tables in fleet.tables().values())
    found = fleet.project.run(
        """
        from django.core.cache import cache
        from django.db import transaction

        cache.set("one", {"a": 1}, 60)
        cache.set("one", {"a": 2}, 60)
        added = [cache.add("one", 1), cache.add("two", 5)]
        cache.set("old", 1, -1)
        cache.set_many({f"many_{n}": n for n in range(20)})
        cache.incr("two")
        cache.touch("two", 100)
        with transaction.atomic():
            cache.set("inside", 3)
        result = [
            added, cache.get("one"), cache.get("two"), cache.get("old"),
            sum(cache.get_many([f"many_{n}" for n in range(20)]).values()),
            cache.delete("two"), cache.get("two"), cache.has_key("inside"),
        ]
        cache.clear()
        result.append(cache.get("one"))
        """
    )
    assert found == [[False, True], {"a": 2}, 6, None, 190, True, None, True, None]


def test_createsuperuser(fleet: FleetProject) -> None:
    empty(fleet)
    environment = {"DJANGO_SUPERUSER_PASSWORD": "pass-word-1"}
    arguments = (
        "createsuperuser",
        "--noinput",
        "--username",
        "root",
        "--email",
        "r@x.example",
    )
    fleet.project.manage(*arguments, env=environment)
    again = fleet.project.manage(*arguments, env=environment, check=False)
    assert again.returncode == 1
    assert "already taken" in again.stderr
    found = fleet.project.run(
        """
        from django.contrib.auth import authenticate
        user = authenticate(username="root", password="pass-word-1")
        result = [user.username, user.is_superuser]
        """
    )
    assert found == ["root", True]


def test_clearsessions(fleet: FleetProject) -> None:
    empty(fleet)
    fleet.project.run(
        """
        import datetime
        from django.contrib.sessions.backends.db import SessionStore
        for n in range(9):
            store = SessionStore()
            store["n"] = n
            store.set_expiry(datetime.timedelta(days=-1 if n % 3 else 1))
            store.create()
        """
    )
    assert sum(fleet.count("django_session").values()) == 9
    fleet.project.manage("clearsessions")
    assert sum(fleet.count("django_session").values()) == 3
