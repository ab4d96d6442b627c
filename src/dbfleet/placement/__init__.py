"""Which alias a model lives on, and how its rows are laid out there.

Guards one invariant: the answer depends on settings and on today's models alone,
never on a connection, a query or the class a migration happens to hold.
"""

from dbfleet.placement.install import install
from dbfleet.placement.layout import layout
from dbfleet.placement.layouts import (
    LOCAL,
    REFERENCE,
    Hop,
    Layout,
    Local,
    Reference,
    Sharded,
    ShardKey,
)
from dbfleet.placement.lookup import alias_for, alias_for_model, aliases_of
from dbfleet.placement.router import PlacementRouter

__all__ = [
    "LOCAL",
    "REFERENCE",
    "Hop",
    "Layout",
    "Local",
    "PlacementRouter",
    "Reference",
    "ShardKey",
    "Sharded",
    "alias_for",
    "alias_for_model",
    "aliases_of",
    "install",
    "layout",
]
