"""What the user declared: parsed, validated, immutable.

Guards one invariant: nothing here knows models or opens a connection, so a
declaration may be made while ``settings.py`` is still being read.
"""

from dbfleet.topology.declaration import (
    Cluster,
    Declaration,
    Node,
    Sharded,
    databases,
    entry_for,
)
from dbfleet.topology.found import read_found
from dbfleet.topology.loading import find_mistakes, is_fleet, load, load_all, sources
from dbfleet.topology.nodes import BACKEND
from dbfleet.topology.secrets import CONNECTION_KEYS, resolve
from dbfleet.topology.snapshot import (
    ClusterTopology,
    CommitMode,
    GatherLimits,
    Topology,
)

__all__ = [
    "BACKEND",
    "CONNECTION_KEYS",
    "Cluster",
    "ClusterTopology",
    "CommitMode",
    "Declaration",
    "GatherLimits",
    "Node",
    "Sharded",
    "Topology",
    "databases",
    "entry_for",
    "find_mistakes",
    "is_fleet",
    "load",
    "load_all",
    "read_found",
    "resolve",
    "sources",
]
