"""Run ``runtests.py`` in a child process and read back what its recorder wrote.

Both the whole run and each test are bounded in time. Whatever ended the run, the
tests that finished keep their outcomes, and ``Run.cut_short`` says what is missing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

CHILD_PATH = Path(__file__).parent / "child"
TERMINATE_WAIT_S = 10.0
LOG_TAIL_LINES = 25
# From best to worst: a test that ran twice under one id counts by its worst run.
OUTCOMES = (
    "passed",
    "expected-failure",
    "skipped",
    "unexpected-success",
    "failed",
    "error",
)
GOOD = frozenset({"passed", "expected-failure"})


@dataclass(frozen=True)
class Outcome:
    """How one test ended, with its traceback or its reason to be skipped."""

    outcome: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.outcome in GOOD


@dataclass
class Run:
    """Everything one child process reported.

    ``tests`` is keyed by test id. ``fixtures`` holds classes and modules whose set-up
    or tear-down failed or was skipped, keyed as unittest names them. ``cut_short`` is
    empty if the run reached its end.
    """

    tests: dict[str, Outcome] = field(default_factory=dict)
    fixtures: dict[str, Outcome] = field(default_factory=dict)
    app_seconds: dict[str, float] = field(default_factory=dict)
    setup_s: float = 0.0
    total_s: float = 0.0
    planned: int = 0
    #: SELECTs of a fleet, by rung
    rungs: dict[str, int] = field(default_factory=dict)
    #: why some of them were gathered
    whys: dict[str, int] = field(default_factory=dict)
    cut_short: str = ""

    def to_json(self) -> dict[str, Any]:
        """The run as plain JSON values; ``from_json`` reads it back."""
        values = dict(vars(self))
        for key in ("tests", "fixtures"):
            values[key] = {name: vars(each) for name, each in values[key].items()}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Run:
        given = dict(values)
        for key in ("tests", "fixtures"):
            given[key] = {name: Outcome(**each) for name, each in given[key].items()}
        return cls(**given)


def app_of(test_id: str) -> str:
    """The test app a test id or a test label belongs to."""
    return test_id.split(".", 1)[0]


def read_events(lines: Iterable[str]) -> Run:
    """Fold the recorder's lines into a ``Run``; a torn last line is left out."""
    run = Run(cut_short="the run ended before its first test")
    at_s = started_s = 0.0
    running = ""
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        kind, now_s = event["event"], event["at_s"]
        run.total_s = now_s
        if kind == "suite":
            run.planned, run.setup_s = event["count"], now_s
            run.cut_short, at_s = "the run stopped between two tests", now_s
        elif kind in ("rungs", "whys"):
            counts = {k: v for k, v in event.items() if k not in ("event", "at_s")}
            setattr(run, kind, counts)
        elif kind == "start":
            running, started_s = event["id"], now_s
            run.cut_short = f"the run stopped in {running}"
        elif kind == "test":
            test_id = event["id"]
            outcome = Outcome(
                event["outcome"], event["detail"], round(now_s - started_s, 6)
            )
            run.tests[test_id] = worst(run.tests.get(test_id), outcome)
            app = app_of(test_id)
            run.app_seconds[app] = run.app_seconds.get(app, 0.0) + now_s - at_s
            run.cut_short, at_s = f"the run stopped after {test_id}", now_s
        elif kind == "fixture":
            run.fixtures[event["id"]] = Outcome(event["outcome"], event["detail"])
        elif kind == "end":
            run.cut_short = ""
    return run


def worst(first: Outcome | None, second: Outcome) -> Outcome:
    """The worse of two outcomes of one test id."""
    if first is None:
        return second
    return max(first, second, key=lambda each: OUTCOMES.index(each.outcome))


def run_tests(
    *,
    python: Path,
    tests_path: Path,
    settings_path: Path,
    import_paths: list[Path],
    labels: list[str],
    deadline_s: float,
    stall_s: float,
    echo: bool,
) -> Run:
    """Run the labels with the settings module at ``settings_path``.

    The log and the events stay beside the settings, named after them. Never raises
    for what happens in the child: a crash or a missed deadline is in the result.
    """
    events_path = settings_path.with_suffix(".jsonl")
    log_path = settings_path.with_suffix(".log")
    events_path.write_text("")
    command = [
        str(python),
        "runtests.py",
        f"--settings={settings_path.stem}",
        "--parallel=1",
        "--noinput",
        f"--verbosity={2 if echo else 1}",
        *labels,
    ]
    environment = child_environment([settings_path.parent, *import_paths])
    environment["CONFORMANCE_EVENTS"] = str(events_path)
    environment["CONFORMANCE_STALL_S"] = str(stall_s)
    began = time.monotonic()
    with log_path.open("w", encoding="utf-8", errors="replace") as log:
        ended = supervise(command, tests_path, environment, deadline_s, log, echo)
    run = read_events(events_path.read_text(encoding="utf-8").splitlines())
    run.total_s = round(time.monotonic() - began, 3)
    if run.cut_short:
        tail = log_path.read_text(encoding="utf-8").splitlines()[-LOG_TAIL_LINES:]
        run.cut_short = "\n".join([f"{run.cut_short}: {ended}", *tail])
    return run


def child_environment(import_paths: list[Path]) -> dict[str, str]:
    """The child's environment. The hash seed is fixed: sets have the same order."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DJANGO_", "PYTHON", "PYTEST_", "VIRTUAL_ENV"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        str(path) for path in [*import_paths, CHILD_PATH]
    )
    environment["PYTHONHASHSEED"] = "0"
    environment["PYTHONFAULTHANDLER"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def supervise(
    command: list[str],
    directory: Path,
    environment: dict[str, str],
    deadline_s: float,
    log: IO[str],
    echo: bool,
) -> str:
    """Run a command to its end or its deadline; return how it ended."""
    with subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        pump = threading.Thread(target=copy_lines, args=(process.stdout, log, echo))
        pump.start()
        try:
            code = process.wait(timeout=deadline_s)
            ended = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        except subprocess.TimeoutExpired:
            ended = f"deadline of {deadline_s:g} s missed"
            # The fault handler writes every thread's stack into the log.
            signal_group(process, signal.SIGABRT)
            try:
                process.wait(timeout=TERMINATE_WAIT_S)
            except subprocess.TimeoutExpired:
                ended += ", killed"
        finally:
            # What the tests themselves started must not outlive them.
            signal_group(process, signal.SIGKILL)
            pump.join(timeout=TERMINATE_WAIT_S)
    return ended


def signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Signal the child's own process group, if any of it still lives."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def copy_lines(stream: IO[str], log: IO[str], echo: bool) -> None:
    """Copy a stream to the log, and to the terminal if asked."""
    for line in stream:
        log.write(line)
        log.flush()
        if echo:
            sys.stdout.write(line)
            sys.stdout.flush()
