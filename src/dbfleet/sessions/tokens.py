"""What a session demands, as text that another process can go on with.

Guards two invariants: a session that goes on from a token misses nothing that the
first one wrote or saw, and text that is damaged, foreign or too old to be understood
never counts as a demand that was met: at worst the session asks the primary. A token
holds positions, never an address, a name of a server or a secret.

``1|default:home!7423.1.3000148!5f3a9c1e|sales:a!!!#17be03a9.2|9ae1c2d0``: the version,
a part for each cluster, a checksum. A part names the cluster, the positions that a
replica must have applied, the replica that the session reads from, and after ``#``,
where it saw the primary at a position that nobody asked for, which primary that was
and on which timeline. Every character may stand in a cookie and in a header.
"""

from __future__ import annotations

import functools
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from django.db import connections
from django.utils.crypto import salted_hmac

from dbfleet import conf, sessions, topology
from dbfleet.observe import events
from dbfleet.sessions.state import PRIMARY, ClusterState, Era, Session

_VERSION = "1"
#: length of a token; what does not fit is asked of the primaries instead
MAX_CHARS = 1500
#: positions of one cluster, one for each promotion it went through
MAX_POSITIONS = 8
#: how long a session that goes on keeps to the replica it came from
STAYS_S = 10.0
#: in place of all parts: too many, every cluster is to be asked
_ALL = "*"
_UNKNOWN = "#"
#: what engines raise for text that is none of theirs
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, AssertionError)


class _Part(NamedTuple):
    """One cluster's part, not yet understood by its engine."""

    key: str
    positions: tuple[str, ...] = ()
    replica: str = ""
    is_unknown: bool = False
    #: under which primary: its tag and its timeline
    era: str = ""

    def __str__(self) -> str:
        key = ":".join(quote(one, safe="") for one in self.key.split("/"))
        found = f"{key}!{'*'.join(self.positions)}!{self.replica}"
        return f"{found}!{_UNKNOWN}{self.era}" if self.is_unknown else found


# -- writing ------------------------------------------------------------------------


def token() -> str:
    """What the running session demands, as text for :func:`resume`; "" is nothing.

    At most ``MAX_CHARS`` characters of ASCII. No round trips: what is not known is to
    be asked by whoever goes on. What an open transaction wrote has no position yet;
    its clusters are marked so, and whoever goes on before its commit does not see it.
    Databases given at run time are left out.
    """
    return running()


def running(*, has_replicas: bool = True) -> str:
    """What the running session demands; without replicas not where it reads."""
    found = sessions.peek()
    uncommitted = frozenset(_uncommitted())
    if found is None and not uncommitted:
        return ""
    return dump(found or Session(), uncommitted, has_replicas=has_replicas)


def dump(
    session: Session,
    uncommitted: frozenset[str] = frozenset(),
    *,
    has_replicas: bool = True,
) -> str:
    """The token of any session; without replicas what it demands, not where it reads.

    Equal demands give equal text. No round trips.
    """
    states = {**dict.fromkeys(uncommitted), **session.clusters}
    parts = []
    for key in sorted(states):
        state = states[key] or ClusterState()
        part = _part(key, state, key in uncommitted, has_replicas)
        if part is not None:
            parts.append(part)
    return _joined(parts)


def _part(
    key: str, state: ClusterState, is_uncommitted: bool, has_replicas: bool
) -> _Part | None:
    wrapper = _fleet(key)
    cluster = dict(_clusters(wrapper)).get(key.rpartition("/")[2])
    if cluster is None or not cluster.is_replicated:
        return None
    # In the order in which other tasks of the session add to it: a replica is left
    # once the demand is raised, a position is known once it is demanded.
    node, policy = state.node, state.policy
    is_unknown = state.is_unknown or is_uncommitted
    floors = state.floors
    dumped = sorted(quote(wrapper.engine.dump(one), safe="+:-.") for one in floors)
    if len(dumped) > MAX_POSITIONS:
        dumped, is_unknown = [], True
    replica = ""
    if has_replicas and node not in (None, PRIMARY) and not is_unknown:
        if policy in (None, conf.settings().policy_for(cluster)):
            replica = _tag(wrapper, str(node))
            if replica and (state.server or state.read_era):
                replica = f"{replica}.{state.server}"
            if replica and state.read_era:
                replica = f"{replica}.{_dumped_era(wrapper, state.read_era)}"
        # Where a model's own policy put it the session's other reads do not belong.
        is_unknown = not replica
    if not dumped and not replica and not is_unknown:
        return None
    era = ""
    if is_unknown and state.era is not None:
        era = _dumped_era(wrapper, state.era)
    return _Part(key, tuple(dumped), replica, is_unknown, era)


def _dumped_era(wrapper: Any, era: Era) -> str:
    return f"{_tag(wrapper, era.leader)}.{era.timeline or ''}"


def _joined(parts: list[_Part]) -> str:
    """The token; the longest parts give way to a question until it is short enough."""
    if not parts:
        return ""
    whole = _sealed(map(str, parts))
    for part in sorted(parts, key=lambda one: -len(str(one))):
        if len(whole) <= MAX_CHARS:
            return whole
        parts[parts.index(part)] = _Part(part.key, is_unknown=True)
        whole = _sealed(map(str, parts))
    return whole if len(whole) <= MAX_CHARS else EVERYTHING


def _sealed(parts: Any) -> str:
    text = "|".join([_VERSION, *parts])
    return f"{text}|{_checksum(text)}"


def _checksum(text: str) -> str:
    """Tells text that was cut short or changed by accident; it is no signature."""
    return f"{zlib.crc32(text.encode()):08x}"


#: the token that makes every primary be asked
EVERYTHING = _sealed([_ALL])


def _uncommitted() -> Iterator[str]:
    for wrapper in connections.all(initialized_only=True):
        transaction = getattr(wrapper, "transaction", None)
        if transaction is None or wrapper.connection is None:
            continue
        if transaction.is_of_project:
            parts = transaction.enlisted.values()
            for cluster in dict.fromkeys(["home", *(part.cluster for part in parts)]):
                yield f"{wrapper.alias}/{cluster}"


# -- going on -------------------------------------------------------------------------


class Resumed:
    """A token that was taken up; as a block, a session of its own. See `resume`."""

    def __init__(self, token: str | None, is_merged: bool) -> None:
        self._token, self._is_merged = token, is_merged
        self._outer = sessions.peek()
        if not is_merged:
            sessions.begin()
        if token or not is_merged:
            apply(token, sessions.current())

    def __enter__(self) -> Session:
        if self._is_merged:
            self._outer = sessions.peek()
            apply(self._token, sessions.begin())
        return sessions.current()

    def __exit__(self, *exc_info: object) -> None:
        sessions.restore(self._outer)

    async def __aenter__(self) -> Session:
        return self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__()


def resume(token: str | None, *, merge: bool = True) -> Resumed:
    """Hold the running session to what :func:`token` told of another one.

    With ``merge`` the session demands what it did and what the token does, cluster by
    cluster the higher position; without, it begins anew with the token alone. As a
    block, ``with resume(token):``, what is inside is a session of its own that begins
    with the token; tasks and threads that copy the block's context share it, and
    without ``merge`` the session around it is left as it was.

    No round trips. Never raises for a token, because tokens come from outside: one
    that is damaged or of another version makes every cluster be asked of its primary,
    a part that its engine cannot read makes its own cluster be asked, and an alias that
    this project has not is passed over; each is told by an event, ``token_refused``.
    None and "" demand nothing.
    """
    return Resumed(token, merge)


def apply(token: str | None, session: Session) -> None:
    """Hold any session to a token; no round trips, see :func:`resume`."""
    if not token:
        return
    try:
        parts = _parsed(token)
    except ValueError as error:
        events.emit("token_refused", reason=str(error))
        ask_all(session)
        return
    for part in parts:
        if part.key == _ALL:
            ask_all(session)
        else:
            _apply(part, session)


def ask_all(session: Session) -> None:
    """Have a session ask each primary before it reads a replica; no round trips yet."""
    for alias in connections.settings:
        wrapper = _fleet(f"{alias}/home")
        for name, cluster in _clusters(wrapper):
            if cluster.is_replicated:
                session.saw_unknown(f"{alias}/{name}")


def _parsed(token: str) -> list[_Part]:
    """The parts of a token; raises ValueError with the reason."""
    if not isinstance(token, str) or len(token) > MAX_CHARS:
        raise ValueError("length")
    text, _, checksum = token.rpartition("|")
    version, *parts = text.split("|")
    if version != _VERSION:
        raise ValueError("version")
    if checksum != _checksum(text):
        raise ValueError("checksum")
    return [_part_of(part) for part in parts]


def _part_of(text: str) -> _Part:
    key, *fields = text.split("!")
    key = "/".join(unquote(one) for one in key.split(":"))
    if text == _ALL or not 2 <= len(fields) <= 3:
        return _Part(key, is_unknown=True)
    positions = tuple(unquote(one) for one in fields[0].split("*") if one)
    is_unknown = len(fields) > 2
    era = fields[2].removeprefix(_UNKNOWN) if is_unknown else ""
    return _Part(key, positions, fields[1], is_unknown, era)


def _apply(part: _Part, session: Session) -> None:
    wrapper = _fleet(part.key)
    cluster = dict(_clusters(wrapper)).get(part.key.rpartition("/")[2])
    if wrapper is None or cluster is None:
        events.emit("token_refused", reason="alias", cluster=part.key[:100])
        return
    if not cluster.is_replicated:
        return
    if part.positions:
        try:
            floors = [_loaded(wrapper.engine, one) for one in part.positions]
            session.demand(part.key, floors, wrapper.engine.merge)
        except _UNREADABLE as error:
            reason = type(error).__name__
            events.emit("token_refused", reason=reason, cluster=part.key)
            session.saw_unknown(part.key)
            return
    if part.is_unknown:
        _saw_unknown(part, session, _era(part.era, wrapper, cluster), wrapper)
    if part.replica:
        replica, _, rest = part.replica.partition(".")
        server, _, era = rest.partition(".")
        name = _named(wrapper, cluster.replicas, replica)
        found = _era(era, wrapper, cluster)
        if not _goes_on_at(part, session, name, server, found):
            _saw_unknown(part, session, found, wrapper)


def _saw_unknown(part: _Part, session: Session, era: Era | None, wrapper: Any) -> None:
    now = wrapper.nodes.read_era(part.key.rpartition("/")[2])
    session.saw_unknown(part.key, era, now)


def _era(text: str, wrapper: Any, cluster: topology.ClusterTopology) -> Era | None:
    tag, _, timeline = text.partition(".")
    leader = _named(wrapper, cluster.nodes, tag) if tag else None
    if leader is None or not (timeline == "" or timeline.isdecimal()):
        return None
    return Era(leader, int(timeline) if timeline else None)


def _loaded(engine: Any, text: str) -> Any:
    found = engine.load(text)
    if engine.dump(found) != text:
        raise ValueError(text)
    return found


def _goes_on_at(
    part: _Part, session: Session, name: str | None, server: str, era: Era | None
) -> bool:
    """Keep to the replica of the first session, if this one keeps to none yet.

    ``server`` tells its run, from which another run would differ; ``era`` the primary
    that it followed. False: it saw what that replica had, and nobody knows what that
    was.
    """
    state = session.of(part.key)
    if name is None or state.node not in (None, name):
        return False
    if state.node is None:
        state.policy = None
        state.read_era, state.served_at = era, time.monotonic()
        state.server = server
        state.stays_until = time.monotonic() + STAYS_S
        state.node = name
    return True


# -- the project's own clusters -------------------------------------------------------


def _fleet(key: str) -> Any:
    """The wrapper of ``alias/cluster`` if the settings have it; opens nothing."""
    alias = key.rpartition("/")[0]
    if alias not in connections.settings:
        return None
    wrapper = connections[alias]
    return wrapper if getattr(wrapper, "topology", None) is not None else None


def _clusters(wrapper: Any) -> list[tuple[str, topology.ClusterTopology]]:
    if wrapper is None:
        return []
    return [(name, wrapper.nodes.current(name)) for name in wrapper.nodes.clusters]


def _named(wrapper: Any, names: Sequence[str], tag: str) -> str | None:
    for name in names:
        if _tag(wrapper, name) == tag:
            return name
    return None


def _tag(wrapper: Any, name: str) -> str:
    """Tells a server from others without telling which one; "" if it is not known.

    Not its name: two processes of which one has newer settings may call two servers
    ``replica1``.
    """
    node = wrapper.settings_dict["NODES"].get(name)
    if node is None:
        return ""
    where = [node.get(one, "") for one in ("ENGINE", "HOST", "PORT", "NAME")]
    # What a callable tells is not asked here; such a node is known by its name.
    return _digest("\0".join(name if callable(one) else str(one) for one in where))


@functools.lru_cache(maxsize=256)
def _digest(text: str) -> str:
    found = salted_hmac("dbfleet.sessions.tokens", text, algorithm="sha256")
    return str(found.hexdigest())[:8]
