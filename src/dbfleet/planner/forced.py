"""Which rungs may be taken, for comparing them with each other.

Every rung has to give the same answer; ``FORCE=gather`` of the differential suite and
:func:`gathering` switch the others off to prove it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

#: statements over several shards are gathered
only_gather = False


@contextlib.contextmanager
def gathering() -> Iterator[None]:
    """Gather what shards could answer by themselves, in the whole process."""
    global only_gather
    before, only_gather = only_gather, True
    try:
        yield
    finally:
        only_gather = before
