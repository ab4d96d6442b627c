"""Replicas that an operator drained, as every process of a project sees them.

Stored in home, in ``dbfleet_drained``, which ``manage.py fleet drain`` makes. Read only
with ``DBFLEET["DRAINS"]``: once in five seconds and process, one round trip.
"""

from __future__ import annotations

import contextlib
from typing import Any

from django.db.utils import Error

from dbfleet.health import drain

_TABLE = "dbfleet_drained (node varchar(190) NOT NULL PRIMARY KEY)"


def refresh(nodes: Any, cluster: str) -> None:
    """Read again, when it is time, which replicas of a cluster are drained.

    A home that cannot say leaves what is known as it is.
    """
    declared = nodes.clusters[cluster]
    with contextlib.suppress(Error):
        drain.drained(declared.name, lambda: stored(nodes) & set(declared.replicas))


def stored(nodes: Any) -> set[str]:
    """The drained nodes of an alias; one round trip. Raises where there is no table."""
    home = nodes.primary("home")
    return {
        name for (name,) in nodes.engine.fetch(home, "SELECT node FROM dbfleet_drained")
    }


def store(nodes: Any, name: str, *, is_drained: bool) -> None:
    """Drain a replica for every process, or undo it; three round trips."""
    home, engine = nodes.primary("home"), nodes.engine
    engine.run(home, f"CREATE TABLE IF NOT EXISTS {_TABLE}").close()
    engine.run(home, "DELETE FROM dbfleet_drained WHERE node = %s", [name]).close()
    if is_drained:
        engine.run(home, "INSERT INTO dbfleet_drained VALUES (%s)", [name]).close()
