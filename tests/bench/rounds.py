"""Interleaved rounds and what is made of them.

Noise of the machine is met in four ways. A round asks every project once, in a new
random order, so that slow phases hit all alike. A ratio is taken within its round,
between calls a few milliseconds apart, and the median over rounds drops the rounds
that something disturbed. Workers are replaced several times, because one process may
be a few percent faster than another of the same program (layout of memory, seeds of
hashes); the median over these generations is what counts. The quartiles that are
reported with a ratio say how much was left.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.projects import Project, Worker

_SETUP = """
import time
start = time.perf_counter()
import django
django.setup()
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Comparison:
    """What is compared: the names of two projects and the limit of their ratio."""

    name: str
    ours: str
    baseline: str
    limit: float | None = None


@dataclass(frozen=True)
class Effort:
    """How long to measure; ``count`` calls in each of ``rounds`` rounds."""

    generations: int
    rounds: int
    count: int


def compare_calls(
    projects: dict[str, Project],
    comparisons: Sequence[Comparison],
    request: str,
    effort: Effort,
) -> list[dict[str, Any]]:
    """Time ``request`` in every project that is compared; microseconds for a call."""
    names = sorted({name for one in comparisons for name in (one.ours, one.baseline)})
    generations: list[dict[str, list[float]]] = []
    for _ in range(effort.generations):
        workers = {name: Worker(projects[name]) for name in names}
        try:
            for _ in range(3):  # connect, plan, fill the caches
                for worker in workers.values():
                    worker.ask(**{request: effort.count})
            generations.append(_rounds(workers, request, effort))
        finally:
            for worker in workers.values():
                worker.close()
    return [_result(one, generations, 1e6 / effort.count) for one in comparisons]


def _rounds(
    workers: dict[str, Worker], request: str, effort: Effort
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in workers}
    names = list(workers)
    for _ in range(effort.rounds):
        random.shuffle(names)
        for name in names:
            times[name].append(workers[name].ask(**{request: effort.count}))
    return times


def _result(
    comparison: Comparison, generations: list[dict[str, list[float]]], scale: float
) -> dict[str, Any]:
    ratios = [
        [
            ours / base
            for ours, base in zip(
                times[comparison.ours], times[comparison.baseline], strict=True
            )
        ]
        for times in generations
    ]
    ratio = statistics.median(map(statistics.median, ratios))
    low, _, high = statistics.quantiles([one for part in ratios for one in part], n=4)

    def median_of(project: str) -> float:
        each = [statistics.median(times[project]) for times in generations]
        return round(statistics.median(each) * scale, 1)

    return {
        "name": comparison.name,
        "ours": median_of(comparison.ours),
        "baseline": median_of(comparison.baseline),
        "unit": "us",
        "ratio": round(ratio, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "limit": comparison.limit,
        "ok": comparison.limit is None or ratio <= comparison.limit,
    }


def time_alone(
    project: Project, names: dict[str, tuple[str, float]], *, runs: int
) -> list[dict[str, Any]]:
    """Time what a plain project does not do at all; limits the microseconds.

    ``names``: the request of a row -> its name and its limit.
    """
    worker = Worker(project)
    try:
        times = {
            request: [worker.ask(**{request: 1}) * 1e6 for _ in range(runs)]
            for request in names
        }
    finally:
        worker.close()
    return [
        {
            "name": name,
            "ours": round(statistics.median(times[request]), 2),
            "baseline": None,
            "unit": "us",
            "ratio": None,
            "limit": limit,
            "ok": statistics.median(times[request]) <= limit,
        }
        for request, (name, limit) in names.items()
    ]


def compare_setup(
    projects: dict[str, Project], ours: Sequence[str], *, limit_ms: float, runs: int
) -> list[dict[str, Any]]:
    """Import Django and set it up in new processes; limits the added milliseconds."""
    names = ["primary", *ours]
    times: dict[str, list[float]] = {name: [] for name in names}
    for run in range(runs + 1):
        for name in random.sample(names, len(names)):
            elapsed = _setup_time(projects[name])
            if run:  # the first one compiles modules
                times[name].append(elapsed)
    medians = {name: statistics.median(times[name]) * 1000 for name in names}
    return [
        {
            "name": f"import and django.setup(), {name}",
            "ours": round(medians[name], 1),
            "baseline": round(medians["primary"], 1),
            "unit": "ms",
            "ratio": round(medians[name] / medians["primary"], 3),
            "added": round(medians[name] - medians["primary"], 1),
            "limit": limit_ms,
            "ok": medians[name] - medians["primary"] <= limit_ms,
        }
        for name in ours
    ]


def _setup_time(project: Project) -> float:
    finished = subprocess.run(
        [sys.executable, "-c", _SETUP],
        cwd=project.directory,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return float(finished.stdout)
