"""What a shop writes, and reads back at once.

As in ``questions``, ordinary code that does not know where it runs.
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

from django.db import IntegrityError, router, transaction
from django.db.models import F, Sum

from example.catalogue.models import Playlist, Track
from example.sales.models import Customer, Invoice, InvoiceLine

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
TIMES = 20


class SoldOutError(Exception):
    """Raised in the middle of a transaction."""


def sales_atomic() -> Any:
    """A transaction where sales are kept."""
    return transaction.atomic(using=router.db_for_write(Invoice))


def place_order(customer: int) -> Any:
    """An order with three lines in one transaction, then all of it read."""
    buyer = Customer.objects.get(pk=customer)
    tracks = Track.objects.order_by("pk")[:3]
    with sales_atomic():
        invoice = Invoice.objects.create(
            customer=buyer,
            date=NOON,
            billing_city=buyer.city,
            billing_country_id=buyer.country_id,
            total=sum(track.unit_price for track in tracks),
        )
        InvoiceLine.objects.bulk_create(
            InvoiceLine(
                invoice=invoice, track=track, unit_price=track.unit_price, quantity=1
            )
            for track in tracks
        )
    return [Invoice.objects.get(pk=invoice.pk), *invoice.lines.order_by("pk")]


def rename_and_look() -> list[str]:
    """Rename a playlist and read its name, many times."""
    playlist = Playlist.objects.order_by("pk")[0]
    names = []
    for number in range(TIMES):
        Playlist.objects.filter(pk=playlist.pk).update(name=f"Mix {number}")
        names.append(Playlist.objects.get(pk=playlist.pk).name)
    return names


def same_email(customers: list[int]) -> str:
    """Give customers of different shards the same address."""
    first, *others = customers
    email = Customer.objects.get(pk=first).email
    try:
        with sales_atomic():
            for other in others:
                Customer.objects.filter(pk=other).update(email=email)
    except IntegrityError as error:
        return type(error).__name__
    return "two customers have one address"


def discount() -> Any:
    """Take a tenth off every order of a year, in one statement."""
    orders = Invoice.objects.filter(date__year=2022)
    changed = orders.update(total=F("total") * Decimal("0.9"))
    return [changed, orders.aggregate(Sum("total"))]


def sold_out() -> Any:
    """Change every customer and every order, then fail: nothing may stay."""
    try:
        with sales_atomic():
            Customer.objects.update(company="gone")
            Invoice.objects.update(total=0)
            raise SoldOutError
    except SoldOutError:
        total = Invoice.objects.aggregate(Sum("total"))
    return [Customer.objects.filter(company="gone").count(), total]


def forget(customer: int) -> Any:
    """Delete a customer; Django deletes the orders and their lines with it."""
    return Customer.objects.get(pk=customer).delete()
