"""Rows of a server's tables as they once were, kept beside them, and reads of those.

For tests alone (``dbfleet.testing``): a replica that lags, played by its primary. A
read runs unchanged, on the server itself, over copies of the tables under their own
names.

- PostgreSQL: tables of the same names, with their primary keys, in a schema of their
  own that comes first in the search path of the one read. The read runs read-only, in
  a savepoint that is undone, so neither its error nor its effects stay.
- Others: tables under other names, put in front of the read by ``WITH``. In a
  transaction they are temporary, so that making them does not commit it.

A statement that names a table with its schema would pass by the copies, and is refused.
A database view that nobody asked to keep shows the present.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.db.utils import Error, NotSupportedError

from dbfleet import lexer
from dbfleet.engines.base import Engine
from dbfleet.engines.gather_sqlite import quote_name
from dbfleet.engines.gathering import GatheredRows

PREFIX = "dbfleet_past"
_numbers = itertools.count(1)


def past_of(engine: Engine, node: Any, views: Sequence[str] = ()) -> Past:
    """Keep every row of ``node``'s database, and of the named views.

    Two round trips, and on some servers three for each table. Inside a transaction
    what is kept belongs to it.
    """
    kind = PostgresPast if engine.vendor == "postgresql" else WithPast
    found: Past = kind(engine, node)
    found.keep(_tables(node, views))
    return found


def _tables(node: Any, views: Sequence[str]) -> list[str]:
    node.ensure_connection()
    with node.wrap_database_errors:
        cursor = node.create_cursor()
        listed = _introspection(node).get_table_list(cursor)
        cursor.close()
    return sorted(
        table.name
        for table in listed
        if not table.name.startswith(PREFIX)
        and (table.type in ("t", "p") or table.name in views)
    )


def _introspection(node: Any) -> Any:
    """The vendor's own, which reads with the cursor that it is given."""
    return getattr(node, "vendor_class", type(node)).introspection_class(node)


class Past:
    """What was kept of one node."""

    def __init__(self, engine: Engine, node: Any) -> None:
        self.engine, self.node = engine, node
        self.name = f"{PREFIX}{next(_numbers)}"

    def keep(self, tables: Sequence[str]) -> None:
        """Copy the tables."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop the copies; where the server will not now, they go with its database."""
        with contextlib.suppress(Error):
            self.drop()

    def drop(self) -> None:
        raise NotImplementedError

    def read(self, node: Any, cursor: Any, sql: Any, params: Any) -> GatheredRows:
        """Execute a read over the copies, on any connection that sees them; its rows,
        complete in memory. One round trip, three on PostgreSQL."""
        raise NotImplementedError

    def _used(self, sql: str, tables: Iterable[str]) -> list[str]:
        """Those of the tables that a statement may name."""
        vendor = self.engine.vendor
        names = lexer.names(sql, vendor)
        used = [one for one in tables if one in names or one.lower() in names]
        for table in used:
            if lexer.is_qualified(sql, vendor, table):
                raise NotSupportedError(
                    f"the past of {table!r} cannot be shown to a statement that names "
                    "it with its schema: leave the schema out, or read at level "
                    "'strong'"
                )
        return used

    def shown(self, node: Any) -> contextlib.AbstractContextManager[None]:
        """Statements of the block see the copies, where the server can do that."""
        raise NotSupportedError("only PostgreSQL reads the past by other means")


class PostgresPast(Past):
    """A schema in front of the search path."""

    def keep(self, tables: Sequence[str]) -> None:
        self._tables = tuple(tables)
        keys = self._primary_keys(tables)
        steps = [
            f"DROP SCHEMA IF EXISTS {self.name} CASCADE",
            f"CREATE SCHEMA {self.name}",
        ]
        for table in tables:
            copy = f"{self.name}.{quote_name(table)}"
            steps.append(f"CREATE TABLE {copy} AS TABLE {quote_name(table)}")
            if table in keys:
                steps.append(f"ALTER TABLE {copy} ADD PRIMARY KEY ({keys[table]})")
        self.engine.run(self.node, "; ".join(steps)).close()

    def _primary_keys(self, tables: Sequence[str]) -> dict[str, str]:
        rows = self.engine.fetch(
            self.node,
            "SELECT c.relname, string_agg(quote_ident(a.attname), ', ') "
            "FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) "
            "WHERE i.indisprimary AND pg_table_is_visible(c.oid) "
            "AND c.relname = ANY (%s) GROUP BY c.relname",
            [list(tables)],
        )
        return dict(rows)

    def drop(self) -> None:
        with self._undoable(self.node):
            self.engine.run(self.node, f"DROP SCHEMA {self.name} CASCADE").close()

    @contextlib.contextmanager
    def _undoable(self, node: Any) -> Iterator[None]:
        """An error of the block does not end the caller's transaction."""
        if self._is_idle(node):
            yield
            return
        self.engine.run(node, f"SAVEPOINT {PREFIX}").close()
        try:
            yield
        except Error:
            self.engine.run(node, f"ROLLBACK TO SAVEPOINT {PREFIX}").close()
            raise
        finally:
            self.engine.run(node, f"RELEASE SAVEPOINT {PREFIX}").close()

    def _is_idle(self, node: Any) -> bool:
        node.ensure_connection()
        info = node.connection.info
        return int(info.transaction_status) == 0

    @contextlib.contextmanager
    def shown(self, node: Any) -> Iterator[None]:
        begin, end = "BEGIN", "ROLLBACK"
        if not self._is_idle(node):
            begin = f"SAVEPOINT {PREFIX}"
            end = f"ROLLBACK TO SAVEPOINT {PREFIX}; RELEASE SAVEPOINT {PREFIX}"
        self.engine.run(
            node,
            f"{begin}; SELECT set_config('search_path', '{self.name}, ' || "
            "current_setting('search_path'), true), "
            "set_config('transaction_read_only', 'on', true)",
        ).close()
        try:
            yield
        finally:
            self.engine.run(node, end).close()

    def read(self, node: Any, cursor: Any, sql: Any, params: Any) -> GatheredRows:
        self._used(str(sql), self._tables)
        with self.shown(node):
            return _fetched(node, cursor, sql, params)


class WithPast(Past):
    """Tables of other names, put under their own by a ``WITH``."""

    def keep(self, tables: Sequence[str]) -> None:
        owner = getattr(self.node, "owner", None) or self.node
        # Outside a transaction every connection shall see them.
        self._is_shared = not owner.transaction.is_open
        kind = "TABLE" if self._is_shared else "TEMPORARY TABLE"
        quote = self.node.ops.quote_name
        self._copies: dict[str, str] = {}
        for number, table in enumerate(tables):
            copy = self._copies[table] = f"{self.name}_{number}"
            for step in self._steps(kind, quote(table), quote(copy), table):
                self.engine.run(self.node, step).close()

    def _steps(self, kind: str, table: str, copy: str, name: str) -> Iterator[str]:
        if self.engine.vendor == "sqlite":
            # A copy made by a query would forget the types that drivers convert by.
            yield f"CREATE {kind} {copy} ({self._columns(name)})"
            yield f"INSERT INTO {copy} SELECT * FROM {table}"
            return
        key = ""
        if self.engine.infers_group_by(self.node):
            with self.node.wrap_database_errors:
                cursor = self.node.create_cursor()
                columns = _introspection(self.node).get_primary_key_columns(
                    cursor, name
                )
                cursor.close()
            if columns:
                key = f" (PRIMARY KEY ({', '.join(map(self._quoted, columns))}))"
        yield f"CREATE {kind} {copy}{key} AS SELECT * FROM {table}"

    def _quoted(self, name: str) -> str:
        return str(self.node.ops.quote_name(name))

    def _columns(self, table: str) -> str:
        info = self.engine.fetch(self.node, f"PRAGMA table_xinfo({quote_name(table)})")
        definition = self.engine.fetch(
            self.node, "SELECT sql FROM sqlite_master WHERE name = %s", [table]
        )
        collations = {}
        if "collate" in str(definition).lower():  # parsing it takes a millisecond
            with self.node.wrap_database_errors:
                cursor = self.node.create_cursor()
                reader = _introspection(self.node)
                collations = reader._get_column_collations(cursor, table)
                cursor.close()
        return ", ".join(
            " ".join(
                [quote_name(row[1]), row[2]]
                + ([f"COLLATE {found}"] if (found := collations.get(row[1])) else [])
            )
            for row in info
            if row[6] != 1  # hidden columns of a virtual table
        )

    def drop(self) -> None:
        # MariaDB commits at DROP TABLE, not at DROP TEMPORARY TABLE.
        is_temporary = self.engine.vendor != "sqlite" and not self._is_shared
        kind = "TEMPORARY TABLE" if is_temporary else "TABLE"
        for copy in self._copies.values():
            self.engine.run(self.node, f"DROP {kind} {self._quoted(copy)}").close()

    def read(self, node: Any, cursor: Any, sql: Any, params: Any) -> GatheredRows:
        text, vendor = str(sql), self.engine.vendor
        ctes = []
        for table in self._used(text, self._copies):
            copy = self._quoted(self._copies[table])
            ctes.append(f"{self._quoted(table)} AS (SELECT * FROM {copy})")
        if ctes:
            added = ", ".join(ctes)
            if params is not None:
                added = added.replace("%", "%%")
            point = lexer.insertion_point(text, vendor)
            if point.kind == "none":
                raise NotSupportedError("this statement cannot be shown the past")
            text = point.apply(text, added)
        return _fetched(node, cursor, text, params)


def _fetched(node: Any, cursor: Any, sql: Any, params: Any) -> GatheredRows:
    with node.wrap_database_errors:
        if params is None:
            cursor.execute(sql)
        else:
            cursor.execute(sql, params)
        rows = list(cursor.fetchall()) if cursor.description is not None else []
        return GatheredRows(rows, cursor.description, cursor.rowcount)
