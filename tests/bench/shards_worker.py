"""``python -m tests.bench.shards_worker``: measures shards, see :mod:`.shards`.

Reads requests from standard input, one JSON line each, and answers with one.
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import django

BATCH = 50_000
BULK, QUICK_BULK = 100_000, 2_000
_ROWS = """
INSERT INTO shop_sale (id, product, quantity, price)
SELECT n, mod(n * 7919, 1000), mod(n, 10) + 1, mod(n * 104729, 1000003) / 100.0
FROM unnest(%s::bigint[]) AS n
"""
#: rows of each side of a join off the key; both are within the limits of a gather
JOINED, QUICK_JOINED = 40_000, 5000
_LINES = """
INSERT INTO shop_line (id, sale_id, amount)
SELECT n, mod(n * 7919, {sales}) + 1, mod(n, 100) FROM unnest(%s::bigint[]) AS n
"""
#: gets of one round
GETS, QUICK_GETS = 400, 40
#: rows of a stream between two looks at the memory
SAMPLED = 5000
MB = 1024**2


def main() -> int:
    django.setup()
    actions: dict[str, Callable[..., Any]] = {
        "fill": fill,
        "near": near,
        "stream": stream,
        "far": far,
    }
    for line in sys.stdin:
        what, options = json.loads(line)
        print(json.dumps(actions[what](**options)), flush=True)
    return 0


# -- rows ---------------------------------------------------------------------------


def fill(rows: int) -> int:
    """The same rows in one database, on four shards and on eight."""
    from django.core.management import call_command
    from django.db import connections

    from tests.bench.shop.models import Line, Sale

    for alias in ("default", "four", "eight"):
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
    _make("default", {"default": connections["default"]}, rows, _ROWS, Sale)
    for alias in ("four", "eight"):
        wrapper: Any = connections[alias]
        nodes = {s: wrapper.nodes.primary(s) for s in wrapper.topology.shards}
        count = rows if alias == "four" else min(rows, 200_000)
        _make(alias, nodes, count, _ROWS, Sale)
        if alias == "eight":
            _index(wrapper.engine, nodes)
        else:
            joined = min(rows, JOINED)
            _make(alias, nodes, joined, _LINES.format(sales=joined), Line)
            call_command(
                "fleet", "gather", "--install", database=alias, stdout=StringIO()
            )
        for node in nodes.values():
            wrapper.engine.run(node, "ANALYZE").close()
    with connections["default"].cursor() as cursor:
        cursor.execute("ANALYZE shop_sale")
    return rows


def _index(engine: Any, nodes: dict[str, Any]) -> None:
    """Each answers in the time that its proxy takes: eight servers that read whole
    tables would share the cores of this machine, which servers do not."""
    for node in nodes.values():
        engine.run(node, "CREATE INDEX ON shop_sale (price, id)").close()
        engine.run(node, "CREATE INDEX ON shop_sale (product)").close()


def _make(alias: str, nodes: dict[str, Any], rows: int, sql: str, model: Any) -> None:
    """Rows 1 to ``rows``, made by the servers; of shards, those that are theirs."""
    from django.db import connections

    routing = getattr(connections[alias], "routing", None)
    fields = (model._meta.pk,)
    for start in range(1, rows + 1, BATCH):
        keys: dict[str, list[int]] = {name: [] for name in nodes}
        for number in range(start, min(start + BATCH, rows + 1)):
            where = routing.shard_of(fields, (number,)) if routing else "default"
            keys[where].append(number)
        for name, node in nodes.items():
            node.ensure_connection()
            with node.connection.cursor() as cursor:
                cursor.execute(sql, [keys[name]])


# -- measuring ------------------------------------------------------------------------


def compare(
    name: str,
    ours: Callable[[], Any],
    baseline: Callable[[], Any],
    rounds: int,
    limit: float,
    *,
    baselines: list[Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Medians over rounds that do both; of several baselines the slowest counts."""
    others = baselines or [baseline]
    took: list[float] = []
    before: list[list[float]] = [[] for _ in others]
    ours()
    for one in others:
        one()
    ratios = []
    for _ in range(rounds):
        took.append(_timed(ours))
        for one, times in zip(others, before, strict=True):
            times.append(_timed(one))
        ratios.append(took[-1] / max(times[-1] for times in before))
    slowest = max(statistics.median(times) for times in before)
    ratio = statistics.median(ratios)
    quartiles = statistics.quantiles(ratios, n=4) if rounds > 1 else []
    return {
        "name": name,
        "ours": round(statistics.median(took) * 1000, 2),
        "baseline": round(slowest * 1000, 2),
        "unit": "ms",
        "ratio": round(ratio, 3),
        "quartiles": [round(q, 3) for q in (quartiles[0], quartiles[-1])]
        if quartiles
        else [],
        "limit": limit,
        "ok": ratio <= limit,
    }


def _timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def near(quick: bool) -> list[dict[str, Any]]:
    """Four shards of one server beside one database of it."""
    from django.db.models import Avg, Count, Sum

    from tests.bench.shop.models import Sale

    rounds = 2 if quick else 9
    asked: dict[str, Callable[[Any], Any]] = {
        "count": lambda sales: sales.count(),
        "sum and avg": lambda sales: sales.aggregate(Sum("quantity"), Avg("price")),
        "top 10": lambda sales: list(sales.order_by("-price", "id")[:10]),
        "grouped sums": lambda sales: list(
            sales.values("product")
            .annotate(Count("id"), Sum("price"))
            .order_by("product")
        ),
    }
    results = []
    for name, ask in asked.items():
        ours, plain = (
            ask(Sale.objects.using("four")),
            ask(Sale.objects.using("default")),
        )
        assert _same(ours, plain), name
        results.append(
            compare(
                f"{name}, 4 shards of one server",
                lambda ask=ask: ask(Sale.objects.using("four")),  # type: ignore[misc]
                lambda ask=ask: ask(Sale.objects.using("default")),  # type: ignore[misc]
                rounds,
                1.1,
            )
        )
    results.append(_gathered(quick))
    results.append(_pinned(quick))
    results.append(_bulk(quick))
    return results


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(abs(Decimal(one[k]) - Decimal(other[k])) < 1 for k in one)
    return bool(one == other)


def _gathered(quick: bool) -> dict[str, Any]:
    """A join off the key: home reads foreign tables, beside rows that are fetched."""
    from django.db.models import Count, Sum
    from django.test import override_settings

    from tests.bench.shop.models import Line, Sale

    count = QUICK_JOINED if quick else JOINED
    # Sales are of 1,000 products, as many of each.
    products = 1000 * count // Sale.objects.using("four").count()
    lines = Line.objects.using("four").filter(
        id__lte=count, sale__product__lt=max(products, 1)
    )

    def ask(source: str) -> Any:
        given = {"SHARD_KEYS": {}, "GATHER": {"SOURCE": source}}
        with override_settings(DBFLEET=given):
            return lines.aggregate(Count("id"), Sum("amount"), Sum("sale__price"))

    assert ask("fdw") == ask("rows")
    return compare(
        f"join off the key of 2 x {count:,} rows, foreign tables beside rows",
        lambda: ask("fdw"),
        lambda: ask("rows"),
        2 if quick else 9,
        1.5,  # on one machine neither has much less to do
    )


def _pinned(quick: bool) -> dict[str, Any]:
    """Rows by their key: one shard has each."""
    from tests.bench.shop.models import Sale

    keys = range(1, (QUICK_GETS if quick else GETS) + 1)

    def get(alias: str) -> None:
        sales = Sale.objects.using(alias)
        for key in keys:
            sales.get(pk=key)

    return compare(
        f"{len(keys)} x get(pk), one pinned shard of 4",
        lambda: get("four"),
        lambda: get("default"),
        3 if quick else 25,
        1.08,
    )


def _bulk(quick: bool) -> dict[str, Any]:
    from tests.bench.shop.models import Sale

    count = QUICK_BULK if quick else BULK
    ids = itertools.count(10**9, count)

    def load(alias: str) -> None:
        first = next(ids)
        sales = [
            Sale(id=first + n, product=n % 1000, quantity=1, price=Decimal("9.99"))
            for n in range(count)
        ]
        Sale.objects.using(alias).bulk_create(sales, batch_size=5000)

    return compare(
        f"bulk_create of {count:,} rows, 4 shards",
        lambda: load("four"),
        lambda: load("default"),
        1 if quick else 3,
        1.5,
    )


def stream() -> dict[str, Any]:
    """How much memory an ordered iterator over all rows takes; asked of a new process,
    which has no memory from before to use again."""
    from tests.bench.shop.models import Sale

    sales = (
        Sale.objects.using("four").order_by("price", "id").values_list("price", "id")
    )
    for _ in sales[:5000].iterator():
        pass
    before = most = _resident()
    last, count = (Decimal(-1), 0), 0
    for row in sales.iterator():
        assert row >= last
        last, count = row, count + 1
        if count % SAMPLED == 0:
            most = max(most, _resident())
    growth = (most - before) / MB
    return {
        "name": f"iterator() over {count:,} ordered rows: memory",
        "ours": round(growth, 1),
        "baseline": None,
        "unit": "MB",
        "ratio": None,
        "limit": 64,
        "ok": growth <= 64,
    }


def _resident() -> int:
    """Bytes of this process in memory, as Linux counts."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def far(quick: bool) -> list[dict[str, Any]]:
    """Eight shards that answer after 5 ms, beside each of them alone."""
    from django.db.models import Avg, Count, Sum

    from tests.bench.shop.models import Sale

    asked: dict[str, Callable[[Any], Any]] = {
        "ordered page of 50": lambda sales: list(sales.order_by("price", "id")[:50]),
        "count, sum and avg": lambda sales: sales.filter(product=7).aggregate(
            Count("id"), Sum("price"), Avg("quantity")
        ),
    }
    shards = [f"shard{n}" for n in range(1, 9)]
    return [
        compare(
            f"{name}, 8 shards of 5 ms",
            lambda ask=ask: ask(Sale.objects.using("eight")),  # type: ignore[misc]
            lambda: None,
            3 if quick else 30,
            1.3,
            baselines=[
                lambda ask=ask, alias=alias: ask(Sale.objects.using(alias))  # type: ignore[misc]
                for alias in shards
            ],
        )
        for name, ask in asked.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
