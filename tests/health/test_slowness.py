"""A replica that is slow but not dead is left alone, and comes back."""

from __future__ import annotations

import math
import random

import pytest

from dbfleet.errors import CATALOGUE
from dbfleet.health.breaker import FLOOR_S, MAX_PAUSE_S, RECENT_S, SLOW_PAUSE_S, TRIAL_S
from dbfleet.observe import events
from tests.health.cluster import CLUSTER, NAMES, PRIMARY, Load, Reader, seeded

SLOW = NAMES[1]
OTHERS = [NAMES[0], NAMES[2]]


def run_until_ejected(load: Load, bound_s: float) -> float:
    """How long it took until the slow node is out."""
    clock, start = load.reader.clock, load.reader.clock.now
    for _ in load.run(start + bound_s):
        if SLOW in load.reader.breaker.ejected():
            return clock.now - start
    raise AssertionError(f"not ejected within {bound_s} s: {load.shares()}")


# Four readers that all hang can ask nothing, so eight are the fewest there.
@pytest.mark.parametrize(
    ("readers", "added_s"),
    [(4, 0.5), (8, 0.5), (32, 0.5), (8, math.inf), (32, math.inf)],
)
def test_a_slow_or_hanging_replica_is_out_within_a_second(
    readers: int, added_s: float
) -> None:
    rng = seeded()
    broken_from = math.inf

    def taking_s(name: str, now: float) -> float:
        quick = rng.uniform(0.001, 0.005)
        return quick + added_s if name == SLOW and now >= broken_from else quick

    reader = Reader()
    load = Load(reader, readers, taking_s, rng)
    load.run_to(reader.clock.now + 2)
    assert reader.breaker.ejected() == frozenset()
    broken_from = reader.clock.now
    if added_s == math.inf:
        # Every reader is caught sooner or later; a new one asks then.
        load.run_to(broken_from + FLOOR_S + 0.2)
        reader.clock.now = broken_from + FLOOR_S + 0.2
        assert reader.usable() == OTHERS
        return
    assert run_until_ejected(load, 1.2) <= 1.1
    # Two seconds later every read but the trials is quick again.
    load.answers.clear()
    load.run_to(reader.clock.now + 2)
    load.answers.clear()
    load.run_to(reader.clock.now + 8)
    slow = [taken for _, _, taken in load.answers if taken > FLOOR_S]
    assert len(slow) <= 3, len(load.answers)
    assert len(load.answers) > 1000


def test_it_comes_back_when_it_is_quick_again(reader: Reader) -> None:
    reader.warm_up()
    reader.eject(SLOW)
    reader.clock.pass_(SLOW_PAUSE_S * 1.3)
    assert reader.usable() == list(NAMES)
    assert [reader.breaker.admits(SLOW) for _ in range(2)] == [True, False]
    reader.read(SLOW, 0.002)
    reader.clock.pass_(0.1)
    assert reader.usable() == list(NAMES)
    assert reader.breaker.ejected() == frozenset()
    assert reader.breaker.admits(SLOW)
    assert reader.breaker.admits(SLOW)


def test_a_success_alone_does_not_bring_it_back(reader: Reader) -> None:
    """It answered, but how quickly is what counts."""
    reader.warm_up()
    reader.eject(SLOW)
    reader.breaker.succeeded(SLOW)
    assert reader.usable() == OTHERS


def test_a_slow_trial_pauses_longer(reader: Reader) -> None:
    reader.warm_up()
    reader.eject(SLOW)
    expected = SLOW_PAUSE_S
    for _ in range(5):
        start = reader.clock.now
        while SLOW not in reader.usable():
            reader.clock.pass_(0.02)
            for name in OTHERS:
                reader.read(name, 0.001)
        assert reader.clock.now - start <= expected * 1.3 + 0.1
        assert reader.clock.now - start >= expected * 0.7 - 0.1
        assert reader.breaker.admits(SLOW)
        reader.read(SLOW, 0.5)
        for name in OTHERS:
            reader.read(name, 0.001, times=4)
        assert reader.usable() == OTHERS
        expected = min(expected * 2, MAX_PAUSE_S)


def test_a_trial_that_hangs_ends_the_trial(reader: Reader) -> None:
    reader.warm_up()
    reader.eject(SLOW)
    reader.clock.pass_(SLOW_PAUSE_S * 1.3)
    assert reader.breaker.admits(SLOW)
    reader.loads.started(SLOW)
    reader.clock.pass_(TRIAL_S + 1)
    for name in OTHERS:
        reader.read(name, 0.001, times=4)
    reader.clock.pass_(0.1)
    assert reader.usable() == OTHERS


def test_reads_sent_before_the_trial_are_no_result_of_it(reader: Reader) -> None:
    reader.warm_up()
    old = reader.loads.started(SLOW)
    reader.clock.pass_(0.001)
    reader.eject(SLOW)
    reader.clock.pass_(SLOW_PAUSE_S * 1.3)
    for name in OTHERS:
        reader.read(name, 0.001, times=4)
    assert reader.breaker.admits(SLOW)
    reader.clock.pass_(0.01)
    reader.loads.finished(SLOW, old)
    reader.clock.pass_(0.1)
    assert reader.usable() == OTHERS  # the trial is still under way
    reader.read(SLOW, 0.001)
    reader.clock.pass_(0.1)
    assert reader.usable() == list(NAMES)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_slow_queries_eject_nobody(reader: Reader, count: int) -> None:
    reader.warm_up()
    reader.read(SLOW, 5.0, times=count)
    assert reader.usable() == list(NAMES)
    reader.loads.started(SLOW)
    reader.clock.pass_(0.05)
    assert reader.usable() == list(NAMES)


def test_one_query_in_flight_for_long_ejects_nobody(reader: Reader) -> None:
    reader.warm_up()
    reader.loads.started(SLOW)
    for _ in range(100):
        for name in NAMES:
            reader.read(name, 0.002)
        assert reader.usable() == list(NAMES)


def test_what_slows_all_alike_ejects_nobody(reader: Reader) -> None:
    reader.warm_up()
    for _ in range(30):
        for name in NAMES:
            reader.read(name, 0.4)
        assert reader.usable() == list(NAMES)


def test_a_standstill_of_all_ejects_nobody(reader: Reader) -> None:
    """The network, or this process, stood still: every read in flight looks late."""
    reader.warm_up()
    for name in NAMES:
        for _ in range(8):
            reader.clock.pass_(0.0001)
            reader.loads.started(name)
    reader.clock.pass_(0.4)
    assert reader.usable() == list(NAMES)


def test_a_share_of_slow_queries_everywhere_ejects_nobody() -> None:
    """One query in twenty is a report; all replicas get their part of them."""
    rng = seeded()
    reader = Reader()

    def taking_s(name: str, now: float) -> float:
        return rng.uniform(0.3, 0.5) if rng.random() < 0.05 else 0.002

    load = Load(reader, 8, taking_s, rng)
    ejections: list[str] = []

    def note(event: events.Event) -> None:
        ejections.append(event.fields["node"])

    with events.subscribed(note):
        load.run_to(reader.clock.now + 60)
    assert len(load.answers) > 10_000
    # By chance four reports meet in a row now and then; it lasts for one trial.
    assert len(ejections) <= 8, ejections


def test_slower_reads_are_slow_only_beside_their_peers(reader: Reader) -> None:
    for _ in range(20):
        for name in NAMES:
            reader.read(name, 0.3)
    reader.read(SLOW, 0.8, times=4)  # below three times the peers' median
    assert reader.usable() == list(NAMES)
    reader.read(SLOW, 1.0, times=4)
    assert reader.usable() == OTHERS


def test_two_of_three_slow_ejects_one(reader: Reader) -> None:
    reader.warm_up()
    for _ in range(6):
        reader.read(NAMES[0], 0.5)
        reader.read(NAMES[1], 0.5)
        reader.read(NAMES[2], 0.001)
    assert len(reader.usable()) == 2
    assert NAMES[2] in reader.usable()


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.1, 1), (0.3, 2), (0.5, 3)])
def test_at_most_the_share_is_ejected(share: float, count: int) -> None:
    names = tuple(f"shop/replica{number}" for number in range(1, 8))
    reader = Reader(names)
    reader.warm_up()
    for name in names[:3]:
        reader.read(name, 0.5, times=4)
    for name in names[3:]:
        reader.read(name, 0.001, times=4)
    reader.clock.pass_(0.1)
    assert len(reader.usable(share)) == len(names) - count
    assert reader.breaker.ejected() <= set(names[:3])


def test_the_last_of_several_stays_when_the_others_are_down(reader: Reader) -> None:
    for _ in range(8):
        for name in OTHERS:
            reader.breaker.failed(name)
        reader.clock.pass_(MAX_PAUSE_S * 1.2)
    for name in OTHERS:
        reader.breaker.failed(name)
    reader.read(PRIMARY, 0.001, times=8)
    reader.read(SLOW, 0.5, times=8)
    assert reader.usable() == [SLOW]
    for name in OTHERS:
        reader.breaker.succeeded(name)
        reader.read(name, 0.001, times=4)
    reader.clock.pass_(0.1)
    assert reader.usable() == OTHERS


def test_a_single_replica_is_compared_with_its_primary() -> None:
    reader = Reader(NAMES[:1])
    reader.read(NAMES[0], 0.5, times=8)
    assert reader.usable() == [NAMES[0]]  # nothing to compare with
    reader.read(PRIMARY, 0.001, times=8)
    reader.clock.pass_(0.1)
    assert reader.usable() == []


def test_old_reads_say_nothing(reader: Reader) -> None:
    reader.warm_up()
    reader.read(SLOW, 0.5, times=3)
    reader.clock.pass_(RECENT_S)
    for name in OTHERS:
        reader.read(name, 0.001, times=8)
    reader.read(SLOW, 0.5)
    assert reader.usable() == list(NAMES)
    reader.read(SLOW, 0.5, times=3)
    assert reader.usable() == OTHERS


def test_its_past_does_not_eject_it_again(reader: Reader) -> None:
    reader.warm_up()
    reader.read(SLOW, 0.5, times=8)
    assert reader.usable() == OTHERS
    reader.clock.pass_(SLOW_PAUSE_S * 1.2)
    for name in OTHERS:
        reader.read(name, 0.001, times=4)
    assert reader.breaker.admits(SLOW)
    for _ in range(8):
        reader.read(SLOW, 0.002)
        reader.clock.pass_(0.1)
        assert reader.usable() == list(NAMES)


def test_subscribers_are_told(reader: Reader) -> None:
    told: list[events.Event] = []
    with events.subscribed(told.append):
        reader.warm_up()
        reader.eject(SLOW)
        reader.clock.pass_(SLOW_PAUSE_S * 1.3)
        reader.breaker.admits(SLOW)
        reader.read(SLOW, 0.002)
        reader.clock.pass_(0.1)
        reader.usable()
    assert told == [
        ("replica_ejected", {"node": SLOW}),
        ("replica_returned", {"node": SLOW}),
    ]


def test_another_cluster_is_not_concerned(reader: Reader) -> None:
    reader.warm_up()
    reader.eject(SLOW)
    others = ("crm/replica1", "crm/replica2")
    assert reader.breaker.usable("crm", others) is others
    assert reader.breaker.usable(CLUSTER, NAMES) is not NAMES


def test_randomness_of_pauses_is_the_only_one() -> None:
    """Two breakers that see the same agree on who is out."""
    found = []
    for _ in range(2):
        reader = Reader()
        rng = random.Random(5)
        load = Load(reader, 8, lambda name, now: 0.6 if name == SLOW else 0.002, rng)
        load.run_to(reader.clock.now + 1.5)
        found.append(reader.breaker.ejected())
    assert found[0] == found[1] == {SLOW}


def test_the_code_of_the_way_out_is_known() -> None:
    assert "E206" in CATALOGUE
