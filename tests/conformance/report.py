"""What a conformance run prints and stores. The summary is always the last line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.conformance.compare import Comparison, Unexpected
from tests.conformance.run import Run

DETAIL_LINES = 6
MAX_SHOWN = 400
MAX_CAUSES = 15
CAUSE_WIDTH = 160


def table(plain: Run, subject: Run, subject_name: str) -> Iterable[str]:
    """Seconds per app on both sides, and their ratio."""
    header = ("app", "tests", "plain s", f"{subject_name} s", "ratio")
    rows = [header]
    counts = Counter(test_id.split(".", 1)[0] for test_id in subject.tests)
    for app in sorted(plain.app_seconds.keys() | subject.app_seconds.keys()):
        before, after = plain.app_seconds.get(app), subject.app_seconds.get(app)
        rows.append((app, str(counts[app]), *timings(before, after)))
    rows.append(("(set-up)", "", *timings(plain.setup_s, subject.setup_s)))
    rows.append(
        ("total", str(len(subject.tests)), *timings(plain.total_s, subject.total_s))
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others])


def timings(before: float | None, after: float | None) -> tuple[str, str, str]:
    shown = ["-" if each is None else f"{each:.1f}" for each in (before, after)]
    ratio = f"{after / before:.1f}" if before and after is not None else "-"
    return (shown[0], shown[1], ratio)


def last_line(detail: str) -> str:
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def causes(unexpected: Iterable[Unexpected]) -> Iterable[str]:
    """The commonest last lines of tracebacks, so that one bug reads as one."""
    tally = Counter(last_line(each.detail)[:CAUSE_WIDTH] for each in unexpected)
    tally.pop("", None)
    for cause, count in tally.most_common(MAX_CAUSES):
        yield f"{count:5d} x {cause}"


def unexpected_lines(comparison: Comparison) -> Iterable[str]:
    """Each unexpected entry with the end of its traceback."""
    absent = set(comparison.did_not_run)
    shown = [each for each in comparison.unexpected if each.subject not in absent]
    for each in shown[:MAX_SHOWN]:
        yield f"UNEXPECTED {each.subject}: {each.problem}"
        tail = [line for line in each.detail.splitlines() if line.strip()]
        whole = each.problem == "did not reach its end"
        for line in tail if whole else tail[-DETAIL_LINES:]:
            yield f"    {line}"
    if len(shown) > MAX_SHOWN:
        yield f"... and {len(shown) - MAX_SHOWN} more, in the details"
    if absent:
        yield (
            f"UNEXPECTED: {len(absent)} tests did not run, from "
            f"{comparison.did_not_run[0]} to {comparison.did_not_run[-1]}"
        )


def rungs(plain: Run, subject: Run) -> Iterable[str]:
    """How a fleet's SELECTs were carried out, why not otherwise, and what it took."""
    total = sum(subject.rungs.values())
    if not total:
        return
    counts = Counter(subject.rungs).most_common()
    gathered = subject.rungs.get("gather", 0)
    yield (
        f"SELECTs by rung: {', '.join(f'{name} {n}' for name, n in counts)}; "
        f"{1 - gathered / total:.1%} off the gather rung"
    )
    for reason, times in Counter(subject.whys).most_common(MAX_CAUSES):
        yield f"  gathered {times} times: {reason}"
    before, after, ratio = timings(plain.total_s, subject.total_s)
    yield f"time: {after} s beside {before} s on one database, ratio {ratio}"


def report(
    plain: Run, subject: Run, comparison: Comparison, subject_name: str
) -> Iterable[str]:
    """Every line of the report but the summary."""
    yield from table(plain, subject, subject_name)
    yield from rungs(plain, subject)
    yield ""
    if comparison.unexpected:
        yield from unexpected_lines(comparison)
        yield ""
        if found := list(causes(comparison.unexpected)):
            yield "causes:"
            yield from found
            yield ""
    yield (
        f"baseline failures: {len(comparison.baseline_failures)}   "
        f"skipped on the plain engine: {len(comparison.skipped)}"
    )


def write_details(
    path: Path, plain: Run, subject: Run, comparison: Comparison, **circumstances: Any
) -> None:
    """Everything as JSON, with full tracebacks."""
    details = {
        **circumstances,
        "summary": comparison.summary,
        "unexpected": [vars(each) for each in comparison.unexpected],
        "known": comparison.known,
        "skipped": comparison.skipped,
        "baseline_failures": comparison.baseline_failures,
        "plain": plain.to_json(),
        "subject": subject.to_json(),
    }
    path.write_text(json.dumps(details, indent=1), encoding="utf-8")
