"""Rounds of one run: new rows, many reads, some scripts of writes, every alias.

Guards one invariant: a case is judged only from equal tables; whatever leaves them
unequal is followed by loading them again.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from dataclasses import dataclass, field

from django.db import connections

from tests.differential import data
from tests.differential.audit import open_transactions, problems
from tests.differential.cases import Case, run
from tests.differential.compare import Outcome, difference
from tests.differential.contents import Contents
from tests.differential.data import LABELS, Rows, model_of, snapshot
from tests.differential.fleet import AUTOMATIC, PLAIN, Fleet
from tests.differential.shapes import Shapes
from tests.differential.shrink import smaller_case, smaller_rows
from tests.differential.writes import Writes

READS = 100
SCRIPTS = 16
#: later mismatches of a run are printed as they are
SHRUNK_MISMATCHES = 40
CASE_BUDGET_S = 25.0
ROWS_BUDGET_S = 40.0

#: what names a row whose id was chosen by a database
NATURAL = {
    "Tag": ("name",), "Setting": ("key",), "Category": ("slug",),
    "Order": ("customer_id", "number"),
}  # fmt: skip


@dataclass(slots=True)
class Totals:
    """What a run counts."""

    querysets: int = 0
    mismatches: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    #: what failed on the plain database too; too many would make a run hollow
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Finding:
    """One difference between the plain database and a fleet."""

    kind: str
    plain: str
    fleet: str
    trace: str = ""


class Run:
    """A run over one engine's aliases."""

    def __init__(self, fleet: Fleet, seed: int, *, is_short: bool = False) -> None:
        """``is_short``: stop after the first mismatch."""
        self.fleet, self.seed, self.is_short = fleet, seed, is_short
        self.totals = Totals()
        self.contents = {a: Contents(fleet, a) for a in (PLAIN, *fleet.sharded)}
        self._round = 0

    def rounds(self, count: int, first: int, only: int | None = None) -> Totals:
        """Run rounds until ``count`` cases are done, or the one round ``only``."""
        self._round = first if only is None else only
        while not self._is_done(count):
            self._one_round(count)
            if only is not None:
                break
            self._round += 1
        return self.totals

    def _is_done(self, count: int) -> bool:
        totals = self.totals
        return totals.querysets >= count or (self.is_short and totals.mismatches > 0)

    def _rng(self, *parts: object) -> random.Random:
        name = "/".join(map(str, (self.seed, self._round, *parts)))
        return random.Random(name)

    def _one_round(self, count: int) -> None:
        rows = data.Maker(self._rng("rows"), self.fleet.engine).make()
        self._load(rows)
        for number in range(READS):
            if self._is_done(count):
                return
            case = Shapes(self._rng("read", number), rows, self.fleet.engine).case()
            self._check_read(case, rows)
        for number in range(SCRIPTS):
            if self._is_done(count):
                return
            rng = self._rng("script", number)
            case = Writes(rng, rows, self.fleet.engine).case()
            rows = self._check_script(case, rows)

    def _load(self, rows: Rows) -> None:
        for contents in self.contents.values():
            contents.fill(rows)
        self._look_at_plain()
        for alias in self.fleet.sharded:
            finding = self._compare_tables(alias)
            if finding is not None:
                self._report(None, rows, alias, finding)
        for contents in self.contents.values():
            contents.keep()

    # -- reads ------------------------------------------------------------------------

    def _check_read(self, case: Case, rows: Rows) -> None:
        self.totals.querysets += 1
        plain = self._on_plain(case)
        for alias in self.fleet.sharded:
            fleet = run(case, alias)
            found = difference(plain, fleet, case.expected)
            if found is not None:
                finding = _finding(found, plain, fleet)
                self._report(case, rows, alias, finding)
                return
            self._count_refusal(plain, fleet)

    def _on_plain(self, case: Case) -> Outcome:
        outcome = run(case, PLAIN)
        if outcome.error is not None:
            text = str(outcome.error).strip().partition("\n")[0]
            self.totals.failures[f"{type(outcome.error).__name__}: {text[:90]}"] += 1
        return outcome

    def _count_refusal(self, plain: Outcome, fleet: Outcome) -> None:
        if fleet.is_refused:
            self.totals.refused += 1
            self.totals.reasons[str(fleet.error)[:100]] += 1

    # -- writes -----------------------------------------------------------------------

    def _check_script(self, case: Case, rows: Rows) -> Rows:
        """Run a script everywhere; returns the rows that are stored afterwards."""
        self.totals.querysets += 1
        plain = self._on_plain(case)
        self._look_at_plain()
        is_equal = not case.leaves_ids and not plain.is_unjudged
        for alias in self.fleet.sharded:
            finding, is_refused = self._script_finding(case, alias, plain)
            if finding is not None:
                self._report(case, rows, alias, finding)
                self._load(rows)
                return rows
            is_equal = is_equal and not is_refused
        for contents in self.contents.values():
            if is_equal:
                contents.keep()
            else:
                contents.undo()
        return self.contents[PLAIN].rows

    def _look_at_plain(self) -> None:
        self.contents[PLAIN].look()
        self.contents[PLAIN].read()

    def _script_finding(
        self, case: Case, alias: str, plain: Outcome
    ) -> tuple[Finding | None, bool]:
        fleet = run(case, alias)
        found = difference(plain, fleet, case.expected)
        left_open = open_transactions(self.fleet, alias)
        if left_open:
            connections[alias].close()
            told = "\n".join([*left_open, fleet.describe()])
            return Finding("a transaction left open", plain.describe(), told), False
        if found is not None:
            return _finding(found, plain, fleet), False
        self._count_refusal(plain, fleet)
        # A later step of the script may have failed on the plain database alone.
        if plain.is_unjudged or fleet.is_refused:
            return None, True
        return self._compare_tables(alias), False

    def _compare_tables(self, alias: str) -> Finding | None:
        """Judge what an alias holds by what the plain database was found to hold."""
        contents = self.contents[alias]
        if contents.look():
            wrong = problems(alias, contents.raw)
            if wrong:
                return Finding("inconsistent nodes", "", "\n".join(wrong[:20]))
        try:
            found = contents.read()
        except Exception as error:  # noqa: BLE001 - a finding like any other
            return _finding("tables cannot be read", Outcome(), Outcome(error=error))
        plain_rows, fleet_rows = normal(self.contents[PLAIN].rows), normal(found)
        for label in LABELS:
            left, right = Counter(plain_rows[label]), Counter(fleet_rows[label])
            if left != right:
                return Finding(
                    f"other rows in {label} afterwards",
                    "\n".join(sorted((left - right).elements())),
                    "\n".join(sorted((right - left).elements())),
                )
        return None

    # -- reports ----------------------------------------------------------------------

    def _report(
        self, case: Case | None, rows: Rows, alias: str, finding: Finding
    ) -> None:
        self.totals.mismatches += 1
        if case is not None and self.totals.mismatches <= SHRUNK_MISMATCHES:
            case, rows = self._shrunk(case, rows, alias)
            finding = self._again(case, rows, alias) or finding
        print_finding(self, case, rows, alias, finding)

    def _shrunk(self, case: Case, rows: Rows, alias: str) -> tuple[Case, Rows]:
        original = rows

        def fails(candidate: Case, wanted: Rows) -> bool:
            if candidate.writes or wanted is not self._loaded:
                self._load_pair(wanted, alias)
            return self._again_loaded(candidate, alias) is not None

        self._loaded = rows
        try:
            if case.writes and not fails(case, rows):
                return case, rows
            case = smaller_case(case, rows, fails, CASE_BUDGET_S)
            rows = smaller_rows(case, rows, fails, ROWS_BUDGET_S)
            case = smaller_case(case, rows, fails, CASE_BUDGET_S / 2)
            return case, rows
        finally:
            self._load_pair(original, alias)

    _loaded: Rows | None = None

    def _load_pair(self, rows: Rows, alias: str) -> None:
        self.contents[PLAIN].fill(rows)
        self.contents[alias].fill(rows)
        self._loaded = rows

    def _again(self, case: Case, rows: Rows, alias: str) -> Finding | None:
        """The difference on freshly loaded rows, which are put back afterwards."""
        before = snapshot(PLAIN)
        self._load_pair(rows, alias)
        try:
            return self._again_loaded(case, alias)
        finally:
            self._load_pair(before, alias)

    def _again_loaded(self, case: Case, alias: str) -> Finding | None:
        plain = run(case, PLAIN)
        if case.writes:
            self._look_at_plain()
            return self._script_finding(case, alias, plain)[0]
        fleet = run(case, alias)
        found = difference(plain, fleet, case.expected)
        return None if found is None else _finding(found, plain, fleet)


def _finding(kind: str, plain: Outcome, fleet: Outcome) -> Finding:
    trace = ""
    if fleet.error is not None:
        frames = traceback.format_exception(fleet.error)
        trace = "".join(frames[-6:])
    return Finding(kind, plain.describe(), fleet.describe(), trace)


def normal(rows: Rows) -> dict[str, list[str]]:
    """Rows as text, with automatic ids replaced by what names the row.

    Both zeroes are one: Django's INSERT of one row on PostgreSQL makes 0.0 of -0.0,
    that of several keeps it, and how many there are is each shard's own.
    """
    names: dict[tuple[str, object], object] = {}
    for label, natural in NATURAL.items():
        for row in rows[label]:
            if row["id"] >= AUTOMATIC:
                names[label, row["id"]] = ("auto", *(row[name] for name in natural))
    found: dict[str, list[str]] = {}
    for label in LABELS:
        fields = model_of(label)._meta.local_concrete_fields
        is_through = bool(model_of(label)._meta.auto_created)
        found[label] = []
        for row in rows[label]:
            shown = dict(row)
            for one in fields:
                target = one.target_field if one.remote_field else one
                value = row[one.attname]
                owner = target.model.__name__
                if isinstance(value, float):
                    shown[one.attname] = value + 0.0
                if target.primary_key and (owner, value) in names:
                    shown[one.attname] = names[owner, value]
            if is_through and row["id"] >= AUTOMATIC:
                shown["id"] = "auto"
            found[label].append(repr(shown))
    return found


def print_finding(
    run_: Run, case: Case | None, rows: Rows, alias: str, finding: Finding
) -> None:
    """A reproduction: what to run, the rows, the code, both outcomes."""
    fleet, at = run_.fleet, run_._round
    bar = "=" * 78
    print(bar)
    print(
        f"MISMATCH {run_.totals.mismatches}: {finding.kind}; {fleet.engine}, {alias}; "
        f"--engine {fleet.engine} --seed {run_.seed} --round {at}"
    )
    print(f"--- rows\n{data.printed(rows)}")
    print(f"--- code\n{case.code if case else 'loading these rows'}")
    print(f"--- plain\n{finding.plain}\n--- {alias}\n{finding.fleet}")
    if finding.trace:
        print(f"--- traceback on {alias}\n{finding.trace}")
    print(bar, flush=True)
