"""One step on several nodes at a time, bounded in number and in time.

Guards two invariants: what runs in another thread belongs to the caller's session; and
when this returns or raises, no node is still at work for the caller, or its connection
is not used again.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    Future,
    ThreadPoolExecutor,
    wait,
)
from functools import partial
from typing import Any, NamedTuple

from dbfleet import sessions
from dbfleet.errors import FanoutTimeout
from dbfleet.topology.snapshot import FanoutLimits

#: how long the other nodes are given to end when one has failed
CANCEL_S = 2.0
#: after which a statement that did not end is cancelled again
AGAIN_S = 0.2
#: and their threads, once their connections were given up
END_S = 0.5

#: the running thread works for the statement of another one
_helping: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "dbfleet_helping", default=False
)


class Job(NamedTuple):
    """A step on one cluster, and how to end it from another thread."""

    run: Callable[[], Any]
    #: called with the seconds that it may take
    cancel: Callable[[float], None]
    #: gives up the connection whose statement did not end
    abandon: Callable[[], None]


_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _forget_pool() -> None:
    """A forked child has none of its parent's threads."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_pool)


def _threads(limits: FanoutLimits) -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(limits.max_threads, "dbfleet-fanout")
        return _pool


def is_helping() -> bool:
    """Whether the running thread may use the connections of another one, which waits
    for it meanwhile."""
    return _helping.get()


def run(alias: str, jobs: Mapping[str, Job], limits: FanoutLimits) -> dict[str, Any]:
    """The result of each job, by cluster; all at once, ``max_parallel`` at most.

    Raises the error of the first one that failed, or FanoutTimeout E505; the others
    are cancelled before.
    """
    ends_at = math.inf
    if limits.deadline_s is not None:
        ends_at = time.monotonic() + limits.deadline_s
    waiting = list(jobs)
    running: dict[Future[Any], str] = {}
    found: dict[str, Any] = {}
    lent = sessions.lend()
    try:
        while waiting or running:
            while waiting and len(running) < limits.max_parallel:
                cluster = waiting.pop(0)
                context = contextvars.copy_context()
                context.run(sessions.restore, lent)
                context.run(_helping.set, True)
                started = _threads(limits).submit(context.run, jobs[cluster].run)
                running[started] = cluster
            left = max(0.0, ends_at - time.monotonic())
            # Waiting ends with the first one, for another job to begin.
            wanted = FIRST_COMPLETED if waiting else FIRST_EXCEPTION
            done, _ = wait(running, None if left == math.inf else left, wanted)
            if not done:
                raise _too_slow(alias, sorted(running.values()), limits)
            for future in done:
                found[running.pop(future)] = future.result()
    except BaseException:
        _end(jobs, running)
        raise
    return found


def give_up(engine: Any, node: Any) -> None:
    """End the connection of a node whose statement did not end."""
    connection, node.connection = node.connection, None
    if connection is not None:
        with contextlib.suppress(Exception):  # it may end by itself just now
            engine.sever(connection)


def side_by_side(
    wrapper: Any, limits: FanoutLimits, nodes: Sequence[Any], step: Callable[[Any], Any]
) -> list[Any]:
    """What ``step`` gave on each node, all at once; the caller's thread opened them.

    As :func:`run`, but for as long as it takes: a write has no deadline.
    """
    engine = wrapper.engine
    jobs = {
        node.alias: Job(
            partial(step, node),
            partial(engine.cancel, node),
            partial(give_up, engine, node),
        )
        for node in nodes
    }
    found = run(wrapper.alias, jobs, limits._replace(deadline_s=None))
    return [found[node.alias] for node in nodes]


def _end(jobs: Mapping[str, Job], running: Mapping[Future[Any], str]) -> None:
    ends_at = time.monotonic() + CANCEL_S
    left = {future: name for future, name in running.items() if not future.cancel()}
    while left and time.monotonic() < ends_at:
        for future, cluster in left.items():
            if not future.done():
                # The error that led here is the one to be told.
                with contextlib.suppress(Exception):
                    jobs[cluster].cancel(max(0.1, ends_at - time.monotonic()))
        # Again: a cancellation that arrives before its statement ends nothing.
        again_s = min(AGAIN_S, ends_at - time.monotonic())
        _, still = wait(left, max(0.0, again_s))
        left = {future: left[future] for future in still}
    for cluster in left.values():
        jobs[cluster].abandon()
    wait(left, END_S)


def _too_slow(alias: str, clusters: list[str], limits: FanoutLimits) -> FanoutTimeout:
    return FanoutTimeout(
        "E505",
        f"shard{'s' if len(clusters) > 1 else ''} {', '.join(clusters)} of alias "
        f"{alias!r} did not answer within {limits.deadline_s:g} s; the "
        "statement was given up on all of them. Filter by the shard key so that fewer "
        'shards are asked, look at that server, or raise FANOUT["DEADLINE_S"]',
    )
