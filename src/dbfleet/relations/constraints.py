"""Which foreign keys a database of a fleet can enforce."""

from __future__ import annotations

from typing import Any

from dbfleet.placement import Local, Reference, Sharded, alias_for, layout
from dbfleet.topology import Topology


def is_holdable(topology: Topology, field: Any) -> bool:
    """Whether every node that holds a row of ``field``'s model holds its target.

    Only then can the database check the foreign key. Looks nothing up.
    """
    target = field.remote_field.model
    if isinstance(target, str) or not hasattr(field, "model"):
        return True
    own = field.model._meta
    other = target._meta
    there = alias_for(other.app_label, other.model_name)
    if isinstance(there, str) and there != topology.alias:
        return False
    if not topology.has_layouts:
        return True
    child, parent = layout(topology, own), layout(topology, other)
    if isinstance(parent, Reference):
        return True
    if isinstance(child, Sharded) and isinstance(parent, Sharded):
        return _is_colocated(child, parent, field)
    return isinstance(child, Local) and isinstance(parent, Local)


def _is_colocated(child: Sharded, parent: Sharded, field: Any) -> bool:
    if child.key is None or parent.key is None:
        return False
    if child.key.path:
        return bool(child.key.path[0].column == field.column)
    columns = tuple(target.column for _, target in field.related_fields)
    return child.key.columns == (field.column,) and parent.key.columns == columns
