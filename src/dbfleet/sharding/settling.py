"""Waiting for commits that are decided and that a shard has not carried out yet.

In a two-phase commit a claim can be seen a moment before its row can be seen
on its shard. One database shows both at once, and callers rely on it: after the
IntegrityError of its INSERT, ``get_or_create`` reads the row that was in the way.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

from django.db.utils import Error

from dbfleet.sharding.ledger import control

#: how long a conflict waits for the commit of the row in its way
TIMEOUT_S = 5.0
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.02


def holders(wrapper: Any, keeper: str, claims: Sequence[str]) -> list[tuple[str, str]]:
    """(shard, prepared id) of the committed rows that hold some of a keeper's claims.

    One round trip on a connection of its own: the caller's transaction has failed, or
    reads an older snapshot. Empty where there can be nothing to wait for, and where
    the keeper gives no such connection: the caller has an error to report already.
    """
    if not wrapper.engine.can_prepare:
        return []
    marks = ", ".join(["%s"] * len(claims))
    sql = f"SELECT DISTINCT shard, gid FROM dbfleet_unique WHERE claim IN ({marks})"
    with contextlib.suppress(Error), control(wrapper, keeper) as node:
        return list(wrapper.engine.fetch(node, sql, claims))
    return []


def wait(wrapper: Any, found: Iterable[tuple[str, str]]) -> list[str]:
    """Wait until none of these transactions is prepared; what to do about the rest.

    One round trip for each, more while one is under way; :data:`TIMEOUT_S` at most for
    all of them. Not part of the caller's transaction, whose snapshot of a shard that
    it has not read yet shall have the row.
    """
    engine, pending = wrapper.engine, []
    deadline = time.monotonic() + TIMEOUT_S
    for shard, gid in dict.fromkeys(found):
        pause_s = _FIRST_PAUSE_S
        with contextlib.suppress(Error):  # the node's next use reports it
            node = wrapper.nodes.primary(shard)
            while engine.is_prepared(node, gid):
                if time.monotonic() >= deadline:
                    sql = engine.settling_sql(gid, commit=True)
                    pending.append(f"on {node.alias}: {sql}")
                    break
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            wrapper.nodes.saw(shard)  # a replica without the row will not do
    return pending
