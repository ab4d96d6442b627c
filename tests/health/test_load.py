"""What is measured of each node: reads in flight, decayed latency, failures."""

from __future__ import annotations

import multiprocessing
import threading

import pytest

from dbfleet.health import load
from dbfleet.health.load import FORGET_S, HALF_LIFE_S, MANY_IN_FLIGHT, WINDOW, Loads
from tests.health.cluster import Clock

NODE = "shop/replica1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loads(clock: Clock) -> Loads:
    return Loads(clock)


def read(loads: Loads, clock: Clock, seconds: float, failed: bool = False) -> None:
    start = loads.started(NODE)
    clock.pass_(seconds)
    loads.finished(NODE, start, failed)


def test_a_node_never_asked_is_unknown(loads: Loads) -> None:
    found = loads.in_flight(NODE), loads.latency_s(NODE), loads.failures(NODE)
    assert found == (0, 0, 0)
    assert loads.of(NODE) is None


def test_reads_are_in_flight_until_they_end(loads: Loads, clock: Clock) -> None:
    starts = []
    for _ in range(3):
        clock.pass_(0.001)
        starts.append(loads.started(NODE))
    assert loads.in_flight(NODE) == 3
    loads.finished(NODE, starts[1])
    loads.finished(NODE, starts[1])
    loads.finished(NODE, starts[2], failed=True)
    assert loads.in_flight(NODE) == 1


def test_a_rise_counts_at_once_and_halves(loads: Loads, clock: Clock) -> None:
    for _ in range(10):
        read(loads, clock, 0.001)
    read(loads, clock, 0.4)
    assert loads.latency_s(NODE) == pytest.approx(0.4)
    clock.pass_(HALF_LIFE_S)
    assert loads.latency_s(NODE) == pytest.approx(0.2)
    # A quick read after one half-life has half of the say.
    read(loads, clock, 0.0)
    assert loads.latency_s(NODE) == pytest.approx(0.2)


def test_a_failure_never_makes_a_node_look_quicker(loads: Loads, clock: Clock) -> None:
    read(loads, clock, 0.1)
    clock.pass_(HALF_LIFE_S)
    read(loads, clock, 0.0, failed=True)
    assert loads.latency_s(NODE) == pytest.approx(0.05)
    clock.pass_(HALF_LIFE_S)
    # The first answer after two half-lives has three quarters of the say.
    read(loads, clock, 0.02)
    assert loads.latency_s(NODE) == pytest.approx(0.04, rel=0.02)
    read(loads, clock, 5.0, failed=True)
    assert loads.latency_s(NODE) == pytest.approx(5.0)
    assert loads.failures(NODE) == 2
    known = loads.of(NODE)
    assert known is not None
    assert [taken for _, taken in known.answered()] == pytest.approx([0.1, 0.02])


def test_what_is_remembered_is_bounded(loads: Loads, clock: Clock) -> None:
    for _ in range(WINDOW * 2):
        read(loads, clock, 0.001)
    known = loads.of(NODE)
    assert known is not None
    assert len(known.answered()) == WINDOW
    for _ in range(MANY_IN_FLIGHT + 1):
        clock.pass_(0.001)
        loads.started(NODE)  # and never finished
    clock.pass_(FORGET_S)
    for _ in range(5):
        clock.pass_(0.001)
        loads.started(NODE)
    assert loads.in_flight(NODE) <= 6


def test_a_late_clock_of_another_thread_does_no_harm(
    loads: Loads, clock: Clock
) -> None:
    read(loads, clock, 0.1)
    known = loads.of(NODE)
    assert known is not None
    known.updated = clock.now + 5  # written by a thread that read the clock later
    read(loads, clock, 0.01)
    assert 0.01 <= loads.latency_s(NODE) <= 0.1001


def test_threads_leave_nothing_in_flight() -> None:
    loads = Loads()

    def work() -> None:
        for _ in range(2000):
            loads.finished(NODE, loads.started(NODE))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads.in_flight(NODE) == 0
    assert loads.latency_s(NODE) > 0


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork here"
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_nothing_in_flight() -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    name = "load-fork/replica1"
    load.finished(name, load.started(name))
    start = load.started(name)

    def child() -> None:
        before = load.in_flight(name)
        load.finished(name, start)
        own = load.started(name)
        answers.put((before, load.in_flight(name), load.latency_s(name) > 0))
        load.finished(name, own)

    try:
        process = context.Process(target=child)
        process.start()
        found = answers.get()
        process.join(10)
        assert found == (0, 1, True)
        assert load.in_flight(name) == 1
    finally:
        load.loads.forget(name)
