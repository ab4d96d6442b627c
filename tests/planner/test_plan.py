"""Routes of common querysets, as a person would read them.

``plans.txt`` holds each queryset and its route, ``gathered.txt`` those that no shard
can answer for itself, with the reason, ``one_shard.txt`` those of an alias with one
shard alone; a change of a plan shows there, to be judged.
Write both anew with ``DBFLEET_WRITE_PLANS=1`` and read the difference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.postgres import aggregates
from django.core.exceptions import EmptyResultSet
from django.db import models
from django.db.models import functions

from dbfleet import errors
from dbfleet.planner.plan import limited_to, plan_cluster
from dbfleet.planner.route import HOME, Intent, Route, Rung
from dbfleet.topology import ClusterTopology, Topology
from tests.planner import offline
from tests.planner.offline import SHARDS, Fleet

PLANS = Path(__file__).with_name("plans.txt")
GATHERED = Path(__file__).with_name("gathered.txt")
ONE_SHARD = Path(__file__).with_name("one_shard.txt")
WRITES = os.environ.get("DBFLEET_WRITE_PLANS", "") not in {"", "0"}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with offline.fleet(offline.POSTGRESQL) as found:
        yield found


def _entries(file: Path) -> Iterator[tuple[str, str, str]]:
    """(what it is, its Python, its route), as a file has them."""
    for entry in re.split(r"^# ", file.read_text(), flags=re.MULTILINE)[1:]:
        title, source, *route = entry.rstrip().split("\n\n")
        yield title, source, "\n".join(route)


def _route(fleet: Fleet, source: str) -> str:
    from tests.planner.store import models as store

    names = {
        **vars(models),
        **vars(functions),
        **vars(aggregates),
        **vars(store),
    }
    source, *notes = re.split(r" # ", source)
    try:
        route = fleet.plan(
            eval(source, names), in_transaction=notes == ["in a transaction"]
        )
    except EmptyResultSet:
        return "nothing is sent"
    text = re.sub(r'"?planner_store_"?|"', "", str(route)).replace("planner_store.", "")
    return text.replace(f"alias:    {fleet.topology.alias}\n", "")


@pytest.mark.parametrize("file", [PLANS, GATHERED], ids=lambda file: file.stem)
def test_plans_are_those_of_the_file(fleet: Fleet, file: Path) -> None:
    _compare(fleet, file, 20)


def test_plans_of_a_single_shard_are_those_of_the_file() -> None:
    """It has every row: only what needs another node's rows is gathered."""
    with offline.fleet(offline.POSTGRESQL, names=("a",)) as fleet:
        _compare(fleet, ONE_SHARD, 10)


def _compare(fleet: Fleet, file: Path, least: int) -> None:
    entries = list(_entries(file))
    assert len({title for title, *_ in entries}) == len(entries) > least
    found = [(title, source, _route(fleet, source)) for title, source, _ in entries]
    if WRITES:
        texts = ["\n\n".join(entry) for entry in found]
        file.write_text("\n".join(f"# {text}\n" for text in texts))
    for now, before in zip(found, entries, strict=True):
        assert now == before


def test_what_is_gathered_says_why() -> None:
    for title, _, route in _entries(GATHERED):
        assert "rung:     gather" in route, title
        assert re.search(r"^reason: .*, and \w", route, flags=re.MULTILINE), title
    reasons = re.findall(r"^reason: .*, and (.*)$", GATHERED.read_text(), re.MULTILINE)
    assert len(set(reasons)) > 20, "one reason each is enough"


# -- what holds for every route -------------------------------------------------------


def test_a_route_shows_no_value(fleet: Fleet) -> None:
    from tests.planner.store.models import Coupon, Customer

    route = fleet.plan(Coupon.objects.filter(customer__name="a secret"))
    assert ("a secret",) in [part.params for part in route.fragments]
    assert "a secret" not in f"{route} {route!r} {route.fragments!r}"
    is_it = models.Case(models.When(name="a secret", then=1), default=0)
    merged = fleet.plan(Customer.objects.order_by(is_it))
    assert "a secret" in merged.merge.hidden[0][1]
    assert "a secret" not in f"{merged} {merged!r} {merged.merge!r}"


def test_a_route_cannot_be_changed(fleet: Fleet) -> None:
    from tests.planner.store.models import Coupon

    route = fleet.plan(Coupon.objects.filter(customer__name="red"))
    for change in (
        lambda: setattr(route, "clusters", ("a",)),
        lambda: setattr(route.fragments[0], "where", ""),
    ):
        with pytest.raises(AttributeError):
            change()


def test_a_plan_is_the_same_each_time(fleet: Fleet) -> None:
    from tests.planner.store.models import Customer, Order

    for queryset in (
        Order.objects.filter(customer__in=range(20), customer__name="red"),
        Customer.objects.filter(pk__in={5, 3, 9}).order_by("name"),
    ):
        assert len({fleet.plan(queryset.all()) for _ in range(5)}) == 1


def test_replicas_may_serve_a_read_outside_a_transaction_alone(fleet: Fleet) -> None:
    from tests.planner.store.models import Customer, Setting

    for queryset in (
        Customer.objects.filter(pk=3),
        Customer.objects.filter(name="red"),
        Setting.objects.all(),
    ):
        assert fleet.plan(queryset).replica_ok
        assert not fleet.plan(queryset, in_transaction=True).replica_ok
        locked = queryset.select_for_update()
        assert not fleet.plan(locked).replica_ok


def test_only_what_is_locked_is_locked_on_the_shards(fleet: Fleet) -> None:
    from tests.planner.store.models import Coupon, Customer

    inner = Coupon.objects.filter(percent=3).values("customer")
    found = Customer.objects.filter(pk__in=inner).select_for_update(skip_locked=True)
    locking = {part.model: part.locking for part in fleet.plan(found).fragments}
    assert locking == {
        "planner_store.Customer": " FOR UPDATE SKIP LOCKED",
        "planner_store.Coupon": "",
    }


def test_a_route_limited_to_a_shard_leaves_homes_tables_at_home(fleet: Fleet) -> None:
    from tests.planner.store.models import Customer, Setting

    numbers = Setting.objects.values("number")
    gathered = limited_to(fleet.plan(Customer.objects.filter(age__in=numbers)), "b")
    places = {part.model: part.clusters for part in gathered.fragments}
    assert places == {
        "planner_store.Customer": ("b",),
        "planner_store.Setting": (HOME,),
    }
    pinned = fleet.plan(Customer.objects.filter(pk=3))
    elsewhere = next(shard for shard in SHARDS if shard not in pinned.clusters)
    assert limited_to(pinned, elsewhere).clusters == (elsewhere,)
    local = fleet.plan(Setting.objects.all())
    assert limited_to(local, "b") == local


def test_rows_without_a_child_are_on_every_shard(fleet: Fleet) -> None:
    """The NULLs of a LEFT JOIN are one group, and one partition, over all shards."""
    from tests.planner.store.models import Customer

    count, rank = models.Count("pk"), functions.Rank()
    by_child = Customer.objects.values("orders__customer").annotate(n=count)
    with_child = Customer.objects.filter(orders__total__gt=3)
    window = models.Window(rank, partition_by="orders__customer", order_by="name")
    assert fleet.plan(by_child).rung is Rung.PARTIAL
    assert fleet.plan(Customer.objects.annotate(w=window)).rung is Rung.GATHER
    # Where each row has a child, or by the customer itself, nothing is NULL.
    having_child = with_child.values("orders__customer").annotate(n=count)
    assert fleet.plan(having_child).rung is Rung.MERGE
    by_self = Customer.objects.values("pk", "orders__customer").annotate(n=count)
    assert fleet.plan(by_self).rung is Rung.MERGE


def test_scattering_asks_every_shard_of_what_is_pinned(fleet: Fleet) -> None:
    from tests.planner.store.models import Coupon, Customer, Line, Order, Setting

    for queryset, rung in (
        (Customer.objects.filter(pk=3), Rung.MERGE),
        (Order.objects.filter(customer=3, customer__name="red"), Rung.MERGE),
        (Line.objects.filter(order__customer__in=[3, 3]).distinct(), Rung.MERGE),
        (Coupon.objects.filter(pk=3, customer=3, customer__name="x"), Rung.GATHER),
    ):
        statement = fleet.statement(queryset)
        found = fleet.route_of(statement, only_scatter=True)
        assert (found.rung, found.clusters) == (rung, SHARDS)
        assert all(part.clusters == SHARDS for part in found.fragments)
        pruned = fleet.route_of(statement)
        assert len(pruned.clusters) < 3 or rung is Rung.GATHER
    local = fleet.statement(Setting.objects.all())
    assert fleet.route_of(local, only_scatter=True) == fleet.route_of(local)


def test_a_vendor_that_cannot_gather_refuses_with_the_way_out(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.planner.store.models import Coupon, Customer

    monkeypatch.setattr(type(fleet.wrapper.engine), "can_gather", False)
    with pytest.raises(errors.RouteRefused, match="filter by the shard key") as refused:
        fleet.plan(Coupon.objects.filter(customer__name="red"))
    assert refused.value.code == "dbfleet.E503"
    assert "planner_store.Customer" in str(refused.value)
    assert fleet.plan(Customer.objects.filter(pk=3)).rung is Rung.NODE


@pytest.mark.parametrize(
    ("facts", "replica_ok", "reason"),
    [
        ({}, True, "a replica that has caught up"),
        ({"in_transaction": True}, False, "inside a transaction"),
        ({"locks": True}, False, "rows are locked"),
        ({"level": "strong"}, False, "strong consistency"),
        ({"level": "eventual"}, True, "a replica"),
    ],
)
def test_a_cluster_reads_where_its_state_allows(
    facts: dict[str, Any], replica_ok: bool, reason: str
) -> None:
    home = ClusterTopology("home", "default/primary", ("default/replica1",))
    topology = Topology("default", "django.db.backends.postgresql", home)
    state: dict[str, Any] = {
        "in_transaction": False,
        "locks": False,
        "level": "session",
    }
    found = plan_cluster(topology, **{**state, **facts})
    assert isinstance(found, Route)
    assert (found.intent, found.rung, found.clusters) == (
        Intent.READ,
        Rung.NODE,
        (HOME,),
    )
    assert found.replica_ok is replica_ok
    assert reason in found.reason
    alone = Topology("default", topology.engine, ClusterTopology("home", "default/p"))
    assert not plan_cluster(alone, **{**state, **facts}).replica_ok
