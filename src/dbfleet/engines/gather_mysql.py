"""MySQL and MariaDB: rows are gathered in temporary tables of the home connection.

Source: MariaDB Knowledge Base and MySQL manual, "CREATE TEMPORARY TABLE": it shadows
the permanent one, and ends no transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar

from django.db.utils import OperationalError

from dbfleet import lexer
from dbfleet.engines.base import Engine
from dbfleet.engines.gathering import (
    Budget,
    Fetched,
    FragmentSpec,
    GatheredRows,
    Portion,
    size_of,
)

#: rows in one INSERT of a temporary table; keeps a message under 1 MB or so
BATCH_ROWS = 500
#: MySQL: a column is neither grouped by nor inferred from those that are
_NOT_GROUPED = 1055
_LENIENT = (
    "SET @dbfleet_mode = @@sql_mode, "
    "sql_mode = REPLACE(@@sql_mode, 'ONLY_FULL_GROUP_BY', '')"
)
_STRICT = "SET sql_mode = @dbfleet_mode"


def quote_name(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


class MySQLGather(Engine):
    """Reads fragments and runs statements over them."""

    can_gather: ClassVar[bool] = True
    keeps_keys: ClassVar[bool] = True

    def read(
        self, node: Any, spec: FragmentSpec, limit: int, budget: Budget
    ) -> Portion:
        rows = self.fetch(node, _fragment_sql(spec, limit), spec.params)
        is_kept = budget.spend(spec.table, len(rows), sum(map(size_of, rows)))
        return Portion(rows if is_kept else ())

    def estimate(self, node: Any, spec: FragmentSpec) -> int | None:
        sql = _fragment_sql(spec._replace(locking=""), None)
        cursor = self.run(node, f"EXPLAIN {sql}", spec.params)
        with node.wrap_database_errors:
            names = [column[0] for column in cursor.description]
            row = dict(zip(names, cursor.fetchone(), strict=True))
            cursor.close()
        # NULL: it knows without looking that there is none. MySQL alone tells what
        # share of the rows passes the filter.
        rows = int(row["rows"] or 0)
        return int(rows * float(row.get("filtered") or 100) / 100)

    def gather(
        self,
        home: Any,
        fetched: Sequence[Fetched],
        sql: str,
        params: Any,
        *,
        inline_rows: int,
    ) -> GatheredRows:
        try:
            return self._gather(home, fetched, sql, params)
        except OperationalError as error:
            if error.args[:1] != (_NOT_GROUPED,):
                raise
        # What MySQL infers from unique columns it says of home's own tables, which have
        # them: it refuses here what it would refuse on one database.
        tokens = list(lexer.significant(sql, self.vendor))
        explained = (
            sql if lexer.explain_prefix(tokens, self.vendor) else f"EXPLAIN {sql}"
        )
        self.run(home, explained, params).close()
        self.run(home, _LENIENT).close()
        try:
            return self._gather(home, fetched, sql, params)
        finally:
            with contextlib.suppress(Exception):
                self.run(home, _STRICT).close()

    def _gather(
        self, home: Any, fetched: Sequence[Fetched], sql: str, params: Any
    ) -> GatheredRows:
        statement = sql
        copies: dict[str, str] = {}
        if not home.mysql_is_mariadb:
            statement, copies = _each_once(sql, [one.spec.table for one in fetched])
        created: list[str] = []
        try:
            for one in fetched:
                created.append(one.spec.table)
                self._load_temporary(home, one)
            for copy, table in copies.items():
                created.append(copy)
                self._copy_temporary(home, table, copy)
            cursor = self.run(home, statement, params)
            with home.wrap_database_errors:
                rows = list(cursor.fetchall())
                result = GatheredRows(
                    rows, cursor.description, cursor.rowcount, statements=[statement]
                )
                cursor.close()
            return result
        finally:
            for table in created:
                drop = f"DROP TEMPORARY TABLE IF EXISTS {quote_name(table)}"
                with contextlib.suppress(Exception):
                    self.run(home, drop).close()

    def _copy_temporary(self, home: Any, table: str, copy: str) -> None:
        name = quote_name(copy)
        self.run(
            home, f"CREATE TEMPORARY TABLE {name} LIKE {quote_name(table)}"
        ).close()
        self.run(home, f"INSERT INTO {name} SELECT * FROM {quote_name(table)}").close()

    def _load_temporary(self, home: Any, one: Fetched) -> None:
        spec, rows = one.spec, one.rows()
        if spec.order_by in spec.columns:
            at = spec.columns.index(spec.order_by)
            if all(isinstance(row[at], int) for row in rows):
                rows.sort(key=lambda row: row[at])
        name = quote_name(spec.table)
        columns = [quote_name(column) for column in spec.columns]
        keys = ", ".join(self._keys(home, spec))
        self.run(
            home,
            f"CREATE TEMPORARY TABLE {name} {f'({keys}) ' if keys else ''}"
            f"SELECT {', '.join(columns)} FROM {name} WHERE 1 = 0",
        ).close()
        # A row that is about to move may have been seen on both shards.
        once = (
            f" ON DUPLICATE KEY UPDATE {columns[0]} = {columns[0]}" if spec.key else ""
        )
        marks = "(" + ", ".join(["%s"] * len(spec.columns)) + ")"
        for start in range(0, len(rows), BATCH_ROWS):
            batch = rows[start : start + BATCH_ROWS]
            values = ", ".join([marks] * len(batch))
            self.run(
                home,
                f"INSERT INTO {name} ({', '.join(columns)}) VALUES {values}{once}",
                [value for row in batch for value in row],
            ).close()

    def _keys(self, home: Any, spec: FragmentSpec) -> list[str]:
        """Each index of a table, where all of its columns travel; what indexes there
        are is read once until DDL. Without them a join of two tables reads one for each
        block of rows of the other.

        None is unique here, since that is not for a gather to enforce, but the key that
        a statement may rely on: MySQL infers what it groups by from it, and MariaDB
        chooses the plan that it would for the table itself.
        """
        found: dict[str, list[tuple[str, Any]]] | None = home.catalogue.get(spec.table)
        if found is None:
            found = {}
            for index, column, prefix in self.fetch(home, _INDEXES, [spec.table]):
                found.setdefault(index, []).append((column, prefix))
            home.catalogue[spec.table] = found
        return [
            f"{'PRIMARY ' * bool(spec.key and index == 'PRIMARY')}KEY "
            f"({', '.join(quote_name(column) for column, _ in parts)})"
            for index, parts in found.items()
            if all(column in spec.columns and not prefix for column, prefix in parts)
        ]


#: index, column (NULL for an expression), and how much of it where not the whole
_INDEXES = (
    "SELECT index_name, column_name, sub_part FROM information_schema.statistics "
    "WHERE table_schema = DATABASE() AND table_name = %s AND index_type = 'BTREE' "
    "ORDER BY index_name, seq_in_index"
)


def _each_once(sql: str, tables: Sequence[str]) -> tuple[str, dict[str, str]]:
    """``sql`` with another name in each further place of a table, and which table each
    of these names is a copy of: MySQL opens a temporary table once in a statement.

    Source: MySQL manual, "TEMPORARY Table Problems".
    """
    from dbfleet.lexer import table_places  # not read at a start

    changes: list[tuple[int, int, str]] = []
    copies: dict[str, str] = {}
    for table in tables:
        for start, end, has_alias in table_places(sql, "mysql", table)[1:]:
            copy = f"dbfleet_copy_{len(copies)}"
            copies[copy] = table
            alias = "" if has_alias else f" {quote_name(table)}"
            changes.append((start, end, quote_name(copy) + alias))
    for start, end, text in sorted(changes, reverse=True):
        sql = sql[:start] + text + sql[end:]
    return sql, copies


def _fragment_sql(spec: FragmentSpec, limit: int | None) -> str:
    columns = ", ".join(map(quote_name, spec.columns))
    sql = f"SELECT {columns} FROM {quote_name(spec.table)}"
    if spec.where:
        sql += f" WHERE {spec.where}"
    if limit is not None and not spec.locking:
        sql += f" LIMIT {limit}"
    return sql + spec.locking
