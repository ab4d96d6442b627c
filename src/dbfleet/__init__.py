"""django-dbfleet: a Django project on a fleet of databases.

Guards one invariant: ``from dbfleet import Cluster, Sharded, databases`` in
``settings.py`` imports neither models nor settings. Names that need them are
imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dbfleet.topology.declaration import Cluster, Sharded, databases
from dbfleet.topology.maps import DirectoryMap, ListMap, RangeMap

if TYPE_CHECKING:
    from dbfleet.levels import bounded
    from dbfleet.placement.layouts import LOCAL, REFERENCE
    from dbfleet.placement.router import PlacementRouter
    from dbfleet.runtime import close_runtime, scope
    from dbfleet.sessions import consistency, session
    from dbfleet.sessions.pins import on_shard, pin
    from dbfleet.sessions.tokens import resume, token
    from dbfleet.sharding.directory import place
    from dbfleet.sharding.uuids import uuid7

__version__ = "0.1.0.dev0"

__all__ = [
    "LOCAL",
    "REFERENCE",
    "Cluster",
    "DirectoryMap",
    "ListMap",
    "PlacementRouter",
    "RangeMap",
    "Sharded",
    "bounded",
    "close_runtime",
    "consistency",
    "databases",
    "on_shard",
    "pin",
    "place",
    "resume",
    "scope",
    "session",
    "token",
    "uuid7",
]

_LAZY = {
    "LOCAL": "dbfleet.placement.layouts",
    "PlacementRouter": "dbfleet.placement.router",
    "REFERENCE": "dbfleet.placement.layouts",
    "bounded": "dbfleet.levels",
    "close_runtime": "dbfleet.runtime",
    "consistency": "dbfleet.sessions",
    "on_shard": "dbfleet.sessions.pins",
    "pin": "dbfleet.sessions.pins",
    "place": "dbfleet.sharding.directory",
    "resume": "dbfleet.sessions.tokens",
    "scope": "dbfleet.runtime",
    "session": "dbfleet.sessions",
    "token": "dbfleet.sessions.tokens",
    "uuid7": "dbfleet.sharding.uuids",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
