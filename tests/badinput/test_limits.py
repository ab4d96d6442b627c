"""Queries over their limits and rows without a shard key: refused, nothing lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.projects import Fleet

Sharded = Callable[..., Fleet]

FILL = """
create_tables()
Order.objects.bulk_create([Order(customer=n, text="x" * 100) for n in range(60)])
"""


@pytest.mark.parametrize(
    ("limits", "code", "what", "setting"),
    [
        ({"MAX_ROWS": 50}, "dbfleet.E501", "more than 50 rows", "MAX_ROWS"),
        ({"MAX_BYTES": 3000}, "dbfleet.E502", "more than 3000 bytes", "MAX_BYTES"),
        (
            {"MAX_ROWS": 50, "INLINE_ROWS": 1},
            "dbfleet.E501",
            "more than 50 rows",
            "MAX_ROWS",
        ),
        (
            {"MAX_BYTES": 3000, "INLINE_ROWS": 1},
            "dbfleet.E502",
            "more than 3000 bytes",
            "MAX_BYTES",
        ),
    ],
)
def test_a_gather_over_its_limit(
    sharded: Sharded, limits: dict[str, int], code: str, what: str, setting: str
) -> None:
    found = sharded(more={"GATHER": limits}).run(
        FILL
        + """
from django.db.models.functions import Now


def everything():
    orders = Order.objects.exclude(text="y").order_by("text", "id")
    return list(orders.annotate(now=Now()))  # in one place: gathered


errors = [refused(everything)]
with transaction.atomic():
    Order.objects.create(customer=100, text="kept")
    with transaction.atomic():
        Order.objects.create(customer=101, text="kept")
    errors.append(refused(everything))
    Order.objects.create(customer=102, text="kept")
kept = sorted(Order.objects.filter(text="kept").values_list("customer", flat=True))
result = errors, kept
"""
    )
    for error in found[0]:
        assert error["type"] == "GatherLimitExceeded"
        assert error["code"] == code
        assert f"{what} of app.Order" in error["text"]
        assert "shard key (customer)" in error["text"]
        assert setting in error["text"]
    assert found[1] == [100, 101, 102], (
        "a refused query undid the transaction around it"
    )


def test_a_filter_or_a_pinned_shard_stays_under_the_limit(sharded: Sharded) -> None:
    found = sharded(more={"GATHER": {"MAX_ROWS": 10}}).run(
        FILL
        + """
result = [
    Order.objects.filter(customer=7).count(),
    Order.objects.filter(id__lte=5).count(),
]
"""
    )
    assert found[0] == 1


@pytest.mark.parametrize(
    "write",
    [
        "Order.objects.create(text='new')",
        "Order.objects.bulk_create([Order(customer=5, text='new'), Order(text='new')])",
        "Order.objects.filter(customer=1).update(customer=None, text='new')",
        "Order.objects.update(customer=None, text='new')",
        "Order.objects.update_or_create(customer=None, defaults={'text': 'new'})",
    ],
)
def test_a_row_without_a_shard_key(sharded: Sharded, write: str) -> None:
    found = sharded().run(
        FILL
        + f"""
error = refused(lambda: {write})


def in_transaction():
    with transaction.atomic():
        Order.objects.create(customer=3, text="other")
        {write}


again = refused(in_transaction)
result = [error, again], list(
    Order.objects.exclude(text="x" * 100).values_list("text", flat=True)
), Order.objects.count()
"""
    )
    for error in found[0]:
        assert error["type"] == "NullShardKey"
        assert error["code"] == "dbfleet.E401"
        assert "app.Order.customer" in error["text"]
    assert found[1:] == [[], 60], "a refused write left something behind"


def test_a_key_that_its_field_cannot_hold(sharded: Sharded) -> None:
    found = sharded().run(
        FILL
        + """
errors = [
    refused(Order.objects.create, customer="seven"),
    refused(lambda: Order.objects.update(customer="seven")),
]
result = errors, Order.objects.count()
"""
    )
    for error in found[0]:
        assert error is not None
    assert found[0][0]["code"] == "dbfleet.E404"
    assert found[1] == 60
