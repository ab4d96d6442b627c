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
    """A random order. ``rng`` replaces the source of randomness.

    A thread that reads a cluster stays with the replica it drew for ``keep_s``
    seconds: a server answers a connection it has just served sooner than one it has
    to wake, and rows read together come from one place. 0 draws for each read.
    """

    def __init__(
        self,
        aliases: Iterable[str] = (),
        *,
        keep_s: float = 0.05,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(aliases)
        self.keep_s = keep_s
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


BUILT_IN = ("First", "Random", "RoundRobin", "Weighted")
