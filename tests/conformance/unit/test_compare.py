"""Every test id gets one verdict, and every way to be wrong fails the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import __main__ as command
from tests.conformance.compare import (
    CLASSES,
    Comparison,
    KnownDifference,
    compare,
    read_known,
)
from tests.conformance.report import report
from tests.conformance.run import Outcome, Run
from tests.conformance.sources import CannotRun, Source

ENTRY = """
[[difference]]
test = "basic.tests.One.test_order"
aliases = ["sharded"]
class = "order-of-unordered-query"
reason = "the query has no ORDER BY"
"""


def run_of(**outcomes: str) -> Run:
    tests = {
        f"basic.tests.One.{name}": Outcome(outcome, f"{name}: {outcome}")
        for name, outcome in outcomes.items()
    }
    return Run(tests=tests)


def listed(*names: str) -> list[KnownDifference]:
    text = "".join(ENTRY.replace("test_order", name) for name in names)
    return read_known(text)


def counts(comparison: Comparison) -> tuple[int, int, int, int]:
    return (
        comparison.run,
        len(comparison.passed),
        len(comparison.known),
        len(comparison.unexpected),
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("passed", "passed", (1, 1, 0, 0)),
        ("expected-failure", "expected-failure", (1, 1, 0, 0)),
        ("passed", "failed", (1, 0, 0, 1)),
        ("passed", "error", (1, 0, 0, 1)),
        ("passed", "skipped", (1, 0, 0, 1)),
        ("expected-failure", "unexpected-success", (1, 0, 0, 1)),
        ("failed", "failed", (0, 0, 0, 0)),
        ("error", "passed", (0, 0, 0, 0)),
        ("skipped", "skipped", (0, 0, 0, 0)),
        ("skipped", "passed", (1, 1, 0, 0)),
        ("skipped", "error", (1, 0, 0, 1)),
    ],
)
def test_each_pair_of_outcomes_has_one_verdict(
    before: str, after: str, expected: tuple[int, int, int, int]
) -> None:
    result = compare(run_of(test=before), run_of(test=after), [], ["basic"])
    assert counts(result) == expected


def test_listed_difference_is_known_and_adds_up() -> None:
    plain = run_of(test_order="passed", test_other="passed")
    subject = run_of(test_order="failed", test_other="passed")
    result = compare(plain, subject, listed("test_order"), ["basic"])
    assert result.summary == (
        "conformance: 2 run, 1 passed, 1 known differences, 0 unexpected"
    )


def test_listed_difference_that_passes_is_unexpected() -> None:
    both = run_of(test_order="passed")
    result = compare(both, both, listed("test_order"), ["basic"])
    assert counts(result) == (1, 0, 0, 1)
    assert "remove it" in result.unexpected[0].problem


def test_listed_test_that_does_not_exist_is_unexpected_if_its_app_ran() -> None:
    both = run_of(test="passed")
    known = listed("test_gone")
    assert counts(compare(both, both, known, ["basic"])) == (1, 1, 0, 1)
    assert counts(compare(both, both, known, [])) == (1, 1, 0, 0)


def test_missing_tests_are_unexpected_even_if_listed() -> None:
    plain = run_of(test_order="passed", test_other="passed", test_off="skipped")
    subject = Run(cut_short="the run stopped: exit code 1")
    result = compare(plain, subject, listed("test_order"), ["basic"])
    assert counts(result) == (2, 0, 0, 3)
    text = "\n".join(report(plain, subject, result, "sharded"))
    assert "the run stopped: exit code 1" in text
    assert "2 tests did not run" in text


def test_a_failed_class_explains_its_missing_tests() -> None:
    plain = run_of(test="passed")
    subject = Run(
        fixtures={"setUpClass (basic.tests.One)": Outcome("error", "Boom: why")}
    )
    result = compare(plain, subject, [], ["basic"])
    assert counts(result) == (1, 0, 0, 1)
    assert result.unexpected[0].detail == "Boom: why"


def test_a_failed_tear_down_is_unexpected_unless_plain_has_it_too() -> None:
    plain, subject = run_of(test="passed"), run_of(test="passed")
    subject.fixtures["tearDownClass (basic.tests.One)"] = Outcome("error", "Boom")
    assert counts(compare(plain, subject, [], [])) == (1, 1, 0, 1)
    plain.fixtures.update(subject.fixtures)
    assert counts(compare(plain, subject, [], [])) == (1, 1, 0, 0)


def test_what_cannot_be_imported_is_unexpected_on_both_sides() -> None:
    both = Run(tests={"unittest.loader._FailedTest.nope": Outcome("error", "No")})
    assert counts(compare(both, both, [], [])) == (1, 0, 0, 1)


def test_an_unfinished_plain_run_fails_the_comparison() -> None:
    plain, subject = run_of(test="passed"), run_of(test="passed")
    plain.cut_short = "the run stopped"
    assert counts(compare(plain, subject, [], [])) == (1, 1, 0, 1)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('class = "order-of-unordered-query"', 'class = "flaky"', "class must be"),
        ('reason = "the query has no ORDER BY"', 'reason = " "', "'reason'"),
        ('aliases = ["sharded"]', "", "aliases must be"),
        ('aliases = ["sharded"]', 'aliases = ["plain"]', "aliases must be"),
        ('aliases = ["sharded"]', 'alias = "sharded"', "unknown keys"),
    ],
)
def test_bad_entry_is_refused(old: str, new: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_known(ENTRY.replace(old, new))


def test_entry_listed_twice_is_refused() -> None:
    elsewhere = ENTRY.replace("sharded", "cluster")
    assert len(read_known(ENTRY + elsewhere)) == 2
    with pytest.raises(ValueError, match="twice"):
        read_known(ENTRY + ENTRY)


def test_entry_applies_where_it_says() -> None:
    (entry,) = read_known(ENTRY + 'engines = ["sqlite"]\ndjango = ["6.1"]\n')
    assert entry.applies("sharded", "sqlite", "6.1")
    assert not entry.applies("cluster", "sqlite", "6.1")
    assert not entry.applies("sharded", "postgresql", "6.1")
    assert not entry.applies("sharded", "sqlite", "5.2")


def test_the_list_of_the_repository_is_sound() -> None:
    known = read_known(command.KNOWN_DIFFERENCES.read_text(encoding="utf-8"))
    apps = set(command.APPS.split())
    for entry in known:
        assert entry.difference_class in CLASSES
        assert entry.test.split(".")[0] in apps, f"{entry.test} is never run"


def test_unknown_app_is_refused(tmp_path: Path) -> None:
    (tmp_path / "basic").mkdir()
    (tmp_path / "basic" / "__init__.py").touch()
    source = Source(Path("python"), "5.2.1", tmp_path)
    good = command.parse(["--django", "5.2", "--tests", "basic.tests.X"])
    command.check_labels(good, source)
    many = command.parse(["--django", "5.2", "--shards", "1,2,8"])
    assert (many.shards, many.shard_counts) == (1, (1, 2, 8))
    with pytest.raises(SystemExit):
        command.parse(["--shards", "2,0"])
    bad = command.parse(["--django", "5.2", "--apps", "basic bsaic"])
    with pytest.raises(CannotRun, match="bsaic"):
        command.check_labels(bad, source)
