"""Which rows of one table tell what is fetched of another: what has to be found, so
that a gather stays small, and what must not, case by case.

``test_pruning`` searches for a reduction that leaves out too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.db import transaction
from django.db.models import Count, Exists, F, OuterRef, Q, Subquery, Sum
from django.db.models.expressions import RawSQL

from dbfleet.planner.route import Link, Reduction, Route, Rung
from dbfleet.planner.uses import Statement
from tests.planner import offline
from tests.planner.offline import Fleet, answer_of


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with offline.fleet() as found:
        yield found


def _objects(name: str) -> Any:
    from tests.planner.store import models

    return getattr(models, name).objects


def _route(fleet: Fleet, queryset: Any) -> Route:
    route = fleet.route_of(fleet.statement(queryset), only_gather=True)
    assert route.rung is Rung.GATHER
    return route


def reductions(fleet: Fleet, queryset: Any) -> set[str]:
    route = _route(fleet, queryset)
    return {one.describe().replace("planner_store_", "") for one in route.reductions}


def _coupons_of(outer: str, **filters: Any) -> Any:
    return _objects("Coupon").filter(**{outer: OuterRef("pk")}, **filters)


COUPON_BY_CUSTOMER = "coupon: customer_id by customer.id"
CUSTOMER_BY_COUPON = "customer: id by coupon.customer_id"
FOUND: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "an inner join, both ways": (
        lambda: _objects("Coupon").filter(customer__name="red"),
        {COUPON_BY_CUSTOMER, CUSTOMER_BY_COUPON},
    ),
    "a left join, from the rows that stay": (
        lambda: _objects("Customer").annotate(n=Count("coupons")),
        {COUPON_BY_CUSTOMER},
    ),
    "rows without a relative": (
        lambda: _objects("Customer").filter(coupons__isnull=True),
        {COUPON_BY_CUSTOMER},
    ),
    "a chain": (
        lambda: _objects("Line").filter(order__coupons__customer__name="red"),
        {
            "line: order_id by order.id",
            "order: id by line.order_id or id by coupon.order_id",
            "coupon: order_id by order.id or customer_id by customer.id",
            CUSTOMER_BY_COUPON,
        },
    ),
    "IN, both ways": (
        lambda: _objects("Customer").filter(
            pk__in=_objects("Coupon").filter(percent=1).values("customer")
        ),
        {COUPON_BY_CUSTOMER, CUSTOMER_BY_COUPON},
    ),
    "IN a query with a limit, one way": (
        lambda: _objects("Customer").filter(
            pk__in=_objects("Coupon").order_by("pk").values("customer")[:3]
        ),
        {CUSTOMER_BY_COUPON},
    ),
    "EXISTS, both ways": (
        lambda: _objects("Customer").filter(Exists(_coupons_of("customer"))),
        {COUPON_BY_CUSTOMER, CUSTOMER_BY_COUPON},
    ),
    "a subquery in SELECT, from outside": (
        lambda: _objects("Customer").annotate(
            n=Subquery(_coupons_of("customer").order_by("pk").values("percent")[:1])
        ),
        {COUPON_BY_CUSTOMER},
    ),
    "NOT EXISTS, from outside": (
        lambda: _objects("Customer").filter(~Exists(_coupons_of("customer"))),
        {COUPON_BY_CUSTOMER},
    ),
    "EXISTS under OR, from outside": (
        lambda: _objects("Customer").filter(
            Q(Exists(_coupons_of("customer"))) | Q(name="red")
        ),
        {COUPON_BY_CUSTOMER},
    ),
    "an equality of columns": (
        lambda: _objects("Order").filter(total=F("customer__age")),
        {
            "order: customer_id by customer.id or total by customer.age",
            "customer: id by order.customer_id or age by order.total",
        },
    ),
    "home's own table": (
        lambda: _objects("Customer").filter(age__in=_objects("Setting").values("pk")),
        {"customer: age by setting.id"},
    ),
    "a reference table": (
        lambda: _objects("Customer").filter(country__name="red"),
        {"customer: country_id by country.id"},
    ),
    "several places of one table": (
        lambda: _objects("Coupon").filter(
            customer__name="red", order__coupons__customer__name="blue"
        ),
        {
            "coupon: customer_id by customer.id or order_id by order.id; "
            "order_id by order.id or customer_id by customer.id",
            "order: id by coupon.order_id",
            CUSTOMER_BY_COUPON,
        },
    ),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_reduces_what(fleet: Fleet, what: str) -> None:
    make, expected = FOUND[what]
    assert reductions(fleet, make()) == expected


NOT_FOUND: dict[str, Callable[[], Any]] = {
    "NOT IN": lambda: _objects("Customer").exclude(
        pk__in=_objects("Coupon").values("customer")
    ),
    "IN under OR": lambda: _objects("Customer").filter(
        Q(pk__in=_objects("Coupon").values("customer")) | Q(name="red")
    ),
    "an aggregate": lambda: _objects("Customer").filter(
        age__in=_objects("Coupon").values("order").annotate(n=Sum("pk")).values("n")
    ),
    "text of two fields": lambda: _objects("Page").filter(
        title__in=_objects("Customer").values("name")
    ),
    "numbers and text": lambda: _objects("Page").filter(
        Exists(_objects("Reading").filter(sensor=OuterRef("title")))
    ),
    "the table itself": lambda: _objects("Customer").filter(referrer__name="red"),
    "one place of two": lambda: _objects("Customer").filter(
        Exists(_objects("Customer").filter(age=OuterRef("age"), name="red"))
    ),
    "raw SQL": lambda: _objects("Customer").filter(
        age__in=RawSQL("SELECT number FROM planner_store_setting", ())
    ),
}


@pytest.mark.parametrize("what", NOT_FOUND)
def test_what_reduces_nothing(fleet: Fleet, what: str) -> None:
    assert reductions(fleet, NOT_FOUND[what]()) == set()


def test_an_exists_that_is_true_without_a_row_tells_nothing(fleet: Fleet) -> None:
    inner = _coupons_of("customer").annotate(n=Count("pk")).filter(n=0)
    found = _objects("Customer").filter(Exists(inner))
    assert not any(one.startswith("customer") for one in reductions(fleet, found))


def test_a_place_that_needs_every_row_keeps_them(fleet: Fleet) -> None:
    # Coupons are counted once more, all of them.
    found = (
        _objects("Coupon")
        .filter(customer__name="red")
        .annotate(n=Subquery(_objects("Coupon").order_by("-pk").values("pk")[:1]))
    )
    assert reductions(fleet, found) == {CUSTOMER_BY_COUPON}
    hidden = (
        _objects("Coupon")
        .filter(customer__name="red")
        .extra(
            where=["EXISTS (SELECT 1 FROM planner_store_coupon c WHERE c.percent = 1)"]
        )
    )
    assert reductions(fleet, hidden) == set()


def test_what_locks_and_what_is_written_by_hand_is_not_reduced(fleet: Fleet) -> None:
    from django.apps import apps

    found = _objects("Coupon").filter(customer__name="red")
    statement = fleet.statement(found)
    locking = replace(statement, locking="FOR UPDATE")
    assert fleet.route_of(statement, only_gather=True).reductions
    assert not fleet.route_of(locking, only_gather=True).reductions
    raw = Statement(statement.sql, (), apps, is_raw=True)
    assert not fleet.route_of(raw, only_gather=True).reductions


def test_a_wrong_reduction_would_be_noticed(fleet: Fleet) -> None:
    """What the search of ``test_pruning`` compares can differ."""
    from tests.planner.store.rows import all_rows

    found = _objects("Customer").filter(coupons__isnull=True)
    statement = fleet.statement(found)
    customer, coupon = "planner_store_customer", "planner_store_coupon"
    wrong = Reduction(customer, ((Link("id", coupon, "customer_id"),),))
    route = replace(_route(fleet, found), reductions=(wrong,))
    with offline.stored(fleet, all_rows()), transaction.atomic():
        assert answer_of(statement, route) == answer_of(statement)
        order = [coupon, customer]
        assert answer_of(statement, route, order) != answer_of(statement)
