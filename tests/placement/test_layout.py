"""How a model's rows are laid out on a sharded alias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.project import Project

MODELS = """
import dbfleet

class Customer(models.Model):
    code = models.CharField(max_length=9, unique=True)
    city = models.CharField(max_length=9)

class Order(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE)
    tags = models.ManyToManyField("Country")

    class Meta:
        shard_key = "customer"

class Line(models.Model):
    order = models.ForeignKey(Order, models.CASCADE)

    class Meta:
        shard_key = "order__customer"

class Note(models.Model):
    line = models.OneToOneField(Line, models.CASCADE, primary_key=True)

    class Meta:
        shard_key = "line__order__customer_id"

class Coded(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE, to_field="code")

    class Meta:
        shard_key = "customer__code"

class Trimmed(models.Model):
    order = models.ForeignKey(Order, models.CASCADE, db_column="the_order")

    class Meta:
        shard_key = ("order__id",)

class Pair(models.Model):
    region = models.CharField(max_length=9, db_column="reg")
    number = models.IntegerField()

    class Meta:
        shard_key = ("region", "number")

class Composite(models.Model):
    pk = models.CompositePrimaryKey("region", "number")
    region = models.CharField(max_length=9)
    number = models.IntegerField()

class Country(models.Model):
    neighbours = models.ManyToManyField("self")

    class Meta:
        shard_key = dbfleet.REFERENCE

class Note2(models.Model):
    class Meta:
        shard_key = dbfleet.LOCAL

class Place(models.Model):
    city = models.CharField(max_length=9)

class Restaurant(Place):
    class Meta:
        shard_key = "serves"  # its rows live with their places
    serves = models.CharField(max_length=9)

class Pizzeria(Restaurant):
    pass

class Venue(models.Model):
    city = models.CharField(max_length=9)
    class Meta:
        shard_key = "city"

class Club(Venue):
    guests = models.ManyToManyField(Customer)

class OldClub(Club):
    class Meta:
        proxy = True

class Configured(models.Model):
    name = models.CharField(max_length=9)
    class Meta:
        shard_key = dbfleet.REFERENCE
"""

SETTINGS = """
DBFLEET = {
    "SHARD_KEYS": {"app.Configured": "name"},
    "REFERENCE": ["auth"],
    "LOCAL": ["auth.Permission"],
    "PLACEMENT": {"app": "sales", "auth": "sales", "contenttypes": "sales"},
}
INSTALLED_APPS += ["django.contrib.contenttypes", "django.contrib.auth"]
"""

LAYOUTS = """
from django.apps import apps
from django.db import connections
from dbfleet import topology
from dbfleet.placement import Sharded, layout

sales = topology.load("sales", connections.settings["sales"])

def shown(found):
    if not isinstance(found, Sharded):
        return repr(found)
    if found.key is None:
        return None
    path = [
        f"{hop.column}={hop.model}:{hop.table}.{hop.target_column}"
        for hop in found.key.path
    ]
    return [*path, "+".join(found.key.columns)]

def of(label, registry=apps, alias=sales):
    return shown(layout(alias, registry.get_model(label)._meta))
"""


def layouts(project: Project, code: str) -> Any:
    return project.run(LAYOUTS + code)


def test_every_kind_of_model(fleet: Callable[..., Project]) -> None:
    found = layouts(
        fleet(MODELS, SETTINGS),
        """
result = {
    model._meta.label: of(model._meta.label)
    for model in apps.get_models(include_auto_created=True)
}
""",
    )
    order = "order_id=app.order:app_order.id"
    assert found == {
        "app.Customer": ["id"],
        "app.Order": ["customer_id"],
        "app.Order_tags": ["id"],
        "app.Line": [order, "customer_id"],
        "app.Note": ["line_id=app.line:app_line.id", order, "customer_id"],
        "app.Coded": ["customer_id"],
        "app.Trimmed": ["the_order"],
        "app.Pair": ["reg+number"],
        "app.Composite": ["region+number"],
        "app.Country": "REFERENCE",
        "app.Country_neighbours": "REFERENCE",
        "app.Note2": "LOCAL",
        "app.Place": ["id"],
        "app.Restaurant": ["place_ptr_id"],
        "app.Pizzeria": ["restaurant_ptr_id"],
        "app.Venue": ["city"],
        "app.Club": ["venue_ptr_id=app.venue:app_venue.id", "city"],
        "app.Club_guests": ["id"],
        "app.OldClub": ["venue_ptr_id=app.venue:app_venue.id", "city"],
        "app.Configured": ["name"],
        "auth.Permission": "LOCAL",
        "auth.Group": "REFERENCE",
        "auth.Group_permissions": "REFERENCE",
        "auth.User": "REFERENCE",
        "auth.User_groups": "REFERENCE",
        "auth.User_user_permissions": "REFERENCE",
        "contenttypes.ContentType": ["id"],
    }


def test_on_other_aliases_all_is_local(fleet: Callable[..., Project]) -> None:
    found = layouts(
        fleet(MODELS, SETTINGS),
        """
from django.db.migrations.recorder import MigrationRecorder
plain = topology.load("db1", connections.settings["db1"])
result = [
    of("app.Order", alias=plain),
    of("app.Country", alias=plain),
    shown(layout(sales, MigrationRecorder.Migration._meta)),
]
""",
    )
    assert found == ["LOCAL", "LOCAL", "LOCAL"]


def test_a_historical_model_is_laid_out_as_todays(
    fleet: Callable[..., Project],
) -> None:
    project = fleet(MODELS, SETTINGS)
    found = layouts(
        project,
        """
from django.db import models
from django.db.migrations.state import ModelState, ProjectState

today = ProjectState.from_apps(apps).apps
result = {
    model._meta.label: [of(model._meta.label), of(model._meta.label, today)]
    for model in apps.get_models(include_auto_created=True)
}
early = ProjectState()
pk = ("id", models.AutoField(primary_key=True))
early.add_model(ModelState("app", "Order", [pk]))
early.add_model(ModelState("app", "Customer", [pk]))
early.add_model(ModelState("app", "Country", [pk]))
early.add_model(ModelState("app", "Gone", [pk]))
early.add_model(ModelState("app", "Pair", [
    pk, ("region", models.CharField(max_length=9, null=True)),
    ("number", models.IntegerField(db_column="n")),
]))
early = early.apps
names = ["Order", "Customer", "Country", "Gone", "Pair"]
result["early"] = [of(f"app.{name}", early) for name in names]
""",
    )
    # the key's field is not there yet: nothing can be placed
    assert found.pop("early") == [None, ["id"], "REFERENCE", ["id"], ["region+n"]]
    assert found
    for label, (now, historical) in found.items():
        assert now == historical, label


def test_a_wrong_key_of_todays_model_is_an_error(
    fleet: Callable[..., Project],
) -> None:
    project = fleet(
        MODELS,
        'DBFLEET = {"SHARD_KEYS": {"app.Pair": "nam"}, "PLACEMENT": {"app": "sales"}}',
    )
    found = layouts(
        project,
        """
from dbfleet.errors import ConfigurationError
try:
    of("app.Pair")
except ConfigurationError as error:
    result = [error.code, str(error)]
""",
    )
    assert found[0] == "dbfleet.E103"
    assert "app.Pair has no field 'nam'; it has: id, number, region" in found[1]
