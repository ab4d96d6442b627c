"""What the demo prints, and what it counts.

Guards one invariant: an answer counts as equal only if its rows, their order and the
types of their values are the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Context, Decimal
from textwrap import fill
from typing import Any

from django.db import connections
from django.db.models import Model, QuerySet

from example.demo.watch import Step, Watch, watching
from example.single import on_single

WIDTH = 100
MARGIN, DEEP = " " * 3, " " * 6
#: ways shown for one question; a page of the admin takes more
SHOWN_WAYS = 3
SHOWN_CHARACTERS = 300

NEXT = """
Next: example/settings.py      the fleet, in thirty lines
      example/sales/models.py  Meta.using and Meta.shard_key
      example/demo/            the questions above; they know nothing of servers
      make serve               the same store, kept open, with the admin"""

Question = Callable[[], Any]


class Failure:
    """What came instead of an answer."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __repr__(self) -> str:
        return f"{type(self.error).__name__}: {self.error}"


@dataclass
class Tally:
    """A line of the summary."""

    equal: int = 0
    different: int = 0
    refused: int = 0
    rungs: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question."""

    fleet: Any
    single: Any
    fleet_s: float
    single_s: float
    watch: Watch

    @property
    def is_equal(self) -> bool:
        """Same rows, order and types; two failures are never equal."""
        same = repr(rounded(self.fleet)) == repr(rounded(self.single))
        return same and not isinstance(self.fleet, Failure)


class Report:
    """Prints as it goes and keeps a tally of each part."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self._part = ""
        self._number = 0

    @property
    def equal(self) -> int:
        """How many answers of the fleet were the single database's."""
        return sum(tally.equal for tally in self.tallies.values())

    @property
    def different(self) -> int:
        """How many were not."""
        return sum(tally.different for tally in self.tallies.values())

    # -- printing -----------------------------------------------------------------

    def part(self, name: str, about: str = "") -> None:
        """Begin a part."""
        self._number += 1
        self._part = name
        print(f"\n{self._number}. {name}", flush=True)
        if about:
            self.say(about)

    def say(self, text: str, margin: str = MARGIN) -> None:
        """Print a paragraph."""
        text = " ".join(text.split())
        print(fill(text, WIDTH, initial_indent=margin, subsequent_indent=margin))

    def lines(self, *lines: str) -> None:
        """Print lines as they are."""
        for line in lines:
            print(f"{MARGIN}{line}", flush=True)

    def example(self, code: str, result: object) -> None:
        """Print code and what it shows."""
        self.lines(f">>> {code}")
        for line in str(result).splitlines():
            print(fill(line, WIDTH, initial_indent=DEEP, subsequent_indent=" " * 16))

    def loud(self, text: str) -> None:
        """Print what must not be missed."""
        print(f"!! {text}", flush=True)

    # -- asking -------------------------------------------------------------------

    def ask(self, title: str, question: Question) -> None:
        """Ask the fleet and the single database; show how the fleet did it."""
        found = self._compare(question)
        mark = "equal" if found.is_equal else "DIFF "
        times = f"{found.fleet_s * 1000:.0f} ms, single {found.single_s * 1000:.0f} ms"
        print(f"{MARGIN}{mark} {title:<47} {size_of(found.fleet):>14} {times:>22}")
        ways = described(found.watch.steps)
        if found.watch.prepared:
            nodes = ", ".join(found.watch.prepared)
            ways.append(
                f"committed in two phases: prepared on {nodes}, decided in home"
            )
        for way in ways:
            print(fill(way, WIDTH, initial_indent=DEEP, subsequent_indent=DEEP + "  "))
        if not found.is_equal:
            print(f"{DEEP}fleet:  {repr(found.fleet)[:SHOWN_CHARACTERS]}")
            print(f"{DEEP}single: {repr(found.single)[:SHOWN_CHARACTERS]}", flush=True)

    def ask_quietly(self, questions: Iterable[Question]) -> str:
        """Ask several without a word; returns how many of them were equal."""
        found = [self._compare(question).is_equal for question in questions]
        return f"{sum(found)} of {len(found)}"

    def refused(
        self, title: str, question: Question, expected: type[Exception]
    ) -> None:
        """Ask the fleet what it must not answer; anything else is different."""
        found, _ = timed(question)
        tally = self._tally()
        if isinstance(found, Failure) and isinstance(found.error, expected):
            tally.refused += 1
            mark = "error"
        else:
            tally.different += 1
            mark = "DIFF "
        print(f"{MARGIN}{mark} {title}")
        self.say(repr(found)[: 2 * SHOWN_CHARACTERS], DEEP)

    def _compare(self, question: Question) -> Comparison:
        with watching() as watch:
            fleet, fleet_s = timed(question)
        with on_single():
            single, single_s = timed(question)
        found = Comparison(fleet, single, fleet_s, single_s, watch)
        tally = self._tally()
        tally.equal += found.is_equal
        tally.different += not found.is_equal
        for step, times in watch.steps.items():
            tally.rungs[step.rung] += times
        return found

    def _tally(self) -> Tally:
        return self.tallies.setdefault(self._part, Tally())

    # -- the end ------------------------------------------------------------------

    def summary(self) -> None:
        """Print a line for each part, then the last line."""
        rungs = sorted({rung for one in self.tallies.values() for rung in one.rungs})
        heads = "".join(f"{head:>10}" for head in ("equal", "different", "refused"))
        print(f"\n{'Summary':<44}{heads}   | statements by rung")
        for name, tally in self.tallies.items():
            counts = (tally.equal, tally.different, tally.refused)
            shown = "".join(f"{count or '-':>10}" for count in counts)
            used = ", ".join(
                f"{rung} {tally.rungs[rung]}" for rung in rungs if tally.rungs[rung]
            )
            print(f"  {name:<42}{shown}   | {used}")
        print(NEXT)
        total = self.equal + self.different
        print(
            f"\ndemo: {total} queries, {self.equal} equal, {self.different} different"
        )


def timed(question: Question) -> tuple[Any, float]:
    """The answer, or the failure, and the seconds it took."""
    began = time.monotonic()
    try:
        found = plain(question())
    except Exception as error:  # noqa: BLE001 - it is shown, and never counts as equal
        found = Failure(error)
    return found, time.monotonic() - began


def plain(value: Any) -> Any:
    """The value with every model instance as its columns, so that nothing is hidden."""
    if isinstance(value, Model):
        fields = value._meta.concrete_fields
        return {field.attname: getattr(value, field.attname) for field in fields}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | QuerySet):
        return [plain(item) for item in value]
    return value


def rounded(value: Any) -> Any:
    """The value; on SQLite, which adds decimals as binary fractions in the order in
    which it meets the rows, with decimals of twelve digits."""
    if connections["single"].vendor != "sqlite":
        return value
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, Decimal):
        return Context(prec=12).create_decimal(value).normalize()
    return value


def size_of(found: Any) -> str:
    """How much an answer holds, for a person."""
    if isinstance(found, Failure):
        return "failed"
    if isinstance(found, str):
        return found if len(found) < 20 else f"{len(found) / 1000:.0f} kB"
    count = len(found) if isinstance(found, list) else 1
    return f"{count} row" if count == 1 else f"{count} rows"


def described(steps: Counter[Step]) -> list[str]:
    """The ways of one question, the most used first."""
    times: Counter[tuple[str, str, str]] = Counter()
    nodes: dict[tuple[str, str, str], dict[str, None]] = {}
    for step, count in steps.items():
        alias, _, names = step.nodes.partition("/")
        way = step.rung, alias, step.reason
        times[way] += count
        nodes.setdefault(way, {}).update(dict.fromkeys(names.split(", ")))
    lines = []
    shown = times.most_common(SHOWN_WAYS)
    for way, count in shown:
        rung, alias, reason = way
        often = f"{count}x " if count > 1 else ""
        lines.append(f"{often}{rung}, {alias}/{', '.join(nodes[way])}: {reason}")
    more = times.total() - sum(count for _, count in shown)
    if more:
        lines.append(f"and {more} more by other ways")
    return lines
