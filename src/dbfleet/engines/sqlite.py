"""SQLite: files; rows are gathered in a private in-memory database.

A file has one writer at a time. Several files cannot commit together, so a commit over
several files is ordered, not atomic; the manual says so where transactions are
described.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from django.db.utils import DataError

from dbfleet.engines.base import FragmentSpec, GatheredRows, Overflow, Row
from dbfleet.engines.counter import CommitCounter
from dbfleet.engines.inline import INLINE, InlineColumn, inline_names


def quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


#: what the server's own collations make of text
_FOLDS = {"NOCASE": "lower", "RTRIM": "rtrim"}


class SQLiteEngine(CommitCounter):
    """What dbfleet needs of this vendor's servers."""

    vendor: ClassVar[str] = "sqlite"
    enforces_read_only: ClassVar[bool] = True
    can_gather: ClassVar[bool] = True
    gathers_at_home: ClassVar[bool] = False
    has_binary_text_equality: ClassVar[bool] = True
    has_one_collation: ClassVar[bool] = True
    can_finish: ClassVar[bool] = True
    # Django computes them by Python's statistics.
    has_null_samples: ClassVar[bool] = False

    def probe_settings(
        self, settings: dict[str, Any], timeout_s: int
    ) -> dict[str, Any]:
        probed = super().probe_settings(settings, timeout_s)
        name = probed["NAME"]
        if isinstance(name, str | Path) and not str(name).startswith((":", "file:")):
            # Opened by its name, a file that is not there would be made.
            probed["NAME"] = f"{Path(name).absolute().as_uri()}?mode=rw"
        return probed

    def connect_limits(self, timeout_s: int) -> dict[str, Any]:
        return {"timeout": timeout_s}

    def make_read_only(self, node: Any) -> None:
        self.run(node, "PRAGMA query_only = ON").close()

    def begin(self, node: Any, gid: str) -> None:
        self.run(node, "BEGIN").close()

    def settling_sql(self, gid: str, *, commit: bool) -> str:
        return "-- a SQLite file keeps no prepared transaction: nothing to settle"

    # -- merging --------------------------------------------------------------
    # A value brings its own type, and BINARY text is ordered by its UTF-8.

    def comparison(self, described: Any) -> str | None:
        return "direct"

    def text_order(self, node: Any) -> str | None:
        return None

    def average(self, total: Any, count: int) -> Any:
        return float(total) / count

    def as_stored(self, sql: str) -> str:
        return f"+{sql}"

    def finish(
        self,
        home: Any,
        columns: Sequence[InlineColumn],
        rows: Sequence[Row],
        sql: str,
        params: Sequence[Any],
    ) -> GatheredRows:
        # A computed value has no type but its own, and no affinity.
        declared = [
            name
            if one.source is None
            else f"{name} {self._declared(home, *one.source)}"
            for name, one in zip(inline_names(columns), columns, strict=True)
        ]
        scratch = home.scratch()
        marks = ", ".join(["%s"] * len(columns))
        self.run(scratch, f"CREATE TABLE {INLINE} ({', '.join(declared)})").close()
        try:
            with scratch.wrap_database_errors:
                cursor = scratch.create_cursor()
                cursor.executemany(f"INSERT INTO {INLINE} VALUES ({marks})", rows)
                cursor.close()
            return self.answer(scratch, sql, params)
        except OverflowError:
            raise DataError("integer overflow of a sum over shards") from None
        finally:
            self.run(scratch, f"DROP TABLE {INLINE}").close()

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
        scratch = home.scratch()
        fetched = size = 0
        created: list[str] = []
        try:
            for fragment in fragments:
                rows: list[Row] = []
                for part in fragment.each():
                    limit = max_rows - fetched - len(rows) + 1
                    rows += self.fetch(
                        part.nodes[0], self._read(part, limit), part.params
                    )
                    if fetched + len(rows) > max_rows:
                        raise Overflow(
                            fragment.table, rows=fetched + len(rows), size=None
                        )
                fetched += len(rows)
                size += sum(_size(row) for row in rows)
                if size > max_bytes:
                    raise Overflow(fragment.table, rows=None, size=size)
                created.append(fragment.table)
                self._load(home, scratch, fragment, rows)
            cursor = self.run(scratch, sql, params)
            with home.wrap_database_errors:
                rows = list(cursor.fetchall())
                result = GatheredRows(
                    rows, cursor.description, cursor.rowcount, fetched, [sql]
                )
                cursor.close()
            return result
        finally:
            for table in created:
                self.run(scratch, f"DROP TABLE IF EXISTS {quote_name(table)}").close()

    def _read(self, fragment: FragmentSpec, limit: int) -> str:
        # Unary plus turns off the driver's converters: storage values travel.
        columns = ", ".join(f"+{quote_name(c)}" for c in fragment.columns)
        sql = f"SELECT {columns} FROM {quote_name(fragment.table)}"
        if fragment.where:
            sql += f" WHERE {fragment.where}"
        return sql + f" LIMIT {limit}"

    def _load(
        self, home: Any, scratch: Any, fragment: FragmentSpec, rows: list[Row]
    ) -> None:
        if fragment.order_by in fragment.columns:
            at = fragment.columns.index(fragment.order_by)
            if all(isinstance(row[at], int) for row in rows):
                rows.sort(key=lambda row: row[at])
        self.run(scratch, self._table_sql(home, fragment)).close()
        if not rows:
            return
        names = ", ".join(map(quote_name, fragment.columns))
        marks = ", ".join(["%s"] * len(fragment.columns))
        with scratch.wrap_database_errors:
            cursor = scratch.create_cursor()
            cursor.executemany(
                f"INSERT INTO {quote_name(fragment.table)} ({names}) VALUES ({marks})",
                rows,
            )
            cursor.close()

    def _table_sql(self, home: Any, fragment: FragmentSpec) -> str:
        """A bare table with the declared types and collations of the real one."""
        columns = ", ".join(
            f"{quote_name(name)} {self._declared(home, fragment.table, name)}"
            for name in fragment.columns
        )
        return f"CREATE TABLE {quote_name(fragment.table)} ({columns})"

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

    def canonical_text(
        self, column_sql: str, db_type: str | None, collation: str | None = None
    ) -> str:
        fold = _FOLDS.get((collation or "").upper())
        if fold is not None:
            column_sql = f"{fold}({column_sql})"
        # quote() tells text from numbers, and would spell NULL as text.
        return f"CASE WHEN {column_sql} IS NOT NULL THEN quote({column_sql}) END"

    def table_columns(self, node: Any, table: str) -> tuple[str, ...]:
        info = self.fetch(node, f"PRAGMA table_xinfo({quote_name(table)})")
        return tuple(row[1] for row in info)

    def copy_rows(
        self, source: Any, target: Any, table: str, where: str, params: Sequence[Any]
    ) -> int:
        info = self.fetch(source, f"PRAGMA table_xinfo({quote_name(table)})")
        # Columns 2 and 3 of "hidden" are generated ones.
        columns = tuple(row[1] for row in info if row[6] == 0)
        spec = FragmentSpec(table, columns, where, tuple(params), (source,))
        rows = self.fetch(source, self._read(spec, -1), params)
        names = ", ".join(map(quote_name, columns))
        marks = ", ".join(["%s"] * len(columns))
        for row in rows:
            self.run(
                target,
                f"INSERT INTO {quote_name(table)} ({names}) VALUES ({marks})",
                row,
            ).close()
        return len(rows)

    # -- ids --------------------------------------------------------------------
    # One writer at a time: the counter is taken in the caller's own transaction, a
    # second connection would wait for it for ever. A rollback gives ids back, as
    # AUTOINCREMENT does.

    clock_ms_sql: ClassVar[str] = (
        "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
    )

    def lease_ids(
        self, home: Any, control: Any, table: str, column: str, count: int
    ) -> Iterable[int]:
        rows = self.fetch(
            home,
            "INSERT INTO dbfleet_sequence (name, next_value) VALUES (%s, 1 + %s) "
            "ON CONFLICT (name) DO UPDATE SET next_value = next_value + %s "
            "RETURNING next_value",
            [table, count, count],
        )
        end = int(rows[0][0])
        return range(end - count, end)

    def ensure_ids_above(
        self, home: Any, control: Any, table: str, column: str, value: int
    ) -> None:
        self.run(
            home,
            "INSERT INTO dbfleet_sequence (name, next_value) VALUES (%s, %s) "
            "ON CONFLICT (name) DO UPDATE SET next_value = "
            "max(next_value, excluded.next_value)",
            [table, value + 1],
        ).close()

    def restarts_ids(self, sql: str) -> bool:
        return "sqlite_sequence" in sql


def _size(row: Row) -> int:
    return sum(len(v) if isinstance(v, (str, bytes)) else 8 for v in row)
