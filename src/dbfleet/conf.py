"""The ``DBFLEET`` setting: validated once, immutable, the same for all threads.

Guards one invariant: a setting that is not understood is an error, and one error
tells all of them. Whether apps, models and fields exist is asked by the system
checks, because settings are read before models are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from dbfleet.errors import ConfigurationError
from dbfleet.levels import SESSION, Level, read_level
from dbfleet.policies import Policy, Random, read_policy
from dbfleet.topology.carriers import CarrierSettings, read_carriers
from dbfleet.topology.mistakes import Mistakes, unknown_name
from dbfleet.topology.options import is_positive, read_fanout, read_limits, read_zone
from dbfleet.topology.snapshot import (
    ClusterTopology,
    FanoutLimits,
    GatherLimits,
    Topology,
)
from dbfleet.topology.values import FrozenDict

#: What a model is declared to be on a sharded alias: its key's fields, or no key.
ShardRule = tuple[str, ...] | Literal["reference", "local"]
Target = str | Policy
#: what an automatic primary key on a sharded alias is made of
LEASED, TIME, UUID7 = "leased", "time", "uuid7"
ID_KINDS = (LEASED, TIME, UUID7)
#: in ``IDS``: all models that no label names
ANY = "*"

_Value = TypeVar("_Value")


class FleetSettings(NamedTuple):
    """``DBFLEET`` as read. Labels are ``app`` or ``app.model`` (lower case)."""

    placement: Mapping[str, Target] = FrozenDict()
    shard_rules: Mapping[str, ShardRule] = FrozenDict()
    lookups: Mapping[str, tuple[str, ...]] = FrozenDict()
    policies: Mapping[str, Policy] = FrozenDict()
    policy: Policy = Random()
    consistency: Level = SESSION
    levels: Mapping[str, Level] = FrozenDict()
    wait_timeout_s: float = 0.05
    drains: bool = False
    max_ejected_share: float = 0.5
    max_fallback_reads: int | None = 32
    probe_after_s: float | None = 0.5
    gather: Mapping[str, Any] = FrozenDict()
    fanout: FanoutLimits = FanoutLimits()
    self_check: float = 0.0
    ids: Mapping[str, str] = FrozenDict()
    carriers: CarrierSettings = CarrierSettings()

    def gather_for(self, topology: Topology) -> GatherLimits:
        """An alias's limits: its own, then ``DBFLEET["GATHER"]``, then built in."""
        wanted = {k: v for k, v in self.gather.items() if k not in topology.gather_own}
        return topology.gather._replace(**wanted)

    def ids_for(self, app_label: str, model_name: str) -> str:
        """What ids the model gets: one of :data:`ID_KINDS`."""
        named = most_specific(self.ids, app_label, model_name)
        return named or self.ids.get(ANY, LEASED)

    def policy_for(
        self, cluster: ClusterTopology, app_label: str = "", model_name: str = ""
    ) -> Policy:
        """How a replica is chosen: the model's policy, the cluster's, the general."""
        named = most_specific(self.policies, app_label, model_name)
        return named or cluster.policy or self.policy


def most_specific(
    rules: Mapping[str, _Value], app_label: str, model_name: str
) -> _Value | None:
    """The rule of the model, else the rule of its app, else None."""
    found = rules.get(f"{app_label}.{model_name}")
    return rules.get(app_label) if found is None else found


_current: FleetSettings | None = None


def settings() -> FleetSettings:
    """The validated ``DBFLEET``; raises one ``ConfigurationError`` for all mistakes.

    Reads Django's settings the first time and after they change in a test.
    """
    global _current
    current = _current
    if current is None:
        mistakes = Mistakes()
        current = read(getattr(django_settings, "DBFLEET", {}), mistakes)
        mistakes.raise_any()
        _current = current
    return current


def _forget(*, setting: str, **kwargs: Any) -> None:
    global _current
    if setting == "DBFLEET":
        _current = None


setting_changed.connect(_forget, dispatch_uid="dbfleet.conf")


def read(given: object, mistakes: Mistakes) -> FleetSettings:
    """Read a ``DBFLEET`` dict; what is wrong goes to ``mistakes`` and is left out."""
    if not isinstance(given, Mapping):
        mistakes.add("E004", "DBFLEET", f"must be a dict, not {type(given).__name__}")
        return FleetSettings()
    for key in given:
        if key not in KEYS:
            mistakes.add("E006", "DBFLEET", f"setting {unknown_name(key, KEYS)}")
    names = given.get("SHARD_LOOKUPS", {})
    values: dict[str, Any] = {
        "shard_rules": _read_shard_rules(given, mistakes),
        "lookups": _by_label("DBFLEET['SHARD_LOOKUPS']", names, read_names, mistakes),
    }
    if "PLACEMENT" in given:
        values["placement"] = _by_label(
            "DBFLEET['PLACEMENT']", given["PLACEMENT"], read_target, mistakes
        )
    if "POLICIES" in given:
        values["policies"] = _by_label(
            "DBFLEET['POLICIES']", given["POLICIES"], _read_policy, mistakes
        )
    policy = "POLICY" in given and _read_policy(
        "DBFLEET['POLICY']", given["POLICY"], mistakes
    )
    if policy:
        values["policy"] = policy
    level = "CONSISTENCY" in given and _read_level(
        "DBFLEET['CONSISTENCY']", given["CONSISTENCY"], mistakes
    )
    if level:
        values["consistency"] = level
    if "CONSISTENCIES" in given:
        values["levels"] = _by_label(
            "DBFLEET['CONSISTENCIES']", given["CONSISTENCIES"], _read_level, mistakes
        )
    wait = given.get("WAIT_TIMEOUT_S", 0.05)
    if isinstance(wait, int | float) and 0 <= wait <= MAX_WAIT_S:
        values["wait_timeout_s"] = float(wait)
    else:
        mistakes.add(
            "E004",
            "DBFLEET['WAIT_TIMEOUT_S']",
            f"must be between 0 and {MAX_WAIT_S} seconds, not {wait!r}",
        )
    values |= _read_health(given, mistakes)
    if "CARRIERS" in given:
        values["carriers"] = read_carriers(given["CARRIERS"], mistakes)
    if "IDS" in given:
        values["ids"] = _read_ids("DBFLEET['IDS']", given["IDS"], mistakes)
    values["fanout"] = read_fanout(given.get("FANOUT", {}), mistakes)
    limits = read_limits("DBFLEET", given.get("GATHER", {}), mistakes)
    return FleetSettings(gather=FrozenDict(limits), **values)


#: a read that waits longer for a replica had better go to the primary
MAX_WAIT_S = 60

KEYS = (
    "CARRIERS",
    "CONSISTENCIES",
    "CONSISTENCY",
    "DRAINS",
    "FANOUT",
    "GATHER",
    "IDS",
    "LOCAL",
    "MAX_EJECTED_SHARE",
    "MAX_FALLBACK_READS",
    "PLACEMENT",
    "POLICIES",
    "POLICY",
    "PROBE_AFTER_S",
    "REFERENCE",
    "SELF_CHECK",
    "SHARD_KEYS",
    "SHARD_LOOKUPS",
    "WAIT_TIMEOUT_S",
    "ZONE",
)


def _read_health(given: Mapping[str, object], mistakes: Mistakes) -> dict[str, Any]:
    """``ZONE`` and the limits on what happens while replicas are missing."""
    found: dict[str, Any] = {}
    if "ZONE" in given:
        read_zone("DBFLEET['ZONE']", given["ZONE"], mistakes)
    for key, default in (("MAX_EJECTED_SHARE", 0.5), ("SELF_CHECK", 0.0)):
        share = given.get(key, default)
        if isinstance(share, int | float) and 0 <= share <= 1:
            found[key.lower()] = float(share)
        else:
            mistakes.add(
                "E004",
                f"DBFLEET[{key!r}]",
                f"must be a share between 0 and 1, not {share!r}",
            )
    drains = given.get("DRAINS", False)
    if isinstance(drains, bool):
        found["drains"] = drains
    else:
        mistakes.add(
            "E004", "DBFLEET['DRAINS']", f"must be True or False, not {drains!r}"
        )
    after = given.get("PROBE_AFTER_S", 0.5)
    if after is None or (isinstance(after, int | float) and 0 < after <= MAX_WAIT_S):
        found["probe_after_s"] = None if after is None else float(after)
    else:
        mistakes.add(
            "E004",
            "DBFLEET['PROBE_AFTER_S']",
            f"must be more than 0 and at most {MAX_WAIT_S} seconds, or None for "
            f"never, not {after!r}",
        )
    reads = given.get("MAX_FALLBACK_READS", 32)
    if reads is None or is_positive(reads):
        found["max_fallback_reads"] = reads
    else:
        mistakes.add(
            "E004",
            "DBFLEET['MAX_FALLBACK_READS']",
            f"must be a positive int, or None for no cap, not {reads!r}",
        )
    return found


def read_key(where: str, given: object, mistakes: Mistakes) -> tuple[str, ...] | None:
    """The names in a shard key: one, a path ``parent__field``, or several."""
    names = (given,) if isinstance(given, str) else given
    if (
        isinstance(names, tuple | list)
        and names
        and all(isinstance(name, str) and name for name in names)
    ):
        return tuple(names)
    mistakes.add(
        "E004",
        where,
        f"a shard key is a field's name, a path 'parent__field' or a tuple of "
        f"names, not {given!r}",
    )
    return None


def read_names(where: str, given: object, mistakes: Mistakes) -> tuple[str, ...] | None:
    """The names of lookups; none at all is an answer, too."""
    if isinstance(given, tuple | list) and all(
        isinstance(name, str) and name for name in given
    ):
        return tuple(dict.fromkeys(given))
    mistakes.add("E004", where, f"must be a list of names of fields, not {given!r}")
    return None


def _read_shard_rules(
    given: Mapping[str, object], mistakes: Mistakes
) -> Mapping[str, ShardRule]:
    """``SHARD_KEYS``, ``REFERENCE`` and ``LOCAL``, which must not overlap."""
    found: dict[str, ShardRule] = {}
    given_in: dict[str, str] = {}

    def add(where: str, label: str, rule: ShardRule) -> None:
        first = given_in.setdefault(label, where)
        if first != where:
            mistakes.add(
                "E005", where, f"'{label}' is also in {first}; keep one of them"
            )
        else:
            found[label] = rule

    where = "DBFLEET['SHARD_KEYS']"
    keys = _by_label(where, given.get("SHARD_KEYS", {}), read_key, mistakes)
    for label, names in keys.items():
        if "." in label:
            add(where, label, names)
        else:
            mistakes.add(
                "E004", where, f"'{label}' is an app; name a model, 'app.Model'"
            )
    for label in _labels("DBFLEET['REFERENCE']", given.get("REFERENCE", ()), mistakes):
        add("DBFLEET['REFERENCE']", label, "reference")
    for label in _labels("DBFLEET['LOCAL']", given.get("LOCAL", ()), mistakes):
        add("DBFLEET['LOCAL']", label, "local")
    return FrozenDict(found)


def _labels(where: str, given: object, mistakes: Mistakes) -> list[str]:
    if not isinstance(given, list | tuple | set | frozenset):
        mistakes.add("E004", where, "must be a list of 'app.Model' or 'app'")
        return []
    labels = (_label(where, label, mistakes) for label in given)
    return [label for label in labels if label is not None]


def _by_label(
    where: str,
    given: object,
    read_value: Callable[[str, object, Mistakes], _Value | None],
    mistakes: Mistakes,
) -> FrozenDict:
    if not isinstance(given, Mapping):
        mistakes.add("E004", where, "must be a dict of 'app.Model' or 'app' to value")
        return FrozenDict()
    found: dict[str, _Value] = {}
    for label, value in given.items():
        normal = _label(where, label, mistakes)
        read_in = read_value(f"{where}[{label!r}]", value, mistakes)
        if normal is None or read_in is None:
            continue
        if normal in found:
            mistakes.add("E005", where, f"'{label}' is given twice")
        found[normal] = read_in
    return FrozenDict(found)


def _label(where: str, given: object, mistakes: Mistakes) -> str | None:
    """``app`` or ``app.model``: Django's label, the model's name in lower case."""
    if isinstance(given, str):
        parts = given.split(".")
        if len(parts) <= 2 and all(parts):
            return ".".join([parts[0], *(part.lower() for part in parts[1:])])
    mistakes.add("E004", where, f"{given!r} is not 'app.Model' or 'app'")
    return None


def _read_ids(where: str, given: object, mistakes: Mistakes) -> FrozenDict:
    """A kind for all models, or label to kind with ``*`` for the rest."""
    rules = dict(given) if isinstance(given, Mapping) else {ANY: given}
    general = rules.pop(ANY, LEASED)
    found = dict(_by_label(where, rules, _read_id_kind, mistakes))
    at = f"{where}['{ANY}']" if isinstance(given, Mapping) else where
    kind = _read_id_kind(at, general, mistakes)
    return FrozenDict(found if kind is None else {**found, ANY: kind})


def _read_id_kind(where: str, given: object, mistakes: Mistakes) -> str | None:
    if isinstance(given, str) and given in ID_KINDS:
        return given
    kinds = ", ".join(map(repr, ID_KINDS))
    mistakes.add("E004", where, f"must be one of {kinds}, not {given!r}")
    return None


def read_target(where: str, given: object, mistakes: Mistakes) -> Target | None:
    """What ``Meta.using`` or a value of ``PLACEMENT`` says."""
    if isinstance(given, str) and given:
        return given
    if isinstance(given, Policy) and not isinstance(given, type):
        if getattr(given, "aliases", ()):
            return given
        mistakes.add(
            "E007",
            where,
            f"{given!r} has no aliases to choose from; give them: "
            f"Random(['db1', 'db2'])",
        )
        return None
    mistakes.add(
        "E004",
        where,
        f"must be an alias or a policy over aliases like Random(['db1', 'db2']), "
        f"not {given!r}",
    )
    return None


def _read_level(where: str, given: object, mistakes: Mistakes) -> Level | None:
    try:
        return read_level(given)
    except ConfigurationError as error:
        mistakes.add_error(where, error)
        return None


def _read_policy(where: str, given: object, mistakes: Mistakes) -> Policy | None:
    try:
        policy = read_policy(given)
    except ConfigurationError as error:
        mistakes.add_error(where, error)
        return None
    if policy is None:
        mistakes.add("E007", where, "names no policy")
    return policy
