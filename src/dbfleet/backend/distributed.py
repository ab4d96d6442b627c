"""Routing of an alias whose tables a distributed engine spreads: ``DISTRIBUTED_BY``.

Statements go to the coordinator as Django made them. What it refuses is gathered, or
written by key; what it cannot hold, unique values over all rows, claims hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from django.apps import apps
from django.core.exceptions import EmptyResultSet
from django.db.models.sql import Query

from dbfleet.backend.routing import Routing
from dbfleet.backend.writing import Writes
from dbfleet.engines import GatheredRows
from dbfleet.errors import NullShardKey, RouteRefused
from dbfleet.executor.gather import Gatherer
from dbfleet.executor.refusals import RefusableCursor
from dbfleet.executor.writes import WriteCursor
from dbfleet.observe import events
from dbfleet.planner import simple
from dbfleet.planner.plan import pinned_to, plan_cluster, plan_gathered
from dbfleet.planner.route import HOME, Intent, Route, Rung
from dbfleet.planner.tables import Table
from dbfleet.planner.uses import Statement, uses_of
from dbfleet.sharding import ledger
from dbfleet.sharding.coordinated import CoordinatedInserter, CoordinatedWriter

#: (alias, database) whose tables of ours are there
_ready: set[tuple[str, str]] = set()


class DistributedRouting(Routing):
    """Routes the statements of one alias wrapper to its coordinator."""

    def __init__(self, wrapper: Any) -> None:
        super().__init__(wrapper)
        self.is_sharded = True  # for the compilers: what tables a query uses matters
        self.writes = DistributedWrites(self)

    @property
    def spells_groups(self) -> bool:
        """A key that is left out of a table's DDL is none to infer GROUP BY from."""
        return True

    # -- facts ----------------------------------------------------------------------

    def shard_of(self, fields: tuple[Any, ...], values: tuple[Any, ...]) -> str:
        """Home, for each key that may be stored; raises NullShardKey."""
        if None in values:
            field = fields[values.index(None)]
            raise NullShardKey(
                "E401",
                f"{field.model._meta.label}.{field.name} is a shard key and cannot be "
                f"NULL: set {field.name} before the row is saved",
            )
        return HOME

    def shards_of(
        self, fields: tuple[Any, ...], columns: Sequence[Sequence[Any]]
    ) -> list[str]:
        return [self.shard_of(fields, key) for key in zip(*columns, strict=True)]

    def find_shards(
        self, fields: tuple[Any, ...], given: list[tuple[Any, ...]]
    ) -> list[str | None]:
        return [HOME] * len(given)

    def find_shard(
        self, fields: tuple[Any, ...], values: tuple[Any, ...]
    ) -> str | None:
        return HOME

    def claim_rules(self, table: Table) -> Any:
        rules = super().claim_rules(table)
        if rules:
            prepare(self.wrapper)
        return rules

    def spread_tables(self, sql: str, registry: Any = apps) -> list[Table]:
        """The tables that a text may use and that are spread over workers."""
        found = self.tables.named_in(sql, self.wrapper.vendor, registry)
        return [table for table, _ in found if table.is_sharded]

    def plan(self, compiler: Any) -> Route:
        """The route of a SELECT; raises EmptyResultSet if there is none."""
        statement = self.compiled(compiler)
        if statement is None:
            raise EmptyResultSet
        # Each value of a key is a place of its own: Citus knows which ones are one.
        facts = replace(
            self.facts(), find_shards=None, shard_of=lambda fields, values: repr(values)
        )
        uses = uses_of(facts, statement)
        sharded = [use.table for use in uses if use.table.is_sharded]
        engine = str(self.topology.distributed_by).capitalize()
        if not sharded:
            why = "no table of the statement is sharded"
        elif pinned_to(facts, uses) is not None:
            why = f"{sharded[0].pin_reason}: {engine} asks one worker"
        else:
            why = f"{engine} asks its workers; what it refuses is gathered"
        route = plan_cluster(
            self.topology,
            in_transaction=self.in_transaction(),
            locks=bool(compiler.query.select_for_update),
            level=self.level(compiler.query).name,
        )
        return replace(route, reason=f"{why}; {route.reason}")

    # -- reads ----------------------------------------------------------------------

    def read(
        self, compiler: Any, execute: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run a SELECT on the coordinator, or gather what that refuses."""
        query = compiler.query
        self.pinned_shard()  # raises: there are no shards to choose
        if events.subscribers:
            again = query.clone().get_compiler(connection=self.wrapper)
            try:
                events.emit("routed", route=self.plan(again))
            except EmptyResultSet:
                return execute(*args, **kwargs)
        is_pinned = self._is_simple(query)
        target = partial(
            self.refusable,
            partial(self._gathered, compiler),
            query=query,
            is_write=bool(query.select_for_update),
            is_safe=is_pinned,
        )
        with self.bound(target):
            return execute(*args, **kwargs)

    def _is_simple(self, query: Any) -> bool:
        """Whether one value of the shard key is all that is asked for."""
        if query.model is None:
            return False
        table = self.table_of(query.model._meta)
        key = simple.only_key(table)
        return key is not None and simple.key_value(query, key) is not None

    def refusable(
        self,
        instead: Callable[[str, Any], GatheredRows],
        name: str | None = None,
        *,
        query: Any = None,
        is_write: bool = False,
        is_safe: bool = False,
    ) -> Any:
        """A cursor on the coordinator for a statement that it may refuse."""
        cursor = self.refusable_cursor(
            instead, name, query=query, is_write=is_write, is_safe=is_safe
        )
        return self.wrapped(cursor)

    def refusable_cursor(
        self,
        instead: Callable[[str, Any], GatheredRows],
        name: str | None = None,
        *,
        query: Any = None,
        is_write: bool = False,
        is_safe: bool = False,
    ) -> RefusableCursor:
        inner = self._own_cursor(query, is_write, name)
        model = query.model if query is not None else None
        registry = model._meta.apps if model is not None else apps
        return RefusableCursor(
            self.wrapper, inner, instead, partial(self._guarded, registry, is_safe)
        )

    def _own_cursor(self, query: Any, is_write: bool, name: str | None) -> Any:
        declared = self.wrapper.nodes.clusters[HOME]
        if not is_write and declared.is_replicated and self.reads_replicas():
            return self.read_cursor(HOME, query, name)
        captures = (
            is_write and declared.is_replicated and not self.wrapper.transaction.is_open
        )
        node = self.node(HOME, is_write=is_write, captures=captures)
        with self.wrapper.wrap_database_errors:
            inner = self.vendor_cursor(node, name)
        return WriteCursor(self.wrapper.nodes, HOME, node, inner) if captures else inner

    def _guarded(self, registry: Any, is_safe: bool, sql: str) -> Any:
        """The node whose transaction a refusal would abort; None if there is none."""
        if is_safe or not self.wrapper.transaction.is_open:
            return None
        try:
            tables = self.spread_tables(sql, registry)
        except RouteRefused:  # a name with its schema
            return self.wrapper
        return self.wrapper if tables else None

    def _gathered(self, compiler: Any, sql: str, params: Any) -> GatheredRows:
        query = compiler.query
        again = query.clone().get_compiler(
            connection=self.wrapper, elide_empty=compiler.elide_empty
        )
        statement = self.compiled(again)
        if query.select_for_update:
            return self._locked(query, statement)
        return self._gather(statement, query)

    def _locked(self, query: Any, statement: Any) -> GatheredRows:
        """Rows of several values of the shard key: locked, then read."""
        table = self.table_of(query.model._meta)
        outer = next(b for b in statement.blocks if b.compiler is statement.outer)
        is_alone = len(outer.occurrences) == 1 or query.select_for_update_of == (
            "self",
        )
        if not (table.is_sharded and is_alone):
            raise RouteRefused(
                "E410",
                f"a query of {table.label} on {self.wrapper.alias!r} would lock rows "
                "of several tables for several values of the shard key, which "
                f"{self.topology.distributed_by} refuses: filter by the shard key, or "
                'lock the rows of one table, by select_for_update(of=("self",))',
            )
        with self.set_aside():
            pks = CoordinatedWriter(self, table).lock(query, statement.locking)
        if not pks:
            return GatheredRows([], None, 0)
        # A row that came to match meanwhile is not locked, and so not returned.
        plain = query.clone()
        plain.select_for_update = False
        plain.add_filter("pk__in", pks)
        sql, params = plain.get_compiler(connection=self.wrapper).as_sql()
        node = self.node(HOME, is_write=False)
        cursor = self.wrapper.engine.run(node, sql, params)
        rows, described = cursor.fetchall(), cursor.description
        cursor.close()
        return GatheredRows(rows, described, len(rows))

    def gathered_raw(self, sql: str, params: Any) -> GatheredRows:
        """The answer of a hand-written SELECT that was refused."""
        return self._gather(
            Statement(sql, (), apps, is_raw=True, outer_sql=(sql, params))
        )

    def _gather(self, statement: Any, query: Any = None) -> GatheredRows:
        why = f"{self.topology.distributed_by} refused the statement as it is"
        route = plan_gathered(self.facts(), statement, why)
        if events.subscribers:
            events.emit("routed", route=route)
        return Gatherer(self, route, query).run(*statement.outer_sql)


class DistributedWrites(Writes):
    """The writing half of a distributed alias's routing."""

    routing: DistributedRouting

    def insert(self, compiler: Any, execute: Callable[..., Any], returning: Any) -> Any:
        """Run an INSERT."""
        table = self.routing.table_of(compiler.query.get_meta())
        if not table.is_sharded:
            return super().insert(compiler, execute, returning)
        with self.routing.set_aside():
            inserter = CoordinatedInserter(self.routing, table)
            return inserter.insert(compiler, execute, returning)

    def write(
        self, compiler: Any, result_type: Any, execute: Callable[..., Any]
    ) -> Any:
        """Run an UPDATE or DELETE; returns what Django's compiler would."""
        with self.routing.set_aside():
            return self._write_distributed(compiler, partial(execute, result_type))

    def update_returning(
        self, compiler: Any, returning: Any, execute: Callable[..., Any]
    ) -> Any:
        """UPDATE ... RETURNING."""
        if not returning or not self.wrapper.features.can_return_rows_from_update:
            return execute(returning)  # an ordinary UPDATE, which comes back here
        compiler.returning_fields = returning
        with self.routing.set_aside():
            return self._write_distributed(compiler, partial(execute, returning))

    def _write_distributed(self, compiler: Any, execute: Callable[[], Any]) -> Any:
        table = self.routing.table_of(compiler.query.get_meta())
        original = compiler.query.chain(klass=Query)  # compiling rewrites its filters
        try:
            compiler._ready = compiler.as_sql()
        except EmptyResultSet:
            return execute()
        if not compiler._ready[0]:
            return execute()
        writer = CoordinatedWriter(self.routing, table)
        whole = self._route(Rung.NODE, "the coordinator writes it on its workers")
        if table.is_sharded and self._must_pick(writer, compiler, whole):
            picked = self._route(Rung.SCATTER, "unique values or the shard key change")
            events.emit("routed", route=picked)
            return self._write_picked(writer, compiler, original, whole, execute)
        events.emit("routed", route=whole)
        by_key = self._route(Rung.GATHER, "the statement as it is was refused")
        steps = partial(self._steps, writer, compiler, original, by_key)
        target = partial(
            self.routing.refusable, steps, query=compiler.query, is_write=True
        )
        with self.routing.bound(target):
            return execute()

    def _in_place(self, *args: Any) -> None:
        """No UPDATE may name the column that rows are spread by."""

    def _steps(
        self,
        writer: CoordinatedWriter,
        compiler: Any,
        original: Query,
        route: Route,
        sql: str,
        params: Any,
    ) -> GatheredRows:
        events.emit("routed", route=route)
        count, rows = self._run_steps(writer, compiler, original, route)
        return GatheredRows(rows, None, count)

    def _route(self, rung: Rung, reason: str) -> Route:
        return Route(self.topology.alias, Intent.WRITE, rung, (HOME,), reason)


def prepare(wrapper: Any) -> None:
    """Make the tables of ours that claims need; once in a process, before the first
    write of a table that has such constraints."""
    key = (wrapper.alias, str(wrapper.settings_dict["NAME"]))
    if key not in _ready:
        with ledger.control(wrapper) as node:
            ledger.create_tables(wrapper.engine, node)
        _ready.add(key)
