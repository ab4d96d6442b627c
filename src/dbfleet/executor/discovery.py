"""The replicas that a cluster's source found, for the whole process.

Guards two invariants: what is known is an answer of the source as a whole, replaced by
its next one and kept while the source fails; and asking is bounded: one question at a
time for a cluster, at most one in ``every_s``, and nobody waits for it but the one read
that found it due, ``timeout_s`` at most.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from django.db import connections

from dbfleet import topology
from dbfleet.errors import ConfigurationError
from dbfleet.health import breaker, drain
from dbfleet.observe import events
from dbfleet.policies import place
from dbfleet.replicas import MAX_FOUND, Source, SourceFailed
from dbfleet.sessions import applied
from dbfleet.topology import ClusterTopology

#: a source that failed is asked again after this time, if not earlier
RETRY_S = 5.0
#: how long sessions that stay on a replica are told that it was removed; each chooses
#: anew within ten seconds
LEAVES_S = 12.0
#: settings of removed replicas are kept for so many: one may be the leader, or
#: come back
KEPT = 64

#: a node that was found and is no replica is looked at again after this time
REFUSED_S = 30.0

_epochs = itertools.count(1)


class Found(NamedTuple):
    """One answer of a source. ``epoch`` differs from every other answer's."""

    epoch: int = 0
    #: node -> its complete settings, in the order of the source
    nodes: Mapping[str, dict[str, Any]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.nodes)


class _Asking(threading.Thread):
    """One question to a source."""

    def __init__(self, source: Source) -> None:
        super().__init__(name="dbfleet-replicas", daemon=True)
        self._source = source
        self.answer: list[Any] = []
        self.error: Exception | None = SourceFailed("it ended without an answer")

    def run(self) -> None:
        try:
            self.answer = list(itertools.islice(self._source.find(), MAX_FOUND + 1))
            self.error = None
        except Exception as error:  # noqa: BLE001 - told by whoever waits
            self.error = error
        finally:
            connections.close_all()  # a function may have read a database


class _State:
    """What the process knows of one cluster's source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.found = Found()
        #: nodes that were removed, the latest last
        self.past: dict[str, None] = {}
        self.due = 0.0
        #: why the source's last question had no answer; "" after an answer
        self.failure = ""
        #: nodes that are no replicas -> until when that is not looked at again
        self.refused: dict[str, float] = {}
        #: a question that got no answer in time
        self.asking: _Asking | None = None
        self.lock = threading.Lock()


_states: dict[str, _State] = {}


def _of(declared: ClusterTopology) -> _State:
    assert declared.source is not None
    state = _states.get(declared.name)
    if state is None:
        state = _states.setdefault(declared.name, _State(declared.source))
    if state.source != declared.source:
        state = _states[declared.name] = _State(declared.source)
    return state


def known(declared: ClusterTopology) -> Found:
    """What the source of a cluster found last; asks nobody."""
    return _of(declared).found


def found(declared: ClusterTopology, entry: Mapping[str, Any]) -> Found:
    """The replicas of a cluster, asked for when it is time.

    ``entry`` is the alias's in ``DATABASES``. Waits ``timeout_s`` of the source at
    most, and only in the one call that asks. Never raises for what a source does.
    """
    state = _of(declared)
    drain.settle()
    now = time.monotonic()
    if now < state.due or not state.lock.acquire(blocking=False):
        return state.found
    try:
        if time.monotonic() >= state.due:
            # Before it is asked: a function that reads this cluster asks nobody.
            state.due = now + _jittered(state.source.every_s)
            _ask(state, declared, entry)
    finally:
        state.lock.release()
    return state.found


def failure_of(declared: ClusterTopology) -> str:
    """Why the last question to a cluster's source had no answer; "" if it had one."""
    return _of(declared).failure


def is_kept(declared: ClusterTopology, name: str) -> bool:
    """Whether a node is a replica of the cluster, or was lately."""
    state = _of(declared)
    return name in state.found.nodes or name in state.past


def is_gone(name: str) -> bool:
    """Whether a node was found once and is a replica no more."""
    cluster = name.rpartition("/")[0]
    state = _states.get(cluster)
    return state is not None and name in state.past


def refuse(declared: ClusterTopology, name: str) -> None:
    """A node that was found is no replica: left out of the reads for a while."""
    _of(declared).refused[name] = time.monotonic() + REFUSED_S


def offered(declared: ClusterTopology) -> tuple[str, ...]:
    """The replicas of a cluster that were not refused; asks nobody."""
    refused = _of(declared).refused
    if not refused:
        return declared.replicas
    now = time.monotonic()
    return tuple(n for n in declared.replicas if now >= refused.get(n, 0.0))


def forget(alias: str) -> None:
    """Ask the sources of an alias anew."""
    for name in [n for n in _states if n == alias or n.startswith(f"{alias}/")]:
        del _states[name]


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.8, 1.2)


def _ask(state: _State, declared: ClusterTopology, entry: Mapping[str, Any]) -> None:
    try:
        given = _answer(state)
        if len(given) > MAX_FOUND:
            raise SourceFailed(f"it found more than {MAX_FOUND} replicas")
        nodes = topology.read_found(declared, entry, given)
    except (SourceFailed, ConfigurationError) as error:
        state.failure = str(error)
        state.due = min(state.due, time.monotonic() + _jittered(RETRY_S))
        events.emit("replicas_unknown", cluster=declared.name, reason=state.failure)
        return
    state.failure = ""
    if list(nodes.items()) != list(state.found.nodes.items()):
        _take(state, declared, nodes)


def _answer(state: _State) -> list[Any]:
    """What the source says; one that still has not answered is asked nothing new."""
    asking = state.asking
    if asking is None:
        asking = _Asking(state.source)
        asking.start()
    asking.join(state.source.timeout_s)
    if asking.is_alive():
        state.asking = asking
        raise SourceFailed(f"it did not answer within {state.source.timeout_s:g} s")
    state.asking = None
    if isinstance(asking.error, SourceFailed):
        raise asking.error
    if asking.error is not None:
        # Its text may have a URL in it.
        raise SourceFailed(f"it raised {type(asking.error).__name__}") from asking.error
    return asking.answer


def _take(
    state: _State, declared: ClusterTopology, nodes: dict[str, dict[str, Any]]
) -> None:
    before = state.found.nodes
    removed = [name for name in before if name not in nodes]
    added = [name for name in nodes if name not in before]
    place({name: str(node.get("ZONE", "")) for name, node in nodes.items()})
    for name in added:
        state.past.pop(name, None)
        applied.forget(name)  # it may be another machine now
    state.past.update(dict.fromkeys(removed))
    for name in list(state.past)[:-KEPT]:
        del state.past[name]
    state.found = Found(next(_epochs), nodes)
    drain.leave(removed, nodes, LEAVES_S)
    for name in removed:
        state.refused.pop(name, None)
        breaker.forget(name)
        applied.forget(name)
    events.emit(
        "replicas_changed",
        cluster=declared.name,
        added=tuple(added),
        removed=tuple(removed),
    )


def _renew() -> None:
    """In a forked child: threads that stayed behind hold locks and never answer."""
    for state in _states.values():
        state.lock, state.asking = threading.Lock(), None


os.register_at_fork(after_in_child=_renew)
