"""Text: grouped, ordered and compared by the database's rules, not by Python's."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, F, Max, Min, Q
from django.db.models.functions import Concat, Length, Lower, Upper

from tests.merging import scenarios
from tests.merging.app.models import Item, Owner
from tests.merging.scenarios import agree, of, same

MERGE, PARTIAL = "stream merge", "partial aggregate"


def check_order() -> None:
    """PgDog's source compares text bytewise; Vitess asks the server for weights."""
    for order in (
        ["name", "id"],
        ["-name", "id"],
        [F("name").asc(nulls_first=True), "-id"],
        [F("name").desc(nulls_last=True), "score", "id"],
        ["score", "name", "id"],
        ["owner__name", "name", "id"],
    ):
        for start, end in ((0, None), (0, 9), (50, 61)):
            agree(
                Item,
                lambda rows, order=order, start=start, end=end: rows.order_by(
                    *order
                ).values_list("id", flat=True)[start:end],
                rung=MERGE,
            )
            agree(
                Item,
                lambda rows, order=order, start=start, end=end: rows.order_by(*order)[
                    start:end
                ],
            )


def check_order_of_computed_text() -> None:
    for order in (Lower("name"), Upper("name").desc(), Concat("name", "owner__name")):
        agree(
            Item,
            lambda rows, order=order: rows.order_by(order, "id").values_list(
                "id", flat=True
            ),
        )


def check_groups() -> None:
    """shardingsphere#26688: where the proxy's collation is another than the server's,
    one group comes twice."""
    found: dict[str, Any] = {}
    for alias, rows in of(Item):
        groups = rows.values_list("name").annotate(n=Count("id"))
        found[alias] = sorted(n for _, n in groups)
        for name, n in groups:
            # How one group is spelled is open where several spellings are equal.
            wanted = Q(name=None) if name is None else Q(name=name)
            same(Item.objects.using("plain").filter(wanted).count(), n)
    same(found["default"], found["plain"])
    route = Item.objects.values("name").annotate(n=Count("id")).explain_route()
    same(str(route.rung), PARTIAL)


def check_groups_in_order() -> None:
    found = {
        alias: [
            n
            for _, n in rows.values_list("name")
            .annotate(n=Count("id"))
            .order_by("-name")[:7]
        ]
        for alias, rows in of(Item)
    }
    same(found["default"], found["plain"])


def check_distinct() -> None:
    """As for groups: what is distinct is the server's to say."""
    agree(Item, lambda rows: len(rows.values("name").distinct()))
    agree(Item, lambda rows: rows.values("name").distinct().count())
    agree(Item, lambda rows: len(rows.values("name", "flag").distinct()))
    agree(Item, lambda rows: rows.aggregate(n=Count("name", distinct=True)))
    for end in (3, 100):
        found = {
            alias: list(
                rows.values_list("name", flat=True).distinct().order_by("name")[:end]
            )
            for alias, rows in of(Item)
        }
        same(len(found["default"]), len(found["plain"]))
        for mine, expected in zip(found["default"], found["plain"], strict=True):
            _equal(mine, expected)


def _equal(found: str | None, expected: str | None) -> None:
    """To the database, that is."""
    if found is None or expected is None:
        same(found, expected)
        return
    rows = Item.objects.using("plain")
    same(
        list(rows.filter(name=found).order_by("id")),
        list(rows.filter(name=expected).order_by("id")),
    )


def check_least_and_greatest() -> None:
    found = {
        alias: rows.aggregate(a=Min("name"), b=Max("name"), c=Max(Length("name")))
        for alias, rows in of(Item)
    }
    for name in "ab":
        _equal(found["default"][name], found["plain"][name])
    same(found["default"]["c"], found["plain"]["c"])
    groups = {
        alias: list(rows.values_list("score").annotate(n=Max("name")).order_by("score"))
        for alias, rows in of(Item)
    }
    for mine, expected in zip(groups["default"], groups["plain"], strict=True):
        same(mine[0], expected[0])
        _equal(mine[1], expected[1])


def check_comparisons() -> None:
    for name in ("a", "A", "\u00e9a", "ss", "a "):
        for condition in (
            Q(name=name),
            Q(name__in=[name, "b"]),
            ~Q(name=name),
            Q(owner__name=name),
        ):
            agree(Item, lambda rows, q=condition: rows.filter(q).order_by("id"))
        if scenarios.kind == "mixed":
            continue  # a filter is each shard's own: it has other rules there
        for condition in (Q(name__gt=name), Q(name__iexact=name)):
            agree(Item, lambda rows, q=condition: rows.filter(q).order_by("id"))
    agree(Owner, lambda rows: rows.filter(name=F("items__name")).order_by("id"))


def check_what_differs_only_in_trailing_blanks() -> None:
    """MariaDB: one value, whatever its spelling; elsewhere three."""
    spellings = Item.objects.filter(name__in=["a", "a ", "a  "])
    found = spellings.values("name").distinct().count()
    same(found, 1 if scenarios.kind == "mariadb" else 3)
