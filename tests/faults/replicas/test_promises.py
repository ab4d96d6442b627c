"""The checkers see what they are for, and broken fleets in real runs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from dbfleet.testing.rig import ServerUnavailable
from tests.conftest import REQUIRE_SERVERS
from tests.faults.replicas.promises import (
    Acknowledged,
    Promises,
    Row,
    complete,
    final_lines,
    final_registers,
    invented,
    recent,
)
from tests.support.project import REPOSITORY


def test_a_session_reads_its_own_writes() -> None:
    session = Promises()
    session.wrote(1, 5)
    assert session.read(Row(1, 5, 0, 0)) == []
    assert session.read(Row(1, 4, 0, 0)) == ["read-your-writes: register 1 is 4 < 5"]


def test_a_session_never_goes_back() -> None:
    session = Promises()
    assert session.read(Row(2, 7, 0, 0)) == []
    assert session.read(Row(3, 1, 0, 0)) == []
    assert session.read(Row(2, 6, 0, 0)) == ["monotonic reads: register 2 is 6 < 7"]
    assert session.read(Row(2, 8, 0, 0)) == []


def test_a_primary_may_lack_what_its_writer_was_not_answered_yet() -> None:
    session = Promises()
    assert session.read(Row(2, 7, 0, 0)) == []
    assert session.read(Row(2, 6, 0, 0), [0, 0, 6]) == []
    assert session.unanswered == 1
    violated = ["monotonic reads: register 2 is 6 < 7"]
    assert session.read(Row(2, 6, 0, 0), [0, 0, 7]) == violated  # it was answered
    assert session.read(Row(2, 6, 0, 0)) == violated  # on a replica
    session.wrote(2, 8)
    assert session.read(Row(2, 7, 0, 0), [0, 0, 7]) == [
        "read-your-writes: register 2 is 7 < 8"
    ]


def test_what_a_row_follows_is_demanded() -> None:
    session = Promises()
    assert session.read(Row(4, 1, 5, 9)) == []
    expected = ["writes-follow-reads: register 5 is 8 < 9"]
    assert session.read(Row(5, 8, 0, 0)) == expected


def test_a_resumed_token_brings_its_promises() -> None:
    first, second = Promises(), Promises()
    first.wrote(1, 5)
    first.wrote_lines([17])
    second.wrote(1, 3)
    second.add(first.least, first.lines)
    [found] = second.read(Row(1, 4, 0, 0))
    assert found == "read-your-writes, of a resumed token: register 1 is 4 < 5"
    assert second.lines == [17]


def test_lines_are_there_once() -> None:
    session = Promises()
    assert session.read_line(17, 1) == []
    assert session.read_line(17, 0) == ["read-your-writes: line 17 is not there"]
    assert session.read_line(17, 2) == ["duplicate: line 17 is there 2 times"]


def test_levels_promise_what_was_acknowledged() -> None:
    row = Row(0, 4, 0, 0)
    assert recent(row, [4], "strong") == []
    assert recent(row, [5], "strong") == ["strong: register 0 is 4 < 5"]
    assert invented(row, [4]) == []
    assert invented(row, [3]) == ["invented: register 0 is 4, written up to 3"]


@pytest.mark.parametrize("read", [[0, 1], [0, 1, 1, 2], [0, 1, 0, 1, 2]])
def test_rows_that_are_skipped_or_repeated_are_seen(read: list[int]) -> None:
    assert complete([Row(n, 0, 0, 0) for n in [0, 1, 2]], 3) == []
    assert complete([Row(n, 0, 0, 0) for n in read], 3)


def test_the_end_is_what_clients_were_told() -> None:
    told = Acknowledged({1, 2}, {3}, {4, 5})
    assert final_lines(told, {1: 1, 2: 1, 4: 1}) == []
    assert final_lines(told, {1: 1}) == [
        "lost: line 2 was acknowledged and is not there"
    ]
    assert final_lines(told, {1: 1}, frozenset({2})) == [], "its loss was reported"
    assert final_lines(told, {1: 1, 2: 1, 3: 1}) == [
        "refused: line 3 was refused and is there"
    ]
    assert final_lines(told, {1: 2, 2: 1}) == ["duplicate: line 1 is there 2 times"]
    assert final_lines(told, {1: 1, 2: 1, 9: 1}) == [
        "invented: line 9 was never appended"
    ]
    assert final_registers({0: 5, 1: 3}, [5, 2], [5, 3]) == []
    assert len(final_registers({0: 4, 1: 4}, [5, 2], [5, 3])) == 2


def run(*options: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.replicas", *options],
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


@pytest.mark.parametrize("engine", ["postgresql", "mariadb"])
def test_a_sound_cluster_has_no_violation(engine: str) -> None:
    code, output = run("--ops", "1500", "--engine", engine)
    assert code == 0, output


def test_broken_clusters_are_caught() -> None:
    """Of all bugs, those that show soonest; ``--bugs`` runs them all."""
    quick = "ignore-floors,commit-unseen,forget-node"
    code, output = run("--bugs", "--bug", quick)
    assert code == 0, output
    assert "3 caught, 0 missed" in output
