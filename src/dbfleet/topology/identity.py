"""Whether two nodes are the same database, as far as settings can tell.

Guards one invariant: no offline check claims that two nodes differ. It only finds
those that are surely the same; the engines ask the servers for the rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dbfleet.topology.mistakes import Mistakes

_DEFAULT_PORTS = {"postgresql": "5432", "postgis": "5432", "mysql": "3306"}
# Options that lead to a server or a database in place of HOST and NAME.
_ADDRESS_OPTIONS = (
    "service",
    "read_default_file",
    "unix_socket",
    "hostaddr",
    "db",
    "database",
)


def check_duplicates(
    nodes: Mapping[str, Mapping[str, Any]], mistakes: Mistakes
) -> None:
    """Report each node that is the same database as an earlier one."""
    seen: dict[object, str] = {}
    for name, node in nodes.items():
        address = address_of(node)
        if address is None:
            continue
        first = seen.setdefault(address, name)
        if first != name:
            mistakes.add(
                "E003", name, f"is the same database as {first}; remove one of them"
            )


def port_of(node: Mapping[str, Any]) -> str:
    """The node's port, the vendor's own where it says none."""
    kind = str(node.get("ENGINE", "")).rpartition(".")[2]
    return str(node["PORT"] or _DEFAULT_PORTS.get(kind, ""))


def address_of(node: Mapping[str, Any]) -> object:
    """What identifies the node's database; None where nothing does."""
    engine = str(node.get("ENGINE", ""))
    name = node["NAME"]
    if "sqlite" in engine or "spatialite" in engine:
        return _file(engine, name)
    port = node["PORT"] if callable(node["PORT"]) else port_of(node)
    host = node["HOST"]
    if isinstance(host, str):
        host = host.casefold()
    options = tuple(repr(node["OPTIONS"].get(key)) for key in _ADDRESS_OPTIONS)
    url = node.get("URL")
    if not (host or name or url or any(map(node["OPTIONS"].get, _ADDRESS_OPTIONS))):
        return None
    return engine, host, port, name, options, url


def _file(engine: str, name: object) -> object:
    if callable(name):
        return engine, name
    path = str(name)
    if not path or path == ":memory:":
        return None
    return engine, path if path.startswith("file:") else os.path.realpath(path)
