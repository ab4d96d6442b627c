"""PostgreSQL: WAL positions, prepared transactions, text fragments.

Values of a fragment travel as the server's own text output and are read back by
its own input functions, which is lossless for every type, extensions included.
Sources: PostgreSQL manual, "System Administration Functions" (positions),
"PREPARE TRANSACTION", "CREATE TABLE" (temporary tables shadow permanent ones).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from dbfleet.engines.base import FragmentSpec, GatheredRows, Overflow, Row
from dbfleet.engines.merging_postgresql import PostgreSQLMerging
from dbfleet.engines.wal import WalPositions
from dbfleet.errors import TwoPhaseUnavailable
from dbfleet.lexer import insertion_point

#: the server's own hash of types whose equal values have more than one text
_HASHES = {
    "interval": "interval_hash_extended",
    "jsonb": "jsonb_hash_extended",
}
#: how long a shard's transaction waits for a lock, where the role, the database or the
#: connection has no ``lock_timeout`` of its own. A deadlock over several servers is
#: seen by none of them and would last; InnoDB ends it by its own limit of 50 s.
LOCK_TIMEOUT_S = 30
#: how long connecting to a replica may take, where the project does not say
CONNECT_TIMEOUT_S = 3
_BOUND_WAITS = (
    "SELECT set_config('lock_timeout', CASE current_setting('lock_timeout') "
    f"WHEN '0' THEN '{LOCK_TIMEOUT_S}s' ELSE current_setting('lock_timeout') END, true)"
)
_INTEGER_TYPES = frozenset({"smallint", "integer", "bigint"})
_SERIAL_SEQUENCE = re.compile(
    r"""(\bpg_get_serial_sequence\s*\(\s*)('(?:"[^"']+"|\w+)')""", re.IGNORECASE
)


def quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str | None) -> str:
    # Every connection that Django opens has standard_conforming_strings on.
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


class PostgreSQLEngine(PostgreSQLMerging, WalPositions):
    """What dbfleet needs of this vendor's servers."""

    vendor: ClassVar[str] = "postgresql"
    enforces_read_only: ClassVar[bool] = True
    can_prepare: ClassVar[bool] = True
    aborts_on_error: ClassVar[bool] = True
    can_gather: ClassVar[bool] = True
    has_binary_text_equality: ClassVar[bool] = True

    # -- statements ---------------------------------------------------------

    def is_aborted(self, node: Any) -> bool:
        if node.connection is None:
            return False
        return int(node.connection.info.transaction_status) == 3  # INERROR

    def is_closed(self, node: Any) -> bool:
        return node.connection is None or bool(node.connection.closed)

    def is_connection_loss(self, error: BaseException) -> bool:
        state = getattr(error.__cause__, "sqlstate", None)
        return state is None or state.startswith(("08", "57P"))

    def is_read_only_error(self, error: BaseException) -> bool:
        return getattr(error.__cause__, "sqlstate", None) == "25006"

    def is_lost(self, node: Any) -> bool:
        if self.is_closed(node):
            return True
        return super().is_lost(node) if not self.is_aborted(node) else False

    def render(self, home: Any, sql: str, params: Any) -> str:
        return sql if params is None else _composed(home, sql, params)

    def connect_limits(self, timeout_s: int) -> dict[str, Any]:
        return {"connect_timeout": timeout_s}

    def bounded(self, node: Any, params: dict[str, Any]) -> dict[str, Any]:
        if "service" in params or "PGCONNECT_TIMEOUT" in os.environ:
            return params
        return {"connect_timeout": CONNECT_TIMEOUT_S, **params}

    def watch(self, node: Any, watch: Any, *, only_connecting: bool = False) -> None:
        from django.db.backends.postgresql.psycopg_any import is_psycopg3

        from dbfleet.engines import watched  # with psycopg2 there is nothing to do

        if not is_psycopg3:
            return
        if node.connection is not None:
            if not watched.is_watched(node.connection):  # a pool's
                watched.adopt(node.connection, watch)
            return
        driver = type(node).Database
        node.Database = watched.Driver(driver, watch, keeps=not only_connecting)
        options = node.settings_dict["OPTIONS"].get("pool")
        if only_connecting:
            return
        if options and (options is True or "timeout" not in options):
            node.pool.timeout = CONNECT_TIMEOUT_S

    # -- replication ----------------------------------------------------------

    def make_read_only(self, node: Any) -> None:
        self.run(node, "SET default_transaction_read_only = on").close()

    def identity(self, node: Any) -> str | None:
        rows = self.fetch(node, "SELECT system_identifier FROM pg_control_system()")
        return str(rows[0][0])

    def refuses_writes(self, primary: Any) -> bool:
        # The server tells these with its answers, also in an aborted transaction.
        info = primary.connection.info
        names = ("in_hot_standby", "default_transaction_read_only")
        return any(info.parameter_status(name) == "on" for name in names)

    def is_replica(self, node: Any) -> bool | None:
        return bool(self.fetch(node, "SELECT pg_is_in_recovery()")[0][0])

    # -- transactions ---------------------------------------------------------

    def begin(self, node: Any, gid: str) -> None:
        level = node.settings_dict["OPTIONS"].get("isolation_level")
        name = getattr(level, "name", None)
        suffix = f" ISOLATION LEVEL {name.replace('_', ' ')}" if name else ""
        node.ensure_connection()
        with node.wrap_database_errors:
            # One message, which must not become a prepared statement.
            begin = f"BEGIN{suffix}; {_BOUND_WAITS}"
            node.create_cursor().execute(begin, prepare=False).close()

    def prepare(self, node: Any, gid: str) -> None:
        cursor = self.run(node, f"PREPARE TRANSACTION {quote_literal(gid)}")
        # A failed transaction answers ROLLBACK, and the driver reports success.
        tag = cursor.statusmessage
        cursor.close()
        if tag != "PREPARE TRANSACTION":
            raise TwoPhaseUnavailable(
                "E601",
                f"{node.alias} answered {tag!r} to PREPARE TRANSACTION: its "
                "transaction had already failed, so everything was rolled back",
            )

    def commit_prepared(self, node: Any, gid: str) -> None:
        self.run(node, self.settling_sql(gid, commit=True)).close()

    def rollback_prepared(self, node: Any, gid: str) -> None:
        self.run(node, self.settling_sql(gid, commit=False)).close()

    def is_prepared(self, node: Any, gid: str) -> bool:
        sql = "SELECT 1 FROM pg_prepared_xacts WHERE gid = %s"
        return bool(self.fetch(node, sql, [gid]))

    def prepared(self, node: Any) -> list[str]:
        sql = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        return [row[0] for row in self.fetch(node, sql)]

    def settling_sql(self, gid: str, *, commit: bool) -> str:
        verb = "COMMIT" if commit else "ROLLBACK"
        return f"{verb} PREPARED {quote_literal(gid)}"

    # -- gather ---------------------------------------------------------------

    def gather(
        self,
        home: Any,
        fragments: Sequence[FragmentSpec],
        sql: str,
        params: Any,
        *,
        max_rows: int,
        max_bytes: int,
        inline_rows: int,
    ) -> GatheredRows:
        small: list[tuple[FragmentSpec, list[Row]]] = []
        large: list[FragmentSpec] = []
        budget = _Budget(max_rows, max_bytes)
        for fragment in fragments:
            if fragment.is_native:
                continue
            # Only a real table can tell the server of a primary key.
            rows = None if fragment.key else self._read_small(fragment, inline_rows)
            if rows is None:
                large.append(fragment)
            else:
                budget.spend(len(rows), sum(map(_size, rows)))
                budget.check(fragment.table)
                small.append((fragment, rows))
        statement = self.render(home, sql, params)
        if small:
            inline = [self._inline_table(home, part, rows) for part, rows in small]
            statement = _with_tables(statement, inline)
        if not large:
            return self._run_final(home, statement, budget.rows)
        # The temporary table of that name has no sequence.
        statement = _SERIAL_SEQUENCE.sub(
            r"\1quote_ident(current_schema()) || '.' || \2", statement
        )
        with _scope(home):
            for fragment in large:
                self._load_temporary(home, fragment, budget)
            result = self._run_final(home, statement, budget.rows)
            for fragment in large:
                name = quote_name(fragment.table)
                self.run(home, f"DROP TABLE pg_temp.{name}").close()
        return result

    def _run_final(self, home: Any, statement: str, fetched: int) -> GatheredRows:
        cursor = self.run(home, statement)
        with home.wrap_database_errors:
            rows = cursor.fetchall() if cursor.description is not None else []
            result = GatheredRows(
                rows, cursor.description, cursor.rowcount, fetched, [statement]
            )
            cursor.close()
        return result

    def fragment_sql(self, fragment: FragmentSpec, *, limit: int | None) -> str:
        columns = ", ".join(f"{quote_name(c)}::text" for c in fragment.columns)
        sql = f"SELECT {columns} FROM {quote_name(fragment.table)}"
        if fragment.where:
            sql += f" WHERE {fragment.where}"
        if limit is not None:
            sql += f" LIMIT {limit}"
        return sql + fragment.locking

    def _read_small(self, fragment: FragmentSpec, limit: int) -> list[Row] | None:
        """The fragment's rows, or None when there are more than ``limit``.

        A locking fragment has to be complete at once: its lock is its point.
        """
        bounded = None if fragment.locking else limit + 1
        rows: list[Row] = []
        for part in fragment.each():
            sql = self.fragment_sql(part, limit=bounded)
            rows += self.fetch(part.nodes[0], sql, part.params)
            if bounded is not None and len(rows) > limit:
                return None
        return rows

    def _inline_table(self, home: Any, fragment: FragmentSpec, rows: list[Row]) -> str:
        types = self._column_types(home, fragment.table)
        if not rows:
            select = ", ".join(f"NULL::{types[c][0]}" for c in fragment.columns)
            body = f"SELECT {select} WHERE false"
        else:
            if fragment.order_by in fragment.columns:
                self._sort(rows, fragment, types)
            values = ", ".join(
                "(" + ", ".join(map(quote_literal, row)) + ")" for row in rows
            )
            names = [f"c{i}" for i in range(len(fragment.columns))]
            select = ", ".join(
                f"{name}::{types[column][0]}{types[column][1]}"
                for name, column in zip(names, fragment.columns, strict=True)
            )
            body = f"SELECT {select} FROM (VALUES {values}) v({', '.join(names)})"
        columns = ", ".join(map(quote_name, fragment.columns))
        # A set without columns (COUNT(*) alone) still has rows to count.
        return f"{quote_name(fragment.table)}({columns}) AS ({body})"

    def _sort(
        self, rows: list[Row], fragment: FragmentSpec, types: dict[str, tuple[str, str]]
    ) -> None:
        """Put rows in key order, the order in which one table was filled."""
        assert fragment.order_by is not None
        at = fragment.columns.index(fragment.order_by)
        if types[fragment.order_by][0] in _INTEGER_TYPES:
            rows.sort(key=lambda row: int(row[at]))

    def _column_types(self, home: Any, table: str) -> dict[str, tuple[str, str]]:
        """Column -> (type without modifier, COLLATE clause); cached until DDL.

        Modifiers are left out: a cast would round or cut a value if another
        process had widened the column meanwhile.
        """
        cache: dict[str, dict[str, tuple[str, str]]] = home.catalogue
        if table not in cache:
            rows = self.fetch(
                home,
                # -1, as NULL would spell any char(n) as character, which is char(1).
                "SELECT a.attname, format_type(a.atttypid, -1), "
                "CASE WHEN a.attcollation <> t.typcollation THEN "
                "quote_ident(n.nspname) || '.' || quote_ident(c.collname) END "
                "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
                "LEFT JOIN pg_collation c ON c.oid = a.attcollation "
                "LEFT JOIN pg_namespace n ON n.oid = c.collnamespace "
                "WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 "
                "AND NOT a.attisdropped ORDER BY a.attnum",
                [quote_name(table)],
            )
            cache[table] = {
                name: (kind, f" COLLATE {collation}" if collation else "")
                for name, kind, collation in rows
            }
        return cache[table]

    def table_columns(self, node: Any, table: str) -> tuple[str, ...]:
        return tuple(self._column_types(node, table))

    def _load_temporary(
        self, home: Any, fragment: FragmentSpec, budget: _Budget
    ) -> None:
        if fragment.nodes == (home,):
            self._copy_within(home, fragment, budget)
            return
        name = quote_name(fragment.table)
        columns = ", ".join(map(quote_name, fragment.columns))
        self.run(
            home,
            f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS "
            f"SELECT {columns} FROM {name} WITH NO DATA",
        ).close()
        limit = budget.rows_left + 1
        with (
            home.wrap_database_errors,
            home.create_cursor() as sink,
            sink.copy(f"COPY pg_temp.{name} ({columns}) FROM STDIN") as target,
        ):
            for part in fragment.each():
                self._pipe(part, self.fragment_sql(part, limit=limit), target, budget)
        budget.check(fragment.table)
        self._add_key(home, fragment)

    def _copy_within(self, home: Any, fragment: FragmentSpec, budget: _Budget) -> None:
        """As above where home itself answers for the rows, by a distributed engine:
        one connection cannot send a COPY and take one at once."""
        name = quote_name(fragment.table)
        columns = ", ".join(map(quote_name, fragment.columns))
        source = f"SELECT {columns} FROM {name}"
        if fragment.where:
            source += f" WHERE {fragment.where}"
        cursor = self.run(
            home,
            f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS "
            f"{_composed(home, source, fragment.params)} "
            f"LIMIT {budget.rows_left + 1}",
        )
        rows = cursor.rowcount
        cursor.close()
        sql = f"SELECT pg_total_relation_size({quote_literal(f'pg_temp.{name}')})"
        budget.spend(rows, self.fetch(home, sql)[0][0])
        budget.check(fragment.table)
        self._add_key(home, fragment)

    def _add_key(self, home: Any, fragment: FragmentSpec) -> None:
        if fragment.key:
            key = ", ".join(map(quote_name, fragment.key))
            name = quote_name(fragment.table)
            self.run(
                home, f"ALTER TABLE pg_temp.{name} ADD PRIMARY KEY ({key})"
            ).close()

    def _pipe(
        self, part: FragmentSpec, source_sql: str, target: Any, budget: _Budget
    ) -> None:
        [node] = part.nodes
        text = _composed(node, source_sql, part.params)
        with (
            node.wrap_database_errors,
            node.create_cursor() as source,
            source.copy(f"COPY ({text}) TO STDOUT") as blocks,
        ):
            # Over the limit the rest is read and dropped: cancelling a COPY would
            # abort the caller's transaction.
            for block in blocks:
                data = bytes(block)
                if budget.spend(data.count(b"\n"), len(data)):
                    target.write(data)

    def canonical_text(
        self, column_sql: str, db_type: str | None, collation: str | None = None
    ) -> str:
        if db_type in _HASHES or collation is not None:
            # Equal values may be spelled differently; no two hash alike by chance.
            function = _HASHES.get(db_type or "", "hashtextextended")
            halves = (f"{function}({column_sql}, {seed})::text" for seed in (1, 2))
            text = " || ' ' || ".join(halves)
            # Its hash takes 1 and [1] for the same.
            is_json = db_type == "jsonb"
            return f"jsonb_typeof({column_sql}) || ' ' || {text}" if is_json else text
        if db_type == "citext":
            return f"lower({column_sql}::text)"
        if db_type in {"double precision", "real"}:
            return f"({column_sql} + 0)::text"  # minus zero is zero
        if db_type is not None and db_type.startswith("numeric"):
            return f"trim_scale({column_sql})::text"
        if db_type is not None and db_type.startswith("timestamp with"):
            return f"({column_sql} AT TIME ZONE 'UTC')::text"
        return f"{column_sql}::text"

    def known_text(self, value: Any, collation: str | None = None) -> str | None:
        return None if collation is not None else str(value)

    def claim_sql(self, text_sql: str) -> str:
        text = f"%s || length({text_sql}) + 1 || ':v' || {text_sql}"
        return f"encode(sha256(convert_to({text}, 'UTF8')), 'hex')"

    def shows_commits(self, node: Any) -> bool:
        # Set when the connection is opened, from OPTIONS alone.
        level = getattr(node, "isolation_level", None)
        return getattr(level, "name", "") == "READ_COMMITTED"

    isolation_sql: ClassVar[str] = "current_setting('transaction_isolation')"

    def copy_rows(
        self, source: Any, target: Any, table: str, where: str, params: Sequence[Any]
    ) -> int:
        columns = self.table_columns(source, table)
        spec = FragmentSpec(table, columns, where, tuple(params), (source,))
        rows = self.fetch(source, self.fragment_sql(spec, limit=None), params)
        if rows:
            self.insert_texts(target, table, columns, rows, {})
        return len(rows)

    def insert_texts(
        self,
        target: Any,
        table: str,
        columns: Sequence[str],
        rows: Sequence[Row],
        changed: Mapping[str, Any],
    ) -> None:
        """Insert rows given as the server's own text, with other values of some
        columns; one round trip."""
        types = self._column_types(target, table)
        names = [f"c{i}" for i in range(len(columns))]
        select = ", ".join(
            f"{'%s' if column in changed else name}::{types[column][0]}"
            for name, column in zip(names, columns, strict=True)
        )
        into = ", ".join(map(quote_name, columns))
        head = (
            f"INSERT INTO {quote_name(table)} ({into}) OVERRIDING SYSTEM VALUE "
            f"SELECT {select} FROM (VALUES "
        )
        params = [changed[column] for column in columns if column in changed]
        values = ", ".join(
            "(" + ", ".join(map(quote_literal, row)) + ")" for row in rows
        )
        if params:
            values = values.replace("%", "%%")
        tail = f") v({', '.join(names)})"
        self.run(target, head + values + tail, params or None).close()

    # -- ids --------------------------------------------------------------------

    clock_ms_sql: ClassVar[str] = (
        "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS bigint)"
    )

    def lease_ids(
        self, home: Any, control: Any, table: str, column: str, count: int
    ) -> Iterable[int]:
        # A sequence is not transactional, so the caller's own connection serves.
        rows = self.fetch(
            home,
            "SELECT nextval(pg_get_serial_sequence(%s, %s)) "
            "FROM generate_series(1, %s)",
            [quote_name(table), column, count],
        )
        return [row[0] for row in rows]

    def infers_group_by(self, home: Any) -> bool:
        return True

    def reset_ids_sql(self, table: str, column: str, highest: int | None) -> list[str]:
        value, is_called = (1, "false") if highest is None else (highest, "true")
        sequence = (
            f"pg_get_serial_sequence({quote_literal(quote_name(table))}, "
            f"{quote_literal(column)})"
        )
        return [f"SELECT setval({sequence}, {value}, {is_called});"]


def _composed(node: Any, sql: str, params: Any) -> str:
    """``sql`` with its parameters as literals, by the driver's own rules; no I/O."""
    from psycopg import ClientCursor

    node.ensure_connection()
    return str(ClientCursor(node.connection).mogrify(sql, params))


def _size(row: Row) -> int:
    return sum(len(text) for text in row if text is not None)


def _with_tables(statement: str, tables: list[str]) -> str:
    return insertion_point(statement, "postgresql").apply(statement, ", ".join(tables))


class _Budget:
    """Rows and bytes that a gather may still fetch."""

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.rows_left, self.rows, self.bytes = max_rows, 0, 0

    def spend(self, rows: int, size: int) -> bool:
        """Count a block; False once the limit is passed."""
        self.rows_left -= rows
        self.rows += rows
        self.bytes += size
        return self.rows_left >= 0 and self.bytes <= self.max_bytes

    def check(self, table: str) -> None:
        if self.rows_left < 0:
            raise Overflow(table, rows=self.rows, size=None)
        if self.bytes > self.max_bytes:
            raise Overflow(table, rows=None, size=self.bytes)


@contextlib.contextmanager
def _scope(home: Any) -> Iterator[None]:
    """A transaction for temporary tables: one of its own, or the caller's.

    In the caller's a savepoint undoes the tables when the limit is passed, so
    nothing of the caller's work is lost.
    """
    home.ensure_connection()
    execute = home.connection.execute
    is_idle = int(home.connection.info.transaction_status) == 0
    is_mine = is_idle and home.connection.autocommit
    begin, undo, end = (
        ("BEGIN", "ROLLBACK", "COMMIT")
        if is_mine
        else (
            "SAVEPOINT dbfleet_gather",
            "ROLLBACK TO SAVEPOINT dbfleet_gather",
            "RELEASE SAVEPOINT dbfleet_gather",
        )
    )
    with home.wrap_database_errors:
        execute(begin)
        try:
            yield
        except BaseException as error:
            if is_mine or isinstance(error, Overflow):
                execute(undo)
            raise
        execute(end)
