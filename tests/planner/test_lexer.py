"""The lexer errs to the careful side, and SQLite itself says what that side is."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dbfleet.lexer import (
    CACHED_TEXT_CHARS,
    Insertion,
    has_star,
    insertion_point,
    is_qualified,
    is_unclear,
    names,
    names_by_qualifier,
    strip_locking,
    table_occurrences,
    table_places,
    tokenize,
)
from dbfleet.planner.statements import classify, unknown_calls

VENDORS = ("postgresql", "mysql", "sqlite")
POSTGRESQL, MYSQL, SQLITE = VENDORS

PIECES = r"""
SELECT * FROM t WITH x AS ( ) , ; . : :: = / -- # /* */ /*! /*M! ' '' " ` [ ] $ $$
$a$ $1 % %% %s %(a)s %sx ? :a @a @@b E' e'\' U&" x'1f' \ \' 1 1.5e3 1a 0x1 FOR
UPDATE OF SKIP LOCKED LOCK IN SHARE MODE EXPLAIN ANALYZE VERBOSE INTO DELETE NEXTVAL
COUNT (*) t.* NATURAL JOIN é
"""
FRAGMENTS = [*PIECES.split(), "\u00a0", "\x00", "\x1f"]
texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*FRAGMENTS, "\n", "\r", "\t"]), max_size=25).map(
        " ".join
    ),
    st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join),
)


@settings(deadline=None)
@given(texts, st.sampled_from((*VENDORS, "oracle")))
@example("'" * 5001, POSTGRESQL)
@example("/*" * 5000, POSTGRESQL)
@example("\x00a(" * 5000, MYSQL)
@example("'\\''" * 5000, MYSQL)
@example("$a$" * 4999 + "$b$", POSTGRESQL)
def test_tokens_cover_the_text_and_nothing_raises(sql: str, vendor: str) -> None:
    tokens = tokenize(sql, vendor)
    assert all(token.start < token.end or vendor == "oracle" for token in tokens)
    at, rebuilt = 0, ""
    for token in tokens:
        gap = sql[at : token.start]
        assert gap.strip(" \t\n\r\f\v") == ""
        rebuilt += gap + sql[token.start : token.end]
        at = token.end
    assert sql[at:].strip(" \t\n\r\f\v") == ""
    assert rebuilt + sql[at:] == sql
    for function in (names, has_star, insertion_point, strip_locking, unknown_calls):
        function(sql, vendor)
    is_qualified(sql, vendor, "t")
    table_occurrences(sql, vendor, "t")
    classify(sql, vendor)


def kinds(sql: str, vendor: str) -> list[tuple[str, str]]:
    return [(token.kind, token.value) for token in tokenize(sql, vendor)]


@pytest.mark.parametrize(
    ("vendor", "sql", "expected"),
    [
        (POSTGRESQL, 'a"b""c"', [("word", "A"), ("quoted", 'b"c')]),
        (POSTGRESQL, "E'\\'' x", [("string", "E'\\''"), ("word", "X")]),
        (POSTGRESQL, "$t$ ' $$ $t$", [("string", "$t$ ' $$ $t$")]),
        (POSTGRESQL, "$1 $$x$$", [("param", "$1"), ("string", "$$x$$")]),
        (POSTGRESQL, "a$b$c", [("word", "A$B$C")]),
        (POSTGRESQL, "/* a /* b */ c */ x", [("comment", "/* a /* b */ c */")] * 1),
        (POSTGRESQL, "--a\rx", [("comment", "--a"), ("word", "X")]),
        (POSTGRESQL, "a #> b", [("word", "A"), ("op", "#"), ("op", ">")]),
        (POSTGRESQL, "U&'d\\0061t'", [("string", "U&'d\\0061t'")]),
        (POSTGRESQL, "a\u00a0b", [("word", "a\u00a0b")]),
        (POSTGRESQL, "x::text", [("word", "X"), ("op", ":"), ("op", ":")]),
        (MYSQL, "`a``b`", [("quoted", "a`b")]),
        (MYSQL, '"a""b"', [("quoted", 'a"b')]),
        (MYSQL, "2fa 1e5 0x1F", [("word", "2FA"), ("number", "1e5")]),
        (MYSQL, "1--1", [("number", "1"), ("op", "-"), ("op", "-"), ("number", "1")]),
        (MYSQL, "1-- 1", [("number", "1"), ("comment", "-- 1")]),
        (MYSQL, "#x\n1", [("comment", "#x"), ("number", "1")]),
        (MYSQL, "/*+ hint */ 1", [("comment", "/*+ hint */"), ("number", "1")]),
        (SQLITE, "[a b] :x @y ?1", [("quoted", "a b"), ("param", ":x")]),
        (SQLITE, "'it''s'", [("string", "it's")]),
        (SQLITE, "%s %(a)s %%", [("param", "%s"), ("param", "%(a)s"), ("op", "%%")]),
    ],
)
def test_tokens(vendor: str, sql: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(sql, vendor)[: len(expected)] == expected


@pytest.mark.parametrize(
    ("vendor", "sql"),
    [
        (POSTGRESQL, "SELECT 'a"),
        (POSTGRESQL, "SELECT /* a /* b */"),
        (POSTGRESQL, "SELECT $a$ x $b$"),
        (POSTGRESQL, 'SELECT U&"d\\0061t"'),
        # Strings that end elsewhere without standard_conforming_strings.
        (POSTGRESQL, "SELECT 'a\\', 'b'"),
        (POSTGRESQL, "SELECT 1FROM t"),
        (POSTGRESQL, "SELECT 'a\\''b'"),
        (POSTGRESQL, "SELECT a %sales"),
        (MYSQL, "SELECT /*!50000 1 */"),
        (MYSQL, "SELECT /*M! 1 */"),
        # Strings that end elsewhere with NO_BACKSLASH_ESCAPES.
        (MYSQL, "SELECT 'it\\'s'"),
        (MYSQL, 'SELECT "it\\"s"'),
        (SQLITE, "SELECT [a"),
        (SQLITE, "SELECT 1 \x00"),
        ("oracle", "SELECT 1"),
    ],
)
def test_what_cannot_be_read_with_certainty_is_unclear(vendor: str, sql: str) -> None:
    assert is_unclear(sql, vendor)
    assert has_star(sql, vendor)
    assert insertion_point(sql, vendor).kind == "none"
    assert strip_locking(sql, vendor) == (sql, False)
    assert classify(sql, vendor).kind == "unknown"


@pytest.mark.parametrize(
    ("vendor", "sql"),
    [
        (POSTGRESQL, "SELECT a LIKE 'b' ESCAPE '\\'"),
        (MYSQL, "SELECT REPLACE(a, '\\\\', '\\\\\\\\')"),
        (SQLITE, "SELECT a LIKE 'b' ESCAPE '\\' AND c = 'd'"),
    ],
)
def test_harmless_backslashes_are_clear(vendor: str, sql: str) -> None:
    assert not is_unclear(sql, vendor)


def test_depth_of_parentheses() -> None:
    found = [(t.value, t.depth) for t in tokenize("a (b (c)) d", POSTGRESQL)]
    assert found == [
        ("A", 0),
        ("(", 0),
        ("B", 1),
        ("(", 1),
        ("C", 2),
        (")", 1),
        (")", 0),
        ("D", 0),
    ]


def test_names_are_given_as_written_and_in_lower_case() -> None:
    found = names('SELECT "T"."Col", Other FROM "T" -- "nothing"', POSTGRESQL)
    assert {"T", "t", "Col", "col", "Other", "other"} <= found
    assert "nothing" not in found
    assert names("SELECT 'kept' FROM 'shop'", SQLITE) >= {"kept", "shop"}
    assert "kept" not in names("SELECT 'kept'", POSTGRESQL)
    # Without parameters this is a modulo of a column, or a string of two words.
    assert {"s", "sales"} <= names("SELECT a %s, b %sales", POSTGRESQL)
    assert {"hidden", "t"} <= names("SELECT 1 /*! FROM hidden */ , t", MYSQL)


def test_names_are_told_apart_by_what_stands_before_them() -> None:
    sql = 'SELECT "T"."Col", U0.other, s."T"."b", lone FROM "T" U0 -- x.y'
    found = names_by_qualifier(sql, POSTGRESQL)
    assert found["t"] == {"col", "b"}
    assert found["u0"] == {"other"}
    assert found["s"] == {"t"}
    assert {"lone", "t", "u0", "select"} == found[""] - {"from"}
    assert "x" not in found
    assert "s" in names_by_qualifier("SELECT a.b %s", POSTGRESQL)[""]
    # Where the text cannot be read, any name may be of any table.
    unclear = names_by_qualifier("SELECT t.a /*! FROM hidden */", MYSQL)
    assert unclear.keys() == {""}
    assert {"a", "hidden"} <= unclear[""]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT * FROM t", True),
        ("SELECT t.* FROM t", True),
        ("SELECT DISTINCT * FROM t", True),
        ("SELECT DISTINCT ON (a) * FROM t", True),
        ("SELECT a, * FROM t", True),
        ("SELECT ALL * FROM t", True),
        ("SELECT (t).* FROM t", True),
        ("SELECT array_agg(*) FROM t", True),
        ("SELECT COUNT(*) FROM t", False),
        ("SELECT count( /* x */ * ) FROM t", False),
        ("SELECT a * b FROM t", False),
        ("SELECT (a + 1) * (b), 2 * t.a, %s * -a FROM t", False),
        ('SELECT "t"."a" * INTERVAL \'1 day\' FROM "t"', False),
        ("TABLE t", True),
        ("SELECT a FROM t NATURAL JOIN u", True),
        ("INSERT INTO t (a) VALUES (1) RETURNING *", True),
    ],
)
@pytest.mark.parametrize("vendor", VENDORS)
def test_has_star(sql: str, vendor: str, expected: bool) -> None:
    assert has_star(sql, vendor) is expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT row_to_json(t) FROM t", True),
        ("SELECT t FROM t", True),
        ("SELECT x FROM t AS x", True),
        ('SELECT COUNT("x") FROM "t" "x"', True),
        ("SELECT 1 FROM t, u WHERE u IS NOT NULL", True),
        ("SELECT 1 FROM t JOIN u ON t.a = u.a, v WHERE v = ROW(1)", True),
        ("SELECT 1 FROM t WHERE ROW(1) IS DISTINCT FROM t", True),
        ("SELECT 1 FROM (t JOIN u USING (a)) WHERE t = ROW(1)", True),
        ("DELETE FROM t USING u WHERE u = ROW(1)", True),
        ("SELECT b FROM t AS x(a, b)", True),
        ("SELECT t.a FROM t", False),
        ("SELECT a AS b FROM t", False),
        ("SELECT COUNT(*) FROM (SELECT DISTINCT t.a AS c FROM t) subquery", False),
        ("SELECT EXTRACT(YEAR FROM t.a), LEFT(t.b, 1) FROM t", False),
        ("SELECT t.a FROM t LEFT OUTER JOIN u ON (t.a = u.a) ORDER BY 1", False),
        ("WITH c AS (SELECT t.a FROM t) SELECT c.a FROM c", False),
        ("SELECT t.a FROM t FOR UPDATE OF t", False),
    ],
)
def test_whole_rows_of_postgresql(sql: str, expected: bool) -> None:
    assert has_star(sql, POSTGRESQL) is expected


@pytest.mark.parametrize(
    ("vendor", "sql", "expected"),
    [
        (POSTGRESQL, "SELECT 1", "WITH c AS (VALUES (1)) SELECT 1"),
        (POSTGRESQL, "(SELECT 1) UNION (SELECT 2)", "WITH c AS (VALUES (1)) (SELECT"),
        (POSTGRESQL, "VALUES (1)", "WITH c AS (VALUES (1)) VALUES (1)"),
        (POSTGRESQL, "TABLE t;", "WITH c AS (VALUES (1)) TABLE t;"),
        (POSTGRESQL, "/* a */ SELECT 1", "/* a */ WITH c AS (VALUES (1)) SELECT 1"),
        (POSTGRESQL, "WITH x AS (SELECT 1) S", "WITH c AS (VALUES (1)), x AS (SELECT"),
        (POSTGRESQL, "WITH RECURSIVE x AS", "WITH RECURSIVE c AS (VALUES (1)), x AS"),
        (
            POSTGRESQL,
            "EXPLAIN (ANALYZE, FORMAT JSON) SELECT 1",
            "EXPLAIN (ANALYZE, FORMAT JSON) WITH c AS (VALUES (1)) SELECT 1",
        ),
        (
            POSTGRESQL,
            "EXPLAIN ANALYZE VERBOSE (SELECT 1)",
            "EXPLAIN ANALYZE VERBOSE WITH c AS (VALUES (1)) (SELECT 1)",
        ),
        (POSTGRESQL, "EXPLAIN (SELECT 1)", "EXPLAIN WITH c AS (VALUES (1)) (SELECT 1)"),
        (MYSQL, "EXPLAIN FORMAT=JSON SELECT 1", "EXPLAIN FORMAT=JSON WITH c AS (VAL"),
        (MYSQL, "ANALYZE FORMAT=JSON SELECT 1", "ANALYZE FORMAT=JSON WITH c AS (VAL"),
        (SQLITE, "EXPLAIN QUERY PLAN SELECT 1", "EXPLAIN QUERY PLAN WITH c AS (VALU"),
    ],
)
def test_a_with_is_put_before_the_query(vendor: str, sql: str, expected: str) -> None:
    found = insertion_point(sql, vendor).apply(sql, "c AS (VALUES (1))")
    assert found.startswith(expected)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t SELECT 1",
        "UPDATE t SET a = 1",
        "SELECT 1; SELECT 2",
        "EXPLAIN DELETE FROM t",
        "EXPLAIN",
        "",
    ],
)
def test_no_place_for_a_with(sql: str) -> None:
    assert insertion_point(sql, POSTGRESQL) == Insertion("none", 0)
    with pytest.raises(ValueError, match="no place for a WITH"):
        insertion_point(sql, POSTGRESQL).apply(sql, "c AS (VALUES (1))")


@pytest.mark.parametrize(
    ("vendor", "sql", "name", "expected"),
    [
        (POSTGRESQL, 'SELECT "t"."a" FROM "t"', "t", 1),
        (POSTGRESQL, 'SELECT U0."t" FROM "t" U0, t AS t', "t", 2),
        (POSTGRESQL, 'SELECT "a" AS "t" FROM "u"', "t", 0),
        (POSTGRESQL, 'SELECT 1 FROM "T" JOIN x ON x.a = "T".a', "t", 1),
        (POSTGRESQL, "SELECT 't' FROM u -- t", "t", 0),
        (SQLITE, "SELECT 1 FROM 't', [T], `t`", "t", 3),
        (MYSQL, "SELECT 1 FROM `t` WHERE EXISTS(SELECT 1 FROM t)", "t", 2),
        (MYSQL, "SELECT 1 /*! FROM t */", "t", 2),
    ],
)
def test_table_occurrences(vendor: str, sql: str, name: str, expected: int) -> None:
    assert table_occurrences(sql, vendor, name) == expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT `t`.`a` FROM `t` WHERE `t`.`b` = 1", "`t`.`a` FROM <`t`> WHERE"),
        ("SELECT 1 FROM t, T AS x, `t` y", "FROM <t>, [T] AS x, [`t`] y"),
        ("SELECT 1 FROM `t` LEFT OUTER JOIN `t` T2 ON (T2.`t` = `t`.`t`)",
         "FROM <`t`> LEFT OUTER JOIN [`t`] T2 ON (T2.`t` = `t`.`t`)"),
        ("SELECT (SELECT MAX(U0.a) FROM t U0), `t` FROM (u JOIN t) ORDER BY t",
         "FROM [t] U0), `t` FROM (u JOIN <t>) ORDER BY t"),
        ("(SELECT a FROM t) UNION (SELECT a FROM t LIMIT 1)",
         "(SELECT a FROM <t>) UNION (SELECT a FROM <t> LIMIT 1)"),
        ("SELECT 1 FROM u JOIN t USING (t)", "FROM u JOIN <t> USING (t)"),
        ("SELECT 1 FROM u t JOIN s.t ON f(1, t)", "FROM u t JOIN s.t ON f(1, t)"),
        ("SELECT 't' FROM u -- FROM t", "SELECT 't' FROM u -- FROM t"),
    ],
)  # fmt: skip
def test_table_places(sql: str, expected: str) -> None:
    """``<t>`` stands alone, an alias follows ``[t]``."""
    for start, end, has_alias in reversed(table_places(sql, "mysql", "t")):
        marks = "[]" if has_alias else "<>"
        sql = sql[:start] + marks[0] + sql[start:end] + marks[1] + sql[end:]
    assert expected in sql


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1 FROM public.t", True),
        ('SELECT 1 FROM x, "public"."t"', True),
        ("SELECT 1 FROM x JOIN y ON x.a = y.a, public.t", True),
        ("SELECT 1 FROM (x JOIN public.t ON true)", True),
        ("SELECT 1 WHERE EXISTS (SELECT 1 FROM a.b.t)", True),
        ("TABLE public.t", True),
        ("SELECT x.t, public.t FROM x, public WHERE x.t = 1 ORDER BY x.t", False),
        ("SELECT 1 FROM x JOIN y ON (x.t = y.t)", False),
        ("SELECT t.a FROM t", False),
    ],
)
def test_qualified_tables(sql: str, expected: bool) -> None:
    assert is_qualified(sql, POSTGRESQL, "t") is expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1 FROM t FOR UPDATE", ("SELECT 1 FROM t", True)),
        ("SELECT 1 FROM t LIMIT 1 FOR UPDATE;", ("SELECT 1 FROM t LIMIT 1;", True)),
        ('S FOR NO KEY UPDATE OF "t", U0 NOWAIT', ("S", True)),
        ('S FOR SHARE OF "a"."b" SKIP LOCKED', ("S", True)),
        ("S FOR UPDATE OF a FOR KEY SHARE OF b", ("S", True)),
        ("S LOCK IN SHARE MODE", ("S", True)),
        ("S FOR UPDATE WAIT 5", ("S", True)),
        ("SELECT 'FOR UPDATE' FROM t", ("SELECT 'FOR UPDATE' FROM t", True)),
        ("SELECT substring(a FOR 2)", ("SELECT substring(a FOR 2)", True)),
    ],
)
def test_strip_locking(sql: str, expected: tuple[str, bool]) -> None:
    assert strip_locking(sql, POSTGRESQL) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FROM (SELECT 1 FROM t FOR UPDATE) x",
        "SELECT 1 FROM (SELECT 1 FROM t FOR UPDATE) x FOR SHARE",
        "SELECT 1 FROM t FOR UPDATE LIMIT 1",
        "(SELECT 1 FROM t FOR UPDATE)",
    ],
)
def test_other_locks_are_left_and_told(sql: str) -> None:
    assert strip_locking(sql, POSTGRESQL) == (sql, False)


def test_long_texts_are_answered_and_not_kept() -> None:
    long = "SELECT a FROM t WHERE b IN (" + "1," * CACHED_TEXT_CHARS + "1)"
    assert "t" in names(long, SQLITE)
    assert not has_star(long, SQLITE)
    assert classify(long, SQLITE).kind == "read"


SCHEMA = """
CREATE TABLE author (id INTEGER PRIMARY KEY, name TEXT, "order" INT, born TEXT);
CREATE TABLE book (id INTEGER PRIMARY KEY, author_id INT, title TEXT, pages INT);
CREATE TABLE "odd name" (id INTEGER PRIMARY KEY, "a ""b"" c" INT, s INT);
INSERT INTO author VALUES (1, 'Ann', 2, '1950'), (2, 'Bob', 1, '1960');
INSERT INTO book VALUES (1, 1, 'X', 10), (2, 1, 'Y', 20), (3, 2, 'Z', 30);
INSERT INTO "odd name" VALUES (1, 5, 7);
"""
ON_SQLITE = [
    "SELECT name FROM author ORDER BY id",
    "SELECT NAME FROM AUTHOR ORDER BY ID",
    'SELECT "author"."order" FROM "author" ORDER BY 1',
    "SELECT [order] FROM [author] ORDER BY 1",
    "SELECT `name` FROM 'author' ORDER BY 1",
    "SELECT * FROM author ORDER BY 1",
    "SELECT a.*, 2 * b.pages FROM author a JOIN book b ON b.author_id = a.id",
    "SELECT COUNT(*) FROM book",
    "SELECT title FROM book NATURAL JOIN author",
    "SELECT name FROM author WHERE id IN (SELECT author_id FROM book WHERE pages > 5)",
    "SELECT name FROM author UNION SELECT title FROM book ORDER BY 1",
    "WITH x AS (SELECT author_id AS i FROM book) SELECT name FROM author, x WHERE id=i",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3)"
    " SELECT i, title FROM n JOIN book ON book.id = i",
    "SELECT (SELECT MAX(pages) FROM book b WHERE b.author_id = a.id) FROM author a",
    "SELECT author_id, SUM(pages) AS s FROM book GROUP BY author_id HAVING s > 20",
    'SELECT "a ""b"" c" FROM "odd name"',
    'SELECT id %s FROM "odd name"',
    "SELECT title -- FROM author\n FROM book /* JOIN author */ ORDER BY title",
    "SELECT '; DELETE FROM book' || title FROM book ORDER BY id",
    "SELECT row_number() OVER (PARTITION BY author_id ORDER BY pages), title FROM book",
    "EXPLAIN QUERY PLAN SELECT title FROM book",
    "SELECT CASE WHEN pages > 15 THEN title ELSE 'short' END FROM book ORDER BY id",
    "SELECT json_each.value, name FROM author, json_each('[1]') ORDER BY name",
    "VALUES (1), (2)",
]
WRITES_ON_SQLITE = [
    "INSERT INTO book (title) VALUES ('n')",
    "WITH x AS (SELECT 1) INSERT INTO book (title) SELECT 'n' FROM x",
    "REPLACE INTO book (id, title) VALUES (1, 'n')",
    "UPDATE OR IGNORE book SET pages = 1",
    "WITH x AS (SELECT 1) DELETE FROM book",
    "/* SELECT */ DELETE FROM book",
    "CREATE TABLE other (id INT)",
    "CREATE TEMP TABLE other (id INT)",
    "DROP TABLE book",
    "ALTER TABLE book RENAME TO other",
    "PRAGMA foreign_keys = ON",
    "ATTACH ':memory:' AS other",
    "ANALYZE",
    "REINDEX",
    "VACUUM",
    "BEGIN",
]


def authorized(sql: str) -> tuple[list[tuple[object, ...]], set[tuple[int, str, str]]]:
    """Run a statement; return its rows and what SQLite asked permission for."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.executescript(SCHEMA)
        asked: set[tuple[int, str, str]] = set()

        def authorize(action: int, one: str | None, two: str | None, *_: object) -> int:
            asked.add((action, one or "", two or ""))
            return sqlite3.SQLITE_OK

        connection.set_authorizer(authorize)
        rows = connection.execute(sql).fetchall()
        connection.set_authorizer(None)
        return rows, asked
    finally:
        connection.close()


@pytest.mark.parametrize("sql", ON_SQLITE)
def test_sqlite_reads_no_table_or_column_that_is_not_named(sql: str) -> None:
    _, asked = authorized(sql)
    found = names(sql, SQLITE)
    for action, table, column in asked:
        if action != sqlite3.SQLITE_READ or table not in ("author", "book", "odd name"):
            continue
        assert table.lower() in found
        assert table_occurrences(sql, SQLITE, table) >= 1
        if not has_star(sql, SQLITE):
            assert column.lower() in found | {""}
    assert classify(sql, SQLITE).kind == "read"


@pytest.mark.parametrize("sql", WRITES_ON_SQLITE)
def test_what_sqlite_does_beyond_reading_is_no_read(sql: str) -> None:
    _, asked = authorized(sql)
    plain = {sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION}
    assert {action for action, _, _ in asked} - plain or sql in ("REINDEX", "VACUUM")
    assert classify(sql, SQLITE).kind != "read"


@pytest.mark.parametrize("sql", [q for q in ON_SQLITE if not q.startswith("EXPLAIN")])
def test_a_with_of_the_same_names_takes_the_place_of_the_tables(sql: str) -> None:
    plain, _ = authorized(sql)
    found = names(sql, SQLITE)
    columns = {
        "author": ["id", "name", "order", "born"],
        "book": ["id", "author_id", "title", "pages"],
        "odd name": ["id", 'a "b" c', "s"],
    }
    ctes = []
    for table, all_columns in columns.items():
        kept = [c for c in all_columns if has_star(sql, SQLITE) or c.lower() in found]
        listed = ", ".join('"' + c.replace('"', '""') + '"' for c in kept) or "1"
        ctes.append(f'"{table}" AS (SELECT {listed} FROM main."{table}")')
    shadowed, _ = authorized(insertion_point(sql, SQLITE).apply(sql, ", ".join(ctes)))
    assert shadowed == plain
