"""For tests: of projects that use dbfleet, and of dbfleet itself.

``replica_lag``, ``replica_down``, ``primary_down`` and ``assert_routed_to`` show a
project's tests what its users see while replicas lag or servers are down; they need no
server but the test database. ``dbfleet.testing.rig`` starts real clusters. Nothing here
is imported by a running project; the rig needs no settings.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbfleet.testing.blocks import primary_down, replica_down, replica_lag
    from dbfleet.testing.routed import Routed, assert_routed_to

__all__ = ["Routed", "assert_routed_to", "primary_down", "replica_down", "replica_lag"]

_LAZY = {
    "Routed": "dbfleet.testing.routed",
    "assert_routed_to": "dbfleet.testing.routed",
    "primary_down": "dbfleet.testing.blocks",
    "replica_down": "dbfleet.testing.blocks",
    "replica_lag": "dbfleet.testing.blocks",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value
