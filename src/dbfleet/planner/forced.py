"""Which rungs may be taken, for comparing them with each other.

Every rung has to give the same answer; ``FORCE=gather`` and ``FORCE=scatter`` of the
differential suite, by :func:`gathering` and :func:`scattering`, switch others off to
prove it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

#: statements over several shards are gathered
only_gather = False
#: SELECTs ask every shard, also where filters name one
only_scatter = False


@contextlib.contextmanager
def gathering() -> Iterator[None]:
    """Gather what shards could answer by themselves, in the whole process."""
    global only_gather
    before, only_gather = only_gather, True
    try:
        yield
    finally:
        only_gather = before


@contextlib.contextmanager
def scattering() -> Iterator[None]:
    """Prune nothing, in the whole process: SELECTs of sharded tables are merged or
    aggregated over all shards; what the shards cannot answer is gathered from all."""
    global only_scatter
    before, only_scatter = only_scatter, True
    try:
        yield
    finally:
        only_scatter = before
