"""Which server of a cluster serves a session's next read.

Guards one invariant: at level "session" a replica is offered only together with the
positions it still has to prove, and another replica than the session's own only once
everything the session saw is among them. Costs no round trip for a session that stays
on its replica.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dbfleet import conf, sessions
from dbfleet.engines import Position, Verdict
from dbfleet.errors import NodeUnavailable, WriteLost
from dbfleet.executor import discovery, drains, leaders
from dbfleet.executor.failures import CONNECTION_ERRORS
from dbfleet.health import breaker
from dbfleet.levels import SESSION, Level
from dbfleet.observe import events
from dbfleet.sessions import PRIMARY, ClusterState, Era, applied, lag

if TYPE_CHECKING:
    from dbfleet.executor.nodes import NodeSet
    from dbfleet.policies import Policy

#: how long a session stays on its replica, and on the primary for want of one
STAYS_S = 10.0
STAYS_ON_PRIMARY_S = 0.1
#: after a wait in vain a replica is not waited for again
UNWAITED_S = 1.0

#: what was seen longer ago than this is taken to have reached the replicas
RECENT_S = 60.0

#: node -> until when (monotonic) it is not worth waiting for
_unwaited: dict[str, float] = {}

#: replica -> how many leaders had been found, and its server's run, when it was seen to
#: follow the last of them; a replica of the old primary may have what that one lost
_followed: dict[str, tuple[int, str]] = {}
#: replica -> until when (monotonic) it is not asked again whom it follows
_unfollowing: dict[str, float] = {}
UNFOLLOWING_S = 0.2


class Place(NamedTuple):
    """Where a read goes: a cluster, how its replica is chosen, how old it may be."""

    cluster: str
    policy: Policy
    level: Level


class Choice(NamedTuple):
    """A node, and what it has to have applied for its answer to count."""

    node: Any
    #: a replica's name; None on the primary
    name: str | None
    wants: tuple[Position, ...] = ()
    #: the primary, for want of a replica
    is_fallback: bool = False
    #: in which epoch of what is known of the replica it was chosen
    epoch: int = 0
    #: the session's state at level "session", and its count of reads by then
    state: ClusterState | None = None
    reads: int = 0


class Replicas:
    """Offers the nodes of one alias wrapper's clusters for reading."""

    def __init__(self, nodes: NodeSet) -> None:
        self.nodes = nodes
        self.engine = nodes.engine

    def key_of(self, place: Place) -> str:
        """The name of a cluster over all aliases."""
        return self.nodes.keys[place.cluster]

    def primary_of(self, place: Place) -> str:
        """The name of a cluster's primary."""
        return str(self.nodes.clusters[place.cluster].primary)

    def usual(self, place: Place) -> Choice | None:
        """The session's own replica, if nothing has to be decided or learned."""
        session = sessions.peek()
        if session is None or place.level is not SESSION:
            return None
        state = session.clusters.get(self.nodes.keys[place.cluster])
        if (
            state is None
            or state.is_unknown
            or not state.node
            or time.monotonic() >= state.stays_until
            or (state.policy is not place.policy and not self._chose(place, state))
        ):
            return None
        node = self.nodes.unchanged(state.node, state.connection)
        if node is not None:
            return self._choice(state, node, state.node)
        choice = self._offered(place.cluster, state, state.node)
        if choice is not None and self._has_restarted(state, choice):
            session.saw_unknown(self.nodes.keys[place.cluster])
            return None
        return choice

    def _has_restarted(self, state: ClusterState, choice: Choice) -> bool:
        """Whether the session's replica runs anew since it was read: after a crash it
        may show less than it did."""
        if choice.name != state.node or not state.server:
            return False
        run, before = self.engine.run_of(choice.node), state.server
        state.server = run
        return bool(run) and run != before

    def _chose(self, place: Place, state: ClusterState) -> bool:
        """Whether the place's policy chose where the session reads; a session that
        another process began stays where the cluster's own policy put it."""
        if state.policy is not None:
            return state.policy is place.policy
        cluster = self.nodes.clusters[place.cluster]
        return conf.settings().policy_for(cluster) is place.policy

    def choices(
        self, place: Place, tried: Choice | None, is_older: bool
    ) -> Iterator[Choice]:
        """Nodes to try in turn, but for one that was; the last is the primary.

        ``is_older`` says that the one that was tried has shown nothing but what is
        demanded. Round trips before the first: none, or one to the primary where the
        session has to learn its position. Raises NodeUnavailable if only the primary
        could tell and it cannot be reached.
        """
        declared = self.nodes.clusters[place.cluster]
        has_replicas = declared.replicas or declared.source is not None
        if has_replicas and place.level.name != "strong":
            if place.level is SESSION:
                yield from self._for_session(place, tried, is_older)
            else:
                yield from self._stateless(place)
        yield self._on_primary(place.cluster, place.level)

    def _stateless(self, place: Place) -> Iterator[Choice]:
        cluster, policy, level = place
        for name in self._ordered(cluster, policy):
            node = self._admitted(cluster, name)
            if node is None:
                continue
            if level.max_lag_s is None or self._lags_less(cluster, node, name, level):
                yield Choice(node, name)

    def _on_primary(self, cluster: str, level: Level) -> Choice:
        """The primary; the session has then seen a position it was not told."""
        node = self.nodes.primary(cluster)
        has_replicas = self.nodes.clusters[cluster].is_replicated
        if has_replicas and level.name in ("session", "strong"):
            key = self.nodes.keys[cluster]
            session = sessions.current()
            self._refuse_lost(cluster, session.of(key), node)
            session.saw_unknown(key, self.nodes.era(cluster, node))
        is_fallback = has_replicas and level.name != "strong"
        return Choice(node, None, is_fallback=is_fallback)

    # -- level "session" ----------------------------------------------------------

    def _for_session(
        self, place: Place, own: Choice | None, is_older: bool
    ) -> Iterator[Choice]:
        cluster = place.cluster
        key = self.nodes.keys[cluster]
        state = sessions.current().of(key)
        reads = state.reads if own is None else own.reads
        tried = None if own is None else own.name
        if state.node == PRIMARY and time.monotonic() < state.stays_until:
            return
        for name in self._ordered(cluster, place.policy):
            if name == tried:
                continue
            # What the session saw on its replica is not known, unless that one has
            # shown less than what is demanded.
            moves = state.node not in (None, PRIMARY, name) and not is_older
            if moves or state.is_unknown:
                try:
                    has_log = self._learn_floor(cluster, state)
                except NodeUnavailable:
                    has_log = True
                    if state.node == tried and self.nodes.leaders.search(cluster):
                        has_log = self._learn_floor(cluster, state)
                    elif not moves or state.is_unknown or state.node == tried:
                        raise
                    else:
                        name = str(state.node)  # it may stay where it is
                if not has_log:
                    return
            choice = self._offered(cluster, state, name)
            if choice is not None and self._has_restarted(state, choice):
                sessions.current().saw_unknown(key)
                self._learn_floor(cluster, state)
                choice = self._offered(cluster, state, name)
            if choice is not None:
                yield choice._replace(reads=reads)

    def stayed(self, place: Place, choice: Choice) -> None:
        """The session's own replica has answered. If another thread has moved the
        session meanwhile, nobody there knows what this one showed."""
        state = choice.state
        assert state is not None
        state.reads += 1  # before the look: see ``Session.moved``
        if state.node != choice.name:
            sessions.current().saw_unknown(self.nodes.keys[place.cluster])

    def served(self, place: Place, choice: Choice) -> None:
        """A node has answered: at level "session" the session stays there."""
        cluster = place.cluster
        declared = self.nodes.clusters[cluster]
        if not declared.is_replicated:
            return
        if choice.name is None and place.level.name in ("session", "strong"):
            era = self.nodes.era(cluster, choice.node)
            sessions.current().saw_unknown(self.nodes.keys[cluster], era)
        if place.level is not SESSION:
            return
        session, now = sessions.current(), time.monotonic()
        state = session.of(self.nodes.keys[cluster])
        if choice.name is not None:
            if not session.moved(state, choice.name, choice.reads):
                session.saw_unknown(self.nodes.keys[cluster])
            state.policy = place.policy
            state.read_era, state.served_at = self._era_of(cluster, choice), now
            state.server = self.engine.run_of(choice.node)
            state.connection = choice.node.connection
            # What was removed is known to whoever chooses anew.
            source = declared.source
            stays_s = STAYS_S if source is None else min(STAYS_S, source.every_s)
            state.stays_until = now + stays_s
        elif state.node != PRIMARY or now >= state.stays_until:
            state.node, state.stays_until = PRIMARY, now + STAYS_ON_PRIMARY_S

    def _era_of(self, cluster: str, choice: Choice) -> Era | None:
        """Under which primary a replica's answer came; none of those found if it was
        not seen to follow the last."""
        era = self.nodes.read_era(cluster)
        if not era.found or self._has_followed(cluster, choice.name, choice.node):
            return era
        return Era("", None, -1)

    def _offered(self, cluster: str, state: ClusterState, name: str) -> Choice | None:
        node = self._admitted(cluster, name)
        return None if node is None else self._choice(state, node, name)

    def _choice(self, state: ClusterState, node: Any, name: str) -> Choice:
        """A replica with what it still has to prove."""
        if not state.floors:
            return Choice(node, name, (), False, 0, state, state.reads)
        known = None if self.engine.is_local else applied.of(name)
        if known is not None and state.proved is known:
            return Choice(node, name, (), False, 0, state, state.reads)
        wants = tuple(w for w in state.floors if not self.engine.covers(known, (w,)))
        if not wants:
            state.proved = known
        return Choice(node, name, wants, False, applied.epoch(name), state, state.reads)

    def _admitted(self, cluster: str, name: str) -> Any:
        """A replica, connected, that may be read from now; else None."""
        if not breaker.is_usable(name) or not breaker.admits(name):
            return None
        node = self.nodes.usable_replica(cluster, name)
        if node is None or self._follows(cluster, name, node):
            return node
        return None

    def _has_followed(self, cluster: str, name: str | None, node: Any) -> bool:
        now = leaders.found(self.nodes.keys[cluster]), self.engine.run_of(node)
        return _followed.get(str(name)) == now

    def _follows(self, cluster: str, name: str, node: Any) -> bool:
        """Whether a replica follows the leader that was found; one round trip for each
        leader and each run of the replica's server, none where nobody was promoted."""
        key = self.nodes.keys[cluster]
        leader = leaders.leader_of(key)
        if leader is None or not leader.timeline:
            return True
        if self._has_followed(cluster, name, node):
            return True
        now = time.monotonic()
        if now < _unfollowing.get(name, 0.0):
            return False
        known = leaders.found(key), self.engine.run_of(node)
        try:
            have = self.engine.applied(node)
        except CONNECTION_ERRORS as error:
            self.nodes.failed(name, error)
            return False
        if have is None or not have.timeline or have.timeline < leader.timeline:
            _unfollowing[name] = now + UNFOLLOWING_S
            return False
        _followed[name] = known
        return True

    def _learn_floor(self, cluster: str, state: ClusterState) -> bool:
        """Ask the primary for the position that the session may have seen; whether
        it told one. A primary without a log leaves only itself to read from."""
        unknowns = state.unknowns
        session, key = sessions.current(), self.nodes.keys[cluster]
        primary = self.nodes.primary(cluster)
        self._refuse_lost(cluster, state, primary)
        position = self.engine.position(primary)
        if position is None:
            return False
        session.demand(key, [position], self.engine.merge)
        session.learned(state, unknowns)
        return True

    def _ordered(self, cluster: str, policy: Policy) -> Sequence[str]:
        declared = self.nodes.current(cluster, is_asked=True)
        names = declared.replicas
        if declared.source is not None:
            names = discovery.offered(declared)
        settings = conf.settings()
        if settings.drains:
            drains.refresh(self.nodes, cluster)
        leader = leaders.leader_of(self.nodes.keys[cluster])
        if leader is not None:
            names = tuple(name for name in names if name != leader.name)
        usable = breaker.usable(
            self.nodes.keys[cluster], names, settings.max_ejected_share
        )
        return policy.order(usable) if usable else ()

    # -- what an answer proved ------------------------------------------------------

    def is_proved(self, cluster: str, choice: Choice, have: Position | None) -> bool:
        """Whether a replica that had applied ``have`` may answer; no round trip but
        after a promotion. Raises WriteLost."""
        if have is None or choice.name is None:
            return have is not None
        applied.learn(self.engine, choice.name, have, choice.epoch)
        key = self.nodes.keys[cluster]
        if leaders.saw_timeline(key, have.timeline):
            self.nodes.leaders.search(cluster)
        return self._judge(cluster, choice.wants, have)

    def is_older(self, choice: Choice, have: Position | None) -> bool:
        """Whether a replica that had only applied ``have`` has shown nothing beyond
        what it was to prove; no round trip."""
        return have is not None and self.engine.is_older(have, choice.wants)

    def _judge(self, cluster: str, wants: tuple[Position, ...], have: Position) -> bool:
        is_proved = True
        for want in wants:
            if self._is_foreign(cluster, want):
                return False
            verdict = self.engine.compare(have, want)
            if verdict is Verdict.UNKNOWN:
                primary = self.nodes.primary(cluster)
                verdict = self.engine.judge(primary, have, want)
            if verdict in (Verdict.LOST, Verdict.UNKNOWN):
                is_sure = verdict is Verdict.LOST
                self._report_lost(cluster, want, have, is_sure=is_sure)
            is_proved = is_proved and verdict is Verdict.COVERED
        return is_proved

    def _is_foreign(self, cluster: str, want: Position) -> bool:
        """Whether a token brought a position of another system, such as the one that
        this was restored from. It cannot be compared: the primary is asked instead."""
        key = self.nodes.keys[cluster]
        own = self.nodes.system_of(cluster)
        if not want.system or own in (None, want.system):
            return False
        session = sessions.current()
        session.drop(key, want)
        session.saw_unknown(key)
        events.emit("position_foreign", cluster=key, system=want.system)
        return True

    def _report_lost(
        self, cluster: str, want: Position, have: Position, *, is_sure: bool
    ) -> None:
        key = self.nodes.keys[cluster]
        sessions.current().drop(key, want)
        events.emit("write_lost", cluster=key)
        what = "is not in" if is_sure else "cannot be found in"
        which = (
            "database that took its place since"
            if self.engine.is_local
            else f"server that was promoted since (timeline {have.timeline})"
        )
        raise WriteLost(
            "E207",
            f"a write of this session to {key} (position {self.engine.dump(want)}) "
            f"{what} the history of the {which}: it was acknowledged by the old "
            "primary and lost with it. Read again what matters and write it again if "
            "it is missing; this is said once",
        )

    def _judge_replica(self, cluster: str, state: ClusterState, primary: Any) -> None:
        """Whether a promoted primary has what the session read on a replica before; at
        most two round trips for each promotion. Raises WriteLost.

        The replica goes only forward: if what it has now is in the new history, so is
        what it showed. One that follows the new primary is part of it.
        """
        era, name = state.read_era, state.node
        now = self.nodes.read_era(cluster)
        leader = primary.leader
        if era is None or not era.ended(now) or leader is None or not leader.timeline:
            return
        state.read_era = now
        if name == leader.name:
            return  # it was promoted itself
        have = self._still_has(cluster, state, str(name))
        if have is not None and have.timeline and have.timeline >= leader.timeline:
            return
        there = self.engine.position(primary)
        # While it receives nothing it does not tell its timeline: a later one than
        # when it was read would only be judged too strictly.
        timeline = have.timeline or era.timeline if have is not None else None
        if have is None or there is None or not timeline:
            self._report_unknown(cluster, state, state.served_at, primary)
            return
        want = have._replace(system=there.system, timeline=timeline)
        self._judge(cluster, (want,), there)

    def _still_has(
        self, cluster: str, state: ClusterState, name: str
    ) -> Position | None:
        """What the session's replica has applied, if it still runs; else None."""
        declared = self.nodes.clusters[cluster]
        if name not in declared.replicas or not breaker.is_usable(name):
            return None
        node = self.nodes.usable_replica(cluster, name)
        if node is None or self.engine.run_of(node) != state.server:
            return None
        try:
            return self.engine.applied(node)
        except CONNECTION_ERRORS as error:
            self.nodes.failed(name, error)
            return None

    def _report_unknown(
        self, cluster: str, state: ClusterState, seen_at: float, primary: Any
    ) -> None:
        is_recent = time.monotonic() - seen_at < RECENT_S
        key = self.nodes.keys[cluster]
        sessions.current().was_told(state, self.nodes.era(cluster, primary))
        if not is_recent:
            return
        events.emit("write_lost", cluster=key)
        raise WriteLost(
            "E207",
            f"this session used a server of {key} before another one was promoted, "
            "at a position that nobody told: whether the new primary has all that was "
            "read and written cannot be found out. Read again what matters and write "
            "it again if it is missing; this is said once",
        )

    def refuse_lost(self, cluster: str, primary: Any) -> None:
        """Say what a promoted primary lacks before the session uses it; one round
        trip for each new demand. Raises WriteLost."""
        session = sessions.peek()
        state = session.clusters.get(self.nodes.keys[cluster]) if session else None
        if state is not None:
            self._refuse_lost(cluster, state, primary)

    def _refuse_lost(self, cluster: str, state: ClusterState, primary: Any) -> None:
        if state.era is not None and state.era.ended(self.nodes.era(cluster, primary)):
            self._report_unknown(cluster, state, state.unknown_at, primary)
        if state.node not in (None, PRIMARY):
            self._judge_replica(cluster, state, primary)
        floors = state.floors
        if not floors or (state.judged is not None and state.judged is primary.leader):
            return
        if floors[0].timeline:
            now = self.engine.timeline(primary)
            floors = tuple(w for w in floors if w.timeline and w.timeline < now)
        elif not self.engine.is_local and (
            leaders.leader_of(self.nodes.keys[cluster]) is None
        ):
            return
        have = self.engine.position(primary) if floors else None
        if have is None and self.engine.is_local:
            have = Position(0)  # a file in which nothing was ever written
        if have is None or any(self._is_foreign(cluster, w) for w in floors):
            return
        if not self._judge(cluster, floors, have):
            lost = next(w for w in floors if not self.engine.covers(have, (w,)))
            self._report_lost(cluster, lost, have, is_sure=True)
        state.judged = primary.leader

    # -- waiting ----------------------------------------------------------------------

    def waited(self, cluster: str, choice: Choice, timeout_s: float) -> bool:
        """Whether a replica that was behind has caught up within the time."""
        name = choice.name
        assert name is not None
        if timeout_s <= 0 or time.monotonic() < _unwaited.get(name, 0.0):
            return False
        try:
            have = self.engine.wait(choice.node, choice.wants, timeout_s)
        except CONNECTION_ERRORS as error:
            self.nodes.failed(name, error)
            return False
        if self.is_proved(cluster, choice, have):
            return True
        _unwaited[name] = time.monotonic() + UNWAITED_S
        return False

    # -- level "bounded" -----------------------------------------------------------

    def _lags_less(self, cluster: str, node: Any, name: str, level: Level) -> bool:
        assert level.max_lag_s is not None
        key = self.nodes.keys[cluster]
        try:
            found = lag.bound_s(
                self.engine,
                key,
                name,
                level.max_lag_s,
                ask_primary=lambda: self.engine.position(self.nodes.primary(cluster)),
                ask_replica=lambda: self.engine.applied(node),
            )
        except CONNECTION_ERRORS as error:
            if self.engine.is_lost(node):
                self.nodes.failed(name, error)
            return False
        return found is not None and found <= level.max_lag_s
