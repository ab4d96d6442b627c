"""Waits for replicas are watched: one that is lost is not waited for.

Guards two invariants: a read is given up only after its server left probes unanswered,
however long the read takes; and nobody waits for the answer of a lost server when its
connection is closed. The decision is :mod:`dbfleet.health.silence`'s; how a driver is
watched and a server is probed, the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

from dbfleet import conf
from dbfleet.executor.failures import name_of
from dbfleet.health import breaker
from dbfleet.health.silence import PROBE_S, Silence, Step

#: a primary that is silent is probed later: there is no other one to ask instead
PRIMARY_AFTER_S = 5.0


class Watch:
    """Watches the connections of one node; an engine asks it while no answer comes."""

    __slots__ = ("_is_primary", "_name", "_nodes")

    def __init__(self, name: str, nodes: Any, *, is_primary: bool) -> None:
        # A pool keeps its connections longer than the thread that opened one.
        self._name, self._nodes, self._is_primary = name, ref(nodes), is_primary

    def begin(self, late_s: float) -> Wait:
        """An answer is late by ``late_s`` seconds already."""
        after_s = conf.settings().probe_after_s
        if self._is_primary and after_s is not None:
            after_s = max(after_s, PRIMARY_AFTER_S)
        return Wait(self, Silence(self._name, after_s, late_s))

    def judge(self) -> None:
        """Have the slowness of the node judged: where every thread is stuck on it,
        nobody comes to choose one. No round trip."""
        nodes = self._nodes()
        if nodes is None:
            return
        for cluster, known in tuple(nodes.clusters.items()):
            if self._name in known.replicas:
                share = conf.settings().max_ejected_share
                breaker.usable(nodes.keys[cluster], known.replicas, share)


class Wait:
    """One wait for an answer that is late."""

    __slots__ = ("_silence", "_watch")

    def __init__(self, watch: Watch, silence: Silence) -> None:
        self._watch, self._silence = watch, silence

    def is_over(self, answers: Callable[[float], bool | None]) -> bool:
        """Whether to give up; called again and again while no answer comes.

        ``answers`` probes the server within a number of seconds, None if that said
        nothing about it. Called once or twice when a probe is due, else not at all.
        """
        self._watch.judge()
        step = self._silence.step()
        while step is Step.PROBE:
            found = None
            try:
                found = answers(PROBE_S)
            finally:
                step = self._silence.probed(found)
        return step is Step.LOST

    def reason(self) -> str:
        """Why it was given up, for an error."""
        return (
            f"no answer for {self._silence.lasts_s():.1f} s, and none to a probe of "
            "the server either"
        )


def watch(node: Any) -> None:
    """Watch the connections of a replica's wrapper, before and after each is opened;
    no I/O."""
    owner = node.owner
    found = Watch(node.alias, owner.nodes, is_primary=False)
    owner.engine.watch(node, found)


def watch_connecting(node: Any) -> None:
    """Watch a primary's wrapper while it connects: nothing has been sent then. What
    was sent later may have happened, and is waited for; no I/O."""
    owner = node.owner or node
    name = node.leader.name if node.leader is not None else name_of(owner, node)
    found = Watch(name, owner.nodes, is_primary=True)
    owner.engine.watch(node, found, only_connecting=True)
