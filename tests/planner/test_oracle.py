"""A parser that reads the whole grammar finds nothing that the lexer overlooked."""

from __future__ import annotations

import random

import pytest
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from dbfleet.lexer import is_unclear, names, table_occurrences
from dbfleet.planner.statements import classify

SEED = 20261120
PER_DIALECT = 400
DIALECTS = {"postgresql": "postgres", "mysql": "mysql", "sqlite": "sqlite"}
BEYOND_READING = (
    exp.DML,
    exp.DDL,
    exp.Alter,
    exp.Drop,
    exp.Command,
    exp.Into,
    exp.Lock,
    exp.Set,
    exp.Pragma,
    exp.Transaction,
    exp.Commit,
    exp.Rollback,
    exp.TruncateTable,
    exp.Merge,
    exp.Copy,
    exp.Use,
    exp.Attach,
    exp.Detach,
)
# exp.Query is a DDL's sibling in the parser's tree, but a query alone is a read.
QUERIES = (exp.Query, exp.Values, exp.Table, exp.Subquery)

TABLES = ["shop_order", "Shop_Item", "select_", "order", "a b", "t"]
COLUMNS = ["id", "Total", "update", "for", "x y", "note"]
NOISE = ["", "", "", "\n\t", " /* DELETE FROM t */ ", " -- FOR UPDATE\n"]
LITERALS = ["1", "'DELETE FROM t'", "'it''s; FOR UPDATE'", "NULL", "-2.5"]
FUNCTIONS = ["COUNT({})", "LOWER({})", "COALESCE({}, 1)", "MAX({})", "my_function({})"]
ENDINGS = {
    "postgresql": ["FOR UPDATE", "FOR SHARE SKIP LOCKED", "FOR NO KEY UPDATE"],
    "mysql": ["FOR UPDATE", "LOCK IN SHARE MODE", "FOR SHARE"],
    "sqlite": [],
}


class Grammar:
    """Random statements of one vendor."""

    def __init__(self, vendor: str, seed: int) -> None:
        self.vendor = vendor
        self.random = random.Random(f"{vendor}{seed}")

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    def quote(self, name: str) -> str:
        quote = "`" if self.vendor == "mysql" else '"'
        plain = name.isidentifier() and name not in ("order", "update", "for")
        if plain and self.random.random() < 0.4:
            return name
        return f"{quote}{name}{quote}"

    def table(self) -> str:
        return self.quote(self.pick(*TABLES)) + self.pick(*NOISE)

    def column(self) -> str:
        return self.quote(self.pick(*COLUMNS))

    def value(self, depth: int) -> str:
        kind = self.random.random()
        if kind < 0.5 or depth > 2:
            return self.column()
        if kind < 0.65:
            return self.pick(*LITERALS)
        if kind < 0.8:
            return self.pick(*FUNCTIONS).format(self.value(depth + 1))
        if kind < 0.9:
            return f"({self.query(depth + 1)})"
        return f"({self.value(depth + 1)} {self.pick('+', '*')} {self.column()})"

    def condition(self, depth: int) -> str:
        left = self.value(depth)
        return self.pick(
            f"{left} = {self.pick(*LITERALS)}",
            f"{left} IN (SELECT {self.column()} FROM {self.table()})",
            f"NOT EXISTS (SELECT 1 FROM {self.table()} WHERE {left} > 1)",
        )

    def query(self, depth: int = 0) -> str:
        columns = ", ".join(self.value(depth) for _ in range(self.random.randint(1, 3)))
        text = (
            f"SELECT{self.pick(*NOISE)} {self.pick('*', columns)} FROM {self.table()}"
        )
        if self.random.random() < 0.4:
            text += f" {self.pick('INNER', 'LEFT')} JOIN {self.table()} x ON x.id = 1"
        if self.random.random() < 0.6:
            text += f" WHERE {self.condition(depth)}"
        if self.random.random() < 0.2:
            text += f" UNION ALL SELECT {self.column()} FROM {self.table()}"
        elif depth == 0 and self.random.random() < 0.3:
            text += f" ORDER BY {self.column()} LIMIT 5"
        return text

    def write(self) -> str:
        table, column = self.table(), self.column()
        return self.pick(
            f"INSERT INTO {table} ({column}) VALUES (1)",
            f"INSERT INTO {table} {self.query()}",
            f"UPDATE {table} SET {column} = {self.pick(*LITERALS)}",
            f"DELETE FROM {table} WHERE {self.condition(1)}",
        )

    def statement(self) -> str:
        query, other, write = self.query(), self.query(1), self.write()
        shapes = [
            *(3 * [query]),
            *(2 * [f"WITH c AS ({other}) {query}"]),
            write,
            f"{query}; {self.pick(other, write)}",
            f"CREATE TABLE {self.table()} AS {query}",
            *(f"{query} {ending}" for ending in ENDINGS[self.vendor]),
        ]
        if self.vendor != "mysql":
            shapes.append(f"WITH c AS ({other}) {write}")
        if self.vendor == "postgresql":
            shapes.append(f"WITH c AS ({write} RETURNING id) {query}")
            shapes.append(f"SELECT {self.column()} INTO {self.table()} FROM t")
        return self.random.choice(shapes)


def goes_beyond_reading(tree: exp.Expr) -> bool:
    return not isinstance(tree, QUERIES) or any(
        isinstance(node, BEYOND_READING) and not isinstance(node, QUERIES)
        for node in tree.walk()
    )


@pytest.mark.parametrize("vendor", DIALECTS)
def test_the_parser_agrees_on_generated_statements(vendor: str) -> None:
    grammar = Grammar(vendor, SEED)
    parsed = reads = 0
    for _ in range(PER_DIALECT):
        sql = grammar.statement()
        try:
            trees = [t for t in sqlglot.parse(sql, read=DIALECTS[vendor]) if t]
        except SqlglotError:
            continue
        parsed += 1
        found = classify(sql, vendor)
        beyond = any(goes_beyond_reading(tree) for tree in trees)
        calls = "my_function" in sql
        reads += found.kind == "read"
        assert found.single == (len(trees) == 1), f"seed {SEED}: {sql}"
        assert (found.kind == "read") == (not beyond and not calls), (
            f"seed {SEED}: {found}: {sql}"
        )
        compare_names(sql, vendor, trees)
    # Most of what is generated is SQL, and both answers are common.
    assert parsed > PER_DIALECT * 0.9
    assert PER_DIALECT * 0.2 < reads < PER_DIALECT * 0.8


def compare_names(sql: str, vendor: str, trees: list[exp.Expr]) -> None:
    used = names(sql, vendor)
    tables: dict[str, int] = {}
    for tree in trees:
        for table in tree.find_all(exp.Table):
            tables[table.name.lower()] = tables.get(table.name.lower(), 0) + 1
        for column in tree.find_all(exp.Column):
            assert column.name == "*" or column.name.lower() in used, sql
    for table_name, count in tables.items():
        assert table_name in used, sql
        assert table_occurrences(sql, vendor, table_name) >= count, sql


@pytest.mark.parametrize(
    ("vendor", "sql"),
    [
        ("postgresql", "WITH x AS (UPDATE t SET a = 1 RETURNING *) SELECT 1"),
        (
            "postgresql",
            "WITH x AS (SELECT 1) MERGE INTO t USING x ON true WHEN MATCHED"
            " THEN DELETE",
        ),
        ("postgresql", "SELECT (SELECT a FROM t FOR UPDATE)"),
        ("postgresql", "(SELECT 1 FROM t FOR SHARE) UNION SELECT 2"),
        ("postgresql", "COPY t TO STDOUT"),
        ("postgresql", "CREATE TABLE x AS SELECT 1"),
        ("postgresql", "SELECT 1; COMMIT"),
        ("mysql", "REPLACE INTO t SELECT 1"),
        ("mysql", "INSERT INTO t SET a = 1 ON DUPLICATE KEY UPDATE a = 2"),
        ("mysql", "SET @a = 1"),
        ("mysql", "CALL p()"),
        ("mysql", "KILL 1"),
        ("sqlite", "PRAGMA user_version = 1"),
        ("sqlite", "ATTACH DATABASE 'a' AS b"),
    ],
)
def test_the_parser_agrees_on_rare_statements(vendor: str, sql: str) -> None:
    trees = [tree for tree in sqlglot.parse(sql, read=DIALECTS[vendor]) if tree]
    assert any(goes_beyond_reading(tree) for tree in trees)
    assert classify(sql, vendor).kind != "read"
    assert not is_unclear(sql, vendor)
