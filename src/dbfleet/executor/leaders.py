"""Which server is a cluster's primary now: found again when another is promoted.

Guards two invariants: a statement is sent to a server only under the leader that was
known when its connection was opened, so a pooled connection to an old primary is never
written to once the new one is known; and only a declared node becomes the leader, only
by what the server itself says (it is not in recovery, it accepts writes).

Process-wide, since every thread sees the same servers. Nothing is asked while the
primary answers. A search asks every node of the cluster at once, within a second.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.utils import Error

from dbfleet.errors import NodeMismatch, NodeUnavailable
from dbfleet.observe import events

if TYPE_CHECKING:
    from dbfleet.engines import Position
    from dbfleet.executor.nodes import NodeSet

PROBE_TIMEOUT_S = 1
#: how long others may still answer once a new primary did
OTHERS_S = 0.1
#: a search that found nothing is not made again before
PAUSE_S = 0.2


class Leader(NamedTuple):
    """The node that is a cluster's primary; ``timeline`` 0 where a server has none."""

    name: str
    timeline: int


class _Cluster:
    """What the process knows of one cluster's leader."""

    def __init__(self) -> None:
        #: None: the primary that is declared
        self.leader: Leader | None = None
        self.found = 0
        #: the latest timeline that any node was seen on
        self.timeline = 0
        self.searching = threading.Lock()
        self.searched = 0.0
        #: a connection to the primary broke; nobody asked since who is the primary
        self.is_doubtful = False


_clusters: dict[str, _Cluster] = {}


def _of(cluster: str) -> _Cluster:
    found = _clusters.get(cluster)
    return found if found is not None else _clusters.setdefault(cluster, _Cluster())


def leader_of(cluster: str) -> Leader | None:
    """The leader that was found; None while it is the declared primary."""
    found = _clusters.get(cluster)
    return found.leader if found is not None else None


def found(cluster: str) -> int:
    """How many leaders this process has found, one after the other."""
    state = _clusters.get(cluster)
    return state.found if state is not None else 0


def leads(cluster: str, name: str) -> bool:
    """Whether a node that is not the declared primary is the leader."""
    leader = leader_of(cluster)
    return leader is not None and leader.name == name


def forget(cluster: str | None = None) -> None:
    """The declared primaries are the leaders again: for tests and new settings."""
    if cluster is None:
        _clusters.clear()
    else:
        _clusters.pop(cluster, None)


def doubt(cluster: str) -> None:
    """A connection to the primary broke: a server that answers in its place again may
    be an old one by now."""
    _of(cluster).is_doubtful = True


def saw_timeline(cluster: str, timeline: int | None) -> bool:
    """A node of the cluster is on ``timeline``; whether that is news."""
    state = _of(cluster)
    if not timeline or timeline <= state.timeline:
        return False
    is_news = state.timeline > 0
    state.timeline = timeline
    return is_news


def timeline_of(cluster: str) -> int | None:
    """The latest timeline that any node was seen on, None if none told one."""
    state = _clusters.get(cluster)
    return state.timeline or None if state is not None else None


class _Answer(NamedTuple):
    """What one node said of itself."""

    name: str
    accepts_writes: bool
    timeline: int
    position: Position | None
    #: the server system it belongs to, where it can say
    system: str | None = None


class Leaders:
    """Finds leaders for the clusters of one alias wrapper."""

    def __init__(self, nodes: NodeSet) -> None:
        self.nodes = nodes

    def check(self, cluster: str, node: Any) -> None:
        """Refuse a connection to a server that was the primary on an earlier timeline.

        No round trip unless it is; then a search. Raises NodeMismatch E209.
        """
        state = _clusters.get(self.nodes.keys[cluster])
        known = self.nodes.engine.known_timeline(node)
        if state is None or known is None or known >= state.timeline:
            return
        self.search(cluster)  # the next statement follows who is found
        self.refuse(cluster, node)

    def refuse(self, cluster: str, node: Any) -> None:
        """Leave a server that another one was promoted in place of."""
        old = self.nodes.engine.known_timeline(node)
        new = _of(self.nodes.keys[cluster]).timeline
        node.close()
        declared = self.nodes.clusters[cluster]
        raise NodeMismatch(
            "E209",
            f"the server that {declared.primary} of alias "
            f"{self.nodes.topology.alias!r} is connected to is on timeline {old}, but "
            f"its replicas follow timeline {new}: another server was promoted. "
            "Nothing was written. The next statement looks for the new primary among "
            "the declared nodes; if it is none of them, declare it, and stop the old "
            "one before it accepts writes of others",
        )

    def search(self, cluster: str, *, is_connected: bool = False) -> bool:
        """Ask every node of the cluster who accepts writes; whether that is news.

        One search at a time in a process; who comes meanwhile takes its result.
        ``is_connected``: the primary answers, and a search ends the doubt about it.
        """
        if self.nodes.topology.read_only:
            return False
        declared = self.nodes.current(cluster, is_asked=True)
        if not declared.replicas:
            return False
        key = self.nodes.keys[cluster]
        state, before = _of(key), leader_of(key)
        if not state.searching.acquire(timeout=2 * PROBE_TIMEOUT_S):
            return state.leader is not before
        try:
            if state.leader is not before:
                return True
            is_recent = time.monotonic() - state.searched < PAUSE_S
            if is_recent and not (is_connected and state.is_doubtful):
                return False
            is_found = declared.source is not None
            answers = self._answers(
                declared.nodes, state.timeline, tells_system=is_found
            )
            if is_found:
                answers = self._related(cluster, answers)
            found = self._best(state, declared, answers)
            state.searched = time.monotonic()
            if found is None:
                state.is_doubtful = state.is_doubtful and not is_connected
                return False
            state.leader, state.is_doubtful = found, False
            state.found += 1
            events.emit("leader_found", cluster=key, node=found.name)
            return True
        finally:
            state.searching.release()

    def _best(
        self, state: _Cluster, declared: Any, answers: list[_Answer]
    ) -> Leader | None:
        """The new leader, if there is one."""
        for answer in answers:
            state.timeline = max(state.timeline, answer.timeline)
        writable = [
            one
            for one in answers
            if one.accepts_writes and one.timeline >= state.timeline
        ]
        now = state.leader.name if state.leader is not None else declared.primary
        engine = self.nodes.engine
        if len(writable) > 1:
            # Without timelines the one that has what the others have is the newer.
            writable = [
                one
                for one in writable
                if all(
                    one is other
                    or (
                        other.position is not None
                        and engine.covers(one.position, (other.position,))
                    )
                    for other in writable
                )
            ]
        if len(writable) != 1 or writable[0].name == now:
            return None
        return Leader(writable[0].name, writable[0].timeline)

    def _related(self, cluster: str, answers: list[_Answer]) -> list[_Answer]:
        """Those of the cluster's own system. An address that a source found may be
        another server's by now, and that one may accept writes as well."""
        known = self.nodes.system_of(cluster)
        if known is None:
            systems = {one.system for one in answers} - {None}
            if len(systems) > 1:
                return []
            known = next(iter(systems), None)
        return [one for one in answers if one.system in (None, known)]

    def _answers(
        self, names: tuple[str, ...], latest: int, *, tells_system: bool
    ) -> list[_Answer]:
        """What the nodes say, asked at once; those that do not answer in time are left
        out. Once one writes a later timeline than ``latest`` little is waited for the
        others: a server that hangs shall not delay the first write."""
        told: queue.SimpleQueue[_Answer | None] = queue.SimpleQueue()

        def ask(name: str) -> None:
            answer = None
            with contextlib.suppress(Error, OSError):
                answer = self._ask(name, tells_system=tells_system)
            told.put(answer)

        for name in names:
            threading.Thread(target=ask, args=(name,), daemon=True).start()
        found: list[_Answer] = []
        ends_at = time.monotonic() + PROBE_TIMEOUT_S
        for _ in names:
            with contextlib.suppress(queue.Empty):
                answer = told.get(timeout=max(0.0, ends_at - time.monotonic()))
                if answer is None:
                    continue
                found.append(answer)
                if answer.accepts_writes and answer.timeline > latest > 0:
                    ends_at = min(ends_at, time.monotonic() + OTHERS_S)
        return found

    def _ask(self, name: str, *, tells_system: bool) -> _Answer:
        engine = self.nodes.engine
        settings = self.nodes.wrapper.settings_dict["NODES"][name]
        node = self.nodes.vendor_class(
            engine.probe_settings(settings, PROBE_TIMEOUT_S), f"{name}/probe"
        )
        try:
            accepts = engine.is_replica(node) is False
            timeline = engine.timeline(node) if accepts else 0
            position = engine.position(node) if accepts else None
            system = engine.identity(node) if tells_system else None
            return _Answer(name, accepts, timeline, position, system)
        finally:
            node.close()


def connect(
    node: Any, nodes: NodeSet, cluster: str, connect: Callable[[], None]
) -> None:
    """Connect a primary; where it is gone or a standby now, to the one promoted.

    Nothing has been sent on either connection, so nothing is repeated. One that comes
    back after a connection to it broke is not trusted before all nodes were asked.
    """
    engine, state = nodes.engine, _of(nodes.keys[cluster])
    error, is_late = None, False
    try:
        connect()
        known = engine.known_timeline(node)
        is_late = known is not None and known < state.timeline
        if not is_late and not state.is_doubtful and not engine.is_standby(node):
            return
    except NodeUnavailable as unreachable:
        error, state.is_doubtful = unreachable, True
    is_news = nodes.leaders.search(cluster, is_connected=error is None)
    if not is_news or not follow(node, nodes, cluster):
        if error is not None:
            raise error
        if is_late:
            nodes.leaders.refuse(cluster, node)
        return  # read-only: the first write says so
    connect()


def follow(node: Any, nodes: NodeSet, cluster: str) -> bool:
    """Have the next connection of a primary's wrapper go to the leader."""
    leader = leader_of(nodes.keys[cluster])
    if node.leader is leader:
        return False
    with contextlib.suppress(Exception):
        node.close()
    node.connection = None
    if hasattr(node, "close_pool") and _pools.get(node.alias) is not leader:
        _pools[node.alias] = leader
        with contextlib.suppress(Exception):
            node.close_pool()
    node.leader = leader
    return True


#: alias -> the leader that its pool of connections belongs to
_pools: dict[str, Leader | None] = {}
