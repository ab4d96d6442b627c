"""The alias that a subcommand was given."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError
from django.db import connections


def check_known(database: str) -> None:
    """Raise CommandError for an alias that the settings do not have."""
    if database not in connections.settings:
        raise CommandError(f"{database!r} is no alias of DATABASES")


def sharded(database: str, without: str) -> Any:
    """The wrapper of a sharded alias; raises CommandError, which says what one
    ``without`` shards does, for any other."""
    check_known(database)
    wrapper: Any = connections[database]
    topology = getattr(wrapper, "topology", None)
    if topology is None or not topology.is_sharded:
        raise CommandError(f"{database!r} is not a sharded alias: it {without}")
    return wrapper
