"""A forked process never touches the connections of its parent.

Guards two invariants: after a fork the child opens connections of its own, and
nothing the child does, its end included, ends a session of the parent. Django leaves
both to the user.

What the child inherits is dropped without a word to the server: the driver's objects
are kept, because freeing one may say goodbye on the socket that the parent uses, and
the child's copy of the socket is closed, because it would keep the session alive
after the parent is gone.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any

from dbfleet.executor.nodes import is_in_memory
from dbfleet.runtime import scopes

_alive: set[weakref.ref[Any]] = set()
#: strong references across a fork: the child frees the objects of the other threads
#: before anybody can intervene
_held: list[Any] = []
#: driver's objects of the parent, which must not be freed
_inherited: list[Any] = []


def track(wrapper: Any) -> None:
    """Remember a fleet's wrapper: it ends with its thread and is left by a fork."""
    _alive.add(weakref.ref(wrapper, _alive.discard))
    scopes.owner().wrappers.add(wrapper)


def _hold() -> None:
    _held[:] = [wrapper for one in list(_alive) if (wrapper := one()) is not None]


def _abandon_all() -> None:
    for wrapper in _held:
        with contextlib.suppress(Exception):  # one must not keep the others connected
            _abandon_alias(wrapper)
    _held.clear()


os.register_at_fork(
    before=_hold, after_in_parent=_held.clear, after_in_child=_abandon_all
)


def _abandon_alias(wrapper: Any) -> None:
    if wrapper.nodes is not None:
        for node in wrapper.nodes.opened():
            _abandon(node)
    if wrapper.transaction is not None:
        wrapper.transaction.abandon()
    _abandon(wrapper)


def _abandon(wrapper: Any) -> None:
    """Leave a wrapper as Django's ``close`` would, without closing."""
    pools = getattr(wrapper, "_connection_pools", {})
    _inherited.append(pools.pop(wrapper.alias, None))  # its threads stayed behind
    connection = wrapper.connection
    if connection is None or is_in_memory(wrapper):
        return  # the child has a copy of what is in memory
    _inherited.append(connection)
    _drop_socket(connection)
    wrapper.connection = None
    wrapper.run_on_commit = []
    if wrapper.in_atomic_block:
        # The block was begun by the parent; in the child it can only end.
        wrapper.closed_in_transaction = wrapper.needs_rollback = True


def _drop_socket(connection: Any) -> None:
    """Close this process's copy of the socket; its number leads nowhere from now on."""
    socket = connection if hasattr(connection, "fileno") else None
    socket = socket or getattr(connection, "_sock", None)  # PyMySQL
    if socket is None:
        return
    with contextlib.suppress(Exception):  # it was closed already
        number = socket.fileno()
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, number)
        os.close(nowhere)
