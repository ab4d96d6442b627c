"""How long writes are gone when a replica is promoted in the place of a dead primary.

Two clients write and two read without a pause. The primary is killed, a replica is
promoted, and somebody who knows which one connects to it and tries to write, again and
again. What counts is how much later the first write through dbfleet succeeds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg

from dbfleet.testing.rig import Rig
from tests.bench.fleets import DATABASE, Clients, Fleet, start_fleet

WRITERS = READERS = 2
THINK_S = 0.01
WARM_S = 2.0
AFTER_S = 4.0
DIRECT_TIMEOUT_S = 30.0
RUNS = 2
LIMIT_MS = 1000.0


def measure_promotion(directory: Path, *, quick: bool) -> list[dict[str, Any]]:
    """The worst of several promotions, each of a cluster of its own; half a minute."""
    found = [_promote(directory / f"run{n}") for n in range(1 if quick else RUNS)]
    gaps = [gap for gap, _ in found]
    worst = None if None in gaps else max(gap for gap in gaps if gap is not None)
    return [
        {
            "name": "promotion: first write, after the first direct one",
            "ours": worst,
            "baseline": None,
            "unit": "ms",
            "ratio": None,
            "limit": LIMIT_MS,
            "ok": worst is not None and worst <= LIMIT_MS,
            "runs": gaps,
            "failed": [failed for _, failed in found],
        }
    ]


def _promote(directory: Path) -> tuple[float | None, dict[str, int]]:
    """How late the first write was, and how many reads and writes failed."""
    with Rig(durable=False) as rig:
        fleet = start_fleet(rig, directory, replicas=2, is_proxied=False)
        clients = Clients(fleet.projects["fleet"])
        try:
            clients.ask(readers=READERS, writers=WRITERS, think_s=THINK_S)
            time.sleep(WARM_S)
            direct = _replace_primary(fleet)
            time.sleep(AFTER_S)
            record = clients.stop(AFTER_S)
        finally:
            clients.close()
    done = [t for t, name, _ in record.events if name == "written"]
    after = [t for t in done if t >= direct]
    gap = round((min(after) - direct) * 1000, 1) if after else None
    failed = Counter(one.what for one in record.requests if not one.is_good)
    return gap, dict(failed)


def _replace_primary(fleet: Fleet) -> float:
    """Kill the primary and promote a replica; when it took a write of a client that
    knew it."""
    replica = fleet.servers.replicas[0]
    first: list[float] = []
    writing = threading.Thread(target=_write_directly, args=(replica, first))
    fleet.servers.primary.kill()
    writing.start()
    replica.promote()
    writing.join()
    if not first:
        raise RuntimeError(f"no direct write in {DIRECT_TIMEOUT_S} s")
    return first[0]


def _write_directly(server: Any, first: list[float]) -> None:
    ends_at = time.monotonic() + DIRECT_TIMEOUT_S
    statement = "UPDATE shop_customer SET credit = credit + 1 WHERE id = 1"
    while time.monotonic() < ends_at:
        try:
            with psycopg.connect(server.url(DATABASE), autocommit=True) as connection:
                connection.execute(statement)
        except psycopg.Error:
            time.sleep(0.005)
        else:
            first.append(time.monotonic())
            return
