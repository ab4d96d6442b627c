"""Sessions: what the running context wrote, so that it never misses it.

A session is the running context (contextvars): a request, a task, a thread. It
holds, for each cluster, the least position a replica must have applied. The value
is immutable and replaced, so a task inherits what its parent wrote and shares
nothing that either writes later.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # engines are for projects with a fleet
    from dbfleet.engines import Position

_EMPTY: Mapping[str, Floor] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Floor:
    """The least a replica must have applied.

    ``position`` is None right after a write: it is read from the primary when a
    replica is next wanted, not before. ``passed`` are replicas known to be there.
    """

    position: Position | None = None
    passed: frozenset[str] = frozenset()


_floors: contextvars.ContextVar[Mapping[str, Floor]] = contextvars.ContextVar(
    "dbfleet_floors", default=_EMPTY
)
_level: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "dbfleet_consistency", default=None
)

LEVELS = ("strong", "session", "eventual")


def floor_of(cluster: str) -> Floor | None:
    """What this session demands of ``cluster``'s replicas; None is nothing."""
    return _floors.get().get(cluster)


def set_floor(cluster: str, floor: Floor) -> None:
    """Replace what this session demands of one cluster."""
    _floors.set(MappingProxyType({**_floors.get(), cluster: floor}))


def wrote(cluster: str) -> None:
    """This session wrote to ``cluster``: every replica has to catch up anew."""
    set_floor(cluster, Floor())


def forget() -> None:
    """Begin a new session: nothing was written, no level is chosen."""
    if _floors.get():
        _floors.set(_EMPTY)
    if _level.get() is not None:
        _level.set(None)


def chosen_level() -> str | None:
    """The level of the innermost :func:`consistency` block, if any."""
    return _level.get()


@contextlib.contextmanager
def consistency(level: str) -> Iterator[None]:
    """Read at ``level`` inside the block: "strong", "session" or "eventual".

    Strong reads go to the primary. Session reads see everything this session wrote.
    Eventual reads take any replica. No round trips of its own.
    """
    if level not in LEVELS:
        raise ValueError(f"consistency is one of {', '.join(LEVELS)}, not {level!r}")
    token = _level.set(level)
    try:
        yield
    finally:
        _level.reset(token)
