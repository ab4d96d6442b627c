"""Averages out of sums and counts have the digits that the server's own have."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any

import pytest

from dbfleet.engines.merging_mysql import MySQLMerging
from dbfleet.engines.merging_postgresql import PostgreSQLMerging, numeric_quotient

if TYPE_CHECKING:
    from dbfleet.testing.rig import MariaDBCluster, PostgresCluster

NewDatabase = Callable[[Any], str]


def begin() -> random.Random:
    """Chance that can be repeated: its seed is printed."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """A connection to PostgreSQL, for many statements."""
    import psycopg

    with psycopg.connect(url.replace("postgres://", "postgresql://")) as connection:
        yield connection


def number(chance: random.Random) -> Decimal:
    """Zero, tiny, large, of scale 0 to 12, with zeros before and behind."""
    digits = chance.choice([1, 2, 4, 5, 8, 16, 17, 30, 60])
    units = chance.randrange(10**digits) if chance.random() < 0.95 else 0
    units *= chance.choice([1, 1, 1, 100, 10**9])
    return Decimal(units * chance.choice([1, -1])).scaleb(
        -chance.choice([0, 0, 1, 2, 3, 4, 5, 8, 9, 12]),
    )


EDGES = [
    ("0", "1"),
    ("0.000", "7"),
    ("1", "3"),
    ("2", "3"),
    ("-2", "3"),
    ("9999", "10000"),
    ("10000", "9999"),
    ("1e-12", "3"),
    ("123456789012345678901234567890", "7"),
    ("0.00000000000000005", "1"),
    ("1", "99999999"),
    ("100000000", "3"),
    ("0.5", "10000000000000000"),
]


def test_quotients_are_postgresqls(postgres: PostgresCluster) -> None:
    chance = begin()
    pairs = [(Decimal(a), Decimal(b)) for a, b in EDGES]
    for _ in range(4000):
        count = chance.choice([1, 2, 3, 7, 9999, 10000, 10**8, 10**8 + 1])
        if chance.random() < 0.5:
            count = chance.randrange(1, 10 ** chance.randrange(1, 18))
        pairs.append((number(chance), Decimal(count)))
    sql = (
        "SELECT (a::numeric / b::numeric)::text "
        "FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS u(a, b, n) ORDER BY n"
    )
    given = [[f"{pair[at]:f}" for pair in pairs] for at in (0, 1)]
    rows = postgres.primary.execute(sql, given)
    wrong = [
        (pair, expected, f"{found:f}")
        for pair, (expected,) in zip(pairs, rows, strict=True)
        if f"{(found := numeric_quotient(*pair)):f}" != expected
    ]
    assert wrong == []


def test_the_callers_decimal_context_changes_no_digit() -> None:
    with localcontext(prec=3):
        found = numeric_quotient(Decimal("123456789012345678"), Decimal(8))
        average = MySQLMerging().average(Decimal("1234567.25"), 4)
    assert (str(found), str(average)) == ("15432098626543210", "308641.812500")


def test_infinite_sums_of_postgresql_have_no_average() -> None:
    for text in ("Infinity", "-Infinity"):
        assert numeric_quotient(Decimal(text), Decimal(3)) == Decimal(text)
    assert numeric_quotient(Decimal("NaN"), Decimal(3)).is_nan()
    assert PostgreSQLMerging().average(7.5, 2) == 3.75


COLUMNS = {
    "smallint": lambda chance: chance.randrange(-(2**15), 2**15),
    "integer": lambda chance: chance.randrange(-(2**31), 2**31),
    "bigint": lambda chance: chance.randrange(-(2**63), 2**63),
    "numeric": number,
}
FIXED = {
    "decimal(5,0)": (5, 0),
    "decimal(9,2)": (9, 2),
    "decimal(12,6)": (12, 6),
    "decimal(30,12)": (30, 12),
    "decimal(38,30)": (38, 30),
}


def fixed(kind: str) -> Callable[[random.Random], Decimal]:
    digits, scale = FIXED[kind]

    def make(chance: random.Random) -> Decimal:
        units = chance.randrange(10 ** chance.randrange(1, digits + 1))
        return Decimal(units * chance.choice([1, -1])).scaleb(-scale)

    return make


def groups(chance: random.Random, make: Any) -> list[tuple[int, Any]]:
    """Rows of some fifty groups, of which some are of one row or all NULL."""
    rows = []
    for group in range(50):
        for _ in range(chance.choice([1, 2, 3, 7, 20])):
            value = make(chance) if chance.random() < 0.8 else None
            rows.append((group, value))
    return rows


def check(rows: Iterable[tuple[Any, ...]], average: Callable[[Any, int], Any]) -> None:
    """Rows of (group, AVG as text, SUM, COUNT)."""
    wrong = []
    for group, expected, total, count in rows:
        found = None if total is None else f"{average(total, count):f}"
        if found != expected:
            wrong.append((group, total, count, expected, found))
    assert wrong == []


@pytest.mark.parametrize("kind", [*COLUMNS, "numeric(9,2)"])
def test_averages_are_postgresqls(postgres: PostgresCluster, kind: str) -> None:
    chance = begin()
    make = COLUMNS.get(kind) or fixed("decimal(9,2)")
    rows = groups(chance, make)
    engine = PostgreSQLMerging()
    with connected(postgres.url("postgres")) as connection:
        connection.execute(f"CREATE TEMP TABLE t (g int, v {kind})")
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO t VALUES (%s, %s)", rows)
            cursor.execute("SELECT g, avg(v)::text, sum(v), count(v) FROM t GROUP BY g")
            check(cursor.fetchall(), engine.average)


@pytest.mark.parametrize("kind", ["smallint", "integer", "bigint", *FIXED])
def test_averages_are_mariadbs(
    mariadb: MariaDBCluster, new_database: NewDatabase, kind: str
) -> None:
    chance = begin()
    rows = groups(chance, COLUMNS.get(kind) or fixed(kind))
    name = new_database(mariadb)
    primary = mariadb.primary
    primary.execute(f"CREATE TABLE t (g int, v {kind})", dbname=name)
    values = ", ".join(
        f"({group}, {'NULL' if value is None else f'{value:f}'})"
        for group, value in rows
    )
    primary.execute(f"INSERT INTO t VALUES {values}", dbname=name)
    found = primary.execute(
        "SELECT g, CAST(AVG(v) AS CHAR), SUM(v), COUNT(v) FROM t GROUP BY g",
        dbname=name,
    )
    check(found, MySQLMerging().average)
