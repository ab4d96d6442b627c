"""How far replicas are behind, in seconds, for all sessions of the process.

A replica that has applied what was the primary's position at some moment misses nothing
that was committed before it. So its lag is at most the age of the newest such moment,
whether the primary is busy or idle: no clock of a server takes part.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from dbfleet.sessions import applied

if TYPE_CHECKING:
    from dbfleet.engines import Position

#: moments remembered of each cluster
MOMENTS = 64


class Moment(NamedTuple):
    """The primary's position was at least this, at ``at`` (monotonic seconds)."""

    at: float
    position: Position


_moments: dict[str, deque[Moment]] = {}
#: node -> when it last said what it has applied
_asked: dict[str, float] = {}


def saw(cluster: str, at: float, position: Position) -> None:
    """The primary said its position; ``at`` is when it was asked."""
    _moments.setdefault(cluster, deque(maxlen=MOMENTS)).append(Moment(at, position))


def known_s(engine: Any, cluster: str, node: str) -> float | None:
    """The bound that is known without asking; None if nothing is."""
    now: float = time.monotonic()
    have = applied.of(node)
    for moment in reversed(tuple(_moments.get(cluster, ()))):
        if engine.covers(have, (moment.position,)):
            return float(now - moment.at)
    return None


def bound_s(
    engine: Any,
    cluster: str,
    node: str,
    enough_s: float,
    *,
    ask_primary: Callable[[], Position | None],
    ask_replica: Callable[[], Position | None],
) -> float | None:
    """A bound of a node's lag in seconds; None if there is none.

    No round trip where what is known is ``enough_s`` or less. Otherwise the primary
    is asked at most once in half of that time, and so is the replica.
    """
    found = known_s(engine, cluster, node)
    if found is not None and found <= enough_s:
        return found
    now = time.monotonic()
    moments = _moments.get(cluster)
    if not moments or now - moments[-1].at > enough_s / 2:
        position = ask_primary()
        if position is None:
            return None
        saw(cluster, now, position)
    if now - _asked.get(node, float("-inf")) > enough_s / 2:
        _asked[node], epoch = now, applied.epoch(node)
        have = ask_replica()
        if have is not None:
            applied.learn(engine, node, have, epoch)
    return known_s(engine, cluster, node)


def forget(cluster: str | None = None) -> None:
    """Know nothing of a cluster, or of any."""
    if cluster is not None:
        _moments.pop(cluster, None)
        return
    _moments.clear()
    _asked.clear()
