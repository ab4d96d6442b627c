"""What one session demands of each cluster's replicas.

Guards one invariant: a demand is only ever raised. Reads and writes of several tasks
and threads may share a session; what one of them learns never takes back what another
has added.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # engines are for projects with a fleet
    from dbfleet.engines import Position

    Floors = tuple[Position, ...]

#: the name of the place that a session reads from when no replica can serve it
PRIMARY = ""


class Era(NamedTuple):
    """Which node was a cluster's primary, and on which timeline if it tells one."""

    leader: str
    timeline: int | None
    #: how many promotions this process had found; None if another one told
    found: int | None = None

    def ended(self, now: Era) -> bool:
        """Whether another server has been promoted by ``now``."""
        pairs = zip(self[1:], now[1:], strict=True)
        is_later = any(a != b for a, b in pairs if a is not None and b is not None)
        return is_later or self.leader != now.leader


class ClusterState:
    """One session's view of one cluster."""

    __slots__ = (
        "connection",
        "era",
        "floors",
        "is_unknown",
        "judged",
        "node",
        "policy",
        "proved",
        "read_era",
        "reads",
        "served_at",
        "server",
        "stays_until",
        "unknown_at",
        "unknowns",
    )

    def __init__(self) -> None:
        #: what a replica must have applied, at most one for each timeline
        self.floors: Floors = ()
        #: what a replica had applied when it was found to cover the floors
        self.proved: Position | None = None
        #: the session saw the primary at a position that nobody has asked for
        self.is_unknown = False
        #: under which primary it saw the earliest such position, None if that is not
        #: known, and when it saw the last one (monotonic seconds)
        self.era: Era | None = None
        self.unknown_at = 0.0
        #: the promoted leader that was found to have the floors
        self.judged: Any = None
        #: counts how often that came about
        self.unknowns = 0
        #: where it reads: a replica's name, :data:`PRIMARY`, or None before the first
        self.node: str | None = None
        #: counts answers, so that a thread that moves the session sees those of others
        self.reads = 0
        #: under which primary it began to read there, and when (monotonic seconds)
        self.read_era: Era | None = None
        self.served_at = 0.0
        #: which run of that replica's server it was; "" where servers do not tell
        self.server = ""
        #: the driver's connection it was read by last
        self.connection: Any = None
        #: the policy that chose it, and until when it is kept (monotonic seconds)
        self.policy: Any = None
        self.stays_until = 0.0

    def copy(self) -> ClusterState:
        found = ClusterState()
        for name in self.__slots__:
            setattr(found, name, getattr(self, name))
        return found

    def is_blank(self) -> bool:
        """Whether nothing is demanded."""
        return not self.floors and not self.is_unknown


class Session:
    """The clusters that a session has used, by ``alias/cluster``.

    ``owner`` is the task or thread that a session belongs to where nothing declared
    one; None for a declared session, which all that copy its context share.
    """

    __slots__ = ("_lock", "clusters", "owner", "required")

    def __init__(self, owner: Any = None) -> None:
        self.clusters: dict[str, ClusterState] = {}
        #: what it took from a shared store: name -> the entry's number
        self.required: dict[str, int] = {}
        self.owner = owner
        self._lock = threading.Lock()

    def of(self, cluster: str) -> ClusterState:
        """The state of a cluster, made when first asked for."""
        state = self.clusters.get(cluster)
        if state is None:
            with self._lock:
                state = self.clusters.setdefault(cluster, ClusterState())
        return state

    def demand(
        self,
        cluster: str,
        positions: Iterable[Position],
        merge: Callable[[Floors, Iterable[Position]], Floors],
    ) -> None:
        """Replicas must have applied these positions, too."""
        state = self.of(cluster)
        with self._lock:
            state.floors = merge(state.floors, positions)
            state.proved = state.judged = None

    def saw_unknown(
        self, cluster: str, era: Era | None = None, now: Era | None = None
    ) -> None:
        """The session saw the primary at a position that it was not told; ``era`` is
        which primary that was, and ``now`` the one of today where it may be another."""
        state = self.of(cluster)
        with self._lock:
            known = state.era if state.is_unknown else None
            # An earlier primary counts more: what was seen there may be lost.
            is_earlier = now is not None and known is not None and not known.ended(now)
            if era is not None and (known is None or is_earlier):
                state.era = era
            state.is_unknown, state.unknown_at = True, time.monotonic()
            state.unknowns += 1

    def moved(self, state: ClusterState, node: str, reads: int) -> bool:
        """A replica has answered and is the session's from now on; False if another
        one did since ``reads`` answers, so that its rows may be newer than what this
        one was asked to prove.

        The place is changed before the count is looked at; whoever reads where the
        session was counts before it looks at the place. So one of both sees the other.
        """
        with self._lock:
            before, state.node = state.node, node
            state.reads += 1
            return before in (None, node) or state.reads == reads + 1

    def learned(self, state: ClusterState, unknowns: int) -> None:
        """The primary's position was asked for and demanded; ``unknowns`` is what the
        count was before it was asked."""
        with self._lock:
            if state.unknowns == unknowns:
                state.is_unknown, state.era = False, None

    def was_told(self, state: ClusterState, now: Era) -> None:
        """That what it saw under earlier primaries may be lost; what it saw under the
        one of ``now`` still counts."""
        with self._lock:
            state.era = now

    def drop(self, cluster: str, lost: Position) -> None:
        """Demand a position no longer: its loss was reported."""
        state = self.of(cluster)
        with self._lock:
            state.floors = tuple(one for one in state.floors if one != lost)

    def lent(self) -> Session:
        """The same session, for whoever works for its owner."""
        if self.owner is None:
            return self
        found = Session()
        found.clusters, found.required = self.clusters, self.required
        found._lock = self._lock
        return found

    def copy(self, owner: Any) -> Session:
        found = Session(owner)
        with self._lock:
            found.clusters = {k: v.copy() for k, v in self.clusters.items()}
            found.required = dict(self.required)
        return found
