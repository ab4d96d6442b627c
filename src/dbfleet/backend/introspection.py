"""The vendor's introspection: of home, without dbfleet's own tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

#: methods that read the catalogue through the cursor they are given
_METHODS = (
    "get_table_list",
    "get_table_description",
    "get_sequences",
    "get_relations",
    "get_constraints",
    "get_primary_key_columns",
    "get_primary_key_column",
    "get_key_columns",
    "get_storage_engine",
)


@lru_cache(maxsize=32)
def introspection_class(vendor_class: type) -> type:
    """The vendor's introspection as a fleet's."""
    body: dict[str, Any] = {
        name: _at_home(name) for name in _METHODS if hasattr(vendor_class, name)
    }
    body["__module__"] = vendor_class.__module__
    return type("DatabaseIntrospection", (vendor_class,), body)


def _at_home(name: str) -> Callable[..., Any]:
    """Every node has the same tables, so home's catalogue answers for all."""

    def method(self: Any, cursor: Any, *args: Any, **kwargs: Any) -> Any:
        action = getattr(super(type(self), self), name)
        if self.connection.routing is None:
            found = action(cursor, *args, **kwargs)
        else:
            with self.connection.routing.on_home(), self.connection.cursor() as own:
                found = action(own, *args, **kwargs)
        if name != "get_table_list":
            return found
        from dbfleet.sharding.ledger import PREFIX  # only commands list tables

        return [table for table in found if not table.name.startswith(PREFIX)]

    method.__name__ = name
    return method
