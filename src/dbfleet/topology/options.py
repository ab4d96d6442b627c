"""The options of an alias as a whole: ``READ_ONLY``, ``POLICY``, ``SLOTS``, …

Guards one invariant: an option that has no meaning for an alias is refused, so
nobody relies on something that does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dbfleet.errors import ConfigurationError
from dbfleet.levels import Level, read_level
from dbfleet.policies import Policy, read_policy
from dbfleet.topology.maps import ShardMap, read_map
from dbfleet.topology.mistakes import Mistakes, unknown_name
from dbfleet.topology.snapshot import (
    CLAIMS_PLACES,
    COMMIT_MODES,
    DEFAULT_LIMITS,
    DEFAULT_SLOTS,
    DISTRIBUTED_ENGINES,
    GATHER_SOURCES,
    ClaimsPlace,
    CommitMode,
    FanoutLimits,
    GatherLimits,
)
from dbfleet.topology.values import FrozenDict

#: Options of an alias as a whole, apart from ``POLICY``, which a shard has too.
OPTION_KEYS = frozenset(
    [
        "READ_ONLY",
        "SLOTS",
        "MAP",
        "GATHER",
        "COMMIT",
        "CLAIMS",
        "CONSISTENCY",
        "DISTRIBUTED_BY",
    ]
)
_OF_SHARDS = ("SLOTS", "MAP", "GATHER", "COMMIT", "CLAIMS")


_HOST_AND_PORT = re.compile(r"(\[[^\]]+\]|/[^:]+|[^:/\s]+)(:\d+)?")


class Options(NamedTuple):
    """The options as read; a wrong one keeps its default."""

    read_only: bool = False
    policy: Policy | None = None
    slots: int = DEFAULT_SLOTS
    map: ShardMap | None = None
    gather: GatherLimits = DEFAULT_LIMITS
    gather_own: frozenset[str] = frozenset()
    commit: CommitMode = "two_phase"
    claims: ClaimsPlace = "home"
    consistency: Level | None = None
    distributed_by: str | None = None


def read_options(alias: str, entry: Mapping[str, Any], mistakes: Mistakes) -> Options:
    """Read and check the options of an entry."""
    read: dict[str, Any] = {}
    read["distributed_by"] = _read_distributed(alias, entry, mistakes)
    if "SHARDS" not in entry:
        for key in _OF_SHARDS:
            if key == "GATHER" and "DISTRIBUTED_BY" in entry:
                continue
            if key in entry:
                mistakes.add(
                    "E005", alias, f"{key} is about shards, but there are no SHARDS"
                )
    match entry.get("READ_ONLY", False):
        case bool(read_only):
            read["read_only"] = read_only
        case other:
            mistakes.add(
                "E004", alias, f"READ_ONLY must be True or False, not {other!r}"
            )
    slots = entry.get("SLOTS", DEFAULT_SLOTS)
    if is_positive(slots):
        read["slots"] = slots
    else:
        mistakes.add("E004", alias, f"SLOTS must be a positive int, not {slots!r}")
    read["map"] = _read_map(alias, entry, mistakes)
    commit = entry.get("COMMIT", "two_phase")
    if commit in COMMIT_MODES:
        read["commit"] = commit
    else:
        mistakes.add("E004", alias, f"COMMIT {unknown_name(commit, COMMIT_MODES)}")
    read["claims"] = _read_claims(alias, entry, mistakes)
    try:
        read["policy"] = read_policy(entry.get("POLICY"))
    except ConfigurationError as error:
        mistakes.add_error(alias, error)
    if entry.get("CONSISTENCY") is not None:
        try:
            read["consistency"] = read_level(entry["CONSISTENCY"])
        except ConfigurationError as error:
            mistakes.add_error(alias, error)
    own = read_limits(alias, entry.get("GATHER", {}), mistakes)
    read["gather"] = GatherLimits(**own)
    read["gather_own"] = frozenset(own)
    return Options(**read)


def _read_claims(alias: str, entry: Mapping[str, Any], mistakes: Mistakes) -> Any:
    given = entry.get("CLAIMS", "home")
    if given not in CLAIMS_PLACES:
        mistakes.add("E004", alias, f"CLAIMS {unknown_name(given, CLAIMS_PLACES)}")
        return "home"
    if given == "shards" and entry.get("COMMIT") == "best_effort":
        mistakes.add(
            "E005",
            alias,
            "CLAIMS = 'shards' needs COMMIT = 'two_phase': a row and its claims are on "
            "two shards, which no server keeps together",
        )
    return given


def _read_map(
    alias: str, entry: Mapping[str, Any], mistakes: Mistakes
) -> ShardMap | None:
    given, shards = entry.get("MAP"), entry.get("SHARDS")
    if given is None:
        return None
    if "SLOTS" in entry:
        mistakes.add("E005", alias, "SLOTS and MAP exclude each other: remove one")
    found = read_map(alias, given, mistakes)
    if found is not None and isinstance(shards, Mapping):
        found.mistakes_in(alias, shards, mistakes)
    return found


def _read_distributed(
    alias: str, entry: Mapping[str, Any], mistakes: Mistakes
) -> str | None:
    given = entry.get("DISTRIBUTED_BY")
    if given is None:
        return None
    if given not in DISTRIBUTED_ENGINES:
        text = unknown_name(given, DISTRIBUTED_ENGINES)
        mistakes.add("E004", alias, f"DISTRIBUTED_BY {text}")
        return None
    if "SHARDS" in entry:
        mistakes.add(
            "E005",
            alias,
            f"SHARDS contradicts DISTRIBUTED_BY: {given} places the rows itself, on "
            "the workers that its coordinator, the PRIMARY, knows; remove one",
        )
    return str(given)


def read_limits(where: str, given: object, mistakes: Mistakes) -> dict[str, Any]:
    """What a ``GATHER`` dict sets, under lower-case names."""
    if not isinstance(given, Mapping):
        mistakes.add("E004", where, "GATHER must be a dict, e.g. {'MAX_ROWS': 10_000}")
        return {}
    known = GatherLimits.names()
    limits: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            mistakes.add("E006", where, f"GATHER option {unknown_name(key, known)}")
        elif key == "SOURCE":
            if value in GATHER_SOURCES:
                limits["source"] = value
            else:
                text = unknown_name(value, GATHER_SOURCES)
                mistakes.add("E004", where, f"GATHER SOURCE {text}")
        elif key == "FDW_HOSTS":
            limits["fdw_hosts"] = _read_hosts(where, value, mistakes)
        elif not is_positive(value) and not (key == "INLINE_ROWS" and value == 0):
            mistakes.add(
                "E004", where, f"GATHER {key} must be a positive int, not {value!r}"
            )
        else:
            limits[key.lower()] = value
    return limits


def _read_hosts(where: str, given: object, mistakes: Mistakes) -> FrozenDict:
    if isinstance(given, Mapping) and all(
        isinstance(text, str) and _HOST_AND_PORT.fullmatch(text)
        for pair in given.items()
        for text in pair
    ):
        return FrozenDict(given)
    mistakes.add(
        "E004",
        where,
        "GATHER FDW_HOSTS must be a dict of a shard's host, or host:port, to that by "
        "which home's server reaches it, e.g. {'db5': '10.0.0.5:5432'}",
    )
    return FrozenDict()


def read_fanout(given: object, mistakes: Mistakes) -> FanoutLimits:
    """``DBFLEET["FANOUT"]``; a wrong limit keeps its default."""
    where = "DBFLEET['FANOUT']"
    if not isinstance(given, Mapping):
        mistakes.add("E004", where, "must be a dict, e.g. {'DEADLINE_S': 30}")
        return FanoutLimits()
    known = {name.upper(): name for name in FanoutLimits._fields}
    limits: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            mistakes.add("E006", where, unknown_name(key, tuple(known)))
        elif key == "DEADLINE_S":
            is_time = isinstance(value, int | float) and not isinstance(value, bool)
            if value is None or (is_time and value > 0):
                limits[known[key]] = value
            else:
                mistakes.add(
                    "E004",
                    where,
                    f"DEADLINE_S must be a positive number of seconds, or None for "
                    f"never, not {value!r}",
                )
        elif key == "PARALLEL_WRITES":
            limits[known[key]] = value is True
            if not isinstance(value, bool):
                mistakes.add("E004", where, f"{key} must be a bool, not {value!r}")
        elif is_positive(value):
            limits[known[key]] = value
        else:
            mistakes.add("E004", where, f"{key} must be a positive int, not {value!r}")
    return FanoutLimits(**limits)


def read_zone(where: str, given: object, mistakes: Mistakes) -> str:
    """A process's own zone as ``DBFLEET["ZONE"]`` gives it; empty when it is wrong."""
    if isinstance(given, str) and given:
        return given
    mistakes.add("E004", where, f"must be text, e.g. 'eu-1a', not {given!r}")
    return ""


def is_positive(value: object) -> bool:
    """Whether a value is a positive int; True is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
