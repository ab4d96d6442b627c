"""Take a replica out of service in every process, until ``fleet undrain``.

Reads that are under way there end; no new one begins. Needs ``DBFLEET["DRAINS"]``.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import connections

from dbfleet import conf
from dbfleet.executor import drains
from dbfleet.health import drain

HELP = "take a replica out of service"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("node", help="a replica's name, such as default/replica1")


def run(stdout: Any, *, node: str, **options: Any) -> None:
    """Drain a replica; raises CommandError for a node that cannot be drained."""
    change(node, is_drained=True)
    stdout.write(
        f"{node} is drained; every process knows within {drain.REFRESH_S * 1.2:g} s"
    )


def change(node: str, *, is_drained: bool) -> None:
    """Store whether a replica is drained."""
    wrapper: Any = _alias_of(node)
    if not conf.settings().drains:
        raise CommandError(
            "DBFLEET['DRAINS'] is not on, so no process would know: switch it on and "
            "restart them"
        )
    drains.store(wrapper.nodes, node, is_drained=is_drained)


def _alias_of(node: str) -> Any:
    replicas: list[str] = []
    for alias in connections.settings:
        wrapper: Any = connections[alias]
        nodes: Any = getattr(wrapper, "nodes", None)
        for name in nodes.clusters if nodes is not None else ():
            found = nodes.current(name, is_asked=True).replicas
            if node in found:
                return wrapper
            replicas += found
    raise CommandError(
        f"there is no replica {node!r}; there are: {', '.join(replicas) or 'none'}"
    )
