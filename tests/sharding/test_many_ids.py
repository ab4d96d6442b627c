"""Time-ordered ids of several processes: none twice, whatever clocks and ends do."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from django.db.models import AutoField, BigAutoField, Model, UUIDField
from hypothesis import given, settings
from hypothesis import strategies as st

from dbfleet.sharding import ids
from dbfleet.sharding.clock_ids import (
    END_MS,
    LEAST_MS,
    PER_MS,
    WINDOW_MS,
    WORKERS,
    Promise,
    Window,
    next_promise,
)
from tests.sharding import many_ids
from tests.support.project import REPOSITORY


def test_a_run_with_faults(tmp_path: Path) -> None:
    """The bounded run; 10⁸ ids are ``--count 100000000 --processes 16``."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    arguments = ["--count", "200000", "--processes", "4", "--directory", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.sharding.many_ids", *arguments],
        cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=110,
        check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)  # the seed
    assert done.returncode == 0
    last = done.stdout.splitlines()[-1].split()
    assert int(last[1]) >= 200_000
    assert last[2:] == ["issued,", "0", "duplicates"]


def test_the_run_counts_what_is_twice(tmp_path: Path) -> None:
    many = many_ids.CHUNK * 2
    files: list[tuple[str, Iterable[int]]] = [
        ("1.1", range(many)),
        ("1.2", range(many - 3, many + 5)),
        ("2.1", [many + 6, many + 5]),
        ("3.1", []),
    ]
    for name, values in files:
        tmp_path.joinpath(name).write_bytes(array("q", values).tobytes())
    tmp_path.joinpath("2.2").write_bytes(array("q", [many]).tobytes() + b"cut")
    found = many_ids.check(tmp_path.iterdir())
    assert found == (many + 8 + 2 + 1, 4, 1)


# --- pure ----------------------------------------------------------------------------


def first(ledger: dict[int, int], now_ms: int, **more: Any) -> Promise:
    options: dict[str, Any] = {"mine": None, "given_ms": -1, "choose": min}
    return next_promise(ledger, now_ms, **{**options, **more})


def test_a_number_that_nobody_had() -> None:
    assert first({}, 50) == Promise(0, None, 50, 50 + WINDOW_MS - 1)
    assert first({0: 49, 1: 50}, 50) == Promise(0, 49, 50, 50 + WINDOW_MS - 1)


def test_ones_own_number_goes_on() -> None:
    assert first({7: 90}, 50, mine=(7, 90), given_ms=60).first_ms == 91
    # The ledger is an older one: what was promised stays.
    assert first({7: 40}, 50, mine=(7, 90)) == Promise(7, 40, 91, 50 + WINDOW_MS - 1)
    assert first({}, 50, mine=(7, 90)) == Promise(7, None, 91, 50 + WINDOW_MS - 1)
    # Somebody else has it.
    assert first({7: 91}, 50, mine=(7, 90), given_ms=60) == Promise(
        0, None, 61, 50 + WINDOW_MS - 1
    )


def test_no_number_is_free() -> None:
    ledger = dict.fromkeys(range(WORKERS), 70_000) | {3: 60_000}
    found = first(ledger, 10)
    assert found == Promise(3, 60_000, 60_001, 60_001 + LEAST_MS - 1)


def test_bits_of_an_id() -> None:
    last = Window(Promise(WORKERS - 1, None, END_MS - 1, END_MS - 1))
    found = last.take(0, PER_MS + 1)
    assert len(found) == PER_MS
    assert found[-1] == 2**63 - 1
    assert Window(Promise(5, None, 3, 3)).take(3, 1) == [3 << 22 | 5 << 12]


def test_a_window() -> None:
    window = Window(Promise(0, None, 10, 13))
    assert [one >> 22 for one in window.take(10, 2)] == [10, 10]
    assert [one >> 22 for one in window.take(12, 1)] == [12]
    back = window.take(11, PER_MS)  # the clock stepped back, and one does not suffice
    assert {one >> 22 for one in back} == {12, 13}
    assert len(window.take(14, 1)) == 0
    assert len(window.take(11, 9999)) == 0
    assert window.given_ms == 14


STEP = st.tuples(
    st.integers(0, 2),  # process
    st.sampled_from(["ask", "promise", "take", "take", "die"]),
    st.integers(0, 6),  # what its clock says
    st.integers(1, PER_MS + 1),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_nothing_is_given_twice(steps: list[tuple[int, str, int, int]]) -> None:
    """Any clocks and any order of steps of three processes over one ledger."""
    ledger: dict[int, int] = {}
    asked: dict[int, Promise] = {}
    windows: dict[int, Window] = {}
    mine: dict[int, tuple[int, int]] = {}
    given_ms: dict[int, int] = {}
    seen: set[int] = set()
    last: dict[int, int] = {}
    for process, what, now_ms, count in steps:
        if what == "ask":
            asked[process] = next_promise(
                ledger, now_ms, mine=mine.get(process),
                given_ms=given_ms.get(process, -1), choose=min,
            )  # fmt: skip
        elif what == "promise" and process in asked:
            promise = asked.pop(process)
            if ledger.get(promise.worker) == promise.before_ms:
                ledger[promise.worker] = promise.until_ms
                windows[process] = Window(promise)
                mine[process] = promise.worker, promise.until_ms
        elif what == "take" and process in windows:
            found = windows[process].take(now_ms, count)
            given_ms[process] = windows[process].given_ms
            assert found == sorted(found)
            assert not found or found[0] > last.get(process, -1)
            assert seen.isdisjoint(found)
            seen.update(found)
            last[process] = max(found, default=last.get(process, -1))
        elif what == "die":
            for known in (asked, windows, mine, given_ms, last):
                known.pop(process, None)


@pytest.mark.parametrize(
    ("kind", "field", "fits", "filled"),
    [
        ("leased", AutoField, True, True),
        ("time", BigAutoField, True, True),
        ("time", AutoField, False, True),
        ("uuid7", BigAutoField, False, False),
        ("uuid7", UUIDField, True, True),
        ("time", UUIDField, True, False),
    ],
)
def test_what_a_key_holds(kind: str, field: Any, fits: bool, filled: bool) -> None:
    name = f"{kind.title()}{field.__name__}"
    meta = type("Meta", (), {"app_label": "many_ids"})
    body = {"__module__": __name__, "id": field(primary_key=True), "Meta": meta}
    opts = type(name, (Model,), body)._meta
    assert (ids.misfit(kind, opts) is None) is fits
    assert ids.is_filled(kind, opts) is filled
