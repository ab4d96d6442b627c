"""``DatabaseWrapper``: a factory of vendor wrappers that stand for a whole fleet.

The class it makes is a subclass of the vendor's own wrapper and is the connection to
the home primary; it adds where statements go and leaves everything else alone. It is
made offline: no server is asked before the first statement.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import NO_DB_ALIAS
from django.db.utils import DEFAULT_DB_ALIAS, DatabaseErrorWrapper, load_backend
from django.utils.functional import cached_property

from dbfleet import explain, placement, querysets, runtime, topology
from dbfleet.backend.creation import creation_class
from dbfleet.backend.introspection import introspection_class
from dbfleet.backend.operations import operations_class
from dbfleet.backend.schema import schema_editor_class
from dbfleet.engines import engine_for
from dbfleet.errors import NodeUnavailable
from dbfleet.executor import leaders
from dbfleet.executor.failures import NodeErrorWrapper, connecting
from dbfleet.executor.nodes import NodeSet, resolved_params
from dbfleet.executor.watch import watch_connecting
from dbfleet.transactions.transaction import FleetTransaction

if TYPE_CHECKING:
    from dbfleet.backend.routing import Routing
    from dbfleet.engines import Engine


def DatabaseWrapper(  # noqa: N802 - Django looks for this name
    settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS
) -> Any:
    """Return the wrapper of a fleet's alias; offline.

    Raises ConfigurationError with every mistake of the alias's entry.
    """
    declared = topology.load(alias, settings_dict)
    return fleet_class(declared.engine)(settings_dict, alias)


@lru_cache(maxsize=32)
def fleet_class(engine_path: str) -> type:
    """The fleet subclass of a vendor's wrapper, made once."""
    placement.install()
    runtime.install()
    explain.install()
    querysets.install()
    vendor_class: type[Any] = load_backend(engine_path).DatabaseWrapper
    body = {
        "__module__": vendor_class.__module__,
        "__qualname__": vendor_class.__qualname__,
        "vendor_class": vendor_class,
        "SchemaEditorClass": schema_editor_class(vendor_class.SchemaEditorClass),
        "creation_class": creation_class(vendor_class.creation_class),
        "introspection_class": introspection_class(vendor_class.introspection_class),
        "ops_class": operations_class(vendor_class.ops_class),
    }
    name = "_start_transaction_under_autocommit"
    if hasattr(vendor_class, name):  # Django asks whether it is there

        def start(self: Any) -> Any:
            return self._on_home(getattr(super(cls, self), name))

        body[name] = start
    cls = type("DatabaseWrapper", (FleetMixin, vendor_class), body)
    return cls


class FleetMixin:
    """What an alias adds to its vendor's wrapper."""

    vendor_class: type[Any]
    settings_dict: dict[str, Any]
    alias: str
    topology: Any
    nodes: Any
    transaction: Any
    owner = None
    #: the server that was promoted in the declared primary's place
    leader: Any = None
    #: the statement at hand may write, outside a transaction
    is_writing = False

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS):
        # A connection without a database (to create one) is no fleet.
        is_fleet = alias != NO_DB_ALIAS and settings_dict.get("NAME") is not None
        self.topology = topology.load(alias, settings_dict) if is_fleet else None
        super().__init__(settings_dict, alias)  # type: ignore[call-arg]
        self.nodes = NodeSet(self, self.vendor_class) if is_fleet else None
        self.transaction = FleetTransaction(self) if is_fleet else None
        #: what the server's catalogue says of tables; emptied by DDL
        self.catalogue: dict[str, Any] = {}
        runtime.track(self)

    @cached_property
    def engine(self) -> Engine:
        return engine_for(self)

    @cached_property
    def routing(self) -> Routing | None:
        """Where statements go; None where there is nothing to decide."""
        if self.topology is None or self.topology.is_plain:
            return None
        # Wrappers are made while Django loads the models. What decides, a large part
        # of this package, is not needed before the first statement.
        if self.topology.distributed_by is not None:
            from dbfleet.backend.distributed import DistributedRouting

            return DistributedRouting(self)
        from dbfleet.backend.routing import Routing

        return Routing(self)

    def get_connection_params(self) -> Any:
        params = resolved_params(self, super().get_connection_params)  # type: ignore[misc]
        if self.topology is not None and self.topology.home.is_replicated:
            params = self.engine.connection_params(self, params)
        return params

    @cached_property
    def wrap_database_errors(self) -> DatabaseErrorWrapper:
        if self.routing is None:
            return DatabaseErrorWrapper(self)
        return NodeErrorWrapper(self, self)

    def connect(self) -> None:
        if self.topology is None or not self.topology.home.is_replicated:
            self._connect()
        else:
            leaders.connect(self, self.nodes, "home", self._connect)

    def _connect(self) -> None:
        if self.routing is None:
            super().connect()  # type: ignore[misc]
        else:
            if self.topology.home.is_replicated:
                watch_connecting(self)
            with connecting(self, self):
                super().connect()  # type: ignore[misc]

    # -- cursors ----------------------------------------------------------------

    def _cursor(self, name: str | None = None) -> Any:
        if self.routing is None:
            return super()._cursor(name)  # type: ignore[misc]
        return self.routing.open_cursor(name)

    def home_cursor(self, name: str | None = None) -> Any:
        """The vendor's own cursor on the home primary."""
        return super()._cursor(name)  # type: ignore[misc]

    @contextlib.contextmanager
    def temporary_connection(self) -> Iterator[Any]:
        if self.routing is None:
            with super().temporary_connection() as cursor:  # type: ignore[misc]
                yield cursor
            return
        # Django asks the driver's connection itself, which therefore has to be there.
        is_mine = self.connection is None
        try:
            with self.routing.on_home(), self.cursor() as cursor:  # type: ignore[attr-defined]
                yield cursor
        finally:
            if is_mine:  # home alone: a statement may be using another node
                super().close()  # type: ignore[misc]

    def ensure_timezone(self) -> bool:
        # Django calls this when the time zone was changed; every node answers in it.
        if self.nodes is not None:
            self.nodes.ensure_timezone()
            if self.transaction.enlisted:
                self.transaction.changed_timezone = True
        return bool(super().ensure_timezone())  # type: ignore[misc]

    # -- transactions -----------------------------------------------------------

    def _savepoint(self, sid: str) -> None:
        self._on_home(super()._savepoint, sid)  # type: ignore[misc]
        if self.transaction:
            self.transaction.savepoint(sid)

    def _savepoint_rollback(self, sid: str) -> None:
        self._on_home(super()._savepoint_rollback, sid)  # type: ignore[misc]
        if self.transaction:
            self.transaction.rollback_to(sid)

    def _savepoint_commit(self, sid: str) -> None:
        self._on_home(super()._savepoint_commit, sid)  # type: ignore[misc]
        if self.transaction:
            self.transaction.release(sid)

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        declared = self.settings_dict["AUTOCOMMIT"]
        is_end = self.routing is not None and autocommit and declared
        if is_end and self.connection is None:  # type: ignore[has-type]
            # Connecting again, in vain, would hide the error that says whether the
            # transaction was committed.
            self.autocommit = True
            return
        try:
            super().set_autocommit(autocommit, *args, **kwargs)  # type: ignore[misc]
        except NodeUnavailable:
            if not is_end:
                raise
            # Lost after the end of a transaction, which must not look like its loss.
            self.connection, self.autocommit = None, True
            if self.run_commit_hooks_on_set_autocommit_on:  # type: ignore[has-type]
                self.run_and_clear_commit_hooks()  # type: ignore[attr-defined]
                self.run_commit_hooks_on_set_autocommit_on = False

    def _on_home(self, action: Any, *args: Any) -> Any:
        if self.routing is None:
            return action(*args)
        with self.routing.on_home():
            return action(*args)

    def _commit(self) -> Any:
        if self.transaction is None:
            return super()._commit()  # type: ignore[misc]
        return self.transaction.commit(super()._commit)  # type: ignore[misc]

    def _rollback(self) -> Any:
        try:
            return super()._rollback()  # type: ignore[misc]
        finally:
            if self.transaction is not None:
                if self.transaction.home_touched:
                    self.nodes.saw("home")
                self.transaction.rollback()

    # -- the ends of connections ------------------------------------------------

    def is_usable(self) -> bool:
        # Django asks this of a transaction that may have failed, on whatever node.
        if self.transaction is not None and self.transaction.is_aborted:
            return False
        return bool(super().is_usable())  # type: ignore[misc]

    def close(self) -> None:
        try:
            super().close()  # type: ignore[misc]
        finally:
            if self.transaction is not None and self.nodes is not None:
                if self.transaction.enlisted:
                    self.transaction.rollback()
                self.nodes.close()

    def close_if_unusable_or_obsolete(self) -> None:
        nodes = list(self.nodes.opened()) if self.nodes is not None else []
        everyone = [self, *nodes]
        # What ended one connection may have ended others: one error has all checked.
        had_errors = any(one.errors_occurred for one in everyone)
        for one in everyone:
            one.errors_occurred = had_errors
        super().close_if_unusable_or_obsolete()  # type: ignore[misc]
        for node in nodes:
            node.close_if_unusable_or_obsolete()
        for one in everyone:
            one.errors_occurred = False
        if self.nodes is not None:
            self.nodes.rest()

    def init_connection_state(self) -> None:
        self._on_home(super().init_connection_state)  # type: ignore[misc]
        if self.topology is not None and self.topology.read_only:
            self.engine.make_read_only(self)
        elif self.topology is not None and self.topology.home.is_replicated:
            self.engine.track_commits(self)

    def check_constraints(self, table_names: Any = None) -> None:
        if self.routing is None or not self.topology.is_sharded:
            super().check_constraints(table_names)  # type: ignore[misc]
        else:
            with self.routing.on_every_node():
                super().check_constraints(table_names)  # type: ignore[misc]

    def prepare_database(self) -> None:
        super().prepare_database()  # type: ignore[misc]
        if self.routing is not None and self.topology.is_sharded:
            from dbfleet.sharding import ledger  # only shards have a shard map

            ledger.shard_map(self)
        elif self.routing is not None and self.topology.distributed_by is not None:
            from dbfleet.backend import distributed

            distributed.prepare(self)

    def scratch(self) -> Any:
        """A private in-memory database of this thread (SQLite only)."""
        if self._scratch is None:
            settings = {**self.settings_dict, "NAME": ":memory:", "OPTIONS": {}}
            self._scratch = self.nodes._class(settings, f"{self.alias}/scratch")
            self._scratch.owner = self
        return self._scratch

    _scratch: Any = None
