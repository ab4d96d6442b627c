"""MySQL and MariaDB: GTID positions, XA, temporary tables.

MariaDB differs from MySQL in GTIDs and in what a temporary table may do; where the
two differ the server's own ``mysql_is_mariadb`` decides. Sources: MariaDB
Knowledge Base, "XA Transactions", "Global Transaction ID"; MySQL manual, "XA
Transactions", "Replication with Global Transaction Identifiers".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from django.db.utils import Error

from dbfleet.engines.gather_mysql import BATCH_ROWS, MySQLGather, quote_name
from dbfleet.engines.gtid import GtidPositions
from dbfleet.engines.merging_mysql import MySQLMerging

#: errors of client and server after which the connection is gone; 0 is PyMySQL's,
#: 4031 is MySQL's for one that was idle too long (mysqlclient tells it)
_LOSS_CODES = frozenset(
    {0, 1053, 1158, 1159, 1160, 1161, 1927, 2006, 2013, 2014, 2055, 3169, 4031}
)
#: how long connecting to a replica may take, where the project does not say
CONNECT_TIMEOUT_S = 3
#: collations for which a trailing space makes a difference; % stands in parameters
_UNPADDED = ("%%nopad%%", "%%\\_0900\\_%%")
#: a server, a transaction or a mode that takes no writes
_READ_ONLY_CODES = frozenset({1290, 1792, 1836})
#: of the privilege RELOAD, here
_NEEDS_PRIVILEGE = 1227
#: a column, a function, what a view is made of
_UNKNOWN_NAME_CODES = frozenset({1054, 1305, 1356})


class MySQLEngine(MySQLMerging, MySQLGather, GtidPositions):
    """What dbfleet needs of this vendor's servers."""

    vendor: ClassVar[str] = "mysql"
    enforces_read_only: ClassVar[bool] = True
    can_prepare: ClassVar[bool] = True

    def render(self, home: Any, sql: str, params: Any) -> str:
        if params is None:
            return sql
        home.ensure_connection()
        with home.connection.cursor() as cursor:
            return str(cursor.mogrify(sql, params))

    def is_closed(self, node: Any) -> bool:
        return node.connection is None or not getattr(node.connection, "open", True)

    def is_connection_loss(self, error: BaseException) -> bool:
        return bool(error.args) and error.args[0] in _LOSS_CODES

    def is_read_only_error(self, error: BaseException) -> bool:
        return bool(error.args) and error.args[0] in _READ_ONLY_CODES

    def is_of_content(self, error: BaseException) -> bool:
        is_known = bool(error.args) and error.args[0] in _UNKNOWN_NAME_CODES
        return is_known or super().is_of_content(error)

    def is_lost(self, node: Any) -> bool:
        # PyMySQL would answer a ping on a lost connection by opening another one.
        return self.is_closed(node) or super().is_lost(node)

    # -- replication ----------------------------------------------------------

    def refuses_writes(self, primary: Any) -> bool:
        return self.is_replica(primary) is True

    def make_read_only(self, node: Any) -> None:
        self.run(node, "SET SESSION TRANSACTION READ ONLY").close()

    def connect_limits(self, timeout_s: int) -> dict[str, Any]:
        return {"connect_timeout": timeout_s, "read_timeout": timeout_s}

    def bounded(self, node: Any, params: dict[str, Any]) -> dict[str, Any]:
        from dbfleet.engines import watched_mysql

        limits = {"connect_timeout": CONNECT_TIMEOUT_S}
        if watched_mysql.is_pymysql(node):
            limits["read_timeout"] = CONNECT_TIMEOUT_S  # until it is watched
        return {**limits, **params}

    def watch(self, node: Any, watch: Any, *, only_connecting: bool = False) -> None:
        from dbfleet.engines import watched_mysql

        if only_connecting:
            return
        if node.connection is not None and watched_mysql.is_pymysql(node):
            own = node.settings_dict["OPTIONS"].get("read_timeout")
            watched_mysql.adopt(node, watch, own)

    def identity(self, node: Any) -> str | None:
        # server_id is set by hand and differs between the servers of a cluster;
        # the domains of the GTID history are what they share.
        if node.mysql_is_mariadb:
            sql = "SELECT @@gtid_domain_id"
        else:
            sql = "SELECT ''"
        return str(self.fetch(node, sql)[0][0]) or None

    def is_replica(self, node: Any) -> bool | None:
        return bool(self.fetch(node, "SELECT @@read_only")[0][0])

    # -- transactions ---------------------------------------------------------
    # XA START is refused inside an open transaction, so a node's transaction is an
    # XA branch from its first statement on.

    def begin(self, node: Any, gid: str, first: Sequence[str] = ()) -> None:
        self.run(node, f"XA START '{gid}'").close()

    def commit(self, node: Any, gid: str) -> None:
        self.run(node, f"XA END '{gid}'").close()
        self.run(node, f"XA COMMIT '{gid}' ONE PHASE").close()

    def rollback(self, node: Any, gid: str) -> None:
        # A deadlock leaves the branch "rollback only"; END is then refused.
        with contextlib.suppress(node.Database.Error, Exception):
            self.run(node, f"XA END '{gid}'").close()
        self.run(node, f"XA ROLLBACK '{gid}'").close()

    def prepare(self, node: Any, gid: str) -> None:
        self.run(node, f"XA END '{gid}'").close()
        self.run(node, f"XA PREPARE '{gid}'").close()

    def commit_prepared(self, node: Any, gid: str) -> None:
        self.run(node, self.settling_sql(gid, commit=True)).close()

    def rollback_prepared(self, node: Any, gid: str) -> None:
        self.run(node, self.settling_sql(gid, commit=False)).close()
        # InnoDB answers before its log has that: a server that is killed a moment later
        # would come back with the branch prepared, and no error had named it.
        try:
            self.run(node, "FLUSH LOCAL ENGINE LOGS").close()
        except Error as error:
            if error.args[:1] != (_NEEDS_PRIVILEGE,):
                raise

    def is_prepared(self, node: Any, gid: str) -> bool:
        # MySQL, not MariaDB, wants the privilege XA_RECOVER_ADMIN.
        return gid in self.prepared(node)

    def prepared(self, node: Any) -> list[str]:
        return [_text(row[3]) for row in self.fetch(node, "XA RECOVER")]

    def settling_sql(self, gid: str, *, commit: bool) -> str:
        return f"XA {'COMMIT' if commit else 'ROLLBACK'} '{gid}'"

    # -- rows ---------------------------------------------------------------

    def canonical_text(
        self, column_sql: str, db_type: str | None, collation: str | None = None
    ) -> str:
        kind = (db_type or "").split("(")[0]
        if kind in {"varchar", "char", "longtext", "text", "tinytext", "mediumtext"}:
            # The collation's own weights; trailing spaces count only without padding.
            unpadded = " OR ".join(
                f"COLLATION({column_sql}) LIKE '{part}'" for part in _UNPADDED
            )
            return (
                f"HEX(WEIGHT_STRING(IF({unpadded}, {column_sql}, RTRIM({column_sql}))))"
            )
        if "binary" in kind or "blob" in kind:
            return f"HEX({column_sql})"
        return f"CAST({column_sql} AS CHAR)"

    def known_text(self, value: Any, collation: str | None = None) -> str | None:
        return None if isinstance(value, str) else str(value)

    def claim_sql(self, text_sql: str) -> str:
        return f"SHA2(CONCAT(%s, CHAR_LENGTH({text_sql}) + 1, ':v', {text_sql}), 256)"

    def shows_commits(self, node: Any) -> bool:
        # Django sets its level on every connection, unless the settings say None.
        return bool(node.isolation_level == "read committed")

    def table_columns(self, node: Any, table: str) -> tuple[str, ...]:
        rows = self.fetch(
            node,
            "SELECT column_name FROM information_schema.columns WHERE table_schema = "
            "DATABASE() AND table_name = %s ORDER BY ordinal_position",
            [table],
        )
        return tuple(row[0] for row in rows)

    def infers_group_by(self, home: Any) -> bool:
        return not home.mysql_is_mariadb

    checks_at_once: ClassVar[bool] = True
    assigns_in_turn: ClassVar[bool] = True

    @contextlib.contextmanager
    def unchecked(self, node: Any) -> Iterator[None]:
        self.run(node, "SET foreign_key_checks = 0").close()
        try:
            yield
        finally:
            self.run(node, "SET foreign_key_checks = 1").close()

    def copy_rows(
        self, source: Any, target: Any, table: str, where: str, params: Sequence[Any]
    ) -> int:
        columns = tuple(
            row[0]
            for row in self.fetch(
                source,
                "SELECT column_name FROM information_schema.columns WHERE "
                "table_schema = DATABASE() AND table_name = %s AND "
                "COALESCE(generation_expression, '') = '' ORDER BY ordinal_position",
                [table],
            )
        )
        names = ", ".join(map(quote_name, columns))
        # A locking read: the snapshot of a transaction may be older than its locks.
        rows = self.fetch(
            source,
            f"SELECT {names} FROM {quote_name(table)} WHERE {where} FOR UPDATE",
            params,
        )
        one = "(" + ", ".join(["%s"] * len(columns)) + ")"
        for start in range(0, len(rows), BATCH_ROWS):
            batch = rows[start : start + BATCH_ROWS]
            self.run(
                target,
                f"INSERT INTO {quote_name(table)} ({names}) VALUES "
                + ", ".join([one] * len(batch)),
                [value for row in batch for value in row],
            ).close()
        return len(rows)

    # -- ids --------------------------------------------------------------------
    # AUTO_INCREMENT cannot be leased without inserting, so a counter row stands in
    # for it; it is updated on a second connection, outside the caller's transaction.

    # UNIX_TIMESTAMP() takes local time, of which an hour comes twice a year.
    clock_ms_sql: ClassVar[str] = (
        "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000"
    )

    def lease_ids(
        self, home: Any, control: Any, table: str, column: str, count: int
    ) -> Iterable[int]:
        sql = (
            "INSERT INTO dbfleet_sequence (name, next_value) VALUES "
            "(%s, LAST_INSERT_ID(1) + %s) ON DUPLICATE KEY UPDATE "
            "next_value = LAST_INSERT_ID(next_value) + %s"
        )
        with control() as node:
            self.run(node, sql, [table, count, count]).close()
            first = int(self.fetch(node, "SELECT LAST_INSERT_ID()")[0][0])
        return range(first, first + count)

    def ensure_ids_above(
        self, home: Any, control: Any, table: str, column: str, value: int
    ) -> None:
        with control() as node:
            self.run(
                node,
                "INSERT INTO dbfleet_sequence (name, next_value) VALUES (%s, %s) "
                "ON DUPLICATE KEY UPDATE next_value = "
                "GREATEST(next_value, VALUES(next_value))",
                [table, value + 1],
            ).close()

    def restarts_ids(self, sql: str) -> bool:
        return sql.startswith("TRUNCATE") or "AUTO_INCREMENT" in sql


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
