"""Errors open the breaker, pauses double, one read at a time tries a node again."""

from __future__ import annotations

import threading

import pytest

from dbfleet.health import FIRST_PAUSE_S, MAX_PAUSE_S, Breaker, breaker, drain
from dbfleet.health.breaker import TRIAL_S
from tests.health.cluster import CLUSTER, NAMES, Reader

NODE = NAMES[1]
OTHERS = [NAMES[0], NAMES[2]]


def pause_of(reader: Reader, name: str) -> float:
    """How long the node is left alone from now, to a hundredth of a second."""
    start = reader.clock.now
    while reader.breaker.is_open(name):
        reader.clock.pass_(0.01)
        assert reader.clock.now < start + 100
    return reader.clock.now - start


def test_nothing_wrong_gives_back_the_same(reader: Reader) -> None:
    assert reader.breaker.usable(CLUSTER, NAMES) is NAMES
    reader.warm_up()
    assert reader.breaker.usable(CLUSTER, NAMES) is NAMES
    assert all(map(reader.breaker.admits, NAMES))
    assert all(map(reader.breaker.is_usable, NAMES))


def test_a_failure_takes_a_node_out_at_once(reader: Reader) -> None:
    reader.breaker.failed(NODE)
    assert reader.usable() == OTHERS
    assert reader.breaker.is_open(NODE)
    assert not reader.breaker.admits(NODE)
    assert not reader.breaker.is_usable(NODE)


def test_all_may_be_out_after_failures(reader: Reader) -> None:
    for name in NAMES:
        reader.breaker.failed(name)
    assert reader.usable() == []


def test_pauses_double_up_to_a_bound(reader: Reader) -> None:
    expected = FIRST_PAUSE_S
    for _ in range(8):
        reader.breaker.failed(NODE)
        found = pause_of(reader, NODE)
        assert 0.8 * expected - 0.02 <= found <= 1.2 * expected + 0.02
        expected = min(expected * 2, MAX_PAUSE_S)
    reader.breaker.succeeded(NODE)
    reader.breaker.failed(NODE)
    assert pause_of(reader, NODE) <= 1.2 * FIRST_PAUSE_S + 0.02


def test_returns_are_spread() -> None:
    pauses = set()
    for _ in range(20):
        reader = Reader()
        reader.breaker.failed(NODE)
        pauses.add(round(pause_of(reader, NODE), 2))
    # Twenty draws out of twenty hundredths all agree once in 10**24 runs.
    assert len(pauses) > 1


def test_readers_that_fail_together_count_once(reader: Reader) -> None:
    for _ in range(10):
        reader.breaker.failed(NODE)
    assert pause_of(reader, NODE) <= 1.2 * FIRST_PAUSE_S + 0.02


def test_one_read_at_a_time_tries_a_node_again(reader: Reader) -> None:
    reader.breaker.failed(NODE)
    pause_of(reader, NODE)
    # Being looked at is not being tried: the policy may choose another one.
    assert reader.usable() == reader.usable() == list(NAMES)
    assert [reader.breaker.admits(NODE) for _ in range(3)] == [True, False, False]
    assert reader.usable() == OTHERS
    reader.breaker.succeeded(NODE)
    assert [reader.breaker.admits(NODE) for _ in range(3)] == [True] * 3
    assert reader.breaker.usable(CLUSTER, NAMES) is NAMES


def test_a_trial_that_fails_pauses_longer(reader: Reader) -> None:
    reader.breaker.failed(NODE)
    pause_of(reader, NODE)
    assert reader.breaker.admits(NODE)
    reader.breaker.failed(NODE)
    assert pause_of(reader, NODE) >= 1.6 * FIRST_PAUSE_S - 0.02


def test_a_trial_that_never_reports_is_forgotten(reader: Reader) -> None:
    reader.breaker.failed(NODE)
    pause_of(reader, NODE)
    assert reader.breaker.admits(NODE)
    reader.clock.pass_(TRIAL_S - 0.01)
    assert reader.usable() == OTHERS
    reader.clock.pass_(0.02)
    assert [reader.breaker.admits(NODE) for _ in range(2)] == [True, False]


def test_exactly_one_of_many_threads_gets_the_trial(reader: Reader) -> None:
    for _ in range(30):
        reader.breaker.reset()
        reader.breaker.failed(NODE)
        reader.clock.pass_(2 * FIRST_PAUSE_S)
        together = threading.Barrier(6)
        admitted: list[bool] = []

        def ask(
            together: threading.Barrier = together, admitted: list[bool] = admitted
        ) -> None:
            together.wait(10)
            admitted.append(reader.breaker.admits(NODE))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(admitted) == 1


def test_drained_nodes_are_left_out(reader: Reader) -> None:
    drain.set_drained([NODE])
    assert reader.usable() == OTHERS
    assert not reader.breaker.is_usable(NODE)
    assert not reader.breaker.is_open(NODE)  # nothing is wrong with it
    drain.set_drained([])
    assert reader.breaker.usable(CLUSTER, NAMES) is NAMES


def test_a_forgotten_node_starts_afresh(reader: Reader) -> None:
    reader.warm_up()
    reader.breaker.failed(NODE)
    reader.breaker.forget(NODE)
    assert reader.breaker.usable(CLUSTER, NAMES) is NAMES
    assert reader.loads.of(NODE) is None


@pytest.mark.parametrize("name", ["is_open", "failed", "succeeded", "reset", "usable"])
def test_the_process_has_one_breaker(name: str) -> None:
    import sys

    module = sys.modules[Breaker.__module__]
    assert getattr(module, name) == getattr(breaker, name)
