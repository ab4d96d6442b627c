"""Fleets of PostgreSQL whose home reaches the shards through proxies of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.fixtures import lone_servers
from tests.faults.projects import Fleet, make_fleet
from tests.support.project import Project

__all__ = ["lone_servers"]

MODELS = """
from django.contrib.postgres.fields import ArrayField


class Mood(models.Field):
    def db_type(self, connection):
        return "mood"


class Loose(models.TextField):
    def db_type(self, connection):
        return "citext"


class Customer(models.Model):
    name = models.CharField(max_length=40, db_collation="en-x-icu")
    city = models.CharField(max_length=40, default="")


class Parcel(models.Model):
    region = models.IntegerField()
    customer = models.ForeignKey(Customer, models.CASCADE, db_constraint=False)
    mood = Mood(null=True)
    loose = Loose(default="")
    data = models.JSONField(null=True)
    marks = ArrayField(models.IntegerField(), default=list)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    sent = models.DateTimeField(null=True)
    took = models.DurationField(null=True)
    blob = models.BinaryField(default=b"")
    order = models.CharField(db_column="Order by", max_length=9, default="")
    twice = models.GeneratedField(
        expression=models.F("region") * 2,
        output_field=models.IntegerField(),
        db_persist=True,
    )

    class Meta:
        db_table = "Select Parcel's"


class Country(models.Model):
    code = models.CharField(max_length=2)
"""

SETTINGS = """
from dbfleet.testing.rig import FaultProxy, target_of

#: by these home reaches the shards, which the project reaches by others
WAYS = {name: FaultProxy(*target_of(URLS[name])) for name in URLS if name != "home"}
HOSTS = {
    f"{PROXIES[name].host}:{PROXIES[name].port}": f"{way.host}:{way.port}"
    for name, way in WAYS.items()
}
DBFLEET = {
    "SHARD_KEYS": {"app.Parcel": "region"},
    "REFERENCE": ["app.Country"],
    "GATHER": {"SOURCE": "fdw", "FDW_HOSTS": HOSTS},
}
SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]
"""

#: what code run in such a project begins with
HELP = """
import contextlib, io
from django.db import DatabaseError
from django.db.models import *
from django.test import override_settings
from dbfleet.observe import events

ways = settings.WAYS
seen = []
listening = events.subscribed(
    lambda event: event.name == "gathered" and seen.append(event.fields)
)
listening.__enter__()


def ddl(*statements):
    with connection.cursor() as cursor:
        for sql in statements:
            cursor.execute(sql)
    connection.close()


def tables():
    ddl("CREATE TYPE mood AS ENUM ('sad', 'fine', 'glad')", "CREATE EXTENSION citext")
    create_tables()


def fleet(*args):
    out = io.StringIO()
    call_command("fleet", *args, stdout=out, stderr=out)
    return out.getvalue()


def source(name, **more):
    gather = {**settings.DBFLEET["GATHER"], "SOURCE": name, **more}
    return override_settings(DBFLEET={**settings.DBFLEET, "GATHER": gather})


def how(ask):
    '''The answer, and where its gathers had their rows from.'''
    del seen[:]
    answer = ask()
    return answer, [one["source"] for one in seen]


def joined():
    '''A join off the shard key.'''
    return Parcel.objects.filter(customer__city="x").count()


def fill(count=60):
    Customer.objects.bulk_create(
        Customer(id=n, name=f"c{n}", city="xyz"[n % 3]) for n in range(1, 13)
    )
    Parcel.objects.bulk_create(
        Parcel(id=n, region=n, customer_id=n % 12 + 1) for n in range(1, count + 1)
    )
"""


@pytest.fixture
def foreign(
    lone_servers: Callable[[str], Any],
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
) -> Fleet:
    """A project over two shards, whose gathers are to read foreign tables."""
    server = lone_servers("postgresql")
    return make_fleet(project, new_database, server, models=MODELS, settings=SETTINGS)
