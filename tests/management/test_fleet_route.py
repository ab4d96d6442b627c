"""``manage.py fleet route`` says what a queryset would do, and sends nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbfleet.testing.rig import Rig
from tests.support.project import Project

MODELS = """
class Customer(models.Model):
    name = models.CharField(max_length=50)
    born = models.DateField(null=True)

class Order(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE)
    total = models.DecimalField(max_digits=8, decimal_places=2)
    lines = models.IntegerField(default=0)

    class Meta:
        shard_key = "customer"

class Note(models.Model):
    text = models.TextField()

    class Meta:
        using = "other"
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, rig: Rig) -> Iterator[Project]:
    files = rig.sqlite(databases=["home", "a", "b", "c", "other"])
    shards = {name: files.url(name) for name in "abc"}
    root: Path = tmp_path_factory.mktemp("route") / "shop"
    built = Project(
        root,
        databases="from dbfleet import Cluster, Sharded, databases\n"
        "DATABASES = databases(default=Sharded("
        f"home={files.url('home')!r}, shards={shards!r}), "
        f"other=Cluster({files.url('other')!r}))\n"
        'DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]\n',
        models=MODELS,
    )
    yield built
    built.close()


def route(shop: Project, *args: str) -> dict[str, Any]:
    found = json.loads(shop.manage("fleet", "route", *args, "--json").stdout)
    assert isinstance(found, dict)
    return found


def test_pinned_merged_gathered_and_single(shop: Project) -> None:
    pinned = route(shop, "app.Order", "--filter", "customer=7")
    assert pinned["rung"] == "one node"
    assert len(pinned["clusters"]) == 1
    assert pinned["nodes"] == [f"default/{pinned['clusters'][0]}/primary"]
    assert "app.Order (customer_id)" in pinned["reason"]
    through = route(shop, "app.Order", "--filter", "customer__id=7")
    assert through["clusters"] == pinned["clusters"]

    merged = route(shop, "app.Order", "--filter", "total__gte=10.5")
    assert merged["rung"] == "stream merge"
    assert merged["clusters"] == ["a", "b", "c"]
    assert "10.5" not in json.dumps(merged)  # a value may be a secret

    gathered = route(shop, "app.Order", "--filter", "total__gte=10.5", "--order-by=?")
    assert gathered["rung"] == "gather"
    (fragment,) = gathered["fragments"]
    assert fragment["model"] == "app.Order"
    assert "total" in fragment["where"]
    assert "10.5" not in json.dumps(gathered)

    elsewhere = route(shop, "app.Note")
    assert (elsewhere["alias"], elsewhere["rung"]) == ("other", "one node")
    moved = route(shop, "app.Note", "--database", "default")
    assert (moved["alias"], moved["rung"]) == ("default", "stream merge")


def test_sizes_are_asked_for_and_unknown_to_sqlite(shop: Project) -> None:
    found = route(shop, "app.Order", "--order-by=?", "--sizes")
    assert [part["rows"] for part in found["fragments"]] == [None]
    joined = ("app.Order", "--filter", "customer__name=x", "--order-by=?", "--sizes")
    text = shop.manage("fleet", "route", *joined).stdout
    assert "reduced:  app_order: customer_id by app_customer.id" in text
    assert "about" not in text
    assert len(route(shop, *joined)["reductions"]) == 2


def test_text_names_everything(shop: Project) -> None:
    text = shop.manage(
        "fleet", "route", "app.order", "--filter", "lines=3", "--order-by=?"
    ).stdout
    for part in ("alias:    default", "rung:     gather", "clusters: a, b, c"):
        assert part in text
    assert "fragment: app_order(" in text
    assert '"app_order"."lines"' in text


@pytest.mark.parametrize(
    ("conditions", "rung"),
    [
        (["customer__in=1"], "one node"),
        (["customer__in=1,2,3,4,5,6,7,8"], "stream merge"),
        (["customer__name__icontains=x"], "stream merge"),
        (["customer__born__year=1990", "customer=2"], "one node"),
        (["customer__born__isnull=true"], "stream merge"),
        (["customer__born__range=1990-01-01,1991-01-01"], "stream merge"),
        (["customer__born__date__gt=1990-01-01"], None),
        (["pk=1", "customer=1"], "one node"),
    ],
)
def test_conditions(shop: Project, conditions: list[str], rung: str | None) -> None:
    arguments = [part for one in conditions for part in ("--filter", one)]
    if rung is None:
        finished = shop.manage("fleet", "route", "app.Order", *arguments, check=False)
        assert finished.returncode == 1
        assert "Unsupported lookup 'date" in finished.stderr
    else:
        assert route(shop, "app.Order", *arguments)["rung"] == rung


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["app.Nothing"], "there is no model 'app.Nothing'"),
        (["Order"], "give one as app.Model"),
        (["app.Order", "--filter", "colour=1"], "app.Order has no field 'colour'"),
        (["app.Order", "--filter", "customer__age=1"], "app.Customer has no field"),
        (["app.Order", "--filter", "lines"], "write field=value"),
        (["app.Order", "--filter", "lines=many"], "must be an integer"),
        (["app.Order", "--filter", "customer__in=1,x"], "customer__in=1,x"),
        (["app.Order", "--filter", "customer__born=1990-13-01"], "invalid date"),
        (["app.Order", "--filter", "lines__isnull=maybe"], "true or false"),
        (["app.Order", "--filter", "lines__near=1"], "Unsupported lookup 'near'"),
        (["app.Order", "--order-by", "colour"], "Cannot resolve keyword"),
        (["app.Order", "--database", "nowhere"], "there is no alias 'nowhere'"),
    ],
)
def test_what_cannot_be_understood(
    shop: Project, arguments: list[str], message: str
) -> None:
    finished = shop.manage("fleet", "route", *arguments, check=False)
    assert finished.returncode == 1
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
