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

from dbfleet.engines.counter import CommitCounter
from dbfleet.engines.gather_sqlite import SQLiteGather, quote_name
from dbfleet.engines.gathering import FragmentSpec, GatheredRows, Row
from dbfleet.engines.inline import INLINE, InlineColumn, inline_names

#: what the server's own collations make of text
_FOLDS = {"NOCASE": "lower", "RTRIM": "rtrim"}


class SQLiteEngine(SQLiteGather, CommitCounter):
    """What dbfleet needs of this vendor's servers."""

    vendor: ClassVar[str] = "sqlite"
    enforces_read_only: ClassVar[bool] = True
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

    def begin(self, node: Any, gid: str, first: Sequence[str] = ()) -> None:
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
        spec = FragmentSpec(table, columns, where, tuple(params))
        rows = self.fetch(source, self.fragment_sql(spec, -1), params)
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
