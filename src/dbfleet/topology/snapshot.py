"""The immutable form of a declared alias: names of nodes and how they belong together.

Guards one invariant: a snapshot holds no connection settings, so it cannot go
stale when Django renames a database for tests. A node's settings are looked up
where they live, in ``settings_dict["NODES"][name]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dbfleet.levels import Level
from dbfleet.policies import Policy
from dbfleet.topology.maps import ShardMap
from dbfleet.topology.values import FrozenDict

if TYPE_CHECKING:
    from dbfleet.replicas import Source

CommitMode = Literal["two_phase", "best_effort"]
COMMIT_MODES: tuple[CommitMode, ...] = ("two_phase", "best_effort")

ClaimsPlace = Literal["home", "shards"]
CLAIMS_PLACES: tuple[ClaimsPlace, ...] = ("home", "shards")

DEFAULT_SLOTS = 5040

#: distributed engines that may lay out an alias's tables in place of shards of ours
DISTRIBUTED_ENGINES = ("citus",)


#: where a gather may have its rows from: see :mod:`dbfleet.planner.sources`
GatherSource = Literal["auto", "rows", "fdw"]
GATHER_SOURCES: tuple[GatherSource, ...] = ("auto", "rows", "fdw")


class GatherLimits(NamedTuple):
    """What one gather may hold, and where its rows come from; past ``inline_rows`` it
    uses temporary tables."""

    max_rows: int = 100_000
    max_bytes: int = 64 * 2**20
    inline_rows: int = 200
    source: GatherSource = "auto"
    #: a shard's server as the project names it -> as home's server reaches it
    fdw_hosts: Mapping[str, str] = FrozenDict()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The settings' names: ``MAX_ROWS``, ``SOURCE``, …"""
        return tuple(limit.upper() for limit in cls._fields)


DEFAULT_LIMITS = GatherLimits()


class FanoutLimits(NamedTuple):
    """How many nodes a statement over several shards uses at once, and how long."""

    #: nodes that one statement uses at a time
    max_parallel: int = 16
    #: threads of the process for all statements
    max_threads: int = 64
    #: after so many seconds such a statement is given up; None: never
    deadline_s: float | None = 60.0
    #: whether writes of several shards run side by side as well
    parallel_writes: bool = False


class ClusterTopology(NamedTuple):
    """A primary and its replicas, by node name."""

    name: str
    primary: str
    replicas: tuple[str, ...] = ()
    #: How a replica is chosen; None leaves it to ``DBFLEET["POLICY"]``.
    policy: Policy | None = None
    #: What finds the replicas while the project runs; ``replicas`` is then empty here,
    #: and a copy that an executor holds has those that were found last.
    source: Source | None = None

    @property
    def is_replicated(self) -> bool:
        """Whether there are replicas, or may be."""
        return bool(self.replicas) or self.source is not None

    @property
    def nodes(self) -> tuple[str, ...]:
        """The primary, then the replicas."""
        return (self.primary, *self.replicas)


class Topology(NamedTuple):
    """All that is declared about one alias, except connection settings."""

    alias: str
    #: The vendor engine of every node, a dotted path as in Django's ``ENGINE``.
    engine: str
    home: ClusterTopology
    shards: Mapping[str, ClusterTopology] = FrozenDict()
    read_only: bool = False
    slots: int = DEFAULT_SLOTS
    #: where keys are, if that is declared; None: hashed to slots
    map: ShardMap | None = None
    gather: GatherLimits = DEFAULT_LIMITS
    #: The limits this alias sets itself; ``DBFLEET["GATHER"]`` gives the others.
    gather_own: frozenset[str] = frozenset()
    commit: CommitMode = "two_phase"
    #: Where claims are kept, and so what lookups ask.
    claims: ClaimsPlace = "home"
    policy: Policy | None = None
    #: How old answers may be; None leaves it to ``DBFLEET["CONSISTENCY"]``.
    consistency: Level | None = None
    #: The distributed engine behind home that spreads rows in place of ``shards``.
    distributed_by: str | None = None

    @property
    def is_sharded(self) -> bool:
        return bool(self.shards)

    @property
    def has_layouts(self) -> bool:
        """Whether tables are sharded, reference or local: here or by an engine."""
        return bool(self.shards) or self.distributed_by is not None

    @property
    def holders(self) -> tuple[str, ...]:
        """The clusters that are asked for rows of sharded tables."""
        return tuple(self.shards) or ("home",)

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to decide: one node, which may be written."""
        is_one = not self.has_layouts and not self.home.is_replicated
        return is_one and not self.read_only

    @property
    def clusters(self) -> tuple[ClusterTopology, ...]:
        """Home, then the shards in the order of their declaration."""
        return (self.home, *self.shards.values())

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node's name; home first, each primary before its replicas."""
        return tuple(node for cluster in self.clusters for node in cluster.nodes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Topology:
        # Django deep-copies settings_dict; a policy's state must stay shared.
        return self
