"""``python -m tests.differential``: the command line.

The last line of its output is ``differential: N querysets, N mismatches, N refused``.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

from tests.differential.several import LAST_LINE, run_all, seeds_of, shown

ENGINES = ("postgresql", "mariadb", "mysql", "sqlite")
#: cases of a bounded run, by engine
BOUNDED = {"postgresql": 450, "sqlite": 450}
#: rows up to which a forced gather takes a table for small, by seed
PROBE_ROWS = (2, 0, 6)


def main(argv: list[str] | None = None) -> int:
    """Run, print the findings and the totals; 1 if anything differed."""
    argv = sys.argv[1:] if argv is None else argv
    given = arguments(argv)
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    if given.bounded or given.seeds:
        return run_all(runs_of(given, argv, seed), given.jobs)
    print(f"differential: engine {given.engine}, seed {seed}", flush=True)
    from tests.differential.fleet import serve

    rungs: Counter[str] = Counter()
    whys: Counter[str] = Counter()
    with (
        serve(given.engine, given.shards, given.source, given.claims) as fleet,
        counted(rungs, whys),
        forced(given.force, seed),
    ):
        from tests.differential.runner import Run

        run = Run(fleet, seed, is_short=given.until_mismatch)
        totals = run.rounds(given.count, given.first_round, given.round)
    failed = sum(totals.failures.values())
    print(f"{failed} failed on the plain database as well, most often:")
    for reason, times in totals.failures.most_common(5):
        print(f"  {times} times: {reason}")
    print(shown(rungs))
    for reason, times in whys.most_common(10):
        print(f"gathered {times} times: {reason}")
    for reason, times in totals.reasons.most_common(20):
        print(f"refused {times} times: {reason}")
    print(LAST_LINE.format(totals.querysets, totals.mismatches, totals.refused))
    return 1 if totals.mismatches else 0


def runs_of(
    given: argparse.Namespace, argv: list[str], seed: int
) -> list[tuple[str, ...]]:
    """The arguments of each run; later ones win."""
    engines = BOUNDED if given.bounded else {given.engine: given.count}
    own = [one for one in argv if one != "--bounded"]
    return [
        (*own, "--seeds", "", "--seed", str(one), "--engine", engine, "--count",
         str(count))
        for engine, count in engines.items()
        for one in given.seeds or [seed]
    ]  # fmt: skip


@contextlib.contextmanager
def counted(rungs: Counter[str], whys: Counter[str]) -> Iterator[None]:
    """Count the SELECTs of the fleets by how they were carried out, and what kept
    those that were gathered from other rungs."""
    from dbfleet.observe import events

    def note(event: Any) -> None:
        if event.name == "routed" and event.fields["route"].intent == "read":
            route = event.fields["route"]
            rungs[str(route.rung)] += 1
            if route.rung == "gather":
                whys[route.reason.rpartition(", and ")[2]] += 1
        if event.name == "gathered" and event.fields["reduced"]:
            rungs["gathered with less of a table"] += 1
        if event.name == "gathered" and event.fields["source"] == "fdw":
            rungs["gathered over foreign tables"] += 1
        if event.name == "rerouted":
            rungs["gathered for a server's types"] += 1

    with events.subscribed(note):
        yield


def forced(name: str | None, seed: int = 0) -> contextlib.ExitStack:
    """The rungs that the command line leaves.

    Its tables are small: a gather has to take them for large to fetch less of them.
    """
    from dbfleet.executor import merging, reducing
    from dbfleet.planner.forced import gathering, scattering

    found = contextlib.ExitStack()
    if seed % 2:  # its tables are small, and iterator() would keep no cursor of a slice
        found.enter_context(mock.patch.object(merging, "FEW_ROWS", 0))
    if name == "gather":
        found.enter_context(gathering())
        rows = PROBE_ROWS[seed % len(PROBE_ROWS)]
        found.enter_context(mock.patch.object(reducing, "PROBE_ROWS", rows))
    elif name is not None:
        found.enter_context(scattering())
    return found


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential")
    parser.add_argument("--count", type=int, default=500, help="querysets to try")
    parser.add_argument("--seed", type=int, help="a printed seed, to repeat a run")
    parser.add_argument(
        "--seeds",
        type=lambda given: seeds_of(given) if given else [],
        help="several, each a run of its own: 1,2,3 or 1-20",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs side by side, at most one for each processor",
    )
    parser.add_argument("--engine", choices=ENGINES, default="postgresql")
    parser.add_argument(
        "--shards",
        type=lambda given: [int(number) for number in given.split(",")],
        default=[1, 2, 3, 7],
        help="numbers of shards, one alias for each (default 1,2,3,7)",
    )
    parser.add_argument("--first-round", type=int, default=0, help="skip rounds")
    parser.add_argument(
        "--until-mismatch", action="store_true", help="stop at the first one"
    )
    parser.add_argument(
        "--force",
        choices=("gather", "scatter"),
        help="gather: take no other rung for rows of several shards; scatter: ask "
        "every shard, also where filters name one (default: as planned)",
    )
    parser.add_argument(
        "--source",
        choices=("rows", "fdw", "auto"),
        default="rows",
        help="where gathers have their rows from: fetched, or foreign tables of home "
        "(PostgreSQL); auto: as measured",
    )
    parser.add_argument(
        "--claims",
        choices=("home", "shards"),
        default="home",
        help="where unique values are claimed",
    )
    parser.add_argument("--round", type=int, help="only this round of a run")
    parser.add_argument(
        "--bounded", action="store_true", help="a short run on PostgreSQL and SQLite"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
