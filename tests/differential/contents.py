"""What the databases behind an alias hold: looked at, kept, and put back.

Rows are read from every database without asking the alias; Django reads again only the
tables that this found changed. Guards one invariant: what is taken for unchanged was
read row by row, and was judged before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.db import connections

from tests.differential.data import LABELS, Rows, load, model_of, snapshot
from tests.differential.fleet import PLAIN, Fleet

#: the table of home, or of every shard, that says which unique values are taken
CLAIMS = "dbfleet_unique"
CLAIM_COLUMNS = (
    "table_name", "claim", "row_key", "constraint_name", "shard", "gid",
)  # fmt: skip

#: label -> its rows, as the driver gives them
Raw = dict[str, list[tuple[Any, ...]]]


class Contents:
    """The tables of one alias."""

    def __init__(self, fleet: Fleet, alias: str) -> None:
        self.fleet, self.alias = fleet, alias
        self.nodes = {PLAIN: PLAIN} if alias == PLAIN else fleet.nodes[alias]
        #: every row, by the name of its node; as of the last look
        self.raw: dict[str, Raw] = {}
        #: every row as Django reads it, but for those of ``changed`` tables
        self.rows: Rows = {}
        self.changed: set[str] = set(LABELS)
        self._kept: tuple[dict[str, Raw], Rows] = {}, {}
        for node in self.nodes.values():
            _run(
                node,
                [
                    f"CREATE TABLE {_copy(table)} AS SELECT * FROM {table} WHERE 1 = 0"
                    for table in map(_table, self._labels(node))
                ],
            )

    def fill(self, rows: Rows) -> None:
        """Make ``rows`` the whole content; nothing is known of it yet."""
        load(self.fleet, self.alias, rows)
        self.raw, self.changed = {}, set(LABELS)

    def look(self) -> bool:
        """Read every database; whether one has other rows than those last judged."""
        before, nodes = self.raw, self.nodes
        self.raw = {n: _read(a, self._labels(a)) for n, a in nodes.items()}
        found = _changed(before, self.raw)
        self.changed |= found & set(LABELS)
        return bool(found or self.changed)

    def read(self) -> Rows:
        """Every row as Django reads it; changed tables are read again."""
        self.rows = self.rows | snapshot(self.alias, self.changed)
        self.changed = set()
        return self.rows

    def keep(self) -> None:
        """What was looked at last is what :meth:`undo` puts back."""
        self._copy_all(_copy, _table)
        self._kept = self.raw, self.rows

    def undo(self) -> None:
        """Put back what was kept, claims as well."""
        self.look()
        self._copy_all(_table, _copy)
        self.look()
        raw, self.rows = self._kept
        wrong = _changed(raw, self.raw)
        if wrong:
            raise RuntimeError(f"{sorted(wrong)} of {self.alias} could not be restored")
        self.changed = set()

    def _labels(self, node: str) -> tuple[str, ...]:
        return (*LABELS, CLAIMS) if self.fleet.keeps_claims(node) else LABELS

    def _copy_all(self, target: Any, source: Any) -> None:
        """Copy the tables that are not as they were kept, inside their servers."""
        kept, _ = self._kept
        for name, node in self.nodes.items():
            labels = _changed({name: kept.get(name, {})}, {name: self.raw[name]})
            # Parents first where rows come, children first where they go.
            wanted = [one for one in self._labels(node) if one in labels]
            _run(
                node,
                [f"DELETE FROM {_named(target, one)}" for one in reversed(wanted)]
                + [
                    f"INSERT INTO {_named(target, one)} "
                    f"SELECT * FROM {_named(source, one)}"
                    for one in wanted
                ],
            )


def _named(naming: Any, label: str) -> str:
    return str(_table(label) if naming is _table else _copy(_table(label)))


def _table(label: str) -> str:
    return CLAIMS if label == CLAIMS else str(model_of(label)._meta.db_table)


def _copy(table: str) -> str:
    return f"kept_{table}"


def _changed(before: dict[str, Raw], after: dict[str, Raw]) -> set[str]:
    """The labels whose rows differ on any node, in whatever order they came."""
    return {
        label
        for node, tables in after.items()
        for label, rows in tables.items()
        if not _are_equal(before.get(node, {}).get(label), rows)
    }


def _are_equal(
    before: list[tuple[Any, ...]] | None, after: list[tuple[Any, ...]]
) -> bool:
    if before is None or len(before) != len(after):
        return False
    return before == after or Counter(map(_text, before)) == Counter(map(_text, after))


def _text(row: tuple[Any, ...]) -> str:
    """A row's values; both zeroes are one, as they are where rows come in one order."""
    return repr([one + 0.0 if isinstance(one, float) else one for one in row])


def _read(node: str, labels: Iterable[str]) -> Raw:
    """Every row of a database; one round trip, but on SQLite."""
    connection = connections[node]
    quote = connection.ops.quote_name
    statements = {}
    for label in labels:
        if label == CLAIMS:
            statements[label] = f"SELECT {', '.join(CLAIM_COLUMNS)} FROM {CLAIMS}"
            continue
        opts = model_of(label)._meta
        columns = ", ".join(quote(field.column) for field in opts.local_concrete_fields)
        statements[label] = f"SELECT {columns} FROM {opts.db_table}"
    found: Raw = {}
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            for label, statement in statements.items():
                found[label] = cursor.execute(statement).fetchall()
            return found
        cursor.execute("; ".join(statements.values()))
        for label in statements:
            found[label] = list(cursor.fetchall())
            cursor.nextset()
    return found


def _run(node: str, statements: Iterable[str]) -> None:
    """Statements that write, all or none of them, foreign keys not looked at."""
    script = "; ".join(statements)
    if not script:
        return
    connection = connections[node]
    connection.ensure_connection()
    if connection.vendor == "sqlite":
        connection.connection.executescript(
            f"PRAGMA foreign_keys = OFF; BEGIN; {script}; COMMIT; "
            "PRAGMA foreign_keys = ON"
        )
        return
    if connection.vendor == "mysql":
        script = (
            f"SET foreign_key_checks = 0; START TRANSACTION; {script}; COMMIT; "
            "SET foreign_key_checks = 1"
        )
    with connection.cursor() as cursor:
        cursor.execute(script)
        while cursor.nextset():
            pass
