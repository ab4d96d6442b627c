"""Waiting for a condition, never for an amount of time.

Guards one invariant: no wait of the rig is without a deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dbfleet.testing.rig.errors import DeadlineExceeded


def wait_until(
    condition: Callable[[], bool],
    *,
    timeout_s: float,
    what: str,
    poll_s: float = 0.01,
) -> None:
    """Return as soon as ``condition()`` is true.

    The condition is tried at least once. Raises ``DeadlineExceeded`` naming
    ``what`` when it is still false after ``timeout_s``; what the condition itself
    raises passes through.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"{what}: not after {timeout_s:g} s")
        time.sleep(poll_s)
