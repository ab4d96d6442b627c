"""``python -m tests.differential``: the command line.

The last line of its output is ``differential: N querysets, N mismatches, N refused``.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

ENGINES = ("postgresql", "mariadb", "sqlite")
#: cases of a bounded run, by engine
BOUNDED = {"postgresql": 450, "sqlite": 450}
LAST_LINE = "differential: {} querysets, {} mismatches, {} refused"


def main(argv: list[str] | None = None) -> int:
    """Run, print the findings and the totals; 1 if anything differed."""
    given = arguments(argv)
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    if given.bounded:
        return bounded(seed)
    print(f"differential: engine {given.engine}, seed {seed}", flush=True)
    from tests.differential.fleet import serve

    rungs: Counter[str] = Counter()
    with serve(given.engine, given.shards) as fleet, counted(rungs), forced(given):
        from tests.differential.runner import Run

        run = Run(fleet, seed, is_short=given.until_mismatch)
        totals = run.rounds(given.count, given.first_round, given.round)
    failed = sum(totals.failures.values())
    print(f"{failed} failed on the plain database as well, most often:")
    for reason, times in totals.failures.most_common(5):
        print(f"  {times} times: {reason}")
    print("by rung:", ", ".join(f"{name} {n}" for name, n in rungs.most_common()))
    for reason, times in totals.reasons.most_common(20):
        print(f"refused {times} times: {reason}")
    print(LAST_LINE.format(totals.querysets, totals.mismatches, totals.refused))
    return 1 if totals.mismatches else 0


@contextlib.contextmanager
def counted(rungs: Counter[str]) -> Iterator[None]:
    """Count the SELECTs of the fleets by how they were carried out."""
    from dbfleet.observe import events

    def note(event: Any) -> None:
        if event.name == "routed" and event.fields["route"].intent == "read":
            rungs[str(event.fields["route"].rung)] += 1
        if event.name == "rerouted":
            rungs["gathered for a server's types"] += 1

    with events.subscribed(note):
        yield


def forced(given: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """The rungs that the command line leaves."""
    from dbfleet.planner.forced import gathering

    return gathering() if given.force == "gather" else contextlib.nullcontext()


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential")
    parser.add_argument("--count", type=int, default=500, help="querysets to try")
    parser.add_argument("--seed", type=int, help="a printed seed, to repeat a run")
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
        default="scatter",
        help="gather: take no other rung for rows of several shards",
    )
    parser.add_argument("--round", type=int, help="only this round of a run")
    parser.add_argument(
        "--bounded", action="store_true", help="a short run on PostgreSQL and SQLite"
    )
    return parser.parse_args(argv)


def bounded(seed: int) -> int:
    """Both engines, one after the other, each in a process of its own."""
    sums = [0, 0, 0]
    for engine, count in BOUNDED.items():
        command = [
            sys.executable, "-m", "tests.differential", "--engine", engine,
            "--count", str(count), "--seed", str(seed),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        body, _, last = done.stdout.rstrip().rpartition("\n")
        print(body, flush=True)
        pattern = re.escape(LAST_LINE).replace(r"\{\}", r"(\d+)")
        found = re.fullmatch(pattern, last)
        if found is None:
            print(last)
            print(f"differential: {engine} ended with status {done.returncode}")
            return 1
        sums = [total + int(n) for total, n in zip(sums, found.groups(), strict=True)]
    print(LAST_LINE.format(*sums))
    return 1 if sums[1] else 0


if __name__ == "__main__":
    sys.exit(main())
