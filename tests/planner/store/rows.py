"""A few rows of every model: NULLs, rows without relatives, relatives elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.planner.store.models import (
    Country,
    Coupon,
    Customer,
    Line,
    Order,
    Page,
    Reading,
    Setting,
)

WORDS = ("red", "Red", "blue", "")


def all_rows() -> Iterator[Any]:
    """Rows in an order that satisfies their foreign keys; always the same ones."""
    for pk in (1, 2):
        yield Country(pk=pk, name=WORDS[pk])
        yield Setting(pk=pk, name=WORDS[pk], number=pk)
    for pk in range(1, 8):
        yield Customer(
            pk=pk,
            name=WORDS[pk % 4],
            age=None if pk % 3 == 0 else pk,
            country_id=1 + pk % 2,
            referrer_id=None if pk < 3 else pk % 3 + 1,
        )
    for pk in range(1, 11):
        yield Order(
            pk=pk,
            customer_id=1 + pk * pk % 6,
            status=(None, *WORDS)[pk % 5],
            total=pk % 4,
        )
    for pk in range(1, 15):
        yield Line(pk=pk, order_id=1 + pk * 5 % 9, quantity=(None, 1, 2, 3)[pk % 4])
    for pk in range(1, 11):
        yield Coupon(
            pk=pk,
            customer_id=(None, 1, 3, 4, 7)[pk % 5],
            order_id=(None, 2, 5, 9)[pk % 4],
            percent=(None, 1, 2)[pk % 3],
        )
    for pk in range(1, 9):
        yield Page(pk=pk, slug=WORDS[pk % 4], title=str(pk))
    for pk in range(1, 10):
        yield Reading(sensor=pk % 3, number=pk, value=(None, 1, 2)[pk % 3 - 1])
