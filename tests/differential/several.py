"""Several runs, each in a process of its own: their output, and what they sum up to.

A run that ends without its last line has proved nothing: the whole fails.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

LAST_LINE = "differential: {} querysets, {} mismatches, {} refused"
_PATTERN = re.escape(LAST_LINE).replace(r"\{\}", r"(\d+)")
RUNGS = "by rung: "


def seeds_of(given: str) -> list[int]:
    """The seeds of ``1,2,3`` or ``1-20`` or both; raises ValueError."""
    found: list[int] = []
    for part in given.split(","):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise ValueError(f"no seeds in {part}")
        found += numbers
    return list(dict.fromkeys(found))


def run_all(runs: Sequence[Sequence[str]], jobs: int) -> int:
    """Run ``python -m tests.differential`` with each of the arguments, ``jobs`` at once
    and never more than there are processors; 1 if any differed or broke off."""
    sums, rungs, broken = [0, 0, 0], Counter[str](), 0
    at_once = max(1, min(jobs, os.cpu_count() or 1))
    with ThreadPoolExecutor(at_once) as pool:
        for done in pool.map(_run, runs):
            body, _, last = done.stdout.rstrip().rpartition("\n")
            print(body, flush=True)
            found = re.fullmatch(_PATTERN, last)
            if found is None:
                broken += 1
                print(last)
                print(f"{' '.join(done.args[3:])} ended with status {done.returncode}")
                continue
            sums = [n + int(more) for n, more in zip(sums, found.groups(), strict=True)]
            rungs += _rungs_in(body)
    print(f"{len(runs)} runs, {broken} broke off")
    print(shown(rungs))
    print(LAST_LINE.format(*sums))
    return 1 if sums[1] or broken else 0


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.differential", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)


def shown(rungs: Counter[str]) -> str:
    """SELECTs by rung, and the share that was not gathered."""
    total = rungs.total()
    gathered = sum(n for name, n in rungs.items() if name.startswith("gather"))
    share = f"; {1 - gathered / total:.1%} off the gather rung" if total else ""
    counts = ", ".join(f"{name} {n}" for name, n in rungs.most_common())
    return f"{RUNGS}{counts}{share}"


def _rungs_in(body: str) -> Counter[str]:
    """What :func:`shown` wrote."""
    line = next((one for one in body.splitlines() if one.startswith(RUNGS)), "")
    found: Counter[str] = Counter()
    for part in line.removeprefix(RUNGS).partition(";")[0].split(", "):
        name, _, number = part.rpartition(" ")
        if name:
            found[name] += int(number)
    return found
