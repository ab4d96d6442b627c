"""Places in a primary's log, as engines tell and compare them."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple


class Position(NamedTuple):
    """A place in a primary's log. Compared only by its own engine.

    ``timeline`` counts promotions, 0 where a server does not; None is not known.
    ``system`` names the server system, "" is not known.
    """

    value: Any
    timeline: int | None = 0
    system: str = ""


class Verdict(Enum):
    """Whether a node has applied a position."""

    COVERED = "covered"
    BEHIND = "behind"
    #: the node is on a later timeline, of whose history nothing is known here
    UNKNOWN = "unknown"
    #: the position was never part of the node's history
    LOST = "lost"
