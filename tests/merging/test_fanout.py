"""Steps on several nodes at a time: bounded, ended when one fails, one session."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dbfleet import sessions
from dbfleet.errors import FanoutTimeout
from dbfleet.executor import fanout
from dbfleet.executor.fanout import Job
from dbfleet.topology.snapshot import FanoutLimits
from tests.merging import scenarios
from tests.merging.fleet import MergingProject, serve

DEADLINE_S = 20


@pytest.fixture(autouse=True)
def clean_sessions() -> Iterator[None]:
    sessions.forget()
    yield
    sessions.forget()


def job(run: Callable[[], Any]) -> Job:
    return Job(run, lambda timeout_s: None, lambda: None)


class Slow:
    """A step that lasts until it is cancelled, or for ever if it cannot be."""

    def __init__(self, *, ends: bool = True) -> None:
        self.ends, self.is_abandoned = ends, False
        self.started, self.over = threading.Event(), threading.Event()

    def run(self) -> None:
        self.started.set()
        assert self.over.wait(DEADLINE_S)

    def cancel(self, timeout_s: float) -> None:
        assert 0 < timeout_s <= fanout.CANCEL_S
        if self.ends:
            self.over.set()

    def abandon(self) -> None:
        self.is_abandoned = True

    @property
    def job(self) -> Job:
        return Job(self.run, self.cancel, self.abandon)


def test_no_more_steps_at_once_than_are_allowed() -> None:
    lock, at_once, most = threading.Lock(), 0, 0
    together, too_many = threading.Barrier(3), threading.Event()

    def step(n: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        if most > 3:
            too_many.set()
        if n < 3:
            together.wait(DEADLINE_S)  # three are at work at the same time
            too_many.wait(0.3)  # and have time to be met by a fourth
        with lock:
            at_once -= 1
        return n * n

    jobs = {f"s{n}": job(lambda n=n: step(n)) for n in range(12)}
    found = fanout.run("default", jobs, FanoutLimits(max_parallel=3))
    assert found == {f"s{n}": n * n for n in range(12)}
    assert most == 3


def test_one_step_alone_has_a_deadline_too() -> None:
    with pytest.raises(FanoutTimeout, match="shard a of"):
        fanout.run("shop", {"a": Slow().job}, FanoutLimits(deadline_s=0.2))


def test_a_deadline_names_the_slow_ones_alone() -> None:
    slow = Slow()
    jobs = {"a": job(lambda: 1), "b": slow.job, "c": job(lambda: 2)}
    with pytest.raises(FanoutTimeout) as raised:
        fanout.run("shop", jobs, FanoutLimits(deadline_s=0.3))
    text = str(raised.value)
    assert raised.value.code == "dbfleet.E505"
    assert "shard b of alias 'shop' did not answer within 0.3 s" in text
    assert 'FANOUT["DEADLINE_S"]' in text
    assert slow.over.is_set()
    assert not slow.is_abandoned, "it ended when it was cancelled"


def test_what_was_not_begun_is_not_begun_after_a_deadline() -> None:
    slow, begun = Slow(), []
    jobs = {"a": slow.job, "b": job(lambda: begun.append("b"))}
    with pytest.raises(FanoutTimeout, match="shard a of"):
        fanout.run("shop", jobs, FanoutLimits(max_parallel=1, deadline_s=0.2))
    assert begun == []


def test_the_first_failure_ends_the_others() -> None:
    slow = Slow()

    def fail() -> None:
        assert slow.started.wait(DEADLINE_S)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fanout.run("shop", {"a": slow.job, "b": job(fail)}, FanoutLimits())
    assert slow.over.is_set()
    assert not slow.is_abandoned


def test_a_cancellation_that_came_too_early_is_repeated() -> None:
    slow, asked = Slow(), []

    def cancel(timeout_s: float) -> None:
        asked.append(timeout_s)
        if len(asked) == 3:
            slow.over.set()

    jobs = {"a": Job(slow.run, cancel, slow.abandon)}
    with pytest.raises(FanoutTimeout):
        fanout.run("shop", jobs, FanoutLimits(deadline_s=0.1))
    assert len(asked) == 3
    assert not slow.is_abandoned


def test_what_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "CANCEL_S", 0.3)
    stuck, slow = Slow(ends=False), Slow()
    try:
        with pytest.raises(FanoutTimeout, match="shards a, b of"):
            fanout.run(
                "shop", {"a": stuck.job, "b": slow.job}, FanoutLimits(deadline_s=0.2)
            )
        assert stuck.is_abandoned
        assert not slow.is_abandoned
    finally:
        stuck.over.set()


def test_a_cancel_that_fails_hides_no_error() -> None:
    slow = Slow()

    def cancel(timeout_s: float) -> None:
        slow.over.set()
        raise OSError("no way")

    with pytest.raises(FanoutTimeout):
        fanout.run(
            "shop",
            {"a": Job(slow.run, cancel, slow.abandon), "b": job(lambda: 1)},
            FanoutLimits(deadline_s=0.2),
        )


@pytest.mark.parametrize("is_declared", [False, True])
def test_the_session_learns_what_other_threads_saw(is_declared: bool) -> None:
    chosen: contextvars.ContextVar[str] = contextvars.ContextVar("chosen")
    chosen.set("mine")

    def see(cluster: str) -> str:
        sessions.current().of(cluster).node = f"{cluster}/replica1"
        sessions.current().saw_unknown(cluster)
        return chosen.get()

    def all_see() -> None:
        jobs = {c: job(lambda c=c: see(c)) for c in "abc"}
        found = fanout.run("shop", jobs, FanoutLimits())
        assert found == dict.fromkeys("abc", "mine"), "levels and pins go along"
        mine = sessions.current()
        assert [mine.of(c).node for c in "abc"] == [f"{c}/replica1" for c in "abc"]
        assert all(mine.of(c).is_unknown for c in "abc")

    if is_declared:
        with sessions.session() as declared:
            all_see()
            assert sessions.current() is declared
            assert sorted(declared.clusters) == ["a", "b", "c"]
    else:
        owner = sessions.current().owner
        all_see()
        assert sessions.current().owner == owner, "it is still the thread's own"


def test_a_forked_child_makes_threads_of_its_own() -> None:
    jobs = {c: job(os.getpid) for c in "ab"}
    assert fanout.run("shop", jobs, FanoutLimits()) == dict.fromkeys("ab", os.getpid())
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            found = fanout.run("shop", jobs, FanoutLimits(deadline_s=10))
            os.write(writing, b"1" if set(found.values()) == {os.getpid()} else b"0")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        assert answer.read() == b"1"
    os.waitpid(child, 0)


# -- real servers -------------------------------------------------------------------


CHECKS = scenarios.names("failing")


@pytest.mark.parametrize("fleet", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("check", [one for one in CHECKS if "stopped" not in one])
def test_shards_that_fail(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("failing", check)


# One server of MariaDB is one process: its other shards would be stopped as well.
@pytest.mark.parametrize("fleet", ["postgresql"], indirect=True)
@pytest.mark.parametrize("check", [one for one in CHECKS if "stopped" in one])
def test_servers_that_are_stopped(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("failing", check)


def test_a_process_ends_although_a_server_is_stuck(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with serve(request, tmp_path, "postgresql") as fleet:
        pid = fleet.run(
            """
from django.db import connection
from django.test import override_settings
from dbfleet.errors import FanoutTimeout
from tests.merging.app.models import Item
from tests.merging.scenarios.failing import stop

list(Item.objects.order_by("id"))
pid = stop("b")
with override_settings(DBFLEET={"FANOUT": {"DEADLINE_S": 0.5}}):
    try:
        list(Item.objects.order_by("id"))
    except FanoutTimeout:
        result = pid
""",
            timeout_s=30,
        )
        os.kill(pid, signal.SIGCONT)
