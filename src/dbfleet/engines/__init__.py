"""Everything that differs between database servers, and nothing else.

No other room holds server-specific SQL. An engine is stateless: it works on the
Django wrappers (*nodes*) it is given. What a server cannot do its engine says by
a capability, and the planner refuses; it is never approximated.
"""

from __future__ import annotations

from typing import Any

from dbfleet.engines.base import Engine
from dbfleet.engines.gathering import (
    Budget,
    Fetched,
    FragmentSpec,
    GatheredRows,
    Overflow,
    Portion,
)
from dbfleet.engines.inline import INLINE, InlineColumn, NotCarried
from dbfleet.engines.positions import Position, Verdict

__all__ = [
    "INLINE",
    "Budget",
    "Engine",
    "Fetched",
    "FragmentSpec",
    "GatheredRows",
    "InlineColumn",
    "NotCarried",
    "Overflow",
    "Portion",
    "Position",
    "Verdict",
    "engine_for",
]


def engine_for(wrapper: Any) -> Engine:
    """Return the engine of a Django wrapper, chosen by its ``vendor``.

    A vendor without an engine of its own gets the base engine: placement,
    single nodes and replicas without position tracking work, the rest is refused.
    """
    # Few projects have servers of more than one vendor.
    match wrapper.vendor:
        case "postgresql":
            from dbfleet.engines.postgresql import PostgreSQLEngine

            return PostgreSQLEngine()
        case "mysql":
            from dbfleet.engines.mysql import MySQLEngine

            return MySQLEngine()
        case "sqlite":
            from dbfleet.engines.sqlite import SQLiteEngine

            return SQLiteEngine()
    return Engine()
