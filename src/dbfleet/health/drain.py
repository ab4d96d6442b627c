"""Drained nodes: replicas that an operator took out of service for a while.

Guards one invariant: what is known is one immutable set, replaced as a whole, so
readers need no lock. Where the operator's wish is stored is not known here.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable

#: what was stored is read again after this time, by the first who asks
REFRESH_S = 5.0

#: the names of the drained nodes; replaced, never changed
current: frozenset[str] = frozenset()
#: cluster -> when its drained nodes are to be read again
_due: dict[str, float] = {}
#: nodes that are none of their cluster's any more -> until when that is told
_left: dict[str, float] = {}


def set_drained(names: Iterable[str], cluster: str | None = None) -> None:
    """From now on exactly these nodes are drained.

    With ``cluster`` (``default``, ``sales/a``) the nodes of other clusters stay as
    they are.
    """
    global current
    others = () if cluster is None else current - drained(cluster)
    current = frozenset(names).union(others, tuple(_left))


def leave(
    removed: Iterable[str],
    members: Collection[str],
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """``removed`` are replicas of a cluster no more: left alone for ``seconds``.

    Sessions that stay on one of them move; after that none chooses it. ``members`` are
    the replicas that the cluster has.
    """
    global current
    _end(name for name in tuple(_left) if name in members)
    _left.update(dict.fromkeys(removed, clock() + seconds))
    current = current.union(removed)


def settle(*, clock: Callable[[], float] = time.monotonic) -> None:
    """Forget the nodes that left long enough ago. Costs nothing where none did."""
    if _left:
        now = clock()
        _end(name for name, until in tuple(_left.items()) if now >= until)


def _end(names: Iterable[str]) -> None:
    global current
    over = frozenset(names)
    for name in over:
        _left.pop(name, None)
    current -= over


def is_drained(name: str) -> bool:
    """Whether the node is to be left alone until an operator says otherwise."""
    return name in current


def drained(
    cluster: str,
    loader: Callable[[], Iterable[str]] | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> frozenset[str]:
    """The drained nodes of ``cluster``.

    ``loader`` reads the stored names of the cluster. It is called at most once in
    ``REFRESH_S`` seconds (with jitter) in a process, by one caller, while the others
    go on with what is known. What it raises passes through and changes nothing.
    """
    if loader is not None:
        now = clock()
        if now >= _due.get(cluster, now):
            _due[cluster] = now + REFRESH_S * random.uniform(0.8, 1.2)
            set_drained(loader(), cluster)
    prefix = f"{cluster}/"
    return frozenset(name for name in current if name.startswith(prefix))


def forget(cluster: str) -> None:
    """Drop what is known about ``cluster``; its loader is asked at the next call."""
    set_drained((), cluster)
    _due.pop(cluster, None)


def reset() -> None:
    """Forget every drained node, and ask every loader again."""
    global current
    current = frozenset()
    _due.clear()
    _left.clear()
