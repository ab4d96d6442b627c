"""What each replica is known to have applied, for all sessions of the process.

Guards one invariant: what is known is never more than the server said on a connection
that is still the newest one to it. A replica only goes forward, so what it once said
stays true; a server that was set up anew under the same name breaks every connection,
and a new connection forgets what was known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbfleet.engines import Position

#: node -> position
_known: dict[str, Position] = {}


def of(node: str) -> Position | None:
    """What ``node`` has applied at least, if it ever said."""
    return _known.get(node)


def learn(engine: Any, node: str, position: Position) -> None:
    """``node`` said that it has applied ``position``."""
    known = _known.get(node)
    if position.timeline is None:
        return  # one that cannot be told apart from a promoted server's
    if known is None or engine.is_local or engine.covers(position, (known,)):
        _known[node] = position


def forget(node: str) -> None:
    """Know nothing of ``node``: it was connected to anew, or failed."""
    _known.pop(node, None)
