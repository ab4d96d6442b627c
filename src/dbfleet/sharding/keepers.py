"""Keepers: the clusters that hold claims, home alone or the shards.

Guards two invariants. A claim has one keeper, for ever: it is computed from the claim's
digest, which is made of the text by which the row's own database compares, and from the
list of keepers that home recorded at the first use. And no process writes claims where
others do not look for them: what home recorded and the settings have to agree, or
nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TypeVar

from django.db.utils import Error

from dbfleet.errors import ConfigurationError
from dbfleet.planner.route import HOME

Keepers = tuple[str, ...]
One = TypeVar("One")

#: hexadecimal digits of a claim that decide
_DIGITS = 8

_READ = "SELECT clusters FROM dbfleet_keeper WHERE number = 0"
_RECORD = "INSERT INTO dbfleet_keeper (number, clusters) VALUES (0, %s)"


def keeper_of(claim: str, keepers: Keepers) -> str:
    """The cluster that keeps a claim; it grows with the claim's text."""
    if len(keepers) == 1:
        return keepers[0]
    return keepers[int(claim[:_DIGITS], 16) * len(keepers) >> 4 * _DIGITS]


def by_keeper(
    claims: Sequence[One], text_of: Callable[[One], str], keepers: Keepers
) -> list[tuple[str, list[One]]]:
    """Claims in one order everywhere, taken apart by keeper.

    Sorted by their text they are sorted by keeper: who takes their locks in this order
    never waits for one who waits for it.
    """
    ordered = sorted(claims, key=text_of)
    groups = groupby(ordered, lambda one: keeper_of(text_of(one), keepers))
    return [(keeper, list(group)) for keeper, group in groups]


def load(
    wrapper: Any, home: Any, create_on: Callable[[Sequence[str]], None]
) -> Keepers:
    """The keepers that home recorded, which are recorded now if none were.

    ``create_on`` makes the tables on those shards, before they are relied on. One round
    trip. Raises ConfigurationError E414 where the settings say otherwise.
    """
    engine, topology = wrapper.engine, wrapper.topology
    is_spread = topology.claims == "shards"
    if not engine.can_prepare:
        if is_spread:
            raise _wrong(
                wrapper,
                "CLAIMS = 'shards' needs servers that can prepare a transaction, which "
                f"{wrapper.vendor} cannot: keep claims in home, remove CLAIMS",
            )
        return (HOME,)
    found = recorded(engine, home)
    if found is None:
        found = _record(wrapper, home, create_on, is_spread)
    if (found != (HOME,)) != is_spread:
        there = "home" if found == (HOME,) else f"shards ({', '.join(found)})"
        raise _wrong(
            wrapper,
            f"claims are kept in {there}, as home recorded at the first use, and "
            f"CLAIMS is {topology.claims!r}, where those of stored rows would be "
            "missed. Set it back",
        )
    unknown = sorted({*found} - {HOME, *topology.shards})
    if unknown:
        raise _wrong(
            wrapper,
            f"claims are kept on {', '.join(unknown)}, which SHARDS does not declare: "
            "declare them again, the claims are there",
        )
    return found


def recorded(engine: Any, home: Any) -> Keepers | None:
    """What home recorded, None if nothing was yet; one round trip."""
    rows = engine.fetch(home, _READ)
    return tuple(rows[0][0].split(" ")) if rows else None


def _record(
    wrapper: Any, home: Any, create_on: Callable[[Sequence[str]], None], is_spread: bool
) -> Keepers:
    engine, shards = wrapper.engine, tuple(wrapper.topology.shards)
    wanted: Keepers = (HOME,)
    # A fleet of before there was a record has its claims in home.
    if is_spread and not engine.fetch(home, "SELECT 1 FROM dbfleet_unique LIMIT 1"):
        create_on(shards)
        wanted = shards
    try:
        engine.run(home, _RECORD, [" ".join(wanted)]).close()
    except Error:
        found = recorded(engine, home)
        if found is None and wanted != (HOME,):
            raise  # others could take other shards for them
        return found or wanted  # another process was first; its record counts
    return wanted


def _wrong(wrapper: Any, problem: str) -> ConfigurationError:
    return ConfigurationError(
        "E414", f"alias {wrapper.alias!r}: {problem}. Nothing was written"
    )
