"""iterator(): an ordered read of all shards whose rows are not all in memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from django.db import connection, transaction
from django.db.models import Count, F

from dbfleet.executor import merging
from dbfleet.executor.streaming import StreamMergeCursor
from tests.merging import scenarios
from tests.merging.app.models import Item, Parcel
from tests.merging.scenarios import of, same
from tests.sharding.scenarios import SHARDS, on_node

ROWS = 20_000
PORTION = 500
MERGE = "stream merge"


def prepare() -> None:
    """Many rows in place of the few of other checks; made once."""
    if Parcel.objects.using("plain").count() >= ROWS:
        return
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    names = [name for name in scenarios.NAMES if name is not None]
    rows = [
        Parcel(
            id=n,
            region=chance.randrange(300),
            label="".join(chance.sample(names, 3))[:20],
        )
        for n in range(1000, 1000 + ROWS)
    ]
    for alias, _ in of(Parcel):
        Parcel.objects.using(alias).bulk_create(rows, batch_size=2000)


class Seen:
    """The most rows that a merge held at a time, of how many portions."""

    def __init__(self) -> None:
        self.most = self.loads = 0

    def look(self, cursor: Any) -> None:
        held = sum(map(len, cursor._buffers.values())) + len(cursor._ready)
        self.most = max(self.most, held)
        self.loads += 1


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    """Look at what is held whenever portions came."""
    seen, load = Seen(), StreamMergeCursor._load

    def observed(cursor: Any, size: int) -> None:
        load(cursor, size)
        seen.look(cursor)

    StreamMergeCursor._load = observed  # type: ignore[assignment,method-assign]
    try:
        yield seen
    finally:
        StreamMergeCursor._load = load  # type: ignore[method-assign]


def agree(query: Callable[[Any], Any], count: int | None, rung: str = MERGE) -> None:
    """The same rows in the same order, few at a time, in a transaction and outside."""
    prepare()
    found = {}
    for alias, rows in of(Parcel):
        asked = query(rows)
        if alias == "plain":
            found[alias] = list(asked)
            continue
        same(str(asked.explain_route().rung), rung)
        with watched() as seen:
            found[alias] = list(asked.iterator(PORTION))
        few(seen, len(found["default"]))
        with transaction.atomic(), watched() as seen:
            same(list(asked.iterator(PORTION)), found[alias])
        few(seen, len(found["default"]))
    same(found["default"], found["plain"])
    if count is not None:
        same(len(found["plain"]), count)
    same(open_cursors(), [0, 0, 0])


def few(seen: Seen, count: int) -> None:
    if count > 3 * PORTION:
        same(seen.loads > 1, True)
    if seen.most > 2 * PORTION * len(SHARDS):
        raise AssertionError(f"{seen.most} rows were held at a time")


def open_cursors() -> list[int]:
    """Cursors that the alias's own connections to the shards have open."""
    engine, nodes = connection.engine, connection.nodes
    return [
        int(engine.fetch(nodes.primary(shard), "SELECT COUNT(*) FROM pg_cursors")[0][0])
        for shard in SHARDS
    ]


def in_transaction() -> int:
    """Connections to the shards that keep a transaction open and do nothing."""
    return sum(
        int(
            on_node(
                shard,
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = "
                "current_database() AND state LIKE 'idle in transaction%%'",
            )[0][0]
        )
        for shard in SHARDS
    )


def check_by_a_number() -> None:
    agree(lambda rows: rows.order_by("id").values_list("id", "region"), None)
    agree(lambda rows: rows.order_by("-id").filter(id__gte=1000), ROWS)


def check_by_text() -> None:
    agree(lambda rows: rows.order_by("label", "id").values_list("label", "id"), None)


def check_in_mixed_directions() -> None:
    agree(
        lambda rows: rows.order_by("-region", F("label").asc(), "-id").values_list(
            "id"
        ),
        None,
    )


def check_of_many_ties() -> None:
    """Ties have no order of their own; every row is there once."""
    prepare()
    rows = Parcel.objects.filter(id__gte=1000).annotate(half=F("region") % 2)
    found = list(rows.order_by("half").values_list("half", "id").iterator(PORTION))
    same([half for half, _ in found], sorted(half for half, _ in found))
    same(sorted(n for _, n in found), list(range(1000, 1000 + ROWS)))


def check_without_an_order() -> None:
    prepare()
    found = [row.id for row in Parcel.objects.iterator(PORTION) if row.id >= 1000]
    same(sorted(found), list(range(1000, 1000 + ROWS)))


def check_distinct() -> None:
    agree(
        lambda rows: rows.order_by("label").values_list("label", flat=True).distinct(),
        None,
    )
    agree(
        lambda rows: (
            rows.order_by("region", "-label").values_list("region", "label").distinct()
        ),
        None,
    )


def check_distinct_on() -> None:
    agree(
        lambda rows: (
            rows.order_by("label", "region", "id").distinct("label").values_list("id")
        ),
        None,
    )


def check_slices() -> None:
    for start, end in ((0, 700), (1500, 4000), (12_345, 19_000), (19_990, 30_000)):
        agree(
            lambda rows, start=start, end=end: rows.order_by(
                "label", "-id"
            ).values_list("id")[start:end],
            min(end, ROWS + 30) - start,
        )


def check_groups_of_one_shard() -> None:
    agree(
        lambda rows: (
            rows.values_list("region", "label")
            .annotate(n=Count("id"))
            .order_by("-n", "region", "label")
        ),
        None,
    )


def check_what_is_abandoned_leaves_nothing_open() -> None:
    prepare()
    for scope in (contextlib.nullcontext, transaction.atomic):
        with scope():
            rows = Parcel.objects.order_by("label", "id").iterator(PORTION)
            same(len([next(rows) for _ in range(PORTION + 3)]), PORTION + 3)
            same(sum(open_cursors()) > 0, True)
            rows.close()
            same(open_cursors(), [0, 0, 0])
        same(in_transaction(), 0)
    for few in (0, merging.FEW_ROWS):  # kept by the servers, and all at once
        with mock.patch.object(merging, "FEW_ROWS", few):
            rows = Parcel.objects.order_by("id")[:5].iterator(2)
            same(next(rows).pk, Parcel.objects.order_by("id")[0].pk)
            same(sum(open_cursors()) > 0, few == 0)
            same(len(list(rows)), 4)
            same(open_cursors(), [0, 0, 0])


def check_two_at_a_time() -> None:
    prepare()
    ids = Parcel.objects.order_by("id").values_list("id", flat=True)
    back = Parcel.objects.order_by("-id").values_list("id", flat=True)
    forth, reverse = ids.iterator(300), back.iterator(700)
    pairs = list(zip(forth, reverse, strict=True))
    same([a for a, _ in pairs], [b for _, b in reversed(pairs)])
    with transaction.atomic():
        for a, b in zip(ids.iterator(300), ids.iterator(700), strict=True):
            same(a, b)
    same(open_cursors(), [0, 0, 0])


def check_other_statements_between_two_portions() -> None:
    prepare()
    found = []
    for n, row in enumerate(Parcel.objects.order_by("label", "id").iterator(PORTION)):
        found.append(row.id)
        if n % 4000 == 0:
            same(Parcel.objects.filter(region=row.region, id=row.id).count(), 1)
            same(Item.objects.count(), 200)
    expected = Parcel.objects.using("plain").order_by("label", "id")
    same(found, list(expected.values_list("id", flat=True)))
