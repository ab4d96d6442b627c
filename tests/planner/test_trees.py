"""Random filters: pruning leaves no row out, and hardly ever asks a shard in vain.

A million of them is ``python -m tests.planner.trees --count 1000000``.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from dbfleet.planner import pruning
from dbfleet.planner.ranges import Span
from dbfleet.sharding import ledger
from tests.planner import trees

COUNT = 3000


def test_no_row_is_left_out_and_few_shards_are_asked_in_vain(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert trees.main(["--count", str(COUNT)]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("seed: ")
    assert lines[-1].startswith(f"trees: {COUNT} run, 0 unsound, ")


@pytest.mark.parametrize("kind", [kind for kind in trees.MAPS if kind != "slots"])
def test_declared_maps_leave_no_row_out(kind: str) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed: {seed}")
    outcome = trees.run(COUNT, seed, kind=kind)
    assert outcome.unsound == 0, outcome.examples
    # Comparisons of texts are the server's, so they ask every shard.
    assert outcome.minimal_percent >= (75 if "texts" in kind else 95)


def test_a_range_that_ends_too_early_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = ledger.DeclaredMap.between

    def short(self: Any, field: Any, values: Span) -> Any:
        high = None if values.high is None else values.high - 1
        return right(self, field, values._replace(high=high))

    monkeypatch.setattr(ledger.DeclaredMap, "between", short)
    seed = random.randrange(1 << 31)
    print(f"seed: {seed}")
    assert trees.run(2000, seed, kind="range").unsound > 0


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("_NEGATED", tuple(range(4))),
        ("any_of", pruning.all_of),
        ("_is_null", lambda column, wants_null, truth: pruning.NOTHING),
        ("_outside", lambda low, high, step: []),
    ],
)
def test_pruning_that_is_wrong_is_found_out(
    name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, name, broken)
    seed = random.randrange(1 << 31)
    print(f"seed: {seed}")
    assert trees.run(2000, seed).unsound > 0
