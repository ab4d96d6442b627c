"""From an entry of ``DATABASES`` to a :class:`Topology` and complete node settings.

Guards three invariants: an entry is validated once, all its mistakes are told in
one error, and it is completed in place, because Django hands the same dict to
every thread and changes it when it creates test databases.

After loading, an entry holds ``NODES`` (each node's complete Django dict, under
the node's name) and ``TOPOLOGY``; ``PRIMARY``, ``REPLICAS`` and ``SHARDS`` hold
the same dicts, so that no URL with a password stays in the settings.
"""

from __future__ import annotations

import copy
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dbfleet.errors import ConfigurationError
from dbfleet.policies import Policy, place, read_policy
from dbfleet.replicas import Source, is_source, read_source
from dbfleet.topology.identity import check_duplicates
from dbfleet.topology.mistakes import Mistakes
from dbfleet.topology.nodes import (
    BACKEND,
    DEFAULTS,
    NODE_KEYS,
    check_keys,
    check_node,
    check_types,
    complete,
    merge_levels,
    read_node,
)
from dbfleet.topology.options import OPTION_KEYS, Options, read_options
from dbfleet.topology.secrets import CONNECTION_KEYS
from dbfleet.topology.snapshot import ClusterTopology, Topology
from dbfleet.topology.values import FrozenDict

#: The keys an entry may give as defaults for all its nodes.
_ENTRY_KEYS = NODE_KEYS - {"ENGINE", "URL"}
_CLUSTER_KEYS = frozenset(["PRIMARY", "REPLICAS", "POLICY"])
_ALIAS_KEYS = _ENTRY_KEYS | _CLUSTER_KEYS | OPTION_KEYS | {"ENGINE", "SHARDS"}
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]{1,48}")

# Held while an entry is completed, so that all threads share one NODES dict.
_completing = threading.RLock()


def _renew_lock() -> None:
    global _completing
    _completing = threading.RLock()


# A thread that stayed in the parent may have held it at the fork.
os.register_at_fork(after_in_child=_renew_lock)


def load(alias: str, settings_dict: dict[str, Any]) -> Topology:
    """The topology of an entry, which is validated and completed the first time.

    Opens no connection. Raises one ``ConfigurationError`` for all mistakes. For a
    copy of a loaded entry under another alias the nodes are renamed; what the copy
    changed about its primary is kept, and refused (E005) where other nodes would
    still be those of the original.
    """
    topology = settings_dict.get("TOPOLOGY")
    if isinstance(topology, Topology) and topology.alias == alias:
        return topology
    with _completing:
        topology = settings_dict.get("TOPOLOGY")
        if not isinstance(topology, Topology):
            return _load(alias, settings_dict)
        if topology.alias != alias:
            return _adopt(alias, settings_dict, topology)
        return topology


def load_all(databases: Mapping[str, dict[str, Any]]) -> dict[str, Topology]:
    """:func:`load` every dbfleet entry; one error tells the mistakes of all."""
    find_mistakes(databases).raise_any()
    return {
        alias: load(alias, entry)
        for alias, entry in databases.items()
        if is_fleet(entry)
    }


def is_fleet(entry: object) -> bool:
    """Whether an entry of ``DATABASES`` is one of dbfleet's."""
    return isinstance(entry, Mapping) and entry.get("ENGINE") == BACKEND


def find_mistakes(databases: Mapping[str, Any]) -> Mistakes:
    """Every mistake in the dbfleet entries; opens nothing, changes nothing."""
    mistakes = Mistakes()
    for alias, entry in databases.items():
        if is_fleet(entry):
            if "TOPOLOGY" not in entry:
                _Reading(alias, entry, mistakes).read()
        elif isinstance(entry, Mapping) and "PRIMARY" in entry:
            mistakes.add(
                "E001", alias, f"has a PRIMARY, so its ENGINE must be '{BACKEND}'"
            )
    return mistakes


def sources(databases: Mapping[str, Any]) -> Iterator[tuple[str, Source]]:
    """Every source of replicas in the dbfleet entries, with where it is declared."""
    for alias, entry in databases.items():
        if not is_fleet(entry):
            continue
        shards = entry.get("SHARDS")
        inside = shards.items() if isinstance(shards, Mapping) else ()
        for where, given in ((alias, entry), *((f"{alias}/{n}", s) for n, s in inside)):
            replicas = given.get("REPLICAS") if isinstance(given, Mapping) else None
            if is_source(replicas):
                found = read_source(where, replicas, Mistakes())
                if found is not None:
                    yield where, found


def _load(alias: str, settings_dict: dict[str, Any]) -> Topology:
    mistakes = Mistakes()
    reading = _Reading(alias, settings_dict, mistakes)
    topology = reading.read()
    mistakes.raise_any()
    assert topology is not None
    _complete_entry(settings_dict, topology, reading.nodes, reading.levels)
    return topology


def _complete_entry(
    entry: dict[str, Any],
    topology: Topology,
    nodes: dict[str, dict[str, Any]],
    levels: dict[str, dict[str, Any]],
) -> None:
    def declared(cluster: ClusterTopology) -> dict[str, Any]:
        replicas = [nodes[name] for name in cluster.replicas]
        return {
            "PRIMARY": nodes[cluster.primary],
            "REPLICAS": cluster.source or replicas,
        }

    primary = nodes[topology.home.primary]
    for key, value in primary.items():
        if key != "ENGINE":
            entry[key] = copy.copy(value) if isinstance(value, dict) else value
    entry.update(declared(topology.home))
    if topology.shards:
        entry["SHARDS"] = {
            name: declared(cluster) for name, cluster in topology.shards.items()
        }
    place({name: node.get("ZONE", "") for name, node in nodes.items()})
    if levels:
        entry["LEVELS"] = levels
    entry["NODES"] = nodes
    entry["TOPOLOGY"] = topology


def _adopt(alias: str, entry: dict[str, Any], original: Topology) -> Topology:
    """Give a copied entry nodes of its own, named after its own alias."""
    primary = entry["NODES"][original.home.primary]
    own = {
        key: entry[key]
        for key in primary
        if key != "ENGINE" and key in entry and entry[key] != primary[key]
    }
    changed = [key for key in CONNECTION_KEYS if key in own]
    is_more = any(cluster.is_replicated for cluster in original.clusters)
    if changed and (is_more or original.is_sharded):
        raise ConfigurationError(
            "E005",
            f"{alias}: is a copy of '{original.alias}' with another "
            f"{', '.join(changed)}, but its other nodes are still those of "
            f"'{original.alias}'; declare it with databases() instead",
        )

    def rename(node: str) -> str:
        return alias + node.removeprefix(original.alias)

    def renamed(cluster: ClusterTopology) -> ClusterTopology:
        return cluster._replace(
            name=rename(cluster.name),
            primary=rename(cluster.primary),
            replicas=tuple(map(rename, cluster.replicas)),
        )

    topology = original._replace(
        alias=alias,
        home=renamed(original.home),
        shards=FrozenDict({n: renamed(c) for n, c in original.shards.items()}),
    )
    nodes = {rename(n): copy.deepcopy(node) for n, node in entry["NODES"].items()}
    nodes[topology.home.primary].update(own)
    levels = {rename(n): level for n, level in entry.get("LEVELS", {}).items()}
    _complete_entry(entry, topology, nodes, levels)
    return topology


class _Reading:
    """One pass over an entry; collects nodes and mistakes."""

    def __init__(
        self, alias: str, entry: Mapping[str, Any], mistakes: Mistakes
    ) -> None:
        self.alias, self.entry, self.mistakes = alias, entry, mistakes
        self.nodes: dict[str, dict[str, Any]] = {}
        #: what the entry says for nodes that a cluster's source will find
        self.levels: dict[str, dict[str, Any]] = {}

    def read(self) -> Topology | None:
        """The topology, or None when a mistake leaves no whole one."""
        alias, entry, mistakes = self.alias, self.entry, self.mistakes
        before = len(mistakes)
        check_keys(alias, entry, _ALIAS_KEYS, mistakes)
        check_types(alias, entry, mistakes)
        if len(mistakes) > before and not all(
            isinstance(entry.get(key, {}), Mapping) for key in ("OPTIONS", "TEST")
        ):
            return None
        options = read_options(alias, entry, mistakes)
        is_sharded = "SHARDS" in entry
        level = {
            key: value
            for key, value in entry.items()
            if key in _ENTRY_KEYS and value != DEFAULTS.get(key)
        }
        name = f"{alias}/home" if is_sharded else alias
        home = self._cluster(name, entry, level, {}, options.policy)
        shards = self._shards(level, home, options) if is_sharded else {}
        if home is not None:
            self._check_entry_agrees(home)
        self._check_nodes(home, is_sharded)
        if home is not None and options.distributed_by is not None:
            self._check_coordinator(home, options.distributed_by)
        if home is None or len(mistakes) > before:
            return None
        return Topology(
            alias=alias,
            engine=self.nodes[home.primary]["ENGINE"],
            home=home,
            shards=FrozenDict(shards),
            read_only=options.read_only,
            slots=options.slots,
            map=options.map,
            gather=options.gather,
            gather_own=options.gather_own,
            commit=options.commit,
            claims=options.claims,
            policy=options.policy,
            consistency=options.consistency,
            distributed_by=options.distributed_by,
        )

    def _cluster(
        self,
        name: str,
        given: Mapping[str, Any],
        level: dict[str, Any],
        base: Mapping[str, Any],
        policy: Policy | None,
    ) -> ClusterTopology | None:
        primary_name = f"{name}/primary"
        if "PRIMARY" not in given:
            self.mistakes.add(
                "E001", name, "has no PRIMARY: give a URL or a dict with ENGINE, …"
            )
            return None
        own = read_node(primary_name, given["PRIMARY"], self.mistakes)
        replicas, source = given.get("REPLICAS", ()), None
        if is_source(replicas):
            source, replicas = read_source(name, replicas, self.mistakes), ()
            self.levels[name] = level
        if isinstance(replicas, str) or not isinstance(replicas, Iterable):
            self.mistakes.add("E004", name, "REPLICAS must be a list of nodes")
            return None
        if own is None:
            # The replicas' own mistakes are still worth telling.
            for number, replica in enumerate(replicas, start=1):
                read_node(f"{name}/replica{number}", replica, self.mistakes)
            return None
        primary = self.nodes[primary_name] = complete(own, level, base)
        if source is not None:
            self._check_template(name, source, primary)
        names = []
        for number, replica in enumerate(replicas, start=1):
            node = f"{name}/replica{number}"
            own = read_node(node, replica, self.mistakes)
            if own is not None:
                self._check_replica_test(node, own)
                self.nodes[node] = complete(own, level, primary)
                names.append(node)
        return ClusterTopology(name, primary_name, tuple(names), policy, source)

    def _shards(
        self,
        level: dict[str, Any],
        home: ClusterTopology | None,
        options: Options,
    ) -> dict[str, ClusterTopology]:
        declared = self.entry["SHARDS"]
        if not isinstance(declared, Mapping) or not declared:
            self.mistakes.add(
                "E004",
                self.alias,
                "SHARDS must be a dict of name to node, with one shard at least",
            )
            return {}
        if options.map is None and options.slots < len(declared):
            self.mistakes.add(
                "E005",
                self.alias,
                f"SLOTS is {options.slots}, fewer than the {len(declared)} shards",
            )
        # The name and the mirror of a test database are one database's own.
        test = level.get("TEST", {})
        level = {
            **level,
            "TEST": {k: v for k, v in test.items() if k not in ("NAME", "MIRROR")},
        }
        base = dict(self.nodes.get(home.primary, {})) if home else {}
        base.pop("TEST", None)
        found = {}
        for name, given in declared.items():
            if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
                self.mistakes.add(
                    "E004",
                    self.alias,
                    f"{name!r} is no name for a shard: use up to 48 letters, "
                    f"digits, '_' and '-'",
                )
                continue
            if name == "home":
                self.mistakes.add(
                    "E005", self.alias, "'home' is the home's name; rename the shard"
                )
                continue
            cluster = self._shard(name, given, level, base, options.policy)
            if cluster is not None:
                found[name] = cluster
        return found

    def _shard(
        self,
        name: str,
        given: object,
        level: dict[str, Any],
        base: Mapping[str, Any],
        policy: Policy | None,
    ) -> ClusterTopology | None:
        where = f"{self.alias}/{name}"
        if not isinstance(given, Mapping) or not _CLUSTER_KEYS.intersection(given):
            return self._cluster(where, {"PRIMARY": given}, level, base, policy)
        for key in given:
            if key in OPTION_KEYS:
                self.mistakes.add(
                    "E005", where, f"{key} is a matter of the whole alias; move it"
                )
        keys = _ENTRY_KEYS | _CLUSTER_KEYS | OPTION_KEYS
        check_keys(where, given, keys, self.mistakes)
        check_types(where, given, self.mistakes)
        own_level = {key: given[key] for key in given if key in _ENTRY_KEYS}
        try:
            policy = read_policy(given.get("POLICY")) or policy
        except ConfigurationError as error:
            self.mistakes.add_error(where, error)
        return self._cluster(where, given, merge_levels(level, own_level), base, policy)

    def _check_template(
        self, name: str, source: Source, primary: Mapping[str, Any]
    ) -> None:
        own = source.template()
        engines = [node.get("ENGINE") for node in (own, primary) if "ENGINE" in node]
        if len(set(engines)) > 1:
            self.mistakes.add(
                "E008",
                name,
                f"REPLICAS finds nodes of {engines[0]}, the primary is of {engines[1]}",
            )

    def _check_replica_test(self, node: str, own: Mapping[str, Any]) -> None:
        test = own.get("TEST", {})
        if isinstance(test, Mapping) and (test.get("NAME") or test.get("MIRROR")):
            self.mistakes.add(
                "E005",
                node,
                "TEST NAME and MIRROR contradict being a replica: its test database "
                "is its primary's",
            )

    def _check_entry_agrees(self, home: ClusterTopology) -> None:
        primary = self.nodes[home.primary]
        for key in ("NAME", "HOST", "PORT"):
            value = self.entry.get(key, "")
            if value not in ("", None) and str(value) != str(primary[key]):
                self.mistakes.add(
                    "E005",
                    self.alias,
                    f"{key} differs from PRIMARY's; remove it beside PRIMARY",
                )

    def _check_coordinator(self, home: ClusterTopology, engine: str) -> None:
        vendor = str(self.nodes[home.primary].get("ENGINE", ""))
        if vendor.endswith((".sqlite3", ".mysql", ".oracle")):
            self.mistakes.add(
                "E005",
                self.alias,
                f"DISTRIBUTED_BY is {engine}, an extension of PostgreSQL, and PRIMARY "
                f"is {vendor}: give the URL of the coordinator",
            )

    def _check_nodes(self, home: ClusterTopology | None, is_sharded: bool) -> None:
        engines: dict[str, str] = {}
        for name, node in self.nodes.items():
            if home is not None or "ENGINE" in node:
                check_node(name, node, self.mistakes)
            if engine := node.get("ENGINE"):
                engines.setdefault(engine, name)
            if node["TEST"].get("MIRROR") and is_sharded:
                self.mistakes.add(
                    "E005",
                    name,
                    "TEST MIRROR contradicts SHARDS: a mirror is one database",
                )
        if len(engines) > 1:
            listed = ", ".join(f"{node} is {e}" for e, node in engines.items())
            self.mistakes.add(
                "E008",
                self.alias,
                f"its nodes are of different engines ({listed}); an alias needs "
                f"one engine, so declare the others as aliases of their own",
            )
        check_duplicates(self.nodes, self.mistakes)
