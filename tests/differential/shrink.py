"""Makes a failing case smaller: fewer clauses, then fewer rows, while it still fails.

Bounded in time; what it returns has failed, so it is never worse than what it got.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from tests.differential.cases import Case
from tests.differential.data import LABELS, Rows, fewer

#: whether a case still fails on some rows
Fails = Callable[[Case, Rows], bool]


def smaller_case(case: Case, rows: Rows, fails: Fails, budget_s: float) -> Case:
    """``case`` with every clause dropped that it fails without."""
    end = time.monotonic() + budget_s
    found = True
    while found:
        found = False
        for code in case.code.smaller():
            if time.monotonic() > end:
                return case
            candidate = replace(case, code=code)
            if fails(candidate, rows):
                case, found = candidate, True
                break
    return case


def smaller_rows(case: Case, rows: Rows, fails: Fails, budget_s: float) -> Rows:
    """``rows`` without those that the failure does not need."""
    end = time.monotonic() + budget_s
    for label in reversed(LABELS):
        if rows[label] and time.monotonic() < end:
            without = fewer(rows, label, [])
            if fails(case, without):
                rows = without
    for label in reversed(LABELS):
        size = max(1, len(rows[label]) // 2)
        while size and rows[label]:
            at = 0
            while at < len(rows[label]):
                if time.monotonic() > end:
                    return rows
                kept = rows[label][:at] + rows[label][at + size :]
                candidate = fewer(rows, label, kept)
                if fails(case, candidate):
                    rows = candidate
                else:
                    at += size
            size //= 2
    return rows
