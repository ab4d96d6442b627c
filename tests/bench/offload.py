"""How many reads replicas serve while users write.

Forty users visit for the whole run, each again after 0.2 to 0.6 s. A visit is a session
that goes on where the user's last one ended (a token, as the cookie carries it) and has
five statements on the user's own row, each of them a write with a chance of one in ten,
so that a read often follows a write at once. Nothing is in a transaction and nothing
locks: every read is eligible. Replicas apply each commit 5 ms after it was made. The
machine is far from busy.

The baseline is what plain projects do to read their own writes: who wrote reads from
the primary for 15 seconds (django-multidb-router). These users write every few seconds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dbfleet.testing.rig import Rig
from tests.bench.fleets import Clients, Fleet, start_fleet

USERS = 40
THREADS = 8
BEHIND_S = 0.005
PIN_S = 15.0
WARM_S = 2.0
#: longer than a pin, or it would not matter how long that lasts
RUN_S = 17.0
LIMIT = 0.98


def measure_offload(directory: Path, *, quick: bool) -> list[dict[str, Any]]:
    """The share of the reads that replicas serve, beside plain Django's; a minute."""
    with Rig(durable=False) as rig:
        fleet = start_fleet(
            rig, directory / "offload", replicas=3, is_proxied=False, pin_s=PIN_S
        )
        for replica in fleet.servers.replicas:
            replica.delay_replay(BEHIND_S)
        ours = _visits(fleet, "fleet", quick)
        plain = _visits(fleet, "plain", quick)
    share, baseline = (round(1 - one["primary"], 4) for one in (ours, plain))
    return [
        {
            "name": "reads that replicas serve, 10 % writes",
            "ours": share * 100,
            "baseline": baseline * 100,
            "unit": "%",
            "ratio": round(share / baseline, 3) if baseline else None,
            "limit": LIMIT * 100,
            "is_floor": True,
            "ok": share >= LIMIT and not ours["failed"],
            "reads": [ours["reads"], plain["reads"]],
            "failed": [ours["failed"], plain["failed"]],
        }
    ]


def _visits(fleet: Fleet, project: str, quick: bool) -> dict[str, Any]:
    clients = Clients(fleet.projects[project])
    try:
        clients.ask(users=USERS, threads=THREADS)
        time.sleep(WARM_S)
        clients.ask(forget=True)
        time.sleep(5.0 if quick else RUN_S)
        record = clients.stop(5.0)
    finally:
        clients.close()
    reads = sum(record.served.values())
    primary = sum(
        count
        for node, count in record.served.items()
        if node in ("default", "default/primary")
    )
    failed = sum(not one.is_good for one in record.requests)
    return {"reads": reads, "primary": primary / max(reads, 1), "failed": failed}
