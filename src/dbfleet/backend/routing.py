"""From a compiled statement to the nodes that carry it out, for one alias wrapper.

Collects what the planner needs, asks it, and opens the cursor it decided on. State
lasts for one statement; a wrapper belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from django.apps import apps
from django.core.exceptions import EmptyResultSet
from django.db.backends.utils import CursorWrapper

from dbfleet import conf
from dbfleet.backend.binding import Binding
from dbfleet.backend.cursor import RawCursor
from dbfleet.backend.deciding import Deciding
from dbfleet.backend.shard_rows import ShardRows
from dbfleet.backend.spreading import shard_sql
from dbfleet.backend.writing import Writes
from dbfleet.errors import ReadOnlyAlias, RouteRefused
from dbfleet.executor import fanout
from dbfleet.executor.cursors import GatherCursor, ScatterCursor
from dbfleet.executor.emulated import emulated
from dbfleet.executor.failures import name_of
from dbfleet.executor.gather import Gatherer
from dbfleet.executor.merging import Merger
from dbfleet.executor.reads import ReadCursor, StreamCursor
from dbfleet.executor.replicas import Place
from dbfleet.executor.streaming import StreamMergeCursor
from dbfleet.executor.writes import WriteCursor
from dbfleet.observe import events
from dbfleet.planner import forced, simple
from dbfleet.planner.blocks import Block, block_of
from dbfleet.planner.plan import (
    limited_to,
    plan_cluster,
    plan_pinned,
    plan_read,
)
from dbfleet.planner.route import HOME, Route, Rung
from dbfleet.planner.tables import Table, Tables
from dbfleet.planner.uses import Statement
from dbfleet.sessions import pins
from dbfleet.sharding import ledger
from dbfleet.sharding.lookups import LookupReader


class Routing(Binding, Deciding, ShardRows):
    """Routes the statements of one alias wrapper."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        self.topology = wrapper.topology
        self.is_sharded: bool = wrapper.topology.is_sharded
        self._settings: Any = None
        self._places: dict[str, Place] = {}
        #: the settings say something of single models
        self._has_own_places = False
        #: the driver's connection that raw SQL gave a state of its own
        self._kept: Any = None
        self._blocks: list[Block] | None = None
        self.tables = Tables(self.topology)
        self.writes = Writes(self)
        self._rules: dict[Any, Any] = {}
        #: model -> its table and the one field that simple queries pin it by
        self._simple: dict[Any, tuple[Table, Any]] = {}

    # -- compiling ------------------------------------------------------------------

    def record(self, compiler: Any) -> None:
        """A query block was compiled; called by every compiler of the alias."""
        if self._blocks is not None:
            self._blocks.append(block_of(compiler))

    @property
    def is_planning(self) -> bool:
        """Whether a statement is being compiled to find its route."""
        return self._blocks is not None

    @property
    def spells_groups(self) -> bool:
        """Whether GROUP BY names every column: rows may lie in no table with a key."""
        return self._blocks is not None

    # -- nodes --------------------------------------------------------------------

    def node(self, cluster: str, *, is_write: bool, captures: bool = False) -> Any:
        """A cluster's primary, inside the transaction if there is one.

        ``captures``: the write itself will tell the session what it wrote.
        """
        wrapper, transaction = self.wrapper, self.wrapper.transaction
        if is_write and self.topology.read_only:
            raise self._read_only()
        if wrapper.needs_rollback:
            self._reconnect()
        if cluster != HOME:
            ledger.shard_map(wrapper)  # raises where settings lack a shard
        node = wrapper.nodes.primary(cluster)
        if node.leader is not None:
            wrapper.nodes.replicas.refuse_lost(cluster, node)
        if emulated:
            emulated.sent(wrapper.nodes, cluster, is_write=is_write)
        if events.subscribers:
            self._tell_sent(cluster, wrapper.nodes.clusters[cluster].primary, is_write)
        if transaction.is_open:
            transaction.check_usable()
            transaction.touch(cluster, node, is_write=is_write)
        elif is_write:
            node.is_writing = True
            if not captures:
                wrapper.nodes.saw(cluster)
        return node

    def _read_only(self) -> ReadOnlyAlias:
        return ReadOnlyAlias(
            "E205",
            f"alias {self.topology.alias!r} is declared read-only; the write was not "
            "sent. Write through another alias, or remove READ_ONLY",
        )

    def _reconnect(self) -> None:
        """A transaction that has to roll back and whose connection was closed ends, or
        is refused, as on one server: connecting says which."""
        if self.wrapper.connection is None:
            self.wrapper.ensure_connection()

    def keep_to_home(self) -> None:
        """Reads stay on home's connection for as long as that connection lives."""
        self.wrapper.ensure_connection()
        self._kept = self.wrapper.connection

    def forget_kept(self) -> None:
        """Reads may leave home's connection again."""
        self._kept = None

    def keeper(self, cluster: str, *, is_write: bool) -> Any:
        """The node on which claims are read and written: home, or the primary of a
        shard that keeps them.

        In a transaction that is a second connection, a branch of its own, since claims
        are committed before rows. A read begins none: it sees the claims of this
        transaction if there are any there, and otherwise what is committed now.
        """
        wrapper, transaction = self.wrapper, self.wrapper.transaction
        if cluster == HOME or not transaction.is_open:
            return self.node(cluster, is_write=is_write)
        if is_write and self.topology.read_only:
            raise self._read_only()
        if wrapper.needs_rollback:
            self._reconnect()
        node = wrapper.nodes.primary(cluster, is_keeper=True)
        if node.leader is not None:
            wrapper.nodes.replicas.refuse_lost(cluster, node)
        if events.subscribers:
            self._tell_sent(cluster, wrapper.nodes.clusters[cluster].primary, is_write)
        transaction.check_usable()
        if is_write or transaction.has_keeper(cluster):
            transaction.touch(cluster, node, is_write=is_write, is_keeper=True)
        return node

    def touch_home(self) -> None:
        """Home takes part in this statement as a writer."""
        self.node(HOME, is_write=True)

    def reader(self, cluster: str, query: Any = None) -> Any:
        """A node that may serve a read now: a replica, unless in a transaction."""
        if not self.reads_replicas():
            return self.node(cluster, is_write=False)
        if cluster != HOME:
            ledger.shard_map(self.wrapper)
        node = self.wrapper.nodes.reader(self.place(cluster, query))
        if events.subscribers:
            self._tell_sent(cluster, name_of(self.wrapper, node), is_write=False)
        return node

    def _tell_sent(self, cluster: str, node: str, is_write: bool) -> None:
        level = self.level().name
        events.emit(
            "sent",
            alias=self.topology.alias,
            cluster=cluster,
            node=node,
            level=level,
            is_write=is_write,
        )

    # -- cursors ------------------------------------------------------------------

    def open_cursor(self, name: str | None) -> Any:
        """What ``wrapper.cursor()`` returns for the statement at hand."""
        if self.wrapper.needs_rollback:
            self._reconnect()
        target, self.target = self.target, None
        if target is not None:
            return target(name)
        return self.wrapper._prepare_cursor(RawCursor(self, name))

    def _home_target(self, name: str | None) -> Any:
        return self.wrapper.home_cursor(name)

    def _node_target(self, node: Any, is_logged: bool, name: str | None) -> Any:
        wrapper = self.wrapper
        if not is_logged:
            node.ensure_connection()
            with node.wrap_database_errors:
                return CursorWrapper(node.create_cursor(), node)
        if node is wrapper:
            return wrapper.home_cursor(name)
        with wrapper.wrap_database_errors:
            inner = self.vendor_cursor(node, name) if name else node.create_cursor()
            return wrapper._prepare_cursor(inner)

    def vendor_cursor(self, node: Any, name: str | None = None) -> Any:
        """A cursor of the driver; inside a transaction a named one ends with it."""
        if node.connection is None:
            node.ensure_connection()
        if not name:
            return node.create_cursor()
        if node is not self.wrapper and self.wrapper.transaction.is_open:
            return self.wrapper.engine.named_cursor(node, name)
        return node.create_cursor(name)

    def scatter(self, clusters: tuple[str, ...], *, is_write: bool) -> ScatterCursor:
        return ScatterCursor(
            [partial(self.node, cluster, is_write=is_write) for cluster in clusters],
            self.wrapper.features.empty_fetchmany_value,
            self.wrapper.nodes.counted if is_write else None,
        )

    def scatter_rows(self, clusters: tuple[str, ...]) -> ScatterCursor:
        """An UPDATE or DELETE of rows of several clusters."""
        cursor = self.scatter(clusters, is_write=True)
        limits = conf.settings().fanout
        is_alone = len(clusters) == 1 or self.wrapper.engine.is_local or emulated
        if limits.parallel_writes and not is_alone:
            cursor.at_once = partial(fanout.side_by_side, self.wrapper, limits)
        return cursor

    def scatter_ddl(self) -> ScatterCursor:
        """DDL runs on every node; where it would end a transaction, no shard is in
        one: on home alone it is what one database would do."""
        if (
            self.wrapper.transaction.is_open
            and not self.wrapper.features.can_rollback_ddl
        ):
            self.wrapper.transaction.leave_shards()
            openers = [
                partial(self.wrapper.nodes.primary, s) for s in self.topology.shards
            ]
            openers.insert(0, partial(self.node, HOME, is_write=True))
            return ScatterCursor(openers, self.wrapper.features.empty_fetchmany_value)
        return self.scatter((HOME, *self.topology.shards), is_write=True)

    # -- reads ----------------------------------------------------------------------

    def read(
        self, compiler: Any, execute: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run a SELECT of a sharded alias where its route says."""
        query = compiler.query
        route = self._pinned(query)
        if route is not None:
            # Nothing of it is to be recorded: the vendor's own class makes its SQL.
            kind = type(compiler)
            compiler.__class__ = kind.vendor_compiler
            try:
                return self._read_one(route, query, execute, *args, **kwargs)
            finally:
                compiler.__class__ = kind
        try:
            statement = self.compiled(compiler)
        except EmptyResultSet:
            return execute(*args, **kwargs)
        if statement is None:
            return execute(*args, **kwargs)
        route = self.planned(statement)
        merged = self._merge_target(route, statement)
        compiler._ready = statement.outer_sql
        if merged is None and route.rung is not Rung.GATHER:
            return self._read_one(route, query, execute, *args, **kwargs)
        if events.subscribers:
            events.emit("routed", route=route)
        if merged is None:
            return self._gather_read(route, query, execute, *args, **kwargs)
        with self.bound(merged):
            return execute(*args, **kwargs)

    def _read_one(
        self,
        route: Route,
        query: Any,
        execute: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run a SELECT on the one cluster of its route."""
        if events.subscribers:
            events.emit("routed", route=route)
        cluster = route.clusters[0]
        if route.replica_ok:
            self._aim_at(cluster, query)
            return self.executed(execute, *args, **kwargs)
        with self.on(cluster, is_write=query.select_for_update):
            return execute(*args, **kwargs)

    def _pinned(self, query: Any) -> Route | None:
        """The route of a query that is known before it is compiled, if it is."""
        if query.model is None or forced.only_scatter:
            return None  # it asks for the value of an expression, or all are asked
        opts = query.model._meta
        known = self._simple.get(opts)
        if known is None:
            table = self.table_of(opts)
            key = simple.only_key(table)
            if key is not None and not self.facts().is_exact(key):
                key = None
            known = self._simple[opts] = (table, key)
        table, key = known
        if key is None:
            return None
        value = simple.key_value(query, key)
        if value is None:
            return None
        known_map = ledger.shard_map(self.wrapper)
        shard = known_map.place(table.key_fields, (value,), self.wrapper)
        if shard is None:
            return None  # no row can have the key
        if pins.shard_for(self.topology.alias) is not None:
            return None  # on_shard has a say
        return plan_pinned(
            table,
            self.topology.alias,
            shard,
            self.in_transaction(),
            known_map.epoch,
        )

    def aim(self, compiler: Any) -> None:
        """The next cursor is for a SELECT of an alias without shards."""
        if events.subscribers:
            events.emit("routed", route=self.plan(compiler))
        self._aim_at(HOME, compiler.query)

    def plan(self, compiler: Any) -> Route:
        """The route of a SELECT; raises EmptyResultSet if there is none."""
        if not self.is_sharded:
            return plan_cluster(
                self.topology,
                in_transaction=self.in_transaction(),
                locks=bool(compiler.query.select_for_update),
                level=self.level(compiler.query).name,
            )
        statement = self.compiled(compiler)
        if statement is None:
            raise EmptyResultSet
        return self.planned(statement)

    def planned(self, statement: Statement, *, only_gather: bool = False) -> Route:
        facts = self.facts(only_gather=only_gather)
        route = plan_read(facts, statement)
        shard = self.pinned_shard()
        if shard is not None:
            return limited_to(route, shard)
        if not route.asks:
            return route
        plan = partial(plan_read, statement=statement)
        return LookupReader(self).pruned(route, facts, plan)

    def pinned_shard(self) -> str | None:
        """The shard of the innermost ``on_shard`` block for this alias."""
        shard = pins.shard_for(self.topology.alias)
        if shard is not None and shard not in self.topology.shards:
            raise RouteRefused(
                "E404",
                f"alias {self.topology.alias!r} has no shard {shard!r}; it has "
                f"{', '.join(self.topology.shards)}",
            )
        return shard

    def node_names(self, route: Route) -> tuple[str, ...]:
        """The servers that may serve a route."""
        names: list[str] = []
        for cluster in route.clusters:
            declared = self.wrapper.nodes.current(cluster, is_asked=route.replica_ok)
            if route.replica_ok and declared.replicas:
                names += declared.replicas
            else:
                names.append(declared.primary)
        return tuple(names)

    def compiled(self, compiler: Any) -> Any:
        """Compile once, seeing every block; None if there is nothing to run."""
        before, self._blocks = self._blocks, []
        try:
            sql, params = compiler.as_sql()
            blocks = tuple(self._blocks)
        finally:
            self._blocks = before
        if not sql:
            return None
        return _statement(compiler, sql, params, blocks, self._locking(compiler))

    def _locking(self, compiler: Any) -> str:
        query = compiler.query
        features = self.wrapper.features
        if not query.select_for_update or not features.has_select_for_update:
            return ""
        return str(
            self.wrapper.ops.for_update_sql(
                nowait=query.select_for_update_nowait,
                skip_locked=query.select_for_update_skip_locked,
                no_key=query.select_for_no_key_update,
            )
        )

    def computed(self, compiler: Any, expression: Any) -> Any:
        """The value of an expression without columns; its subqueries are gathered."""
        before, self._blocks = self._blocks, []
        try:
            sql, params = compiler.compile(expression)
            blocks = tuple(self._blocks)
        finally:
            self._blocks = before
        sql = f"SELECT {sql}"
        statement = _statement(compiler, sql, params, blocks, "")
        route = plan_read(self.facts(), statement)
        if route.rung is Rung.GATHER:
            value = Gatherer(self, route).run(sql, params).rows[0][0]
        else:
            node = self.node(route.clusters[0], is_write=False)
            value = self.wrapper.engine.fetch(node, sql, params)[0][0]
        for convert in (
            *self.wrapper.ops.get_db_converters(expression),
            *expression.get_db_converters(self.wrapper),
        ):
            value = convert(value, expression, self.wrapper)
        return value

    def _gather_read(
        self,
        route: Route,
        query: Any,
        execute: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        with self.bound(partial(self._gather_target, route, query)):
            return execute(*args, **kwargs)

    def _merge_target(self, route: Route, statement: Statement) -> Any:
        """What opens the cursor of a statement that several shards answer; None for
        others."""
        if route.merge is None:
            return None
        most = conf.settings().gather_for(self.topology).max_rows
        merger = Merger(
            self,
            route,
            statement.outer.query,
            shard_sql(statement, route, most),
            partial(self._gather_instead, statement),
        )
        return partial(self._merge_cursor, merger)

    def _merge_cursor(self, merger: Merger, name: str | None) -> Any:
        empty = self.wrapper.features.empty_fetchmany_value
        if name and merger.streams:
            return self.wrapped(StreamMergeCursor(merger, name, empty))
        return self.wrapped(GatherCursor(merger.run, empty))

    def _gather_instead(self, statement: Statement, sql: str, params: Any) -> Any:
        """Gather what turned out not to be mergeable."""
        route = self.planned(statement, only_gather=True)
        # What a merge is measured by depends on no other server's types and orders.
        route = replace(route, source=None)
        if events.subscribers:
            events.emit("routed", route=route)
        return Gatherer(self, route, statement.outer.query).run(sql, params)

    def _gather_target(self, route: Route, query: Any, name: str | None) -> Any:
        return self.wrapped(self.gather_cursor(route, query))

    def wrapped(self, cursor: Any, *, is_logged: bool | None = None) -> Any:
        """Our cursor as Django's, in the alias's log or, for a step, out of it."""
        if self._is_logged if is_logged is None else is_logged:
            return self.wrapper._prepare_cursor(cursor)
        return CursorWrapper(cursor, self.wrapper.nodes.quiet())

    def gather_cursor(self, route: Route, query: Any = None) -> GatherCursor:
        """A cursor that runs whatever it is given over the route's fragments."""
        return GatherCursor(
            Gatherer(self, route, query).run,
            self.wrapper.features.empty_fetchmany_value,
        )

    def _aim_at(self, cluster: str, query: Any) -> None:
        """The next cursor is on a node of the cluster that is found when it
        executes."""
        declared = self.wrapper.nodes.clusters[cluster]
        has_replicas = declared.replicas or declared.source is not None
        if query.select_for_update or not has_replicas:
            is_write = bool(query.select_for_update)
            self.target = partial(self.cluster_target, cluster, is_write)
        else:
            self.target = partial(self._read_target, cluster, query)

    def _read_target(self, cluster: str, query: Any, name: str | None) -> Any:
        if not self.reads_replicas():
            return self.cluster_target(cluster, False, name)
        cursor = self.read_cursor(cluster, query, name)
        if self._is_logged:
            return self.wrapper._prepare_cursor(cursor)
        return self.wrapped(cursor)

    def in_transaction(self) -> bool:
        """Whether a statement belongs to a transaction, of the project's own code
        where a test says that its own does not count."""
        transaction = self.wrapper.transaction
        if not transaction.is_open:
            return False
        if not emulated or not self._is_logged:  # a step belongs to its statement
            return True
        return bool(transaction.is_of_project)

    def reads_replicas(self) -> bool:
        """Whether reads may leave the primary now."""
        wrapper = self.wrapper
        if wrapper.nodes.is_alone and not emulated.has(wrapper.nodes):
            return False
        if wrapper.transaction.is_open and self.in_transaction():
            return False
        if self._kept is not None:
            if self._kept is self.wrapper.connection:
                return False
            self._kept = None
        return True

    def read_cursor(self, cluster: str, query: Any, name: str | None) -> Any:
        """A cursor that finds its node when it is executed."""
        if cluster != HOME:
            ledger.shard_map(self.wrapper)
        kind = StreamCursor if name else ReadCursor
        return kind(self, self.place(cluster, query), name)

    def executed(self, execute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Execute with the target just set; it does not outlive the statement, also
        when compiling shows that there is nothing to run."""
        try:
            return execute(*args, **kwargs)
        finally:
            self.target = None

    def cluster_target(
        self,
        cluster: str,
        is_write: bool,
        name: str | None,
        *,
        is_logged: bool | None = None,
    ) -> Any:
        """A cursor on the primary of a cluster."""
        if is_logged is None:
            is_logged = self._is_logged
        captures = (
            is_write
            and self.wrapper.nodes.clusters[cluster].is_replicated
            and not self.wrapper.transaction.is_open
        )
        node = self.node(cluster, is_write=is_write, captures=captures)
        if not captures:
            return self._node_target(node, is_logged, name)
        with self.wrapper.wrap_database_errors:
            inner = self.vendor_cursor(node, name)
        cursor = WriteCursor(self.wrapper.nodes, cluster, node, inner)
        return self.wrapped(cursor, is_logged=is_logged)


def _statement(
    compiler: Any, sql: str, params: Any, blocks: tuple[Block, ...], locking: str
) -> Statement:
    model = compiler.query.model
    registry = model._meta.apps if model is not None else apps
    return Statement(sql, blocks, registry, False, compiler, locking, (sql, params))
