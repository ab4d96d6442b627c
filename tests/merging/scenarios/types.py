"""A server's column is not what its model says; a page lies too deep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db import connection, connections
from django.db.models import (
    CharField,
    Count,
    ExpressionWrapper,
    F,
    IntegerField,
    Max,
)
from django.db.models.functions import Lower
from django.test import override_settings

from dbfleet.errors import PageTooDeep
from dbfleet.observe import events
from tests.merging.app.models import Item
from tests.merging.scenarios import agree, of, refused, same
from tests.sharding.scenarios import NODES, on_node

MERGE, PARTIAL = "stream merge", "partial aggregate"


@contextlib.contextmanager
def told(name: str) -> Iterator[list[Any]]:
    """The events of a name that the block emits."""
    found: list[Any] = []

    def listen(event: Any) -> None:
        if event.name == name:
            found.append(event)

    with events.subscribed(listen):
        yield found


@contextlib.contextmanager
def altered(column: str, kind: str, back: str) -> Iterator[None]:
    """The column is of another type on every server than its model says."""
    using = f" USING {column}::{{}}" if connection.vendor == "postgresql" else ""
    verb = "ALTER" if using else "MODIFY"
    to = " TYPE " if using else " "

    def alter(type_: str) -> None:
        end = using.format(type_) if using else " NULL"
        sql = f"ALTER TABLE merging_item {verb} {column}{to}{type_}{end}"
        for node in NODES:
            on_node(node, sql)
        with connections["plain"].cursor() as cursor:
            cursor.execute(sql)
        # As a process that starts now would find it.
        connection.catalogue.clear()
        connection.close()
        connections["plain"].close()

    alter(kind)
    try:
        yield
    finally:
        alter(back)


def rerouted(query: Any, rung: str = MERGE) -> None:
    """Planned for the rung, gathered in the end, and right."""
    with told("rerouted") as found:
        agree(Item, query, rung=rung)
    same(len(found), 1)
    same(found[0].fields["alias"], "default")
    same("compares as its server's" in found[0].fields["reason"], True)


def check_an_annotation_with_another_type_than_it_has() -> None:
    wrong = ExpressionWrapper(F("name"), output_field=IntegerField())
    rerouted(
        lambda rows: (
            rows.annotate(x=wrong).order_by("x", "id").values_list("id", flat=True)[:50]
        )
    )
    rerouted(lambda rows: rows.order_by(wrong.desc(), "id").values_list("id")[5:20])


def check_groups_by_an_annotation_of_another_type() -> None:
    wrong = ExpressionWrapper(F("name"), output_field=IntegerField())
    with told("rerouted") as found:
        counts = {
            alias: sorted(
                rows.annotate(x=wrong)
                .values("x")
                .annotate(n=Count("id"))
                .values_list("n", flat=True)
            )
            for alias, rows in of(Item)
        }
    same(counts["default"], counts["plain"])
    same(len(found), 1)


def check_an_iterator_is_gathered_before_its_first_row() -> None:
    if connection.vendor != "postgresql":
        return  # nobody else keeps rows on the server
    wrong = ExpressionWrapper(Lower("name"), output_field=IntegerField())
    query = Item.objects.order_by(wrong, "id")
    with told("rerouted") as found:
        rows = [one.id for one in query.iterator(20)]
    same(len(found), 1)
    plain = Item.objects.using("plain").order_by(wrong, "id")
    same(rows, [one.id for one in plain])


def check_a_column_that_was_made_text_by_hand() -> None:
    text = "text" if connection.vendor == "postgresql" else "varchar(20)"
    number = "integer" if connection.vendor == "postgresql" else "int"
    with altered("score", text, number):
        rerouted(lambda rows: rows.order_by("score", "id").values_list("id", flat=True))
        with told("rerouted") as found:
            same(
                Item.objects.aggregate(m=Max("score"))["m"],
                Item.objects.using("plain").aggregate(m=Max("score"))["m"],
            )
        same(len(found), 1)
    with told("rerouted") as found:
        agree(Item, lambda rows: rows.order_by("score", "id").values_list("id"))
    same(found, [])


def check_a_column_of_blanks_at_the_end() -> None:
    if connection.vendor != "postgresql":
        return
    with altered("name", "char(40)", "varchar(40)"):
        rerouted(lambda rows: rows.order_by("name", "id").values_list("id", flat=True))


def check_a_number_for_which_the_model_says_text() -> None:
    """Numbers travel as numbers, whatever the model says: their order is known."""
    text = ExpressionWrapper(F("score"), output_field=CharField())
    agree(
        Item,
        lambda rows: rows.annotate(x=text).order_by("x", "id").values_list("id"),
    )


def check_a_page_too_deep_is_refused_before_anything_is_sent() -> None:
    agree(Item, lambda rows: rows.order_by("id")[100:110])
    with override_settings(DBFLEET={"GATHER": {"MAX_ROWS": 300}}):
        for take in (
            lambda: list(Item.objects.order_by("id")[100:110]),
            lambda: list(Item.objects.order_by("id")[100:110].iterator(5)),
            lambda: list(Item.objects.values("name").distinct()[100:110]),
        ):
            what = ("dbfleet.E504", "110 rows from each of 3 shards, 330 in all")
            with told("sent") as sent, refused(PageTooDeep, *what):
                take()
            same(sent, [])
        agree(Item, lambda rows: rows.order_by("id")[90:100])
        agree(Item, lambda rows: rows.order_by("id")[:200])
        agree(Item, lambda rows: rows.filter(owner=1).order_by("id")[0:190])
        agree(
            Item,
            lambda rows: (
                rows.values_list("score").annotate(n=Count("id")).order_by("score")[1:9]
            ),
            rung=PARTIAL,
        )
