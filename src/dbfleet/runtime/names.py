"""Names of run-time databases: a topology value turned into an alias safe to show.

Guards two invariants: the text of a name is random and so holds no secret, and what
leaves the process, a pickle, holds the text alone.

In memory a name carries the settings it stands for, so that it means the same in
every thread to which a queryset or an instance is handed.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import OrderedDict
from typing import Any

from django.apps import apps
from django.db import connections
from django.db.backends.base.base import RAN_DB_VERSION_CHECK

from dbfleet import topology
from dbfleet.errors import ConfigurationError, RuntimeDatabaseError
from dbfleet.topology import Cluster, Sharded
from dbfleet.topology.values import masked_url

PREFIX = "run:"
#: values whose names are remembered in a process; the least recently used goes first
MAX_KNOWN = 256


class RuntimeAlias(str):
    """The alias of a run-time database, with its complete settings in memory."""

    settings: dict[str, Any]

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeAlias:
        return self


_known: OrderedDict[Cluster | Sharded, RuntimeAlias] = OrderedDict()
#: guards ``_known``; held for dict operations and reading one declaration, no I/O
_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


# Another thread of the parent may have held it at the fork.
os.register_at_fork(after_in_child=_renew_lock)


def safe_alias(value: Any) -> Any:
    """An alias as it is; for a topology value, the alias that stands for it.

    Opens nothing. Equal values have the same alias. Raises
    ``RuntimeDatabaseError`` E107 for a value that describes no database.
    """
    if value is None or isinstance(value, RuntimeAlias):
        return value
    if isinstance(value, str):
        if "://" not in value or value in connections.settings:
            return value
        return _named(Cluster(value))
    if isinstance(value, Cluster | Sharded):
        return _named(value)
    raise RuntimeDatabaseError(
        "E107",
        f"a database was given as {type(value).__name__}; give an alias, a database "
        "URL, Cluster(...) or Sharded(...)",
    )


def unknown(alias: str) -> RuntimeDatabaseError:
    """The error for the text of a name that means nothing here."""
    if alias.startswith(PREFIX):
        return RuntimeDatabaseError(
            "E107",
            f"{alias!r} was the name of a run-time database that is not open here: a "
            "pickle, or text, keeps the name and not the address. Give the database "
            "again: queryset.using(<URL or Cluster>), instance.save(using=...)",
        )
    return RuntimeDatabaseError(
        "E107",
        f"{masked_url(alias)!r} is neither an alias of DATABASES nor a database URL: "
        "a URL begins with its scheme, as in postgresql://",
    )


def _named(declared: Cluster | Sharded) -> RuntimeAlias:
    forgotten = None
    with _lock:
        try:
            alias = _known.get(declared)
        except TypeError as error:
            raise RuntimeDatabaseError(
                "E107",
                f"{declared!r} holds a value that cannot be compared ({error})",
            ) from None
        if alias is None:
            alias = _known[declared] = _make(declared)
            if len(_known) > MAX_KNOWN:
                _, forgotten = _known.popitem(last=False)
        else:
            _known.move_to_end(declared)
    if forgotten is not None:
        _forget(forgotten)
    return alias


def _make(declared: Cluster | Sharded) -> RuntimeAlias:
    alias = RuntimeAlias(PREFIX + secrets.token_hex(6))
    try:
        entry = topology.entry_for(str(alias), declared)
        alias.settings = connections.configure_settings({"default": {}, alias: entry})[
            alias
        ]
        topology.load(alias, alias.settings)
    except ConfigurationError as error:
        raise RuntimeDatabaseError(
            "E107", f"the database given at run time cannot be used: {error}"
        ) from None
    for name, node in alias.settings["NODES"].items():
        if node["OPTIONS"].get("pool"):
            raise RuntimeDatabaseError(
                "E107",
                f"{name} of {declared!r} has OPTIONS['pool'], which would keep "
                "connections open after the scope ends; remove it, or declare the "
                "database in DATABASES",
            )
    return alias


def _forget(alias: RuntimeAlias) -> None:
    """Drop what the process keeps by alias; all of it is read again if needed."""
    from dbfleet import policies
    from dbfleet.executor import nodes
    from dbfleet.health import breaker
    from dbfleet.sharding import ids, ledger

    ledger.forget_alias(alias)
    ids.forget_alias(alias)
    nodes.forget_alias(alias)
    for name in (alias, *alias.settings["NODES"]):
        breaker.forget(name)
        policies.place({name: ""})
        RAN_DB_VERSION_CHECK.discard(name)
    if apps.is_installed("django.contrib.contenttypes"):
        content_types: Any = apps.get_model("contenttypes", "ContentType").objects
        content_types._cache.pop(alias, None)
