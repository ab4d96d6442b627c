"""A cap on reads that fall to the primary because no replica could serve them.

A primary that serves the writes of all replicas' readers too may be the next to go
down. Guards one invariant: of these reads, no more than the cap run at once in a
process, for each cluster; the others are refused, at once, by an error that a site
can answer with 503.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

from dbfleet.errors import ReplicasUnavailable

MAX_FALLBACK_READS = 32

#: cluster -> the reads on its primary that were meant for a replica
_running: dict[str, set[falling_back]] = {}
#: guards ``_running``; held for a set operation only
_lock = threading.Lock()


class falling_back:  # noqa: N801 - used as a function
    """Around a read on the primary of ``cluster`` that no replica could serve.

    Raises ``ReplicasUnavailable`` E206 when ``limit`` such reads of this process are
    running; None is no limit. Costs no round trip and never waits.
    """

    __slots__ = ("_cluster", "_limit")

    def __init__(self, cluster: str, limit: int | None = MAX_FALLBACK_READS) -> None:
        self._cluster = cluster
        self._limit = limit

    def __enter__(self) -> None:
        with _lock:
            running = _running.setdefault(self._cluster, set())
            if self._limit is None or len(running) < self._limit:
                running.add(self)
                return
        raise ReplicasUnavailable(
            "E206",
            f"no replica of {self._cluster} can serve, and {self._limit} reads of this "
            "process are on its primary in their place already: this one was not sent. "
            "Answer 503 and let the client try again, raise MAX_FALLBACK_READS if the "
            "primary can bear more, or read at level 'eventual' where a stale answer "
            "will do",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _lock:
            running = _running.get(self._cluster)
            if running is not None:
                running.discard(self)
                if not running:
                    del _running[self._cluster]


def running(cluster: str) -> int:
    """How many reads of this process are on the primary in place of a replica."""
    return len(_running.get(cluster, ()))


def _leave_parent() -> None:
    """In a forked child: those reads are the parent's, and so may be the lock."""
    global _lock
    _lock = threading.Lock()
    _running.clear()


os.register_at_fork(after_in_child=_leave_parent)
