"""The cursor of hand-written SQL: decides where to go when it is executed.

Unknown means the primary; on a sharded alias, unknown that names a sharded table is
refused. Statements of the ORM never come here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from django.apps import apps

from dbfleet import lexer
from dbfleet.errors import RouteRefused
from dbfleet.executor.writes import counting
from dbfleet.planner.route import HOME, Rung
from dbfleet.planner.statements import Statement, classify
from dbfleet.planner.uses import Statement as Planned
from dbfleet.sharding import ids

_SEQUENCE_CALL = re.compile(
    r"\b(?:setval|nextval|pg_get_serial_sequence)\s*\(", re.IGNORECASE
)


class RawCursor:
    """Stands where a driver's cursor would, until a statement tells which."""

    def __init__(self, routing: Any, name: str | None = None) -> None:
        self._routing, self._name = routing, name
        self.inner: Any = None
        self._is_write = False

    def execute(self, sql: Any, params: Any = None) -> Any:
        cursor = self._choose(str(sql))
        try:
            return _send(cursor, sql, params)
        finally:
            self._note()

    def executemany(self, sql: Any, param_list: Any) -> Any:
        cursor = self._choose(str(sql))
        try:
            return cursor.executemany(sql, param_list)
        finally:
            self._note()

    def _note(self) -> None:
        """Note a write once more when it has ended: another task of the session may
        have asked for the primary's position while it ran."""
        wrapper = self._routing.wrapper
        if self._is_write and not wrapper.transaction.is_open:
            for cluster in (HOME, *wrapper.topology.shards):
                wrapper.nodes.saw(cluster)

    def _choose(self, sql: str) -> Any:
        self._is_write = False
        if self.inner is not None:
            self.inner.close()
        self.inner = self._cursor_for(sql)
        return self.inner

    def _cursor_for(self, sql: str) -> Any:
        routing = self._routing
        vendor = routing.wrapper.vendor
        statement = classify(sql, vendor)
        if routing.topology.is_sharded:
            return self._sharded_cursor(sql, statement)
        if routing.topology.distributed_by is not None:
            found = self._distributed_cursor(sql, statement)
            if found is not None:
                return found
        if statement.kind == "read" and not statement.catalog:
            return self._read_home()
        if self._sets_state(sql, statement):
            routing.keep_to_home()
        self._is_write = statement.kind in {"write", "ddl"} or self._may_write(
            statement
        )
        node = routing.node(HOME, is_write=self._is_write)
        if self._is_write:
            return counting(routing.wrapper.nodes, HOME, node, self._on(node))
        return self._on(node)

    def _read_home(self) -> Any:
        routing = self._routing
        if routing.reads_replicas() and routing.topology.home.is_replicated:
            return routing.read_cursor(HOME, None, self._name)
        return self._on(routing.node(HOME, is_write=False))

    def _sets_state(self, sql: str, statement: Statement) -> bool:
        """SET, a temporary table, BEGIN, ...: it holds for one connection alone."""
        if statement.kind in {"session", "transaction"}:
            return statement.verb != "SHOW"
        return "set_config" in lexer.names(sql, self._routing.wrapper.vendor)

    def _may_write(self, statement: Statement) -> bool:
        """Unknown is taken for a write, unless the server itself would refuse one."""
        wrapper = self._routing.wrapper
        is_safe = wrapper.topology.read_only and wrapper.engine.enforces_read_only
        return statement.kind == "unknown" and not is_safe

    def _on(self, node: Any) -> Any:
        return self._routing.vendor_cursor(node, self._name)

    # -- an alias of a distributed engine -------------------------------------------

    def _distributed_cursor(self, sql: str, statement: Statement) -> Any:
        """What is different where tables are spread; None for all the rest."""
        routing = self._routing
        if statement.kind in {"session", "transaction"} or statement.catalog:
            return None
        if statement.verb == "TRUNCATE":
            cursor = routing.scatter((HOME,), is_write=True)
            cursor.after = partial(routing.forget_flushed, [sql])
            return cursor
        if statement.kind == "ddl":
            routing.wrapper.catalogue.clear()
            return None
        touched = routing.spread_tables(sql)
        if statement.kind == "read":
            if not touched:
                return None
            return routing.refusable_cursor(routing.gathered_raw, self._name)
        used = lexer.names(sql, routing.wrapper.vendor)
        for table in touched:
            rules = routing.claim_rules(table)
            columns = {c.lower() for rule in rules for c in rule.columns}
            if rules and not (
                statement.verb == "SELECT"
                or (statement.verb == "UPDATE" and not used & columns)
            ):
                raise self._refused(
                    statement,
                    f"writes {table.label}, whose unique constraints are kept over all "
                    "workers",
                    "use the ORM, or an UPDATE that names none of their columns",
                )
        return None

    # -- a sharded alias ----------------------------------------------------------

    def _sharded_cursor(self, sql: str, statement: Statement) -> Any:
        routing = self._routing
        everywhere = (HOME, *routing.topology.shards)
        names = lexer.names(sql, routing.wrapper.vendor)
        restarts_ids = routing.wrapper.engine.restarts_ids(sql)
        if statement.kind == "ddl" or statement.verb == "TRUNCATE" or restarts_ids:
            routing.wrapper.catalogue.clear()
            cursor = routing.scatter_ddl()
            if statement.verb == "TRUNCATE":
                cursor.after = partial(routing.forget_flushed, [sql])
            elif restarts_ids:
                cursor.after = partial(routing.restart_ids, sql)
            return cursor
        if statement.kind == "transaction" or "set_config" in names:
            raise self._refused(
                statement,
                "would reach home alone",
                "use atomic(), or SET, which reaches every node",
            )
        if statement.kind == "session":
            if statement.verb in {"SET", "RESET"} or _is_pragma_setting(sql):
                routing.keep_to_home()
                if routing.wrapper.transaction.takes_first(sql):
                    everywhere = (HOME, *routing.wrapper.transaction.shards)
                return routing.scatter(everywhere, is_write=False)
            return self._on(routing.node(HOME, is_write=False))
        if statement.verb == "SELECT" and _SEQUENCE_CALL.search(sql):
            ids.forget(routing.wrapper)  # leased before the counter changed
        touched = self._sharded_tables(sql)
        if not touched:
            self._is_write = statement.kind in {"write", "unknown"}
            node = routing.node(HOME, is_write=self._is_write)
            if self._is_write:
                return counting(routing.wrapper.nodes, HOME, node, self._on(node))
            return self._on(node)
        if statement.kind == "read" or self._is_sequence_call(sql, statement):
            return self._read(sql)
        return self._write(sql, statement, touched)

    def _is_sequence_call(self, sql: str, statement: Statement) -> bool:
        """A SELECT whose only effect is on a sequence, all of which are home's.

        The final statement of a gather runs on home, once.
        """
        if statement.verb != "SELECT" or not _SEQUENCE_CALL.search(sql):
            return False
        harmless = _SEQUENCE_CALL.sub("coalesce(", sql)
        return classify(harmless, self._routing.wrapper.vendor).kind == "read"

    def _sharded_tables(self, sql: str) -> list[Any]:
        routing = self._routing
        found = routing.facts().tables.named_in(sql, routing.wrapper.vendor, apps)
        return [t for t, _ in found if t.is_sharded or t.is_reference]

    def _read(self, sql: str) -> Any:
        routing = self._routing
        route = routing.planned(Planned(sql, (), apps, is_raw=True))
        if route.rung is Rung.GATHER:
            return routing.gather_cursor(route)
        return self._on(routing.node(route.clusters[0], is_write=False))

    def _write(self, sql: str, statement: Statement, touched: list[Any]) -> Any:
        """UPDATE and DELETE that each row decides for itself run everywhere."""
        routing = self._routing
        if statement.locks:
            raise self._refused(
                statement, "locks rows", "use select_for_update() of a queryset"
            )
        table = touched[0]
        used = lexer.names(sql, routing.wrapper.vendor)
        is_single = (
            statement.kind == "write"
            and statement.verb in {"UPDATE", "DELETE"}
            and len(touched) == 1
            and statement.target == table.name
            and lexer.table_occurrences(sql, routing.wrapper.vendor, table.name) == 1
            and not routing.names_local_tables(sql)
            and "limit" not in used  # each shard would take as many of its own
        )
        if not is_single:
            raise self._refused(
                statement,
                "cannot be split over shards by its text",
                "use the ORM, whose rows can be placed",
            )
        key = {column.lower() for column in table.key_columns}
        if statement.verb == "UPDATE" and used & key:
            raise self._refused(
                statement,
                f"names the shard key of {table.label}",
                "use a queryset's update(), which moves rows whose key changes",
            )
        if routing.claim_rules(table):
            raise self._refused(
                statement,
                f"writes {table.label}, whose unique constraints are kept over all "
                "shards",
                "use a queryset's update() or delete()",
            )
        clusters = routing.topology.shards
        if table.is_reference:
            clusters = (HOME, *clusters)
        self._is_write = True
        return routing.scatter_rows(tuple(clusters))

    def _refused(self, statement: Statement, why: str, remedy: str) -> RouteRefused:
        alias = self._routing.topology.alias
        verb = statement.verb or "statement"
        because = f" ({statement.reason})" if statement.reason else ""
        return RouteRefused(
            "E402",
            f"a raw {verb} on sharded alias {alias!r} {why}{because}; it was not "
            f"sent: {remedy}",
        )

    # -- the driver's cursor --------------------------------------------------------

    @property
    def connection(self) -> Any:
        """The driver's connection to home, for quoting; nothing is sent."""
        wrapper = self._routing.wrapper
        wrapper.ensure_connection()
        return wrapper.connection

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        inner = self.__dict__.get("inner")
        if inner is None:
            inner = self.inner = self._on(self._routing.node(HOME, is_write=True))
        return getattr(inner, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inner)

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()


def _send(cursor: Any, sql: Any, params: Any) -> Any:
    return cursor.execute(sql) if params is None else cursor.execute(sql, params)


def _is_pragma_setting(sql: str) -> bool:
    text = sql.lower()
    return "pragma" in text and ("=" in text or "foreign_key_check" in text)
