"""Two values have one canonical text exactly where their database calls them equal.

Claims are made of that text, so a pair that fails here is a unique constraint that
holds on one database and not on a fleet, or the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dbfleet.engines import Engine
from dbfleet.engines.mysql import MySQLEngine
from dbfleet.engines.postgresql import PostgreSQLEngine
from dbfleet.engines.sqlite import SQLiteEngine

TEXTS = ["'a'", "'A'", "'a '", "' a'", "''", "'\u00e9'", "'e'", "'stra\u00dfe'", "'%s'"]
NUMBERS = ["0", "-0", "1", "-1", "100000"]
DECIMALS = ["0", "-0.0", "1", "1.0", "1.000", "1.001", "100", "-1.5"]
FLOATS = ["0.0", "-0.0", "1", "1.0", "1.5", "0.1", "1e20", "-1e-20"]
TIMES = ["'12:00:00'", "'12:00:00.000000'", "'12:00:00.5'", "'00:00:00'"]
DATES = ["'2024-02-29'", "'2024-03-01'"]
MOMENTS = [f"'2024-02-29 {time}'" for time in ("12:00:00", "12:00:00.000001", "13:00")]
UUIDS = [
    f"'{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}'" for digit in "1a"
]

#: (type as Django declares it, collation) -> literals
POSTGRESQL: dict[tuple[str, str | None], list[str]] = {
    ("integer", None): NUMBERS,
    ("bigint", None): NUMBERS,
    ("boolean", None): ["true", "false"],
    ("numeric(12, 3)", None): DECIMALS,
    ("numeric", None): DECIMALS,
    ("double precision", None): [*FLOATS, "'-0'", "'NaN'", "'Infinity'"],
    ("varchar(20)", None): TEXTS,
    ("text", None): TEXTS,
    ("text", "C"): TEXTS,
    ("varchar(20)", "no_case"): TEXTS,
    ("text", "no_accent"): TEXTS,
    ("timestamp with time zone", None): [
        *MOMENTS,
        "'2024-02-29 12:00:00+00'",
        "'2024-02-29 13:00:00+01'",
    ],
    ("date", None): DATES,
    ("time", None): TIMES,
    ("interval", None): ["'1 day'", "'24 hours'", "'1440 minutes'", "'1 month'"],
    ("uuid", None): [*UUIDS, UUIDS[1].upper()],
    ("inet", None): ["'10.0.0.1'", "'10.0.0.1/32'", "'10.0.0.0/8'", "'::1'"],
    ("bytea", None): ["'\\x00'", "'\\x0001'", "''"],
    ("jsonb", None): [
        "'1'",
        "'1.0'",
        "'\"1\"'",
        '\'{"a": 1, "b": 2}\'',
        '\'{"b": 2.0, "a": 1}\'',
        "'[1]'",
        "'[[1]]'",
        "'{\"a\": [1]}'",
        "'[]'",
        "'null'",
    ],
}
MARIADB: dict[tuple[str, str | None], list[str]] = {
    ("integer", None): NUMBERS,
    ("bigint", None): NUMBERS,
    ("bool", None): ["true", "false"],
    ("numeric(12, 3)", None): DECIMALS,
    ("double precision", None): FLOATS,
    ("varchar(20)", None): TEXTS,
    ("varchar(20)", "utf8mb4_bin"): TEXTS,
    ("varchar(20)", "utf8mb4_unicode_ci"): TEXTS,
    ("varchar(20)", "utf8mb4_nopad_bin"): TEXTS,
    ("varchar(20)", "utf8mb4_unicode_nopad_ci"): TEXTS,
    ("longtext", None): TEXTS,
    ("datetime(6)", None): MOMENTS,
    ("date", None): DATES,
    ("time(6)", None): TIMES,
    ("char(32)", None): [one.replace("-", "") for one in UUIDS],
    ("uuid", None): UUIDS,
    ("longblob", None): ["x'00'", "x'0001'", "''", "'a'", "'A'", "'a '"],
}
SQLITE: dict[tuple[str, str | None], list[str]] = {
    ("integer", None): [*NUMBERS, "1.0"],
    ("bool", None): ["1", "0"],
    ("decimal", None): [*DECIMALS, "'1.10'", "'1.1'"],
    ("real", None): FLOATS,
    ("varchar(20)", None): TEXTS,
    ("text", None): [*TEXTS, "'1'", "'1.0'"],
    ("text", "NOCASE"): TEXTS,
    ("text", "RTRIM"): TEXTS,
    ("datetime", None): MOMENTS,
    ("date", None): DATES,
    ("BLOB", None): ["x'00'", "x'0001'", "x''"],
}
CASES = [
    (engine, *key)
    for engine, cases in (
        ("postgresql", POSTGRESQL),
        ("mariadb", MARIADB),
        ("sqlite", SQLITE),
    )
    for key in cases
]
LITERALS = {"postgresql": POSTGRESQL, "mariadb": MARIADB, "sqlite": SQLITE}
ENGINES: dict[str, Engine] = {
    "postgresql": PostgreSQLEngine(),
    "mariadb": MySQLEngine(),
    "sqlite": SQLiteEngine(),
}
COLLATIONS = (
    "CREATE COLLATION no_case (provider = icu, locale = 'und-u-ks-level2', "
    "deterministic = false)",
    "CREATE COLLATION no_accent (provider = icu, locale = 'und-u-ks-level1', "
    "deterministic = false)",
)


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Run SQL on a database of an engine, which is made when it is first named."""
    made: dict[str, Any] = {}

    def server(engine: str) -> Any:
        if engine == "sqlite":
            return request.getfixturevalue("rig").sqlite()
        name = "postgres" if engine == "postgresql" else "mariadb"
        return request.getfixturevalue(name).primary

    def run(engine: str) -> Callable[[str], Any]:
        if engine not in made:
            made[engine] = server(engine)
            made[engine].create_database("canonical")
            for sql in COLLATIONS if engine == "postgresql" else ():
                made[engine].execute(sql, dbname="canonical")
        return lambda sql: made[engine].execute(sql, dbname="canonical")

    yield run
    for one in made.values():
        one.drop_database("canonical")


@pytest.mark.parametrize(("engine", "kind", "collation"), CASES)
def test_text_is_equal_where_values_are(
    database: Callable[[str], Any], engine: str, kind: str, collation: str | None
) -> None:
    run = database(engine)
    literals = LITERALS[engine][kind, collation]
    quote = "`" if engine == "mariadb" else '"'
    column = f"v {kind}" + (f" COLLATE {quote}{collation}{quote}" if collation else "")
    run("DROP TABLE IF EXISTS canonical")
    run(f"CREATE TABLE canonical (id integer, {column})")
    values = ", ".join(f"({n}, {one})" for n, one in enumerate(literals)).replace(
        "%", "%%"
    )
    run(f"INSERT INTO canonical VALUES {values}")
    text = ENGINES[engine].canonical_text
    # Compared here, where no collation helps.
    texts = dict(run(f"SELECT id, {text('v', kind, collation)} FROM canonical"))
    found = run("SELECT x.id, y.id, x.v = y.v FROM canonical x, canonical y")
    assert len(found) == len(literals) ** 2
    different = [
        (literals[one], literals[other], "equal" if equal else "not equal")
        for one, other, equal in found
        if bool(equal) != (texts[one] == texts[other])
    ]
    assert not different
    run("INSERT INTO canonical VALUES (100, NULL)")
    nulls = run(f"SELECT {text('v', kind, collation)} FROM canonical WHERE id = 100")
    assert list(nulls) == [(None,)]
