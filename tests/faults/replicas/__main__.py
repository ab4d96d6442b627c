"""``python -m tests.faults.replicas``: clients against a cluster that fails."""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dbfleet.testing.rig import Rig
from tests.faults.replicas import promises
from tests.faults.replicas.nemesis import FAULTS, Nemesis
from tests.faults.replicas.processes import Job, Result, run
from tests.faults.replicas.promises import Acknowledged
from tests.faults.replicas.recorder import Shared
from tests.faults.replicas.servers import CLIENTS, REGISTERS, Servers
from tests.support import newer  # noqa: F401  (names MySQL where it was fetched)

HISTORIES = Path("build/faults")
#: a run that takes longer hangs: so long in all, and so long for each operation
END_TIMEOUT_S, OPERATION_TIMEOUT_S = 120.0, 0.02
PROGRESS_S = 60.0
SHOWN = 40


def main() -> int:
    options = _options()
    if options.bugs:
        from tests.faults.replicas.hunt import hunt

        return hunt(options)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.engine}, a primary with three replicas", flush=True)
    kinds = options.faults.split(",")
    if options.bug:
        options.stop = True
    with Rig() as rig:
        servers = Servers(rig, options.engine)
        outcome = play(servers, options, str(seed), kinds, options.bug)
    print(f"faults: {outcome.operations} operations, {len(outcome.found)} violations")
    return 1 if outcome.found else 0


class Outcome:
    """A run's end."""

    def __init__(self, operations: int, found: list[str], took_s: float) -> None:
        self.operations, self.found, self.took_s = operations, found, took_s


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.replicas", description=__doc__
    )
    parser.add_argument("--ops", type=int, default=20000, help="operations in all")
    parser.add_argument("--seed", type=int, help="of clients and faults; printed")
    parser.add_argument(
        "--engine", choices=["postgresql", "mariadb", "mysql"], default="postgresql"
    )
    parser.add_argument(
        "--faults",
        default=",".join(FAULTS),
        help="kinds of faults, by commas; the default is all: %(default)s",
    )
    parser.add_argument(
        "--promotions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="promote replicas as well",
    )
    parser.add_argument("--keep", action="store_true", help="the history, in any case")
    parser.add_argument("--stop", action="store_true", help="at the first violation")
    parser.add_argument("--bug", help="break dbfleet on purpose")
    parser.add_argument(
        "--bugs", action="store_true", help="run every bug; each has to be caught"
    )
    return parser.parse_args()


def play(
    servers: Servers,
    options: argparse.Namespace,
    seed: str,
    kinds: list[str],
    bug: str | None,
) -> Outcome:
    """One run; the history is kept where there was a violation."""
    directory = HISTORIES / f"{servers.engine}-{seed}{f'-{bug}' if bug else ''}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    _fill(servers)
    started = time.monotonic()
    shared = _shared()
    nemesis = Nemesis(servers, seed, kinds, shared, promotes=options.promotions)
    results = _run(servers, options, seed, bug, directory, shared, nemesis)
    took_s = time.monotonic() - started
    found = [*nemesis.problems]
    for result in results:
        found += result.violations
    found += _final(servers, results, shared, nemesis.lost)
    operations = sum(shared.operations)
    if not _is_quiet(options):
        _show(results, nemesis, operations, took_s, found)
    if found and not bug:
        replay = " ".join(["python", "-m", "tests.faults.replicas", *sys.argv[1:]])
        (directory / "README").write_text(
            f"replay: {replay} --seed {seed}\n" + "\n".join(found) + "\n"
        )
        print(f"history: {directory}; replay: the same with --seed {seed}")
    elif not options.keep:
        shutil.rmtree(directory)
    return Outcome(operations, found, took_s)


def _is_quiet(options: argparse.Namespace) -> bool:
    return getattr(options, "is_quiet", False)


def _shared() -> Shared:
    array = multiprocessing.get_context("spawn").RawArray
    return Shared(
        array("q", REGISTERS),
        array("q", REGISTERS),
        array("q", REGISTERS),
        array("q", 1),
        array("q", 2),
    )


def _fill(servers: Servers) -> None:
    """Tables and registers at zero; in a process of its own, past the proxies."""
    direct = servers.by_name["primary"].url("faults")
    subprocess.run(
        [sys.executable, "-m", "tests.faults.replicas.fill", servers.engine, direct],
        check=True,
        timeout=END_TIMEOUT_S,
    )
    servers.settle()


def _run(
    servers: Servers,
    options: argparse.Namespace,
    seed: str,
    bug: str | None,
    directory: Path,
    shared: Shared,
    nemesis: Nemesis,
) -> list[Result]:
    context = multiprocessing.get_context("spawn")
    mail, answers = context.Queue(200), context.Queue()
    processes = []
    for kind in CLIENTS:
        job = Job(
            kind,
            servers.engine,
            servers.urls,
            servers.directs(),
            seed,
            options.ops,
            shared,
            mail,
            directory / f"{kind}.jsonl",
            bug,
            options.stop,
        )
        processes.append(context.Process(target=run, args=(job, answers), name=kind))
    for process in processes:
        process.start()
    nemesis.start()
    deadline = time.monotonic() + END_TIMEOUT_S + options.ops * OPERATION_TIMEOUT_S
    told = time.monotonic()
    while sum(shared.operations) < options.ops and not shared.is_over[0]:
        if time.monotonic() > told + PROGRESS_S and not _is_quiet(options):
            told += PROGRESS_S
            print(f"  {sum(shared.operations)} operations so far", flush=True)
        if time.monotonic() > deadline or not any(p.is_alive() for p in processes):
            nemesis.problems.append("clients hang")
        if nemesis.problems:
            break  # without a nemesis, the rest would prove nothing
        time.sleep(0.1)
    shared.is_over[0] = 1
    nemesis.stop()
    results = _answers(answers, processes, nemesis)
    for process in processes:
        process.join(10)
        if process.is_alive():
            process.kill()
    return results


def _answers(answers: Any, processes: list[Any], nemesis: Nemesis) -> list[Result]:
    results: list[Result] = []
    for _ in processes:
        try:
            results.append(answers.get(timeout=END_TIMEOUT_S))
        except queue.Empty as error:
            nemesis.problems.append(f"a process did not end: {error!r}")
            break
    return results


def _final(
    servers: Servers, results: list[Result], shared: Shared, lost: frozenset[int]
) -> list[str]:
    """What the primary holds, against what clients were told."""
    told = [
        {number for result in results for number in result.lines[outcome]}
        for outcome in ("done", "refused", "unknown")
    ]
    stored = Counter(
        n for (n,) in servers.execute("SELECT operation FROM replicas_line")
    )
    registers = dict(servers.execute("SELECT id, counter FROM replicas_register"))
    return [
        *promises.final_lines(Acknowledged(*told), stored, lost),
        *promises.final_registers(registers, shared.acknowledged, shared.started),
    ]


def _show(
    results: list[Result],
    nemesis: Nemesis,
    operations: int,
    took_s: float,
    found: list[str],
) -> None:
    outcomes: Counter[tuple[str, str]] = Counter()
    errors: Counter[str] = Counter()
    for result in results:
        outcomes.update(result.outcomes)
        errors.update(result.errors)
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"  {kind}, {outcome}: {count}")
    for text, count in sorted(errors.items()):
        print(f"  error: {text}: {count}")
    print(f"  faults: {dict(nemesis.faults)}")
    print(f"  {operations / took_s:.0f} operations/s for {took_s:.0f} s")
    for line in found[:SHOWN]:
        print(f"VIOLATION {line}")


if __name__ == "__main__":
    sys.exit(main())
