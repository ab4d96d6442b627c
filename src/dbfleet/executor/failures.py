"""Driver errors that say which node they come from.

Guards one invariant: a connection that cannot be opened or is lost, and a primary
that refuses writes, are reported with alias and node, and without a secret. All other
errors stay the driver's, wrapped by Django as ever. Costs nothing until an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db.utils import (
    DatabaseErrorWrapper,
    Error,
    InterfaceError,
    OperationalError,
)

from dbfleet.errors import CommitUnknown, FleetError, NodeMismatch, NodeUnavailable
from dbfleet.executor import leaders

CONNECTION_ERRORS = (OperationalError, InterfaceError)


class NodeErrorWrapper(DatabaseErrorWrapper):
    """Django's own, for a wrapper that is a node of ``owner``, or ``owner`` itself."""

    def __init__(self, wrapper: Any, owner: Any) -> None:
        super().__init__(wrapper)
        self.node, self.owner = wrapper, owner

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            return
        try:
            super().__exit__(kind, error, traceback)
        except Error as wrapped:
            named = self._named(wrapped)
            if named is None:
                raise
            raise named.with_traceback(traceback) from error

    def _named(self, error: Error) -> FleetError | None:
        if isinstance(error, CONNECTION_ERRORS):
            lost = self._lost_node(error)
            if lost is not None:
                return _lost(self.owner, lost, error)
        return self._read_only(error)

    def _nodes(self) -> list[Any]:
        """The node at hand first; a cursor of the alias may be any node's."""
        nodes = dict.fromkeys([self.node, self.owner, *self.owner.nodes.opened()])
        return [node for node in nodes if node.connection is not None]

    def _lost_node(self, error: Error) -> Any:
        engine = self.owner.engine
        if not engine.is_connection_loss(error):
            return None
        return next((node for node in self._nodes() if engine.is_closed(node)), None)

    def _read_only(self, error: Error) -> FleetError | None:
        engine = self.owner.engine
        if not engine.is_read_only_error(error):
            return None
        for node in self._nodes():
            if is_replica(node) or not engine.refuses_writes(node):
                continue
            return NodeMismatch(
                "E202",
                f"{name_of(self.owner, node)} is declared as a primary of alias "
                f"{self.owner.alias!r}, but its server is read-only "
                f"({reason_of(error)}); nothing was written. Declare the new primary "
                "and restart, or make this server writable",
            )
        return None


def is_replica(node: Any) -> bool:
    """Whether a wrapper is a node that was opened as a replica."""
    return bool(getattr(node, "is_replica_node", False))


def name_of(owner: Any, node: Any) -> str:
    """A node's name as the settings spell it; home's primary is the alias itself."""
    is_home = node.settings_dict is owner.settings_dict  # and its extra connections
    other = getattr(node, "stands_for", None) or node.alias
    return str(owner.topology.home.primary if is_home else other)


def reason_of(error: BaseException) -> str:
    """What the driver said, in one line; its type if it said nothing."""
    cause = error.__cause__ or error
    text = str(cause.args[-1]) if cause.args else ""
    return next(iter(text.strip().splitlines()), type(cause).__name__)


@contextlib.contextmanager
def connecting(node: Any, owner: Any) -> Iterator[None]:
    """Name the node that cannot be connected to."""
    try:
        yield
    except FleetError:
        raise
    except (
        *CONNECTION_ERRORS,
        node.Database.OperationalError,
        node.Database.InterfaceError,
    ) as error:
        raise NodeUnavailable(
            "E204",
            f"{name_of(owner, node)} of alias {owner.alias!r} cannot be reached "
            f"({reason_of(error)}); nothing was sent to it: check that the server runs "
            "and that its address and credentials are right",
        ) from error


def _lost(owner: Any, node: Any, error: Error) -> FleetError:
    is_enlisted = any(p.node is node for p in owner.transaction.enlisted.values())
    is_free = not is_enlisted and (node is not owner or not owner.transaction.is_open)
    if is_free:
        # The next statement connects anew; a transaction must end first.
        with contextlib.suppress(Exception):
            node._close()  # not close(): that of home closes every node
        node.connection = None
    cluster = "home" if node is owner else getattr(node, "cluster", None)
    if cluster is not None and not is_replica(node):
        leaders.doubt(owner.nodes.keys[cluster])
    what = f"the connection to {name_of(owner, node)} of alias {owner.alias!r} was lost"
    if is_free and getattr(node, "is_writing", False):
        return CommitUnknown(
            "E602",
            f"{what} during a write outside a transaction ({reason_of(error)}): it may "
            "have happened and was not repeated. Read the rows before writing again",
        )
    return NodeUnavailable(
        "E204",
        f"{what} ({reason_of(error)}). The statement was not repeated: what a "
        "transaction did is rolled back; one outside a transaction may have been "
        "carried out, so read before you write again",
    )
