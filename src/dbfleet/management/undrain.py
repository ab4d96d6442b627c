"""Put a drained replica into service again."""

from __future__ import annotations

from typing import Any

from dbfleet.health import drain as drained
from dbfleet.management.drain import add_arguments, change

__all__ = ["HELP", "add_arguments", "run"]

HELP = "put a drained replica into service again"


def run(stdout: Any, *, node: str, **options: Any) -> None:
    """Undrain a replica; raises CommandError for a node that is none."""
    change(node, is_drained=False)
    stdout.write(
        f"{node} is in service; every process knows within "
        f"{drained.REFRESH_S * 1.2:g} s"
    )
