"""A project of the benchmark in a process of its own; it times what it is told to.

Reads one JSON object from each line of its input, answers with one. Imports nothing
of dbfleet, so that a plain project has none of it. Nothing but the measured calls
is inside the clock, and the garbage collector is outside of it.
"""

from __future__ import annotations

import datetime
import functools
import gc
import json
import random
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import django

CUSTOMERS = 3_000
SALES = 20_000
PRODUCTS = 50


def load() -> None:
    """Create the tables and the same rows in every project."""
    from django.core.management import call_command

    from tests.bench.shop.models import Customer, Sale

    call_command("migrate", run_syncdb=True, verbosity=0)
    joined_at = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    Customer.objects.bulk_create(
        Customer(
            name=f"Customer {n}",
            email=f"customer{n}@shop.example",
            city=f"City {n % 40}",
            credit=Decimal(n) / 4,
            joined_at=joined_at + datetime.timedelta(hours=n),
        )
        for n in range(CUSTOMERS)
    )
    Sale.objects.bulk_create(
        [
            Sale(product=n % PRODUCTS, quantity=1 + n % 7, price=Decimal(n % 90))
            for n in range(SALES)
        ],
        batch_size=2_000,
    )


def get(count: int) -> float:
    """Seconds for ``count`` calls of ``objects.get(pk)``, each with another key."""
    from tests.bench.shop.models import Customer

    keys = random.sample(range(1, CUSTOMERS + 1), count)
    manager = Customer.objects
    return timed(lambda: [manager.get(pk=key) for key in keys])


def get_pinned(count: int) -> float:
    """As :func:`get`, with keys of one shard, another one each time.

    A server answers a connection it has just served sooner than one it has to wake;
    going round three shards costs that, with dbfleet or without, and is measured
    apart.
    """
    from tests.bench.shop.models import Customer

    keys = random.sample(random.choice(_keys_by_shard()), count)
    manager = Customer.objects
    return timed(lambda: [manager.get(pk=key) for key in keys])


@functools.cache  # or a server would wait, and fall asleep, before each round
def _keys_by_shard() -> list[list[int]]:
    from django.db import connections

    from tests.bench.shop.models import Customer

    routing = getattr(connections["default"], "routing", None)
    if routing is None:
        return [list(range(1, CUSTOMERS + 1))]
    fields = (Customer._meta.pk,)
    found: dict[str, list[int]] = {}
    for key in range(1, CUSTOMERS + 1):
        found.setdefault(routing.shard_of(fields, (key,)), []).append(key)
    return list(found.values())


def aggregate(count: int) -> float:
    """Seconds for ``count`` grouped sums over every sale."""
    from django.db.models import Count, Sum

    from tests.bench.shop.models import Sale

    grouped = Sale.objects.values("product").annotate(
        sales=Count("pk"), total=Sum("price")
    )

    def run() -> None:
        for _ in range(count):
            rows = list(grouped.order_by("product"))
            assert len(rows) == PRODUCTS
            assert sum(row["sales"] for row in rows) == SALES

    return timed(run)


def timed(action: Callable[[], Any]) -> float:
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    action()
    elapsed = time.perf_counter() - start
    gc.enable()
    return elapsed


def main() -> None:
    django.setup()
    gc.freeze()  # what Django made at start need not be looked at again
    for line in sys.stdin:
        request = json.loads(line)
        if "load" in request:
            load()
            answer = 0.0
        elif "get" in request:
            answer = get(request["get"])
        elif "get_pinned" in request:
            answer = get_pinned(request["get_pinned"])
        elif "aggregate" in request:
            answer = aggregate(request["aggregate"])
        else:
            from tests.bench import sessions

            ((name, count),) = request.items()
            answer = getattr(sessions, name)(count)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
