"""PostgreSQL: fragments travel by COPY, and are run over as a WITH or temporary tables.

COPY carries the server's own text output, which its input functions read back: lossless
for every type, extensions included. Sources: PostgreSQL manual, "COPY" (text format),
"CREATE TABLE" (temporary tables shadow permanent ones).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from dbfleet.engines.base import Engine
from dbfleet.engines.gathering import (
    Budget,
    Fetched,
    FragmentSpec,
    GatheredRows,
    Portion,
    Row,
)

#: bytes that are sent at a time
_BLOCK = 2**16
_INTEGER_TYPES = frozenset({"smallint", "integer", "bigint"})
_SERIAL_SEQUENCE = re.compile(
    r"""(\bpg_get_serial_sequence\s*\(\s*)('(?:"[^"']+"|\w+)')""", re.IGNORECASE
)
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
#: what stands behind a backslash in COPY's text; anything else is itself
_ESCAPED = {
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
}


def quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str | None) -> str:
    # Every connection that Django opens has standard_conforming_strings on.
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


def composed(node: Any, sql: str, params: Any) -> str:
    """``sql`` with its parameters as literals, by the driver's own rules; no I/O."""
    from psycopg import ClientCursor

    node.ensure_connection()
    return str(ClientCursor(node.connection).mogrify(sql, params))


class CopiedPortion(Portion):
    """Rows as COPY's text: one line for each, its columns apart by tabs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.data, self._count = width, bytearray(), 0

    def add(self, block: bytearray, rows: int) -> None:
        self.data += block
        self._count += rows

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        return len(self.data)

    def rows(self) -> Iterator[Row]:
        """Each value as the server's text, None for NULL."""
        for line in bytes(self.data).split(b"\n")[:-1]:
            yield tuple(map(_text, line.split(b"\t"))) if self.width else ()


def _text(field: bytes) -> str | None:
    if field == b"\\N":
        return None
    if b"\\" in field:
        field = _ESCAPE.sub(lambda m: _ESCAPED.get(m[1], m[1]), field)
    return field.decode()


class PostgreSQLGather(Engine):
    """Reads fragments and runs statements over them."""

    can_gather: ClassVar[bool] = True

    def read(
        self, node: Any, spec: FragmentSpec, limit: int, budget: Budget
    ) -> Portion:
        bounded = None if spec.locking else limit
        text = composed(node, self.fragment_sql(spec, limit=bounded), spec.params)
        portion = CopiedPortion(len(spec.columns))
        with (
            node.wrap_database_errors,
            node.create_cursor() as source,
            source.copy(f"COPY ({text}) TO STDOUT") as blocks,
        ):
            for data, rows in _collected(blocks):
                if budget.spend(spec.table, rows, len(data)):
                    portion.add(data, rows)
        return portion

    def fragment_sql(self, spec: FragmentSpec, *, limit: int | None) -> str:
        columns = ", ".join(f"{quote_name(c)}::text" for c in spec.columns)
        sql = f"SELECT {columns} FROM {quote_name(spec.table)}"
        if spec.where:
            sql += f" WHERE {spec.where}"
        if limit is not None:
            sql += f" LIMIT {limit}"
        return sql + spec.locking

    def estimate(self, node: Any, spec: FragmentSpec) -> int | None:
        text = composed(node, self.fragment_sql(spec, limit=None), spec.params)
        [[found]] = self.fetch(node, f"EXPLAIN (FORMAT JSON) {text}")
        plan = json.loads(found) if isinstance(found, str) else found
        return int(plan[0]["Plan"]["Plan Rows"])

    def membership(
        self, home: Any, target: tuple[str, str], source: tuple[str, str], count: int
    ) -> str:
        # Values arrived as text; of which type decides what equals them.
        kind = self._column_types(home, source[0])[source[1]][0]
        column = ".".join(map(quote_name, target)).replace("%", "%%")
        return f"{column} IN ({', '.join([f'%s::{kind}'] * count)})"

    def gather(
        self,
        home: Any,
        fetched: Sequence[Fetched],
        sql: str,
        params: Any,
        *,
        inline_rows: int,
    ) -> GatheredRows:
        # Only a real table can tell the server of a primary key.
        small: list[Fetched] = []
        large: list[Fetched] = []
        for one in fetched:
            is_small = len(one) <= inline_rows and not one.spec.key
            (small if is_small else large).append(one)
        statement = self.render(home, sql, params)
        if small:
            inline = ", ".join(self._inline_table(home, one) for one in small)
            from dbfleet.lexer import insertion_point  # not read at a start

            # What stands before the first parameter is where it was; other values
            # would make another text, to be read anew each time.
            point = insertion_point(sql, "postgresql")
            if "%" in sql[: point.offset]:
                point = insertion_point(statement, "postgresql")
            statement = point.apply(statement, inline)
        if not large:
            return self._run_final(home, statement)
        # The temporary table of that name has no sequence.
        statement = _SERIAL_SEQUENCE.sub(
            r"\1quote_ident(current_schema()) || '.' || \2", statement
        )
        with _scope(home, [one.spec for one in large]):
            for one in large:
                self._load_temporary(home, one)
            return self._run_final(home, statement)

    def _run_final(self, home: Any, statement: str) -> GatheredRows:
        cursor = self.run(home, statement)
        with home.wrap_database_errors:
            rows = cursor.fetchall() if cursor.description is not None else []
            result = GatheredRows(
                rows, cursor.description, cursor.rowcount, statements=[statement]
            )
            cursor.close()
        return result

    def _inline_table(self, home: Any, one: Fetched) -> str:
        spec, rows = one.spec, one.rows()
        types = self._column_types(home, spec.table)
        if not rows:
            select = ", ".join(f"NULL::{types[c][0]}" for c in spec.columns)
            body = f"SELECT {select} WHERE false"
        else:
            if spec.order_by in spec.columns:
                self._sort(rows, spec, types)
            values = ", ".join(
                "(" + ", ".join(map(quote_literal, row)) + ")" for row in rows
            )
            names = [f"c{i}" for i in range(len(spec.columns))]
            select = ", ".join(
                f"{name}::{types[column][0]}{types[column][1]}"
                for name, column in zip(names, spec.columns, strict=True)
            )
            body = f"SELECT {select} FROM (VALUES {values}) v({', '.join(names)})"
        columns = ", ".join(map(quote_name, spec.columns))
        # A set without columns (COUNT(*) alone) still has rows to count.
        return f"{quote_name(spec.table)}({columns}) AS ({body})"

    def _sort(
        self, rows: list[Row], spec: FragmentSpec, types: dict[str, tuple[str, str]]
    ) -> None:
        """Put rows in key order, the order in which one table was filled."""
        assert spec.order_by is not None
        at = spec.columns.index(spec.order_by)
        if types[spec.order_by][0] in _INTEGER_TYPES:
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

    def _load_temporary(self, home: Any, one: Fetched) -> None:
        spec = one.spec
        name = quote_name(spec.table)
        columns = ", ".join(map(quote_name, spec.columns))
        with (
            home.wrap_database_errors,
            home.create_cursor() as sink,
            sink.copy(f"COPY pg_temp.{name} ({columns}) FROM STDIN") as target,
        ):
            for block in _blocks(one.portions):
                target.write(block)
        if spec.key:
            key = ", ".join(map(quote_name, spec.key))
            self.run(
                home, f"ALTER TABLE pg_temp.{name} ADD PRIMARY KEY ({key})"
            ).close()


def _collected(blocks: Iterable[Any]) -> Iterator[tuple[bytearray, int]]:
    """What a server sends row by row, many rows together, and how many they are."""
    data = bytearray()
    for block in blocks:
        data += block
        if len(data) >= _BLOCK:
            yield data, data.count(b"\n")
            data = bytearray()
    yield data, data.count(b"\n")


def _blocks(portions: Iterable[Any]) -> Iterator[bytes]:
    for portion in portions:
        view = memoryview(portion.data)
        for start in range(0, len(view), _BLOCK):
            yield bytes(view[start : start + _BLOCK])


@contextlib.contextmanager
def _scope(home: Any, specs: Sequence[FragmentSpec]) -> Iterator[None]:
    """Temporary tables in a transaction of their own, or the caller's, where a
    savepoint stands for it; one round trip before and one after, whatever they are."""
    home.ensure_connection()
    execute = home.connection.execute
    is_idle = int(home.connection.info.transaction_status) == 0
    is_mine = is_idle and home.connection.autocommit
    begin, end = ["BEGIN"], ["COMMIT"]
    if not is_mine:
        begin = ["SAVEPOINT dbfleet_gather"]
        end = [f"DROP TABLE pg_temp.{quote_name(spec.table)}" for spec in specs]
        end.append("RELEASE SAVEPOINT dbfleet_gather")
    with home.wrap_database_errors:
        try:
            execute("; ".join([*begin, *map(_creation, specs)]), prepare=False)
            yield
        except BaseException:
            # In the caller's transaction the error aborts it, as on one database.
            if is_mine and not home.connection.closed:
                execute("ROLLBACK")
            raise
        execute("; ".join(end), prepare=False)


def _creation(spec: FragmentSpec) -> str:
    name = quote_name(spec.table)
    columns = ", ".join(map(quote_name, spec.columns))
    return (
        f"CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS "
        f"SELECT {columns} FROM {name} WITH NO DATA"
    )
