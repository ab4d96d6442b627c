"""Bugs that only a promotion shows."""

from __future__ import annotations

from typing import Any

from dbfleet.engines.positions import Verdict
from dbfleet.executor import leaders
from dbfleet.executor.nodes import NodeSet
from dbfleet.executor.replicas import Replicas
from dbfleet.sessions import Era
from tests.faults.replicas.bugs import ENGINES, Bug, _is, _replace

_PROMOTED = "pause,cut,refuse"
_OPS = 150000


def lost_is_covered() -> None:
    """A position is a number: timelines and servers do not matter."""

    def make(before: Any) -> Any:
        def compare(self: Any, have: Any, want: Any) -> Verdict:
            found: Verdict = before(self, have, want)
            is_other = found in (Verdict.LOST, Verdict.UNKNOWN)
            return Verdict.COVERED if is_other else found

        return compare

    for engine in ENGINES:
        _replace(engine, "compare", make)


def unjudged_primary() -> None:
    """A promoted primary has everything."""
    _is(Replicas, "_refuse_lost", lambda self, cluster, state, primary: None)


def untold_unknown() -> None:
    """What a session saw at an unknown position is in any primary."""
    _is(Era, "ended", lambda self, now: False)


def trust_the_returned() -> None:
    """A primary that answers again is the primary."""
    never = property(lambda self: False, lambda self, value: None)
    leaders._Cluster.is_doubtful = never  # type: ignore[assignment]


def old_primary_as_replica() -> None:
    """A server that was a replica once is one for good."""
    _is(NodeSet, "_verify", lambda self, cluster, node, name: True)
    # Where servers tell timelines, this would stand in for it.
    _is(Replicas, "_follows", lambda self, cluster, name, node: True)


def old_timeline_goes_on() -> None:
    """A connection that works is used, whatever others have seen since."""
    _is(leaders.Leaders, "check", lambda self, cluster, node: None)
    _is(NodeSet, "_follow", lambda self, cluster, node: None)


PROMOTION_BUGS = {
    "lost-is-covered": Bug(lost_is_covered, _PROMOTED, _OPS, promotes=True),
    "unjudged-primary": Bug(unjudged_primary, _PROMOTED, _OPS, promotes=True),
    "untold-unknown": Bug(
        untold_unknown, f"{_PROMOTED},mute,unanswered", _OPS, promotes=True
    ),
    "trust-the-returned": Bug(trust_the_returned, _PROMOTED, _OPS, promotes=True),
    "old-primary-as-replica": Bug(
        old_primary_as_replica, _PROMOTED, _OPS, promotes=True
    ),
    "old-timeline-goes-on": Bug(old_timeline_goes_on, _PROMOTED, _OPS, promotes=True),
}
