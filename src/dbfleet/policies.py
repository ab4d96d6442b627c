"""Policies: in which order equivalent candidates are tried.

A candidate is a replica's node name (``POLICY`` of an alias, ``DBFLEET["POLICY"]``,
``DBFLEET["POLICIES"]``) or an alias (``Meta.using = Random(["db1", "db2"])``).

Guards one invariant: a policy only orders what it is given. It never drops,
repeats or adds a candidate, so it cannot make a read wrong. Every policy may be
used by many threads at once and is safe to use after a fork.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from django.conf import settings as django_settings

from dbfleet.errors import ConfigurationError


@runtime_checkable
class Policy(Protocol):
    """Anything with ``order``; a project may write its own."""

    def order(self, candidates: Sequence[str]) -> Sequence[str]:
        """The same candidates, the one to try first in front."""
        ...


class _Placeable:
    """A policy that may carry the aliases a model is placed on."""

    def __init__(self, aliases: Iterable[str] = ()) -> None:
        if isinstance(aliases, str):
            aliases = (aliases,)
        self.aliases: tuple[str, ...] = tuple(aliases)
        wrong = [alias for alias in self.aliases if not isinstance(alias, str)]
        if wrong or len(set(self.aliases)) != len(self.aliases):
            raise ConfigurationError(
                "E007",
                f"{type(self).__name__} takes different aliases, "
                f"got {list(self.aliases)!r}",
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.aliases)!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> _Placeable:
        # Django deep-copies settings; a turn or a seed must stay shared.
        return self


class First(_Placeable):
    """Failover order: the candidates as declared, always the first one first."""

    def order(self, candidates: Sequence[str]) -> Sequence[str]:
        return candidates


class Random(_Placeable):
    """A random order. ``rng`` replaces the source of randomness."""

    def __init__(
        self, aliases: Iterable[str] = (), *, rng: random.Random | None = None
    ) -> None:
        super().__init__(aliases)
        self._rng = rng

    def order(self, candidates: Sequence[str]) -> Sequence[str]:
        # The module's own generator is reseeded by Python in a forked process.
        rng = self._rng or random
        if len(candidates) == 2:  # the usual pair, without a sample's cost
            return candidates if rng.random() < 0.5 else candidates[::-1]
        return rng.sample(candidates, len(candidates))


class RoundRobin(_Placeable):
    """Each candidate in turn, counted per process from a random start."""

    def __init__(
        self, aliases: Iterable[str] = (), *, rng: random.Random | None = None
    ) -> None:
        super().__init__(aliases)
        self._rng = rng
        self._turns: tuple[int, itertools.count[int]] | None = None

    def order(self, candidates: Sequence[str]) -> Sequence[str]:
        if len(candidates) < 2:
            return candidates
        first = next(self._counter()) % len(candidates)
        return [*candidates[first:], *candidates[:first]]

    def _counter(self) -> itertools.count[int]:
        # next() on a count is atomic, so no lock could be left held by a fork.
        # Two threads that meet the first turn at once may repeat one candidate.
        turns = self._turns
        if turns is None or turns[0] != os.getpid():
            start = (self._rng or random).randrange(2**16)
            turns = self._turns = (os.getpid(), itertools.count(start))
        return turns[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_turns": None}


class Weighted(_Placeable):
    """A random order in which a candidate comes first in proportion to its weight.

    ``Weighted({"replica1": 3, "replica2": 1})`` names a node by its full name
    (``default/replica1``) or by the last part of it, or an alias. A candidate that
    is not named weighs 1; weight 0 means only when all others were tried.
    """

    def __init__(
        self, weights: Mapping[str, float], *, rng: random.Random | None = None
    ) -> None:
        if not isinstance(weights, Mapping) or not weights:
            raise ConfigurationError(
                "E007",
                "Weighted takes a dict of name to weight, e.g. "
                'Weighted({"replica1": 3, "replica2": 1})',
            )
        super().__init__(weights)
        for name, weight in weights.items():
            if (
                not isinstance(weight, int | float)
                or isinstance(weight, bool)
                or not 0 <= weight < math.inf
            ):
                raise ConfigurationError(
                    "E007",
                    f"Weighted: the weight of {name!r} is {weight!r}; "
                    f"give a number, 0 or more",
                )
        self.weights = dict(weights)
        self._rng = rng

    def order(self, candidates: Sequence[str]) -> Sequence[str]:
        rng = self._rng or random
        # Arrival times of independent exponential clocks: the chance to come
        # first is the candidate's share of the weights still in the race.
        arrivals = []
        for candidate in candidates:
            weight = self._weight(candidate)
            time = -math.log(1.0 - rng.random())
            arrivals.append(time / weight if weight else math.inf)
        ranks = sorted(range(len(candidates)), key=arrivals.__getitem__)
        return [candidates[rank] for rank in ranks]

    def _weight(self, candidate: str) -> float:
        if candidate in self.weights:
            return self.weights[candidate]
        return self.weights.get(candidate.rpartition("/")[2], 1)

    def __repr__(self) -> str:
        return f"Weighted({self.weights!r})"


class Loads(Protocol):
    """How busy and how quick nodes are, by name; 0 for a node never asked."""

    def in_flight(self, node: str) -> int:
        """How many reads were sent and are not answered yet."""
        ...

    def latency_s(self, node: str) -> float:
        """The decayed average latency in seconds."""
        ...


class _Unmeasured:
    def in_flight(self, node: str) -> int:
        return 0

    def latency_s(self, node: str) -> float:
        return 0.0


_measured: Loads = _Unmeasured()


def measured_by(loads: Loads) -> None:
    """What policies go by that are given no ``loads`` of their own.

    Set by the room that measures, which this one does not know.
    """
    global _measured
    _measured = loads


class _Measured(_Placeable):
    def __init__(
        self,
        aliases: Iterable[str] = (),
        *,
        rng: random.Random | None = None,
        loads: Loads | None = None,
    ) -> None:
        super().__init__(aliases)
        self._rng = rng
        self._loads = loads

    def _shuffled(self, candidates: Sequence[str]) -> list[str]:
        return (self._rng or random).sample(candidates, len(candidates))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loads": None}  # another process measures itself


class LeastConnections(_Measured):
    """The candidate with the fewest reads of this process in flight first.

    Equals in a random order. ``loads`` replaces what this process measured.
    """

    def order(self, candidates: Sequence[str]) -> Sequence[str]:
        if len(candidates) < 2:
            return candidates
        return sorted(
            self._shuffled(candidates), key=(self._loads or _measured).in_flight
        )


class LeastLatency(_Measured):
    """The better of two random candidates first: a slow one is seldom chosen.

    They are compared by decayed latency x reads in flight, the next one included, as
    this process measured them (``loads`` replaces that). Two, not all: processes that
    all chose the quickest would make it the slowest. The others follow at random.
    """

    #: a node that is tried for the first time, in seconds, as long as it is unanswered
    _UNKNOWN_S = 1e6

    def order(self, candidates: Sequence[str]) -> Sequence[str]:
        if len(candidates) < 2:
            return candidates
        order = self._shuffled(candidates)
        if self._cost(order[1]) < self._cost(order[0]):
            order[0], order[1] = order[1], order[0]
        return order

    def _cost(self, candidate: str) -> float:
        loads = self._loads or _measured
        in_flight = loads.in_flight(candidate)
        latency_s = loads.latency_s(candidate)
        if not latency_s and in_flight:
            latency_s = self._UNKNOWN_S  # one read is enough to learn of it
        return latency_s * (in_flight + 1)


#: node -> its ``ZONE``, for the nodes that have one
_zones: dict[str, str] = {}


def place(zones: Mapping[str, str]) -> None:
    """Remember the zones of nodes; an empty one is none."""
    for node, zone in zones.items():
        if zone:
            _zones[node] = zone
        else:
            _zones.pop(node, None)


def zone_of(node: str) -> str:
    """The zone that settings give a node; empty when they give none."""
    return _zones.get(node, "")


def own_zone() -> str:
    """Where this process runs: ``DBFLEET["ZONE"]``, else ``DBFLEET_ZONE`` of the
    environment; empty when neither says."""
    if django_settings.configured:
        fleet = getattr(django_settings, "DBFLEET", None)
        zone = fleet.get("ZONE") if isinstance(fleet, Mapping) else None
        if isinstance(zone, str) and zone:
            return zone
    return os.environ.get("DBFLEET_ZONE", "")


class SameZone:
    """The candidates of the process's own zone first, the others after them.

    ``inner`` orders each of the two groups: a policy, its class or its dotted path;
    :class:`Random` when it is not given. ``zone`` is the own zone, in place of
    ``DBFLEET["ZONE"]`` and ``DBFLEET_ZONE``. Where no own zone is known, or nobody
    stands in it, ``inner`` orders all.
    """

    def __init__(self, inner: object = None, *, zone: str | None = None) -> None:
        self.inner: Policy = read_policy(inner) or Random()
        if zone is not None and not isinstance(zone, str):
            raise ConfigurationError(
                "E007", f"SameZone: a zone is text, e.g. 'eu-1a', not {zone!r}"
            )
        self.zone = zone
        self.aliases: tuple[str, ...] = getattr(self.inner, "aliases", ())

    def order(self, candidates: Sequence[str]) -> Sequence[str]:
        own = own_zone() if self.zone is None else self.zone
        near = [name for name in candidates if own and _zones.get(name) == own]
        if not near or len(near) == len(candidates):
            return self.inner.order(candidates)
        far = [name for name in candidates if _zones.get(name) != own]
        return [*self.inner.order(near), *self.inner.order(far)]

    def __deepcopy__(self, memo: dict[int, Any]) -> SameZone:
        return self

    def __repr__(self) -> str:
        return f"SameZone({self.inner!r})"


class Named:
    """A policy given by its dotted path; imported at the first choice.

    Settings are read while models are still being imported, which is too early
    to import a project's own module.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._policy: Policy | None = None

    def resolve(self) -> Policy:
        """Import the policy; ``ConfigurationError`` E007 when that fails."""
        if self._policy is None:
            self._policy = _imported(self.path)
        return self._policy

    def order(self, candidates: Sequence[str]) -> Sequence[str]:
        return self.resolve().order(candidates)

    def __deepcopy__(self, memo: dict[int, Any]) -> Named:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_policy": None}

    def __repr__(self) -> str:
        return f"Named({self.path!r})"


def read_policy(given: object) -> Policy | None:
    """Turn what a setting holds into a policy: None, a path, a class, an instance.

    Raises ``ConfigurationError`` E007 for anything else and for a wrong path into
    this module; a path into another module is imported at its first use.
    """
    if given is None:
        return None
    if isinstance(given, str):
        named = Named(given)
        if given.rpartition(".")[0] in ("", __name__):
            return named.resolve()
        return named
    return _checked(given, repr(given))


def _imported(path: str) -> Policy:
    module_name, dot, name = path.rpartition(".")
    if not dot:
        raise ConfigurationError(
            "E007",
            f"policy {path!r} is not a dotted path; give one like "
            f"'{__name__}.RoundRobin' or an instance",
        )
    try:
        found = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        names = ", ".join(BUILT_IN) if module_name == __name__ else ""
        known = f"; known are: {names}" if names else ""
        raise ConfigurationError(
            "E007", f"policy {path!r} cannot be imported: {error}{known}"
        ) from error
    return _checked(found, repr(path))


def _checked(found: object, what: str) -> Policy:
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            raise ConfigurationError(
                "E007",
                f"policy {what} needs arguments; give an instance, or the path "
                f"of one ({error})",
            ) from error
    if not callable(getattr(found, "order", None)):
        raise ConfigurationError(
            "E007",
            f"policy {what} has no method order(candidates); use one of "
            f"{', '.join(BUILT_IN)} from {__name__}, or write that method",
        )
    assert isinstance(found, Policy)
    return found


BUILT_IN = (
    "First",
    "LeastConnections",
    "LeastLatency",
    "Random",
    "RoundRobin",
    "SameZone",
    "Weighted",
)
