"""What each replica is known to have applied, for all sessions of the process.

Guards one invariant: what is known is never more than the server said that the newest
connection is to. A replica only goes forward, so what it once said stays true; a server
that was set up anew under the same name breaks every connection, and a new connection
forgets what was known. An answer that a thread had by then and looks at later is not
learned: each question bears the epoch in which it was asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbfleet.engines import Position

#: node -> position
_known: dict[str, Position] = {}

#: node -> how often what was known of it has been forgotten
_epochs: dict[str, int] = {}


def of(node: str) -> Position | None:
    """What ``node`` has applied at least, if it ever said."""
    return _known.get(node)


def epoch(node: str) -> int:
    """To be had before ``node`` is asked, and handed to :func:`learn`."""
    return _epochs.get(node, 0)


def learn(engine: Any, node: str, position: Position, asked: int) -> None:
    """``node`` said that it has applied ``position``, ``asked`` in that epoch."""
    known = _known.get(node)
    if position.timeline is None:
        return  # one that cannot be told apart from a promoted server's
    if asked != epoch(node):
        return  # of a server that was there before
    if known is None or engine.is_local or engine.covers(position, (known,)):
        _known[node] = position
        if asked != epoch(node):  # forgotten by another thread just now
            _known.pop(node, None)


def forget(node: str) -> None:
    """Know nothing of ``node``: it was connected to anew, or failed."""
    _epochs[node] = epoch(node) + 1
    _known.pop(node, None)
