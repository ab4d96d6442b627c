"""PostgreSQL: WAL positions, prepared transactions, text fragments.

Values of a fragment travel as the server's own text output and are read back by
its own input functions, which is lossless for every type, extensions included.
Sources: PostgreSQL manual, "System Administration Functions" (positions),
"PREPARE TRANSACTION", "CREATE TABLE" (temporary tables shadow permanent ones).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from dbfleet.engines.gather_postgresql import (
    PostgreSQLGather,
    composed,
    quote_literal,
    quote_name,
)
from dbfleet.engines.gathering import FragmentSpec, Row
from dbfleet.engines.merging_postgresql import PostgreSQLMerging
from dbfleet.engines.wal import WalPositions
from dbfleet.errors import TwoPhaseUnavailable

if TYPE_CHECKING:
    from dbfleet.engines.foreign_postgresql import ForeignTables

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
_SET_TRANSACTION = re.compile(r"\s*SET\s+(LOCAL\s+)?TRANSACTION\s[\w\s,]+\Z", re.I)
_BOUND_WAITS = (
    "SELECT set_config('lock_timeout', CASE current_setting('lock_timeout') "
    f"WHEN '0' THEN '{LOCK_TIMEOUT_S}s' ELSE current_setting('lock_timeout') END, true)"
)


class PostgreSQLEngine(PostgreSQLMerging, PostgreSQLGather, WalPositions):
    """What dbfleet needs of this vendor's servers."""

    vendor: ClassVar[str] = "postgresql"
    enforces_read_only: ClassVar[bool] = True
    can_prepare: ClassVar[bool] = True
    aborts_on_error: ClassVar[bool] = True
    has_binary_text_equality: ClassVar[bool] = True
    has_foreign_tables: ClassVar[bool] = True

    @cached_property
    def foreign(self) -> ForeignTables:
        """Foreign tables of shards in home."""
        from dbfleet.engines.foreign_postgresql import ForeignTables  # few gathers

        return ForeignTables(self)

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
        return sql if params is None else composed(home, sql, params)

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

    def begin(self, node: Any, gid: str, first: Sequence[str] = ()) -> None:
        level = node.settings_dict["OPTIONS"].get("isolation_level")
        name = getattr(level, "name", None)
        suffix = f" ISOLATION LEVEL {name.replace('_', ' ')}" if name else ""
        node.ensure_connection()
        with node.wrap_database_errors:
            # One message, which must not become a prepared statement.
            begin = "; ".join((f"BEGIN{suffix}", *first, _BOUND_WAITS))
            node.create_cursor().execute(begin, prepare=False).close()

    def comes_first(self, sql: str) -> bool:
        return _SET_TRANSACTION.match(sql) is not None

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

    # -- rows ---------------------------------------------------------------

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
        spec = FragmentSpec(table, columns, where, tuple(params))
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
