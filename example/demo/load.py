"""From the old system into the store, by the ORM alone.

The same code fills the fleet and the single database: inside ``on_single()`` it
does not notice the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from django.core.management.color import no_style
from django.db import connections, router
from django.db.models import CharField, Model

from example.catalogue.models import (
    Album,
    Artist,
    Employee,
    Genre,
    MediaType,
    Playlist,
    Track,
)
from example.legacy import models as legacy
from example.sales.models import Country, Customer, Invoice, InvoiceLine

Row = dict[str, Any]

#: Every table of the store, each after those that it refers to.
TABLES: list[type[Model]] = [
    Artist,
    Album,
    Genre,
    MediaType,
    Track,
    Playlist,
    Playlist.tracks.through,
    Employee,
    Country,
    Customer,
    Invoice,
    InvoiceLine,
]
BATCH = 1000


def load() -> int:
    """Copy every row of the old system; returns how many were written."""
    countries = {name: number for number, name in enumerate(country_names(), 1)}

    def with_country(row: Row) -> Row:
        return row | {"country_id": countries[row["country"]]}

    def with_billing_country(row: Row) -> Row:
        return row | {"billing_country_id": countries[row["billing_country"]]}

    written = write(Country, [{"id": n, "name": name} for name, n in countries.items()])
    for source, target, change in (
        (legacy.Artist, Artist, None),
        (legacy.Album, Album, None),
        (legacy.Genre, Genre, None),
        (legacy.MediaType, MediaType, None),
        (legacy.Track, Track, None),
        (legacy.Playlist, Playlist, None),
        (legacy.PlaylistTrack, Playlist.tracks.through, None),
        (legacy.Employee, Employee, with_dates),
        (legacy.Customer, Customer, with_country),
        (legacy.Invoice, Invoice, with_billing_country),
        (legacy.InvoiceLine, InvoiceLine, None),
    ):
        written += write(target, read(source, change))
    reset_sequences()
    return written


def country_names() -> list[str]:
    """The countries that the old system spells out in every row."""
    customers = legacy.Customer.objects.values_list("country", flat=True)
    invoices = legacy.Invoice.objects.values_list("billing_country", flat=True)
    return sorted({*customers, *invoices})


def read(source: type[Model], change: Callable[[Row], Row] | None) -> list[Row]:
    """The rows of a table of the old system, changed where the store differs."""
    columns = [f.attname for f in source._meta.concrete_fields if f.column]
    rows = list(source._default_manager.values(*columns))
    return [change(row) for row in rows] if change else rows


def with_dates(row: Row) -> Row:
    """The old system knows the minute of a birth; the store wants the day."""
    days = {
        name: row[name] and row[name].date() for name in ("birth_date", "hire_date")
    }
    return row | days


def write(target: type[Model], rows: list[Row]) -> int:
    """Insert rows with the ids they have."""
    fields = {f.attname: f for f in target._meta.concrete_fields}
    objects = []
    for row in rows:
        known = {name: value for name, value in row.items() if name in fields}
        for name, value in known.items():
            # "Unknown" was NULL there and is an empty text here.
            if value is None and isinstance(fields[name], CharField):
                known[name] = ""
        objects.append(target(**known))
    target._default_manager.bulk_create(objects, batch_size=BATCH)
    return len(objects)


def reset_sequences() -> None:
    """Let new ids follow those that were given, as ``sqlsequencereset`` does."""

    def alias_of(model: type[Model]) -> str:
        return router.db_for_write(model)

    for alias, models in groupby(TABLES, key=alias_of):
        connection = connections[alias]
        with connection.cursor() as cursor:
            for sql in connection.ops.sequence_reset_sql(no_style(), list(models)):
                cursor.execute(sql)
