"""Unique constraints that a migration adds, changes or drops on stored rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.project import Project

DATABASES = """
from dbfleet import Sharded, databases

DATABASES = databases(
    default=Sharded(home={home!r}, shards={{"a": {a!r}, "b": {b!r}, "c": {c!r}}}),
)
"""
MODELS = """
class Person(models.Model):
    email = models.CharField(max_length=40)
    nick = models.CharField(max_length=40, unique=True)
"""
SETUP = """
from app.models import Person
from django.db import IntegrityError, connection, models

def claims():
    sql = "SELECT constraint_name FROM dbfleet_unique"
    return sorted(row[0] for row in connection.engine.fetch(connection, sql))

def alter(name, **options):
    old = Person._meta.get_field(name)
    new = type(old)(**{"max_length": 40, **options})
    new.set_attributes_from_name(name)
    body = {"__module__": "app.later", name: new}
    body["Meta"] = type("Meta", (), {"app_label": "app", "db_table": "app_person"})
    from django.apps.registry import Apps
    body["Meta"].apps = Apps()
    other = "nick" if name == "email" else "email"
    body[other] = Person._meta.get_field(other).clone()
    later = type("Person", (models.Model,), body)
    with connection.schema_editor() as editor:
        editor.alter_field(Person, old, later._meta.get_field(name))
    return later

def outcome(action):
    try:
        action()
    except IntegrityError:
        return "IntegrityError"
    return "done"
"""


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def people(
    request: pytest.FixtureRequest,
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
    tmp_path: Any,
) -> Project:
    """A sharded table of people on each engine."""
    names = ("home", "a", "b", "c")
    settings = ""
    if request.param == "sqlite":
        urls = {name: f"sqlite:///{tmp_path}/{name}.sqlite3" for name in names}
    else:
        fixture = {"postgresql": "postgres"}.get(request.param, request.param)
        cluster = request.getfixturevalue(fixture)
        urls = {name: cluster.url(new_database(cluster)) for name in names}
    if request.param == "mariadb":
        settings = "import pymysql\npymysql.install_as_MySQLdb()"
    built = project(
        databases=DATABASES.format(**urls), models=MODELS, settings=settings
    )
    built.manage("migrate", "--run-syncdb", "-v0")
    return built


def test_a_new_constraint_sees_rows_of_every_shard(people: Project) -> None:
    found = people.run(
        SETUP
        + """
Person.objects.bulk_create(Person(email=f"e{n}", nick=f"n{n}") for n in range(12))
before = len(claims())
later = alter("email", unique=True)
result = [
    before,
    len(claims()),
    outcome(lambda: later(email="e3", nick="new").save()),
    outcome(lambda: later(email="e99", nick="n99").save()),
    later._default_manager.count(),
]
"""
    )
    assert found == [12, 24, "IntegrityError", "done", 13]


def test_a_stored_duplicate_refuses_the_constraint(people: Project) -> None:
    found = people.run(
        SETUP
        + """
Person.objects.bulk_create(Person(email="same", nick=f"n{n}") for n in range(12))
result = [
    outcome(lambda: alter("email", unique=True)),
    len(claims()),
    outcome(lambda: Person(email="same", nick="free").save()),
    Person.objects.count(),
]
"""
    )
    assert found == ["IntegrityError", 12, "done", 13]


def test_dropping_a_constraint_lets_its_values_go(people: Project) -> None:
    found = people.run(
        SETUP
        + """
Person.objects.bulk_create(Person(email=f"e{n}", nick=f"n{n}") for n in range(6))
later = alter("nick", unique=False)
result = [len(claims()), outcome(lambda: later(email="x", nick="n1").save())]
with connection.schema_editor() as editor:
    editor.delete_model(Person)
result.append(len(claims()))
"""
    )
    assert found == [0, "done", 0]


def test_a_renamed_table_keeps_its_claims(people: Project) -> None:
    found = people.run(
        SETUP
        + """
Person.objects.bulk_create(Person(email=f"e{n}", nick=f"n{n}") for n in range(6))
from django.apps.registry import Apps
body = {"__module__": "app.later"}
body["Meta"] = type(
    "Meta", (), {"app_label": "app", "db_table": "app_human", "apps": Apps()}
)
body |= {name: Person._meta.get_field(name).clone() for name in ("email", "nick")}
later = type("Person", (models.Model,), body)
with connection.schema_editor() as editor:
    editor.alter_db_table(later, "app_person", "app_human")
sql = "SELECT DISTINCT table_name FROM dbfleet_unique"
result = [row[0] for row in connection.engine.fetch(connection, sql)]
result.append(outcome(lambda: later(email="x", nick="n1").save()))
"""
    )
    assert found == ["app_human", "IntegrityError"]
