"""Queries whose shard is known before they are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import EmptyResultSet
from django.db.models import F, OuterRef, Value, functions

from dbfleet.planner import simple
from dbfleet.planner.route import Rung
from tests.planner import offline, test_plan
from tests.planner.offline import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with offline.fleet(offline.POSTGRESQL) as found:
        yield found


def shard_of(fleet: Fleet, queryset: Any) -> str | None:
    """What the simple way says, None where it leaves a query to the planner."""
    table = fleet.table(queryset.model)
    key = simple.only_key(table)
    if key is None:
        return None
    value = simple.key_value(queryset.query, key)
    return None if value is None else fleet.shard_of((key,), (value,))


def test_the_planner_agrees(fleet: Fleet) -> None:
    """Every queryset of ``plans.txt``, several of which are simple."""
    from tests.planner.store import models as store

    agreed = 0
    names = {**vars(test_plan.models), **vars(functions), **vars(store)}
    for title, source, _ in test_plan._entries(test_plan.PLANS):
        queryset = eval(source.partition(" # ")[0], names)
        if not hasattr(queryset, "query"):
            continue
        shard = shard_of(fleet, queryset)
        if shard is None:
            continue
        try:
            route = fleet.plan(queryset)
        except EmptyResultSet:
            continue
        assert (route.rung, route.clusters) == (Rung.NODE, (shard,)), title
        agreed += 1
    assert agreed >= 2


def test_the_usual_reads_are_simple(fleet: Fleet) -> None:
    from tests.planner.store.models import Customer, Order

    for queryset in (
        Customer.objects.filter(pk=3),
        Customer.objects.filter(pk=3, age=7).order_by(),
        Customer.objects.filter(pk=3).only("name"),
        Customer.objects.filter(pk=3)[:21],
        Order.objects.filter(customer=3).order_by(),
        Order.objects.filter(customer_id=3, pk=5).order_by(),
    ):
        expected = fleet.shard(queryset.model, 3)
        assert shard_of(fleet, queryset) == expected, str(queryset.query)


def test_what_may_look_elsewhere_is_not_simple(fleet: Fleet) -> None:
    from tests.planner.store.models import Country, Customer, Line, Order, Setting

    one = Customer.objects.filter(pk=3)
    others = Customer.objects.filter(age=OuterRef("age")).values("pk")[:1]
    for queryset in (
        Customer.objects.all(),
        Customer.objects.filter(pk=None),
        Customer.objects.exclude(pk=3),
        Customer.objects.filter(pk__in=[3]),
        Customer.objects.filter(pk=F("age")),
        Customer.objects.filter(pk=others),
        one.filter(age=others),
        one | Customer.objects.filter(pk=4),
        one.filter(country__name="x"),
        one.exclude(age=1),
        one.annotate(n=others),
        one.annotate(n=Value(1)),
        one.alias(n=others).filter(n=1),
        one.order_by("country__name"),
        one.select_related("country"),
        one.select_for_update(),
        one.values("country__name"),
        one.union(Customer.objects.filter(pk=4)),
        one.extra(tables=["planner_store_order"]),
        one.extra(where=["1 = 1"]),
        one.extra(select={"n": "1"}),
        Order.objects.filter(customer__name="x"),
        Order.objects.filter(pk=3),
        Line.objects.filter(order=3),
        Country.objects.filter(pk=3),
        Setting.objects.filter(pk=3),
    ):
        assert shard_of(fleet, queryset) is None, str(queryset.query)
