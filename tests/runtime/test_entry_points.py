"""Every way to say which database takes a value made at run time."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dbfleet.testing.rig import PostgresCluster
from tests.runtime.conftest import PASSWORD, migrate, with_password
from tests.support.project import Project

# Each step leaves one author of its own name in the run-time database.
STEPS = {
    "using": 'Author.objects.using(there).create(name="using")',
    "db_manager": 'Author.objects.db_manager(there).create(name="db_manager")',
    "queryset_constructor": (
        'QuerySet(Author, using=there).create(name="queryset_constructor")'
    ),
    "save": 'Author(name="save").save(using=there)',
    "save_base": 'Author(name="save_base").save_base(using=there, raw=True)',
    "asave": 'asyncio.run(Author(name="asave").asave(using=there))',
    "acreate": 'asyncio.run(Author.objects.using(there).acreate(name="acreate"))',
    "bulk_create": (
        'Author.objects.using(there).bulk_create([Author(name="bulk_create")])'
    ),
    "get_or_create": 'Author.objects.using(there).get_or_create(name="get_or_create")',
    "aupdate_or_create": (
        "asyncio.run(Author.objects.using(there)"
        '.aupdate_or_create(name="aupdate_or_create"))'
    ),
    "update": """
        Author.objects.using(there).create(name="temporary")
        Author.objects.using(there).filter(name="temporary").update(name="update")
    """,
    "bulk_update": """
        author = Author.objects.using(there).create(name="temporary")
        author.name = "bulk_update"
        Author.objects.using(there).bulk_update([author], ["name"])
    """,
    "refresh_from_db": """
        author = Author(pk=Author.objects.using(there).create(name="temporary").pk)
        author.refresh_from_db(using=there)
        assert author.name == "temporary", author.name
        author.name = "refresh_from_db"
        author.save()
    """,
    "delete": """
        keep, drop = (
            Author.objects.using(there).create(name=name) for name in ("delete", "drop")
        )
        Book.objects.using(there).create(title="of drop", author=drop)
        copy = Author(pk=drop.pk)
        copy.delete(using=there)
        assert not Book.objects.using(there).filter(title="of drop").exists()
        assert not Author.objects.using(there).filter(name="drop").exists()
    """,
    "adelete": """
        Author.objects.using(there).create(name="adelete")
        drop = Author.objects.using(there).create(name="drop")
        asyncio.run(Author(pk=drop.pk).adelete(using=there))
        assert not Author.objects.using(there).filter(name="drop").exists()
    """,
    "delete_queryset": """
        Author.objects.using(there).create(name="delete_queryset")
        Author.objects.using(there).create(name="drop")
        Author.objects.using(there).filter(name="drop").delete()
    """,
    "atomic": """
        with transaction.atomic(using=there):
            Author.objects.using(there).create(name="atomic")
            try:
                with transaction.atomic(using=there):
                    Author.objects.using(there).create(name="rolled back")
                    raise KeyError
            except KeyError:
                pass
        try:
            with transaction.atomic(there):
                Author.objects.using(there).create(name="rolled back")
                raise KeyError
        except KeyError:
            pass
        assert not Author.objects.using(there).filter(name="rolled back").exists()
    """,
    "atomic_decorator": """
        @transaction.atomic(using=there)
        def work():
            assert connections[there].in_atomic_block
            Author.objects.using(there).create(name="atomic_decorator")
        work()
    """,
    "on_commit": """
        with transaction.atomic(using=there):
            transaction.on_commit(
                lambda: Author.objects.using(there).create(name="on_commit"),
                using=there,
            )
            assert not Author.objects.using(there).filter(name="on_commit").exists()
    """,
    "savepoint": """
        with transaction.atomic(using=there):
            Author.objects.using(there).create(name="savepoint")
            # Django 6.1 gave it another name.
            create = getattr(transaction, "savepoint_create", transaction.savepoint)
            point = create(using=there)
            Author.objects.using(there).create(name="rolled back")
            transaction.savepoint_rollback(point, using=there)
    """,
    "autocommit": """
        transaction.set_autocommit(False, using=there)
        Author.objects.using(there).create(name="autocommit")
        transaction.commit(using=there)
        Author.objects.using(there).create(name="rolled back")
        transaction.rollback(using=there)
        transaction.set_autocommit(True, using=there)
    """,
    "raw": """
        Author.objects.using(there).create(name="temporary")
        query = "SELECT * FROM app_author WHERE name = 'temporary'"
        (author,) = Author.objects.raw(query, using=there)
        (again,) = Author.objects.raw(query).using(there)
        assert author._state.db is again._state.db is alias
        raw = Author.objects.raw(query).using(there)
        seen.write(pickle.dumps(raw, 0).decode("ascii"))
        author.name = "raw"
        author.save()
    """,
    "cursor": """
        with connections[there].cursor() as cursor:
            cursor.execute("INSERT INTO app_author (name) VALUES ('cursor')")
    """,
    "select_for_update": """
        Author.objects.using(there).create(name="temporary")
        with transaction.atomic(using=there):
            locked = Author.objects.using(there).select_for_update()
            author = locked.get(name="temporary")
            author.name = "select_for_update"
            author.save()
    """,
    "in_bulk": """
        pk = Author.objects.using(there).create(name="temporary").pk
        author = Author.objects.using(there).in_bulk([pk])[pk]
        author.name = "in_bulk"
        author.save()
    """,
    "iterator": """
        Author.objects.using(there).create(name="temporary")
        for author in Author.objects.using(there).filter(name="temporary").iterator():
            author.name = "iterator"
            author.save()
    """,
    "aiterator": """
        Author.objects.using(there).create(name="temporary")
        async def rename():
            async for author in Author.objects.using(there).filter(name="temporary"):
                author.name = "aiterator"
                await author.asave()
        asyncio.run(rename())
    """,
    "related": """
        author = Author.objects.using(there).create(name="related")
        book = author.books.create(title="one")
        tag = Tag.objects.using(there).create(word="new")
        book.tags.add(tag)
        book = Book.objects.using(there).get(pk=book.pk)
        assert book.author.pk == author.pk and book.author._state.db == alias
        assert [t.word for t in book.tags.all()] == ["new"]
        assert [b.title for b in tag.book_set.all()] == ["one"]
        author.set_book_order([book.pk], using=there)
    """,
    "prefetch": """
        author = Author.objects.using(there).create(name="prefetch")
        Book.objects.using(there).create(title="two", author=author)
        authors = Author.objects.using(there).prefetch_related("books__tags")
        (found,) = authors.filter(name="prefetch")
        assert [b.title for b in found.books.all()] == ["two"]
        (book,) = Book.objects.using(there).select_related("author").filter(title="two")
        assert book.author._state.db == alias
    """,
    "subquery": """
        author = Author.objects.using(there).create(name="subquery")
        Book.objects.using(there).create(title="three", author=author)
        books = Book.objects.using(there).filter(title="three").values("author")
        assert Author.objects.using(there).get(pk__in=books) == author
        assert Author.objects.using(there).filter(name="subquery").union(
            Author.objects.using(there).none()).get() == author
    """,
    "serializers": """
        data = '[{"model": "app.author", "pk": 900, "fields": {"name": "serializers"}}]'
        for one in serializers.deserialize("json", data, using=there):
            one.save(using=there)
    """,
    "loaddata": """
        fixture = settings.BASE_DIR / "fixture.json"
        fixture.write_text(
            '[{"model": "app.author", "pk": 901, "fields": {"name": "loaddata"}}]'
        )
        call_command("loaddata", str(fixture), database=there, stdout=output)
        call_command("dumpdata", "app.author", database=there, stdout=output)
        assert "loaddata" in output.getvalue()
        call_command("sqlsequencereset", "app", database=there, stdout=output)
    """,
    "commands": """
        Author.objects.using(there).create(name="commands")
        call_command("inspectdb", "app_author", database=there, stdout=output)
        assert "class AppAuthor" in output.getvalue(), output.getvalue()
        call_command("migrate", database=there, stdout=output, verbosity=3)
        call_command("showmigrations", database=there, stdout=output)
        call_command("check", databases=[there], stdout=output)
        call_command("sqlflush", database=there, stdout=output)
        call_command("createcachetable", "cache_rows", database=there, stdout=output)
    """,
    "createsuperuser": """
        call_command("createsuperuser", database=there, interactive=False,
                     username="root", email="root@example.com", stdout=output)
        assert get_user_model().objects.using(there).get().username == "root"
        assert not get_user_model().objects.exists()
        Author.objects.using(there).create(name="createsuperuser")
    """,
    "constraint": """
        Author.objects.using(there).create(name="constraint")
        constraint = UniqueConstraint(fields=["name"], name="one_name")
        try:
            constraint.validate(Author, Author(name="constraint"), using=there)
        except ValidationError:
            pass
        else:
            raise AssertionError("the duplicate was not seen")
    """,
    "allow_relation": """
        author = Author.objects.using(there).create(name="allow_relation")
        Book(author=author, title="four").save()
        assert Book.objects.using(there).filter(title="four").exists()
        try:
            author.books.add(Book(title="of default", author_id=1, pk=1), bulk=False)
        except ValueError:
            raise AssertionError("an unsaved book belongs nowhere yet")
        here = Author.objects.create(name="here")
        try:
            Book(title="five", author=here).author = author
            Book.objects.using(there).get(title="four").author = here
        except ValueError as error:
            assert "prevents this relation" in str(error)
        else:
            raise AssertionError("a relation between two databases was accepted")
        finally:
            here.delete()
    """,
}

CODE = """
import asyncio, io, json, logging, pickle, textwrap, traceback
import dbfleet
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import serializers
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import connections, transaction
from django.db.models import QuerySet, UniqueConstraint
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save
from dbfleet import Cluster, Sharded
from dbfleet.runtime import safe_alias
from app.models import Author, Book, Tag

seen = io.StringIO()
logging.basicConfig(stream=seen, level="DEBUG", force=True)
logging.getLogger("django.db.backends").setLevel("DEBUG")
logging.getLogger("django.db.backends").addHandler(logging.StreamHandler(seen))
settings.DEBUG = True  # every statement is logged
for signal in (pre_save, post_save, pre_delete, post_delete):
    signal.connect(lambda **kwargs: seen.write(f"{{kwargs['using']!r}}"), weak=False)

there = {value}
alias = safe_alias(there)
result = {{}}
for name, step in json.loads({steps!r}).items():
    output = io.StringIO()
    try:
        with dbfleet.scope():
            exec(textwrap.dedent(step))
            found = list(Author.objects.using(there).filter(name=name))
            seen.write(pickle.dumps(found, 0).decode("ascii"))
            seen.write(pickle.dumps(QuerySet(Author, using=there), 0).decode("ascii"))
            states = [one._state.db for one in found]
            is_here = Author.objects.filter(name=name).exists()
            for model in (Book, Author, Tag):
                model.objects.using(there).all().delete()
        result[name] = [len(found), states == [alias], is_here]
    except BaseException:
        result[name] = traceback.format_exc()
    seen.write(output.getvalue())
result["alias"] = alias
result["seen"] = seen.getvalue()
result["open"] = [conn.alias for conn in connections.all(initialized_only=True)]
"""


@pytest.fixture(scope="module", params=["url", "cluster", "sharded"])
def outcomes(
    request: pytest.FixtureRequest,
    shop: Project,
    postgres: PostgresCluster,
    database: Callable[[], str],
) -> dict[str, Any]:
    """What became of every step, on each kind of value."""
    name = database()
    primary = with_password(postgres.url(name))
    replicas = [with_password(one) for one in postgres.replica_urls(name)]
    shards = [with_password(postgres.url(database())) for _ in range(2)]
    value = {
        "url": repr(primary),
        "cluster": f"Cluster({primary!r}, replicas={replicas!r})",
        "sharded": f"Sharded(home={primary!r}, shards=dict(zip('ab', {shards!r})))",
    }[request.param]
    migrate(shop, value)
    return dict(shop.run(CODE.format(value=value, steps=json.dumps(STEPS))))


@pytest.mark.parametrize("step", STEPS)
def test_entry_point_takes_a_topology_value(
    outcomes: dict[str, Any], step: str
) -> None:
    if step == "cursor" and "E402" in str(outcomes[step]):
        return  # a raw INSERT has no place on shards
    assert outcomes[step] == [1, True, False], outcomes[step]


def test_no_password_is_seen(outcomes: dict[str, Any]) -> None:
    seen = outcomes["seen"]
    assert outcomes["alias"].startswith("run:")
    assert "INSERT INTO" in seen  # the log was read
    assert seen.count(outcomes["alias"]) > 2 * len(STEPS)  # signals and pickles too
    assert PASSWORD not in seen


def test_scopes_left_nothing_open(outcomes: dict[str, Any]) -> None:
    assert outcomes["open"] == ["default"]
