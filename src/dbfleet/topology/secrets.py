"""Settings that are known only when a connection is opened.

``NAME``, ``USER``, ``PASSWORD``, ``HOST`` and ``PORT`` of a node may be callables
without arguments, and so may its whole ``URL``; then ``ENGINE`` must be known
from elsewhere, because Django needs the engine long before it connects.

Guards one invariant: what a callable returned is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbfleet.errors import ConfigurationError
from dbfleet.topology.snapshot import Topology
from dbfleet.topology.urls import parse_url

#: The keys that say where a database is and who connects to it.
CONNECTION_KEYS = ("NAME", "USER", "PASSWORD", "HOST", "PORT")


def resolve(node: Mapping[str, Any], where: str = "a node") -> Mapping[str, Any]:
    """The node's settings with every callable evaluated, for one connection.

    Returns ``node`` itself when there is nothing to evaluate. A key that is set
    beside a callable ``URL`` wins over the URL, so that a test database's NAME
    does. Whatever a callable raises passes through unchanged. Raises
    ``ConfigurationError`` E004 for a result that is not text, E002 for a URL that
    cannot be read and E008 when its engine is not the node's.
    """
    url = node.get("URL")
    pending = [key for key in CONNECTION_KEYS if callable(node.get(key))]
    if url is None and not pending:
        return node
    resolved = dict(node)
    resolved.pop("URL", None)
    for key in pending:
        resolved[key] = _text(node[key](), key, where)
    if url is not None:
        _overlay_url(resolved, _text(url(), "URL", where), where)
    return resolved


def _overlay_url(resolved: dict[str, Any], url: str, where: str) -> None:
    said = parse_url(url)
    # The home primary is asked for by its alias's entry, whose ENGINE is dbfleet's.
    topology = resolved.get("TOPOLOGY")
    expected = topology.engine if isinstance(topology, Topology) else resolved["ENGINE"]
    if said["ENGINE"] != expected:
        raise ConfigurationError(
            "E008",
            f"{where}: its URL is of engine {said['ENGINE']!r}, but the settings say "
            f"{expected!r}; change ENGINE beside the URL",
        )
    if resolved.get("HOST") and "," in said.get("PORT", ""):
        del said["PORT"]  # a list of ports belongs to its list of hosts
    for key in CONNECTION_KEYS:
        # None is a value of its own: Django's way to connect to no database.
        if resolved.get(key, "") == "":
            resolved[key] = said.get(key, "")
    resolved["OPTIONS"] = {**said.get("OPTIONS", {}), **resolved.get("OPTIONS", {})}


def _text(value: object, key: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key == "PORT":
        return str(value)
    if not isinstance(value, str):
        raise ConfigurationError(
            "E004",
            f"{where}: the callable for {key} returned {type(value).__name__}; "
            f"it must return text",
        )
    return value
