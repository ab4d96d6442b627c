"""The checkers see what they are for, on written histories and in broken runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from dbfleet.testing.rig import ServerUnavailable
from tests.conftest import REQUIRE_SERVERS
from tests.faults.sharded.history import Operation, Outcome, State, violations
from tests.support.project import REPOSITORY

HISTORY = [
    Operation(1, "transfer", Outcome.DONE, 5),
    Operation(2, "transfer", Outcome.REFUSED, 5, error="lost"),
    Operation(3, "claim", Outcome.DONE, "e1"),
    Operation(4, "claim", Outcome.REFUSED, "e1", error="taken"),
    Operation(5, "register", Outcome.DONE, seen=5),
    Operation(6, "register", Outcome.REFUSED, seen=5),
    Operation(7, "transfer", Outcome.UNKNOWN, 1, error="no answer"),
]


def state() -> State:
    return State(
        total=100,
        entries={1: [-5, 5]},
        slips=Counter({1: 1}),
        people=[(3, "e1")],
    )


def test_what_is_right_is_right() -> None:
    assert violations(HISTORY, state(), 100) == []
    done = replace(state(), entries={1: [-5, 5], 7: [1, -1]}, slips=Counter([1, 7]))
    assert violations(HISTORY, done, 100) == [], "unknown may be done or not"


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (replace(state(), total=99), "money is not conserved"),
        (replace(state(), entries={1: [-5]}), "transfer 1 is in part"),
        (replace(state(), slips=Counter()), "transfer 1 is in part"),
        (replace(state(), entries={1: [-5, 5], 7: [1]}), "transfer 7 is in part"),
        (replace(state(), entries={}, slips=Counter()), "transfer 1 was acknowledged"),
        (replace(state(), people=[]), "claim 3 was acknowledged and is lost"),
        (replace(state(), people=[(3, "e1"), (4, "e1")]), "'e1' is held 2 times"),
        (replace(state(), people=[(3, "e1"), (4, "e2")]), "claim 4 failed (taken)"),
        (
            replace(state(), entries={1: [-5, 5], 2: [5, -5]}, slips=Counter([1, 2])),
            "transfer 2 failed (lost) and is stored",
        ),
        (replace(state(), orphans=["a: x"]), "prepared on a: x and named by no error"),
    ],
)
def test_what_is_wrong_is_seen(broken: State, expected: str) -> None:
    found = violations(HISTORY, broken, 100)
    assert any(expected in line for line in found), found


def test_a_read_that_misses_its_own_write_is_seen() -> None:
    stale = [*HISTORY, Operation(8, "register", Outcome.REFUSED, seen=4)]
    assert violations(stale, state(), 100) == ["client 0 read 4 after it wrote 5"]


def run(*options: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.sharded", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if ServerUnavailable.__name__ in done.stderr and not REQUIRE_SERVERS:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    last = done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr
    assert re.fullmatch(r"faults: \d+ operations, \d+ violations", last), done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("bug", "expected"),
    [
        ("skip-prepare", "is in part"),
        ("commit-early", "transfer"),
        ("ignore-floor", "after it wrote"),
    ],
)
def test_a_broken_fleet_is_caught(bug: str, expected: str) -> None:
    code, output = run("--ops", "500", "--rounds", "8", "--bug", bug)
    assert code == 1, output
    assert expected in output


def test_a_sound_fleet_has_no_violation() -> None:
    code, output = run("--ops", "300")
    assert code == 0, output
