"""``python -m tests.bench``: measure, write JSON, print a table.

Exits with 0 when everything was measured, whatever came out, and with 2 when it
could not be.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dbfleet.testing.rig import Rig, RigError
from tests.bench.offload import measure_offload
from tests.bench.outages import measure_outages
from tests.bench.projects import DATABASES, load, write_projects
from tests.bench.promotion import measure_promotion
from tests.bench.rounds import (
    Comparison,
    Effort,
    compare_calls,
    compare_setup,
    time_alone,
)
from tests.bench.shards import measure_shards

GETS = (
    Comparison("get(pk), cluster with two replicas", "cluster", "replica", 1.08),
    Comparison("get(pk), going round three shards", "sharded", "primary"),
    Comparison("get(pk), Django with a random replica router", "router", "replica"),
)
PINNED = (Comparison("get(pk), one pinned shard of three", "sharded", "primary", 1.08),)
WRITERS = (
    Comparison("get(pk), a session that wrote 1 call in 10", "cluster", "router", 1.06),
)
PROVED = (
    Comparison("get(pk), each proved in its own message", "cluster", "replica", 1.06),
)
#: the same between machines of one site, rather than over a loopback
FAR_S = 0.0005
PROVED_FAR = (
    Comparison("get(pk), each proved, 1 ms away", "far_cluster", "far_replica", 1.06),
)
#: in Python, for each read and for each write
DECISIONS = {
    "decide": ("CPU of a read's routing", 5.0),
    "account": ("CPU of a session's bookkeeping for a write", 15.0),
}
AGGREGATES = (
    Comparison("grouped sums of 20,000 rows, gathered", "sharded", "primary"),
)
SETUP_LIMIT_MS = 60


#: what ``--only`` takes
PARTS = ("overhead", "shards", "outages", "promotion", "offload")


def measure(
    parts: Sequence[str], *, quick: bool, rows: int | None = None
) -> list[dict[str, Any]]:
    """Measure the parts one after the other; ten minutes for all, or two."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        for part in parts:
            if part == "overhead":
                results += measure_overhead(quick=quick)
            elif part == "shards":
                results += measure_shards(Path(directory), quick=quick, rows=rows)
            elif part == "outages":
                results += measure_outages(Path(directory), quick=quick)
            elif part == "promotion":
                results += measure_promotion(Path(directory), quick=quick)
            else:
                results += measure_offload(Path(directory), quick=quick)
    return results


def measure_overhead(*, quick: bool) -> list[dict[str, Any]]:
    """What a query and a start cost; about a minute, or ten seconds."""
    with Rig(durable=False) as rig, tempfile.TemporaryDirectory() as directory:
        servers = rig.postgresql_cluster(replicas=2, databases=DATABASES)
        proxies, far = zip(*map(rig.proxy, servers.replica_urls("shop")), strict=True)
        projects = write_projects(Path(directory), servers, far)
        load(projects, servers)
        gets = Effort(1, 5, 20) if quick else Effort(6, 60, 40)
        aggregates = Effort(1, 2, 1) if quick else Effort(1, 15, 1)
        return [
            *compare_calls(projects, GETS, "get", gets),
            *compare_calls(projects, PINNED, "get_pinned", gets),
            *compare_calls(projects, WRITERS, "get_after_writes", gets),
            *compare_calls(projects, PROVED, "get_proved", gets),
            *_delayed(
                proxies, lambda: compare_calls(projects, PROVED_FAR, "get_proved", gets)
            ),
            *time_alone(projects["cluster"], DECISIONS, runs=3 if quick else 25),
            *compare_calls(projects, AGGREGATES, "aggregate", aggregates),
            *compare_setup(
                projects,
                ("cluster", "sharded"),
                limit_ms=SETUP_LIMIT_MS,
                runs=2 if quick else 15,
            ),
        ]


def _delayed(proxies: Sequence[Any], measured: Callable[[], Any]) -> Any:
    """Measure while each message takes ``FAR_S`` longer."""
    for proxy in proxies:
        proxy.delay(FAR_S)
    try:
        return measured()
    finally:
        for proxy in proxies:
            proxy.forward()


def table(results: list[dict[str, Any]]) -> str:
    """The results for people."""
    lines = [
        f"{'':<51}{'dbfleet':>12}{'plain':>12}{'ratio':>8}  {'quartiles':<14}limit"
    ]
    for one in results:
        ours, baseline = (
            "-" if one[key] is None else f"{one[key]:,} {one['unit']}"
            for key in ("ours", "baseline")
        )
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.3f}"
        spread = "-".join(f"{edge:.3f}" for edge in one.get("quartiles", ()))
        limit = "" if one["limit"] is None else f"{one['limit']:g}"
        if "added" in one:
            limit = f"{one['added']:+.1f} of {one['limit']:g} ms"
        verdict = "" if one["limit"] is None else (" ok" if one["ok"] else " OVER")
        lines.append(
            f"{one['name']:<51}{ours:>12}{baseline:>12}{ratio:>8}  "
            f"{spread:<14}{limit}{verdict}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    parser.add_argument(
        "--quick", action="store_true", help="a few rounds: whether it runs at all"
    )
    parser.add_argument(
        "--only", nargs="+", action="extend", choices=PARTS, help="not the rest"
    )
    parser.add_argument("--rows", type=int, help="of the tables of --only shards")
    options = parser.parse_args()
    try:
        results = measure(options.only or PARTS, quick=options.quick, rows=options.rows)
    except RigError as error:
        print(f"cannot measure: {error}", file=sys.stderr)
        return 2
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
