"""Unions whose branches are spread over the shards, and what is no such union."""

from __future__ import annotations

from typing import Any

from django.db import connection
from django.db.models import Count, F, OuterRef, Q, Subquery, Value
from django.db.models.functions import Lower

from tests.merging import scenarios
from tests.merging.app.models import Item, Note, Owner, Parcel
from tests.merging.scenarios import agree, of, same

MERGE, GATHER, NODE = "stream merge", "gather", "one node"


def _union(*branches: Any, **options: Any) -> Any:
    first, *others = branches
    return first.union(*others, **options)


def check_rows_of_one_model() -> None:
    for every in (False, True):
        for start, end in ((0, None), (0, 7), (3, 30)):
            agree(
                Item,
                lambda rows, every=every, start=start, end=end: _union(
                    rows.filter(score__gt=0), rows.filter(flag=True), all=every
                ).order_by("id")[start:end],
                rung=MERGE,
            )
    agree(
        Item,
        lambda rows: _union(
            rows.filter(score=5), rows.filter(score=1), rows.filter(flag=None)
        ).order_by("-score", "id"),
        rung=MERGE,
    )


def check_equal_rows_of_several_shards_are_one() -> None:
    for every in (False, True):
        for order in (["score"], ["-score"], [F("score").asc(nulls_first=True)]):
            for start, end in ((0, None), (0, 3), (2, 9)):
                agree(
                    Item,
                    lambda rows, every=every, order=order, start=start, end=end: _union(
                        rows.values_list("score"),
                        rows.filter(flag=True).values_list("score"),
                        all=every,
                    ).order_by(*order)[start:end],
                    rung=MERGE,
                )
    for name in ("ratio", "price", "sold", "flag", "big"):
        agree(
            Item,
            lambda rows, name=name: _union(
                rows.filter(id__lt=120).values_list(name, "flag"),
                rows.filter(id__gt=80).values_list(name, "flag"),
            ).order_by(name, "flag"),
            rung=MERGE,
        )


def check_rows_of_several_models() -> None:
    def scores(alias: str) -> Any:
        return (
            Item.objects.using(alias).values_list("score", "owner"),
            Note.objects.using(alias).values_list("score", "owner"),
        )

    for every in (False, True):
        found = {}
        for alias, _ in of(Item):
            asked = _union(*scores(alias), all=every)
            if alias == "default":
                same(str(asked.explain_route().rung), MERGE)
            found[alias] = sorted(asked, key=repr)
        same(found["default"], found["plain"])


def check_joins_within_branches() -> None:
    agree(
        Item,
        lambda rows: _union(
            rows.filter(owner__id__lt=5).values_list("id", "owner__id"),
            rows.filter(score=5).values_list("id", "owner__id"),
        ).order_by("id"),
        rung=MERGE,
    )
    agree(
        Note,
        lambda rows: _union(
            rows.filter(owner__name=None).values_list("id"),
            rows.filter(score=1).values_list("id"),
        ).order_by("id"),
        rung=GATHER,
    )


def check_branches_of_one_shard_and_of_two() -> None:
    agree(
        Item,
        lambda rows: _union(rows.filter(owner=2), rows.filter(owner=3)).order_by("id"),
    )
    agree(
        Item,
        lambda rows: _union(
            rows.filter(owner=2, score=1), rows.filter(owner=2)
        ).order_by("id"),
        rung=NODE,
    )
    route = _union(
        Parcel.objects.filter(region=1), Parcel.objects.filter(region=2)
    ).explain_route()
    same(len(route.clusters) <= 2, True)


def check_texts() -> None:
    def names(rows: Any, every: bool) -> Any:
        return _union(
            rows.filter(score__gt=0).values_list("name"),
            rows.filter(flag=True).values_list("name"),
            all=every,
        )

    for every in (False, True):
        found = {alias: len(list(names(rows, every))) for alias, rows in of(Item)}
        same(found["default"], found["plain"])
        same(str(names(Item.objects, every).explain_route().rung), MERGE)
    found = {
        alias: len(
            list(
                _union(
                    rows.values_list("name"),
                    Owner.objects.using(alias).values_list("name"),
                )
            )
        )
        for alias, rows in of(Item)
    }
    same(found["default"], found["plain"])


def check_a_page_and_an_iterator() -> None:
    agree(
        Item,
        lambda rows: list(
            _union(rows.filter(score=5), rows.filter(flag=True))
            .order_by("id")
            .iterator(7)
        ),
    )
    agree(
        Item,
        lambda rows: (
            _union(rows.filter(score=5), rows.filter(flag=True)).exists(),
            _union(rows.filter(score=5), rows.filter(flag=True)).count(),
            _union(rows.filter(id__lt=0), rows.filter(id__gt=900)).exists(),
        ),
    )


def check_a_branch_without_rows() -> None:
    agree(
        Item,
        lambda rows: _union(
            rows.values_list("score"), rows.filter(pk__in=[]).values_list("score")
        ),
        is_total=False,
    )
    agree(
        Item,
        lambda rows: _union(
            rows.values_list("score"), rows.filter(id__lt=0).values_list("score")
        ),
        is_total=False,
    )


def check_what_stays_gathered() -> None:
    noted = Note.objects.filter(score=OuterRef("score")).values("id")
    first, other = Item.objects.filter(score=5), Item.objects.filter(flag=True)
    gathered = [
        first.intersection(other),
        first.difference(other),
        _union(
            first.values("score").annotate(n=Count("id")), other.values("score", "id")
        ),
        _union(first, other.union(Item.objects.filter(id=1))),
        _union(first.values("score").distinct(), other.values("score")),
        _union(first.annotate(n=Subquery(noted[:1])), other.annotate(n=Value(1))),
    ]
    if connection.vendor != "sqlite":
        gathered.append(_union(first.order_by("id")[:3], other))
    if scenarios.kind == "mariadb":
        gathered.append(
            _union(
                first.annotate(l=Lower("name")).values("l"),
                other.annotate(l=Lower("name")).values("l"),
            )
        )
    for query in gathered:
        same(str(query.explain_route().rung), GATHER)
    agree(
        Item,
        lambda rows: (
            rows.filter(score=5).difference(rows.filter(flag=True)).order_by("id")
        ),
        rung=GATHER,
    )
    agree(
        Item,
        lambda rows: (
            rows.filter(Q(score=5)).intersection(rows.filter(flag=True)).order_by("id")
        ),
        rung=GATHER,
    )
