"""INSERT, UPDATE and DELETE of an alias: which way each is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db.models.sql import Query

from dbfleet.executor.cursors import StepsCursor
from dbfleet.observe import events
from dbfleet.planner.blocks import block_of
from dbfleet.planner.plan import limited_to, plan_write
from dbfleet.planner.route import HOME, Route, Rung
from dbfleet.planner.tables import Table
from dbfleet.sharding.branches import has_branches
from dbfleet.sharding.inplace import update_in_place
from dbfleet.sharding.inserts import Inserter
from dbfleet.sharding.keyed import KeyedWriter
from dbfleet.sharding.lookups import LookupReader


class Writes:
    """The writing half of an alias's routing."""

    def __init__(self, routing: Any) -> None:
        self.routing = routing
        self.wrapper, self.topology = routing.wrapper, routing.topology

    def insert(self, compiler: Any, execute: Callable[..., Any], returning: Any) -> Any:
        """Run an INSERT."""
        routing = self.routing
        if not self.topology.is_sharded:
            with routing.on(HOME, is_write=True):
                return execute(returning)
        table = routing.table_of(compiler.query.get_meta())
        with self.routing.set_aside():
            return Inserter(self.routing, table).insert(compiler, execute, returning)

    def write(
        self, compiler: Any, result_type: Any, execute: Callable[..., Any]
    ) -> Any:
        """Run an UPDATE or DELETE; returns what Django's compiler would."""
        if not self.topology.is_sharded:
            return self._write_compiled(compiler, result_type, execute)
        with self.routing.set_aside():
            return self._write_sharded(compiler, partial(execute, result_type))

    def _write_compiled(
        self, compiler: Any, result_type: Any, execute: Callable[..., Any]
    ) -> Any:
        # Compiled first: an UPDATE may select keys with a cursor of its own.
        try:
            compiler._ready = compiler.as_sql()
        except EmptyResultSet:
            return execute(result_type)
        if not compiler._ready[0]:
            return execute(result_type)
        self.routing.target = partial(self.routing.cluster_target, HOME, True)
        return self.routing.executed(execute, result_type)

    def _write_sharded(self, compiler: Any, execute: Callable[[], Any]) -> Any:
        table = self.routing.table_of(compiler.query.get_meta())
        original = compiler.query.chain(klass=Query)  # compiling rewrites its filters
        try:
            statement = self.routing.compiled(compiler)
        except EmptyResultSet:
            return execute()
        if statement is None:
            return execute()
        block = block_of(compiler)
        blocks = (*(b for b in statement.blocks if b.compiler is not compiler), block)
        statement = replace(statement, blocks=blocks)
        routing = self.routing
        facts = routing.facts()
        route = plan_write(facts, statement, table)
        shard = self.routing.pinned_shard()
        if shard is not None and table.is_sharded and route.rung is not Rung.GATHER:
            route = limited_to(route, shard)
        writer = KeyedWriter(self.routing, table)
        must_pick = self._must_pick(writer, compiler, route)
        if route.asks and shard is None and not must_pick:  # a pick asks by itself
            plan = partial(plan_write, statement=statement, target=table)
            route = LookupReader(routing).pruned(route, facts, plan)
        events.emit("routed", route=route)
        compiler._ready = statement.outer_sql
        if must_pick:
            return self._write_picked(writer, compiler, original, route, execute)
        if len(route.clusters) == 1:
            with self.routing.on(route.clusters[0], is_write=True):
                return execute()
        with self.wrapper.transaction.statement():
            cursor = self.routing.scatter_rows(route.clusters)
            with self.routing.bound(lambda name: self.routing.wrapped(cursor)):
                return self._counted(table, execute)

    def _counted(self, table: Table, execute: Callable[[], Any]) -> Any:
        found = execute()
        if not table.is_reference:
            return found
        copies = 1 + len(self.topology.shards)
        if isinstance(found, int):
            return found // copies
        return found[: len(found) // copies] if isinstance(found, list) else found

    def _must_pick(self, writer: KeyedWriter, compiler: Any, route: Route) -> bool:
        if route.rung is Rung.GATHER:
            return True
        values = getattr(compiler.query, "values", None)
        if values is None:
            return bool(writer.rules or writer.referrers)
        if writer.table.is_reference and any(
            hasattr(value, "resolve_expression") for _, _, value in values
        ):
            return True  # evaluated once, or nodes could differ
        if len(route.clusters) > 1 and has_branches(values):
            return True  # each shard is told of its own rows
        columns = {field.column for field, _, _ in values}
        changes_key = self.routing.moves_rows(writer.table, columns)
        return changes_key or any(rule.columns & columns for rule in writer.rules)

    def _write_picked(
        self,
        writer: KeyedWriter,
        compiler: Any,
        original: Query,
        route: Route,
        execute: Callable[[], Any],
    ) -> Any:
        """Carry out a write by key; the log and the caller see the one statement."""
        cursor = StepsCursor(
            partial(self._run_steps, writer, compiler, original, route),
            self.wrapper.features.empty_fetchmany_value,
        )
        with self.routing.bound(lambda name: self.routing.wrapped(cursor)):
            return execute()

    def _run_steps(
        self, writer: KeyedWriter, compiler: Any, original: Query, route: Route
    ) -> tuple[int, list[Any]]:
        values = getattr(compiler.query, "values", None)
        with self.routing.unlogged(), self.routing.set_aside():
            if values is None:
                return writer.delete(original), []
            returning = getattr(compiler, "returning_fields", None) or ()
            found = self._in_place(writer, values, original, route, returning)
            if found is not None:
                return found
            columns = {field.column for field, _, _ in values}
            computes = route.rung is Rung.GATHER or self.routing.moves_rows(
                writer.table, columns
            )
            return writer.update(
                list(values),
                original,
                compiler.query.order_by,
                computes=computes,
                returning=returning,
            )

    def _in_place(
        self,
        writer: KeyedWriter,
        values: list[Any],
        original: Query,
        route: Route,
        returning: Any,
    ) -> tuple[int, list[Any]] | None:
        if route.rung is Rung.GATHER or self.routing.pinned_shard() is not None:
            return None
        return update_in_place(writer, values, original, route, returning)

    def update_returning(
        self, compiler: Any, returning: Any, execute: Callable[..., Any]
    ) -> Any:
        """UPDATE ... RETURNING on the shards that may hold the rows."""
        if not returning or not self.wrapper.features.can_return_rows_from_update:
            return execute(returning)  # an ordinary UPDATE, which comes back here
        if not self.topology.is_sharded:
            self.routing.target = partial(self.routing.cluster_target, HOME, True)
            return self.routing.executed(execute, returning)
        compiler.returning_fields = returning
        with self.routing.set_aside():
            return self._write_sharded(compiler, partial(execute, returning))
