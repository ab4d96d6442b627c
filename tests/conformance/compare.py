"""Compare a run on the plain engine with a run on the alias under test. Pure.

Every test id gets exactly one verdict, so the counts of the summary add up:
``run = passed + known differences + unexpected tests``. Tests that the plain engine
skips or fails too say nothing about dbfleet and are counted apart.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.run import Outcome, Run, app_of

CLASSES = frozenset(
    {
        "order-of-unordered-query",
        "asserted-query-count",
        "foreign-key-introspection",
    }
)
ALIASES = ("cluster", "sharded")
ENGINES = ("postgresql", "mariadb", "mysql", "sqlite")
DJANGO_SERIES = ("5.2", "6.1")
# What unittest makes of a label that it cannot import: no test, so no baseline either.
IMPORT_FAILURES = "unittest.loader."
FIELDS = {"test", "aliases", "engines", "django", "class", "reason"}


@dataclass(frozen=True)
class KnownDifference:
    """One accepted difference: where it applies, its class and its reason."""

    test: str
    aliases: frozenset[str]
    engines: frozenset[str]
    django: frozenset[str]
    difference_class: str
    reason: str

    def applies(self, alias: str, engine: str, django: str) -> bool:
        return (
            alias in self.aliases and engine in self.engines and django in self.django
        )


@dataclass(frozen=True)
class Unexpected:
    """One reason for the run to fail: a test, or the list, or the run itself."""

    subject: str
    problem: str
    detail: str = ""


@dataclass
class Comparison:
    """The verdicts. ``passed`` and the others hold test ids."""

    passed: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    baseline_failures: list[str] = field(default_factory=list)
    unexpected: list[Unexpected] = field(default_factory=list)
    did_not_run: list[str] = field(default_factory=list)
    unexpected_tests: int = 0

    @property
    def run(self) -> int:
        return len(self.passed) + len(self.known) + self.unexpected_tests

    @property
    def summary(self) -> str:
        """The last line of a conformance run, exactly."""
        return (
            f"conformance: {self.run} run, {len(self.passed)} passed, "
            f"{len(self.known)} known differences, {len(self.unexpected)} unexpected"
        )


def read_known(text: str) -> list[KnownDifference]:
    """Parse the list of known differences; ``ValueError`` names every bad entry."""
    entries = tomllib.loads(text).get("difference", [])
    problems = [
        f"entry {number} ({entry.get('test', 'no test')}): {problem}"
        for number, entry in enumerate(entries, start=1)
        for problem in entry_problems(entry)
    ]
    if problems:
        raise ValueError("known differences: " + "; ".join(problems))
    known = [
        KnownDifference(
            test=entry["test"],
            aliases=frozenset(entry["aliases"]),
            engines=frozenset(entry.get("engines", ENGINES)),
            django=frozenset(entry.get("django", DJANGO_SERIES)),
            difference_class=entry["class"],
            reason=entry["reason"],
        )
        for entry in entries
    ]
    twice = sorted({one.test for one in known if overlaps(one, known)})
    if twice:
        raise ValueError(f"known differences listed twice: {', '.join(twice)}")
    return known


def entry_problems(entry: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with one entry of the list, if anything."""
    if unknown := sorted(set(entry) - FIELDS):
        yield f"unknown keys {unknown}"
    for key in ("test", "class", "reason"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            yield f"needs a non-empty {key!r}"
    if entry.get("class") not in CLASSES:
        yield f"class must be one of {sorted(CLASSES)}"
    for key, allowed in (
        ("aliases", ALIASES),
        ("engines", ENGINES),
        ("django", DJANGO_SERIES),
    ):
        chosen = entry.get(key, () if key == "aliases" else allowed)
        if not chosen or not set(chosen) <= set(allowed):
            yield f"{key} must be some of {list(allowed)}"


def overlaps(one: KnownDifference, known: Iterable[KnownDifference]) -> bool:
    """Whether another entry accepts the same test in the same circumstances."""
    return any(
        other is not one
        and other.test == one.test
        and other.aliases & one.aliases
        and other.engines & one.engines
        and other.django & one.django
        for other in known
    )


def compare(
    plain: Run,
    subject: Run,
    known: Iterable[KnownDifference],
    whole_apps: Iterable[str],
) -> Comparison:
    """Give every test its verdict.

    ``known`` holds the entries that apply to this alias, engine and version;
    ``whole_apps`` are the apps run completely, where a listed test must exist.
    """
    listed = {entry.test: entry for entry in known}
    result = Comparison()
    if plain.cut_short:
        result.unexpected.append(
            Unexpected("the plain run", "did not reach its end", plain.cut_short)
        )
    if subject.cut_short:
        result.unexpected.append(
            Unexpected("the run", "did not reach its end", subject.cut_short)
        )
    existing = plain.tests.keys() | subject.tests.keys()
    for test_id in sorted(existing):
        judge(test_id, plain, subject, test_id in listed, result)
    result.unexpected.extend(failed_fixtures(plain, subject))
    apps = set(whole_apps)
    result.unexpected.extend(
        Unexpected(test_id, "listed as a known difference, but there is no such test")
        for test_id in sorted(listed.keys() - existing)
        if app_of(test_id) in apps
    )
    return result


def judge(
    test_id: str, plain: Run, subject: Run, is_listed: bool, result: Comparison
) -> None:
    """Put one test id into its place in the result."""
    before = plain.tests.get(test_id)
    after = subject.tests.get(test_id)
    if test_id.startswith(IMPORT_FAILURES):
        shown = before or after or Outcome("did not run")
        add_unexpected(result, test_id, "cannot be imported", shown.detail)
        return
    if before is not None and not before.is_good and before.outcome != "skipped":
        result.baseline_failures.append(test_id)
        return
    was_skipped = before is None or before.outcome == "skipped"
    if after is None:
        if was_skipped:
            result.skipped.append(test_id)
            return
        after = absence(test_id, subject)
        if not subject.fixtures.keys() & fixture_ids(test_id):
            result.did_not_run.append(test_id)
    if after.is_good:
        if is_listed:
            problem = "no longer different: remove it from the known differences"
            add_unexpected(result, test_id, problem, "")
        else:
            result.passed.append(test_id)
    elif was_skipped and after.outcome == "skipped":
        result.skipped.append(test_id)
    elif is_listed and after.outcome != "did not run":
        result.known.append(test_id)
    else:
        plainly = before.outcome if before else "not run"
        problem = f"{after.outcome}, on the plain engine {plainly}"
        add_unexpected(result, test_id, problem, after.detail)


def add_unexpected(result: Comparison, test_id: str, problem: str, detail: str) -> None:
    result.unexpected_tests += 1
    result.unexpected.append(Unexpected(test_id, problem, detail))


def fixture_ids(test_id: str) -> set[str]:
    """How unittest names the set-ups that a test depends on."""
    class_path = test_id.rpartition(".")[0]
    module_path = class_path.rpartition(".")[0]
    return {f"setUpClass ({class_path})", f"setUpModule ({module_path})"}


def failed_fixtures(plain: Run, subject: Run) -> Iterable[Unexpected]:
    """Failed set-ups and tear-downs that no test's verdict already shows."""
    shown = {
        fixture_id
        for test_id in plain.tests.keys() - subject.tests.keys()
        for fixture_id in fixture_ids(test_id)
    }
    for fixture_id, outcome in sorted(subject.fixtures.items()):
        is_failure = outcome.outcome != "skipped"
        if is_failure and fixture_id not in shown | plain.fixtures.keys():
            yield Unexpected(fixture_id, outcome.outcome, outcome.detail)


def absence(test_id: str, subject: Run) -> Outcome:
    """Why a test that the plain engine ran is absent from the other run."""
    for fixture_id in fixture_ids(test_id):
        if fixture := subject.fixtures.get(fixture_id):
            return Outcome(f"{fixture.outcome} in {fixture_id}", fixture.detail)
    return Outcome("did not run")
