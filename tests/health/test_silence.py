"""When an answer does not come: who asks the server, and when it is given up."""

from __future__ import annotations

import multiprocessing

import pytest

from dbfleet.health.silence import (
    MAX_PROBE_PAUSE_S,
    NEXT_PROBE_S,
    PROBE_S,
    PROBER_S,
    Servers,
    Silence,
    Step,
)
from tests.health.cluster import Clock

NODE = "shop/replica1"
AFTER_S = 0.5


class Waiting:
    """Answers that one process waits for, on a clock that only tests move."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.servers = Servers(self.clock)

    def begin(self, after_s: float | None = AFTER_S) -> Silence:
        return Silence(NODE, after_s, servers=self.servers)

    def probe(self, silence: Silence, answered: bool | None) -> Step:
        self.clock.pass_(PROBE_S)
        return silence.probed(answered)

    def steps(self, silence: Silence, seconds: float, answered: bool | None) -> int:
        """Let time pass; how often the server was probed."""
        probes, end = 0, self.clock.now + seconds
        while self.clock.now < end:
            self.clock.pass_(0.1)
            if silence.step() is Step.PROBE:
                probes += 1
                assert self.probe(silence, answered) is Step.WAIT
        return probes


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def lose(waiting: Waiting, silence: Silence) -> None:
    waiting.clock.pass_(AFTER_S)
    assert silence.step() is Step.PROBE
    assert waiting.probe(silence, False) is Step.PROBE
    assert waiting.probe(silence, False) is Step.LOST


def test_nothing_is_asked_before_the_time(waiting: Waiting) -> None:
    silence = waiting.begin()
    waiting.clock.pass_(AFTER_S * 0.9)
    assert silence.step() is Step.WAIT
    waiting.clock.pass_(AFTER_S * 0.2)
    assert silence.step() is Step.PROBE


def test_what_was_late_before_counts(waiting: Waiting) -> None:
    silence = Silence(NODE, AFTER_S, AFTER_S, waiting.servers)
    assert silence.step() is Step.PROBE


def test_two_probes_without_an_answer_lose_it(waiting: Waiting) -> None:
    silence = waiting.begin()
    lose(waiting, silence)
    assert silence.step() is Step.LOST
    assert waiting.servers.is_lost(NODE)


def test_a_probe_that_was_missed_alone_loses_nothing(waiting: Waiting) -> None:
    silence = waiting.begin()
    waiting.clock.pass_(AFTER_S)
    assert silence.step() is Step.PROBE
    assert waiting.probe(silence, False) is Step.PROBE
    assert waiting.probe(silence, True) is Step.WAIT
    waiting.clock.pass_(NEXT_PROBE_S)
    assert silence.step() is Step.PROBE
    assert waiting.probe(silence, False) is Step.PROBE  # counted anew


def test_a_server_that_answers_is_waited_for_without_end(waiting: Waiting) -> None:
    hour = 3600
    probes = waiting.steps(waiting.begin(), hour, True)
    assert hour / MAX_PROBE_PAUSE_S / 2 < probes < hour / MAX_PROBE_PAUSE_S


def test_a_probe_that_tells_nothing_is_no_verdict(waiting: Waiting) -> None:
    assert waiting.steps(waiting.begin(), 60, None) > 0
    assert not waiting.servers.is_lost(NODE)


def test_one_probes_for_all(waiting: Waiting) -> None:
    first, second = waiting.begin(), waiting.begin()
    waiting.clock.pass_(AFTER_S)
    assert first.step() is Step.PROBE
    assert second.step() is Step.WAIT
    assert waiting.probe(first, True) is Step.WAIT
    assert second.step() is Step.WAIT  # it learned that
    waiting.clock.pass_(NEXT_PROBE_S * 1.1)
    assert second.step() is Step.PROBE


def test_all_that_wait_learn_that_it_is_lost(waiting: Waiting) -> None:
    first, second = waiting.begin(), waiting.begin()
    lose(waiting, first)
    assert second.step() is Step.LOST


def test_a_later_read_asks_at_once_and_once(waiting: Waiting) -> None:
    """It is a trial: the server was lost, and may be back."""
    lose(waiting, waiting.begin())
    waiting.clock.pass_(1)
    trial = waiting.begin()
    assert trial.step() is Step.PROBE
    assert waiting.probe(trial, False) is Step.LOST
    waiting.clock.pass_(1)
    trial = waiting.begin()
    assert trial.step() is Step.PROBE
    assert waiting.probe(trial, True) is Step.WAIT
    assert not waiting.servers.is_lost(NODE)
    later = waiting.begin()
    assert later.step() is Step.WAIT


def test_a_prober_that_tells_nothing_is_forgotten(waiting: Waiting) -> None:
    first, second = waiting.begin(), waiting.begin()
    waiting.clock.pass_(AFTER_S)
    assert first.step() is Step.PROBE
    waiting.clock.pass_(PROBER_S * 0.9)
    assert second.step() is Step.WAIT
    waiting.clock.pass_(PROBER_S * 0.2)
    assert second.step() is Step.PROBE


def test_another_server_is_not_concerned(waiting: Waiting) -> None:
    lose(waiting, waiting.begin())
    other = Silence("shop/replica2", AFTER_S, servers=waiting.servers)
    assert other.step() is Step.WAIT


def test_none_never_asks(waiting: Waiting) -> None:
    silence = waiting.begin(None)
    waiting.clock.pass_(3600)
    assert silence.step() is Step.WAIT
    assert silence.lasts_s() == 3600


def test_a_forked_child_has_no_prober(waiting: Waiting) -> None:
    """The one that probes is a thread of the parent."""
    first = waiting.begin()
    waiting.clock.pass_(AFTER_S)
    assert first.step() is Step.PROBE
    waiting.servers.leave_parent()
    assert waiting.begin().step() is Step.WAIT
    waiting.clock.pass_(AFTER_S)
    assert first.step() is Step.PROBE


def test_a_fork_while_the_lock_is_held() -> None:
    from dbfleet.health import silence

    context = multiprocessing.get_context("fork")
    with silence.known.lock:
        child = context.Process(target=_step_in_child)
        child.start()
        child.join(20)
    assert child.exitcode == 0


def _step_in_child() -> None:
    assert Silence("shop/forked", 1e-9).step() is Step.PROBE
