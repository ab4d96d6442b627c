"""What a source of replicas found, as nodes of its cluster.

Guards one invariant: a server has the same name in every process and after a restart,
because sessions, the breaker and drains are kept by it; so a name is made of where the
server is, never of its place in a list.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from dbfleet.topology.identity import address_of, port_of
from dbfleet.topology.mistakes import Mistakes
from dbfleet.topology.nodes import check_node, complete, read_node
from dbfleet.topology.snapshot import ClusterTopology

#: dbfleet_drained has room for 190 characters with alias and shard
MAX_LABEL_CHARS = 80
_UNSAFE = re.compile(r"[^A-Za-z0-9_.:\[\]-]+")


def read_found(
    declared: ClusterTopology, entry: Mapping[str, Any], given: Iterable[Any]
) -> dict[str, dict[str, Any]]:
    """Name -> complete settings of each replica that a source found, in its order.

    The cluster's primary is left out where its address tells. Raises one
    ``ConfigurationError`` for all mistakes.
    """
    mistakes = Mistakes()
    primary = entry["NODES"][declared.primary]
    level = entry.get("LEVELS", {}).get(declared.name, {})
    found: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(given, start=1):
        where = f"{declared.name}: replica {number} that REPLICAS found"
        if not isinstance(item, str | Mapping):
            kind = type(item).__name__
            mistakes.add("E001", where, f"is {kind}; give a URL or a dict")
            continue
        own = read_node(where, item, mistakes)
        if own is None:
            continue
        node = complete(own, level, primary)
        if "DECLARED_NAME" in primary:  # a test run reads test databases alone
            node["NAME"] = primary["NAME"]
        check_node(where, node, mistakes)
        if node.get("ENGINE") != primary.get("ENGINE"):
            mistakes.add(
                "E008",
                where,
                f"is of engine {node.get('ENGINE')!r}, its primary of "
                f"{primary.get('ENGINE')!r}",
            )
        if callable(node["HOST"]) or callable(node["PORT"]) or callable(node["NAME"]):
            mistakes.add("E004", where, "HOST, PORT and NAME must be text, to name it")
        elif address_of(node) != address_of(primary):
            found.setdefault(f"{declared.name}/{_label(node, primary)}", node)
    mistakes.raise_any()
    return found


def _label(node: Mapping[str, Any], primary: Mapping[str, Any]) -> str:
    """``host:port``, and the database where it has not its primary's name."""
    if "sqlite" in str(node.get("ENGINE")):
        return _safe(str(node["NAME"]), str(node["NAME"]).rpartition("/")[2])
    host = str(node["OPTIONS"].get("hostaddr") or node["HOST"] or "localhost")
    label = f"[{host}]" if ":" in host else host
    label += f":{port_of(node)}" if port_of(node) else ""
    if node["NAME"] != primary["NAME"]:
        label += f":{node['NAME']}"
    return _safe(label, label)


def _safe(whole: str, shown: str) -> str:
    """``shown`` as a part of a node's name; a digest of ``whole`` where it is not."""
    label = _UNSAFE.sub("_", shown)[:MAX_LABEL_CHARS]
    return label if label == whole else f"{label}-{zlib.crc32(whole.encode()):08x}"
