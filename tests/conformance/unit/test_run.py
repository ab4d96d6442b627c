"""What a real child process reports, whatever ends it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conformance.report import rungs
from tests.conformance.run import Run, read_events, run_tests

# The part of Django's script that matters here: its options and its settings.
RUNTESTS = """
import os, sys
import django
from django.conf import settings
from django.test.utils import get_runner

options = [word for word in sys.argv[1:] if word.startswith("--")]
labels = [word for word in sys.argv[1:] if not word.startswith("--")]
os.environ["DJANGO_SETTINGS_MODULE"] = options[0].partition("=")[2]
django.setup()
failures = get_runner(settings)(interactive=False).run_tests(labels)
sys.exit(bool(failures))
"""
SETTINGS = """
TEST_RUNNER = "conformance_recorder.RecordingRunner"
DATABASES = {}
"""
TESTS = """
import os, threading, unittest

class Outcomes(unittest.TestCase):
    def test_pass(self): pass
    def test_fail(self): self.assertEqual(1, 2)
    def test_error(self): raise LookupError("no such thing")
    def test_skip(self): self.skipTest("not here")
    @unittest.expectedFailure
    def test_expected(self): self.fail()
    @unittest.expectedFailure
    def test_surprise(self): pass
    def test_parts(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertNotEqual(number, 1)

class BadClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise LookupError("no class")
    def test_never(self): pass

class BadEnd(unittest.TestCase):
    @classmethod
    def tearDownClass(cls): raise LookupError("no end")
    def test_fine(self): pass

class Crash(unittest.TestCase):
    def test_a_before(self): pass
    def test_b_crash(self): os._exit(7)
    def test_c_after(self): pass

class Hang(unittest.TestCase):
    def test_a_before(self): pass
    def test_b_hang(self): threading.Event().wait(60)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tests = tmp_path / "suite"
    (tests / "app").mkdir(parents=True)
    (tests / "runtests.py").write_text(RUNTESTS)
    (tests / "app" / "__init__.py").write_text("")
    (tests / "app" / "tests.py").write_text(TESTS)
    (tmp_path / "conformance_probe.py").write_text(SETTINGS)
    return tmp_path


def run(
    project: Path, label: str, *, deadline_s: float = 60, stall_s: float = 60
) -> Run:
    return run_tests(
        python=Path(sys.executable),
        tests_path=project / "suite",
        settings_path=project / "conformance_probe.py",
        import_paths=[],
        labels=[f"app.tests.{label}"],
        deadline_s=deadline_s,
        stall_s=stall_s,
        echo=False,
    )


def test_each_outcome_is_recorded_with_its_traceback(project: Path) -> None:
    done = run(project, "Outcomes")
    assert done.cut_short == ""
    outcomes = {name.rpartition("_")[2]: each for name, each in done.tests.items()}
    assert {name: each.outcome for name, each in outcomes.items()} == {
        "pass": "passed",
        "fail": "failed",
        "error": "error",
        "skip": "skipped",
        "expected": "expected-failure",
        "surprise": "unexpected-success",
        "parts": "failed",
    }
    assert "LookupError: no such thing" in outcomes["error"].detail
    assert "(number=1)" in outcomes["parts"].detail
    assert done.planned == 7
    assert Run.from_json(done.to_json()) == done


def test_class_set_up_and_tear_down_failures_are_recorded(project: Path) -> None:
    bad = run(project, "BadClass")
    assert bad.tests == {}
    assert "no class" in bad.fixtures["setUpClass (app.tests.BadClass)"].detail
    end = run(project, "BadEnd")
    assert end.tests["app.tests.BadEnd.test_fine"].outcome == "passed"
    assert "no end" in end.fixtures["tearDownClass (app.tests.BadEnd)"].detail


def test_crash_keeps_what_finished(project: Path) -> None:
    done = run(project, "Crash")
    assert list(done.tests) == ["app.tests.Crash.test_a_before"]
    assert "stopped in app.tests.Crash.test_b_crash: exit code 7" in done.cut_short


def test_stalled_test_ends_the_run_and_shows_its_stack(project: Path) -> None:
    done = run(project, "Hang", stall_s=2)
    assert list(done.tests) == ["app.tests.Hang.test_a_before"]
    assert "stopped in app.tests.Hang.test_b_hang" in done.cut_short
    assert "in test_b_hang" in done.cut_short


def test_missed_deadline_ends_the_run_and_shows_its_stack(project: Path) -> None:
    done = run(project, "Hang", deadline_s=5)
    assert list(done.tests) == ["app.tests.Hang.test_a_before"]
    assert "deadline of 5 s missed" in done.cut_short
    assert "in test_b_hang" in done.cut_short
    assert done.total_s < 20


def test_run_that_never_starts_says_why(project: Path) -> None:
    (project / "conformance_probe.py").write_text("raise LookupError('no settings')")
    done = run(project, "Outcomes")
    assert done.tests == {}
    assert "before its first test" in done.cut_short
    assert "LookupError: no settings" in done.cut_short


def test_torn_line_and_repeated_id_are_read_as_the_worst() -> None:
    ended = (
        '{"event": "test", "at_s": %s, "id": "a.T.x", "outcome": "%s", "detail": ""}'
    )
    lines = [
        '{"event": "suite", "at_s": 1.0, "count": 2}',
        ended % (2.0, "error"),
        ended % (3.5, "passed"),
        '{"event": "te',
    ]
    done = read_events(lines)
    assert done.tests["a.T.x"].outcome == "error"
    assert done.app_seconds == {"a": 2.5}
    assert done.setup_s == 1.0
    assert "stopped after a.T.x" in done.cut_short


def test_rungs_are_reported_with_what_was_gathered_and_the_time() -> None:
    run = read_events(
        [
            '{"event": "suite", "at_s": 1.0, "count": 0}',
            '{"event": "rungs", "at_s": 6.0, "one node": 3, "gather": 1}',
            '{"event": "whys", "at_s": 6.0, "it is a union": 1}',
            '{"event": "end", "at_s": 6.0, "failures": 0}',
        ]
    )
    assert (run.rungs, run.whys) == ({"one node": 3, "gather": 1}, {"it is a union": 1})
    assert Run.from_json(run.to_json()) == run
    assert list(rungs(Run(total_s=4.0), run)) == [
        "SELECTs by rung: one node 3, gather 1; 75.0% off the gather rung",
        "  gathered 1 times: it is a union",
        "time: 6.0 s beside 4.0 s on one database, ratio 1.5",
    ]
    assert list(rungs(run, Run(total_s=4.0))) == []
