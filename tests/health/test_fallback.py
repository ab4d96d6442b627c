"""What falls to the primary is capped; the rest is refused with a way out."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from contextlib import ExitStack

import pytest
from django.db.utils import OperationalError

from dbfleet.errors import ReplicasUnavailable
from dbfleet.health import fallback, falling_back


def test_no_more_than_the_cap_run_at_once() -> None:
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(falling_back("shop", 3))
        assert fallback.running("shop") == 3
        with pytest.raises(ReplicasUnavailable) as raised, falling_back("shop", 3):
            pass
        with falling_back("crm", 3):  # a cluster of its own
            pass
    assert raised.value.code == "dbfleet.E206"
    assert fallback.running("shop") == 0
    with falling_back("shop", 1):
        assert fallback.running("shop") == 1


def test_the_error_says_what_to_answer() -> None:
    with pytest.raises(OperationalError) as raised, falling_back("shop", 0):
        pass
    error = raised.value
    assert isinstance(error, ReplicasUnavailable)
    assert (error.status_code, error.retry_after_s) == (503, 1)
    for said in ("shop", "503", "MAX_FALLBACK_READS", "eventual", "not sent"):
        assert said in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_none_is_no_cap() -> None:
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(falling_back("shop", None))
        assert fallback.running("shop") == 200


def test_the_default_cap() -> None:
    with ExitStack() as stack:
        for _ in range(fallback.MAX_FALLBACK_READS):
            stack.enter_context(falling_back("shop"))
        with pytest.raises(ReplicasUnavailable):
            stack.enter_context(falling_back("shop"))


def test_a_read_that_failed_leaves_its_place() -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), falling_back("shop", 1):
            raise ZeroDivisionError
    assert fallback.running("shop") == 0


def test_threads_never_pass_the_cap() -> None:
    seen: list[int] = []
    refused: list[int] = []

    def read() -> None:
        for _ in range(500):
            try:
                with falling_back("shop", 2):
                    seen.append(fallback.running("shop"))
            except ReplicasUnavailable:
                refused.append(1)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(seen) <= 2
    assert len(seen) + len(refused) == 3000
    assert fallback.running("shop") == 0


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork here"
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_with_none() -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        before = fallback.running("shop")
        with falling_back("shop", 1):
            answers.put((before, fallback.running("shop")))

    with falling_back("shop", 1):
        with fallback._lock:  # held by another thread at the fork, say
            process = context.Process(target=child)
            process.start()
        found = answers.get()
        process.join(10)
    assert found == (0, 1)
    assert fallback.running("shop") == 0
