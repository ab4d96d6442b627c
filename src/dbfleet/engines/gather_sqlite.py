"""SQLite: rows are gathered in a private in-memory database, by raw storage values.

Source: SQLite documentation, "Datatypes In SQLite" (storage classes, affinity).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from dbfleet.engines.base import Engine
from dbfleet.engines.gathering import (
    Budget,
    Fetched,
    FragmentSpec,
    GatheredRows,
    Portion,
    size_of,
)


def quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class SQLiteGather(Engine):
    """Reads fragments and runs statements over them."""

    can_gather: ClassVar[bool] = True
    gathers_at_home: ClassVar[bool] = False

    def read(
        self, node: Any, spec: FragmentSpec, limit: int, budget: Budget
    ) -> Portion:
        rows = self.fetch(node, self.fragment_sql(spec, limit), spec.params)
        is_kept = budget.spend(spec.table, len(rows), sum(map(size_of, rows)))
        return Portion(rows if is_kept else ())

    def fragment_sql(self, spec: FragmentSpec, limit: int) -> str:
        # Unary plus turns off the driver's converters: storage values travel.
        columns = ", ".join(f"+{quote_name(c)}" for c in spec.columns)
        sql = f"SELECT {columns} FROM {quote_name(spec.table)}"
        if spec.where:
            sql += f" WHERE {spec.where}"
        return sql + f" LIMIT {limit}"

    def gather(
        self,
        home: Any,
        fetched: Sequence[Fetched],
        sql: str,
        params: Any,
        *,
        inline_rows: int,
    ) -> GatheredRows:
        scratch = home.scratch()
        created: list[str] = []
        try:
            for one in fetched:
                created.append(one.spec.table)
                self._load(home, scratch, one)
            cursor = self.run(scratch, sql, params)
            with home.wrap_database_errors:
                rows = list(cursor.fetchall())
                result = GatheredRows(
                    rows, cursor.description, cursor.rowcount, statements=[sql]
                )
                cursor.close()
            return result
        finally:
            for table in created:
                self.run(scratch, f"DROP TABLE IF EXISTS {quote_name(table)}").close()

    def _load(self, home: Any, scratch: Any, one: Fetched) -> None:
        spec, rows = one.spec, one.rows()
        if spec.order_by in spec.columns:
            at = spec.columns.index(spec.order_by)
            if all(isinstance(row[at], int) for row in rows):
                rows.sort(key=lambda row: row[at])
        self.run(scratch, self._table_sql(home, spec)).close()
        if not rows:
            return
        names = ", ".join(map(quote_name, spec.columns))
        marks = ", ".join(["%s"] * len(spec.columns))
        with scratch.wrap_database_errors:
            cursor = scratch.create_cursor()
            cursor.executemany(
                f"INSERT INTO {quote_name(spec.table)} ({names}) VALUES ({marks})",
                rows,
            )
            cursor.close()

    def compares(
        self, home: Any, target: tuple[str, str], source: tuple[str, str]
    ) -> bool:
        # A column's affinity decides what a value becomes before it is compared.
        kinds = set()
        for table, column in (target, source):
            kind = self._declared(home, table, column).upper()
            if "COLLATE" in kind:
                return False
            is_text = any(word in kind for word in ("CHAR", "TEXT", "CLOB"))
            kinds.add("int" if "INT" in kind else "text" if is_text else kind)
        return kinds in ({"int"}, {"text"})

    def _table_sql(self, home: Any, spec: FragmentSpec) -> str:
        """A bare table with the declared types and collations of the real one."""
        columns = ", ".join(
            f"{quote_name(name)} {self._declared(home, spec.table, name)}"
            for name in spec.columns
        )
        return f"CREATE TABLE {quote_name(spec.table)} ({columns})"

    def _declared(self, home: Any, table: str, column: str) -> str:
        """The declared type and collation of a column; cached until DDL."""
        cache: dict[str, dict[str, str]] = home.catalogue
        if table not in cache:
            info = self.fetch(home, f"PRAGMA table_xinfo({quote_name(table)})")
            with home.wrap_database_errors:
                cursor = home.create_cursor()
                collations = home.introspection._get_column_collations(cursor, table)
                cursor.close()
            cache[table] = {
                row[1]: " ".join(
                    [row[2]]
                    + (
                        [f"COLLATE {collations[row[1]]}"]
                        if collations.get(row[1])
                        else []
                    )
                )
                for row in info
            }
        return cache[table][column]
