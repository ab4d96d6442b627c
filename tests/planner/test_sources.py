"""Which way a gather takes, by what both have cost."""

from __future__ import annotations

import pytest

from dbfleet.executor import costs
from dbfleet.planner.sources import Measure, _cheaper

NEVER = float("inf")


@pytest.mark.parametrize(
    ("known", "name", "limit_s"),
    [
        (Measure(), "rows", None),
        (Measure(999, 5.0), "rows", None),  # few rows, whatever they cost
        (Measure(1000, 0.1), "fdw", 1.0),  # tried, for no less than a second
        (Measure(1000, 2.0), "fdw", 8.0),  # for four times as long at most
        (Measure(1000, 2.0, 1.9), "fdw", 8.0),
        (Measure(1000, 2.0, 2.1), "rows", None),
        (Measure(1000, 2.0, NEVER), "rows", None),
        (Measure(is_too_large=True), "fdw", None),
        (Measure(1000, 0.1, 9.0, is_too_large=True), "fdw", None),
        (Measure(by_fdw_s=NEVER, is_too_large=True), "rows", None),
    ],
)
def test_the_way_that_costs_less(
    known: Measure, name: str, limit_s: float | None
) -> None:
    source = _cheaper(known)
    assert (source.name, source.limit_s, source.is_open) == (name, limit_s, True)


def test_costs_are_decayed_means_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "MAX_TEXTS", 3)
    costs.by_rows("x", "a", 1.0, 5000)
    costs.by_rows("x", "a", 2.0, 6000)
    assert costs.measured("x", "a") == Measure(6000, pytest.approx(1.3))
    costs.by_fdw("x", "a", NEVER)
    costs.by_fdw("x", "a", 3.0)
    assert costs.measured("x", "a").by_fdw_s == 3.0
    for text in "bcd":
        costs.too_large("x", text)
    assert costs.measured("x", "a") == Measure()
    assert costs.measured("x", "d").is_too_large
    monkeypatch.setattr(costs, "MAX_AGE_S", -1.0)
    assert costs.measured("x", "d") == Measure()
    costs.forget("x")


def test_a_fault_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    costs.note_fault("x", "nothing there")
    assert costs.fault("x") == "nothing there"
    costs.forget("x")
    assert costs.fault("x") is None
    monkeypatch.setattr(costs, "FAULT_S", 0.0)
    costs.note_fault("x", "nothing there")
    assert costs.fault("x") is None
