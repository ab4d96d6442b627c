"""Which nodes may be asked: a node that failed is left alone for a while.

Process-wide, since every thread sees the same servers. No thread, no probe: a node
is tried again by the first read after its pause.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 15.0


@dataclass(slots=True)
class Breaker:
    """Pauses after failures, doubling up to a bound; jitter spreads the retries.

    ``clock`` counts seconds and never goes back.
    """

    clock: Callable[[], float] = time.monotonic
    _failed: dict[str, tuple[int, float]] = field(default_factory=dict)
    #: guards ``_failed``; held for a dict operation only
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_open(self, node: str) -> bool:
        """Whether ``node`` is still to be left alone."""
        failed = self._failed.get(node)
        return failed is not None and self.clock() < failed[1]

    def failed(self, node: str) -> None:
        """``node`` could not serve; leave it alone, longer each time."""
        with self._lock:
            count = self._failed.get(node, (0, 0.0))[0] + 1
            pause = min(FIRST_PAUSE_S * 2 ** min(count - 1, 10), MAX_PAUSE_S)
            jitter = random.uniform(0.8, 1.2)
            self._failed[node] = (count, self.clock() + pause * jitter)

    def succeeded(self, node: str) -> None:
        """``node`` served; forget its failures."""
        if node in self._failed:
            with self._lock:
                self._failed.pop(node, None)

    def reset(self) -> None:
        """Forget every failure."""
        with self._lock:
            self._failed.clear()

    def renew_lock(self) -> None:
        """In a forked child: a thread that stayed behind may have held the lock."""
        self._lock = threading.Lock()


breaker = Breaker()
os.register_at_fork(after_in_child=breaker.renew_lock)
