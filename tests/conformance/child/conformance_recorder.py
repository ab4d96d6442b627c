"""The test runner inside the child process: Django's own, writing what it sees.

It is named by ``TEST_RUNNER`` in the generated settings, so ``runtests.py`` and the
tests stay as they were shipped. Of the project it imports nothing but events, where
the settings have a fleet: the child's environment may hold another Django and Python.

Every event is one JSON line, written at once, so a run that dies leaves all it had.
A test that makes no progress for ``CONFORMANCE_STALL_S`` seconds ends the process,
with the stack of every thread in the log.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import time
import unittest
from collections import Counter
from typing import Any

from django.conf import settings
from django.test.runner import DiscoverRunner

STARTED_AT = time.monotonic()
STALL_S = float(os.environ.get("CONFORMANCE_STALL_S", "3600"))
EVENTS = os.open(
    os.environ.get("CONFORMANCE_EVENTS", os.devnull),
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
)
STDERR = 2


def emit(event: str, **fields: Any) -> None:
    """Append one event to the event file and count it as progress."""
    at_s = round(time.monotonic() - STARTED_AT, 6)
    os.write(
        EVENTS, f"{json.dumps({'event': event, 'at_s': at_s, **fields})}\n".encode()
    )
    faulthandler.dump_traceback_later(STALL_S, exit=True, file=STDERR)


class RecordingResult(unittest.TextTestResult):
    """Django's text result which also emits one event per finished test."""

    running: unittest.TestCase | None = None
    outcome = "passed"
    details: list[str]

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self.running, self.outcome, self.details = test, "passed", []
        emit("start", id=test.id())

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        self.running = None
        emit("test", id=test.id(), outcome=self.outcome, detail="\n".join(self.details))

    def note(self, test: unittest.TestCase, outcome: str, detail: str) -> None:
        """Keep an outcome; a failed set-up of a class or module is its own event."""
        if test is not self.running:
            emit("fixture", id=test.id(), outcome=outcome, detail=detail)
            return
        if outcome != "skipped" or self.outcome == "passed":
            self.outcome = outcome
        self.details.append(detail)

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        self.note(test, "error", self.traceback_text(test, err))

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self.note(test, "failed", self.traceback_text(test, err))

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            detail = f"{subtest}\n{self.traceback_text(test, err)}"
            self.note(test, "failed" if failed else "error", detail)

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        owner = getattr(test, "test_case", test)
        self.note(owner, "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, err)
        self.note(test, "expected-failure", self.traceback_text(test, err))

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        self.note(test, "unexpected-success", "passed, although marked to fail")

    def traceback_text(self, test: Any, err: Any) -> str:
        """The traceback as unittest shows it, the test's own frames alone."""
        return str(self._exc_info_to_string(err, test))  # type: ignore[attr-defined]


def why(reason: str) -> str:
    """What a gather's reason says of statements, whatever their models."""
    return re.sub(r"^\w+\.\w+ is ", "a table is ", reason.rpartition(", and ")[2])


class RecordingRunner(DiscoverRunner):
    """Django's runner; an ``end`` event says that nothing cut it short."""

    rungs: Counter[str]
    #: what kept SELECTs that were gathered from other rungs
    whys: Counter[str]
    #: kept, or its subscription would end
    counting: Any = None

    def get_resultclass(self) -> type[unittest.TextTestResult]:
        return RecordingResult

    def run_suite(self, suite: Any, **kwargs: Any) -> Any:
        emit("suite", count=suite.countTestCases())
        return super().run_suite(suite, **kwargs)

    def run_tests(self, test_labels: Any, **kwargs: Any) -> int:
        emit("setup")
        self.rungs, self.whys = Counter(), Counter()
        self.count_rungs()
        failures = super().run_tests(test_labels, **kwargs)
        emit("rungs", **self.rungs)
        emit("whys", **self.whys)
        emit("end", failures=failures)
        faulthandler.cancel_dump_traceback_later()
        return failures

    def count_rungs(self) -> None:
        """Count the SELECTs of a fleet by how they were carried out."""
        engines = [entry["ENGINE"] for entry in settings.DATABASES.values()]
        if "dbfleet.backend" not in engines:
            return
        from dbfleet.observe import events

        def note(event: Any) -> None:
            route = event.fields.get("route") if event.name == "routed" else None
            if route is not None and route.intent == "read":
                self.rungs[str(route.rung)] += 1
                if route.fragments:
                    self.whys[why(route.reason)] += 1

        self.counting = events.subscribed(note)
        self.counting.__enter__()
