"""Raw SQL is a read only where that is plain; anything else is the primary's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from dbfleet.planner.statements import SAFE_CALLS, Statement, classify, unknown_calls

VENDORS = ("postgresql", "mysql", "sqlite")
POSTGRESQL, MYSQL, SQLITE = VENDORS

READS = {
    "every": [
        "SELECT 1",
        "select a, 'DELETE FROM t' from t where b = %s",
        'SELECT "delete", "t"."update" FROM "insert"',
        "SELECT a FROM t -- FOR UPDATE",
        "/* DELETE */ SELECT a FROM t;",
        "WITH x AS (SELECT 1 AS a) SELECT a FROM x",
        "WITH RECURSIVE tree(id, depth) AS (SELECT id, 0 FROM t UNION ALL SELECT t.id,"
        " depth + 1 FROM t JOIN tree ON t.p = tree.id) SELECT COUNT(*) FROM tree",
        "WITH a AS (SELECT 1), b(x, y) AS (SELECT 1, 2) SELECT * FROM a, b",
        "SELECT COALESCE(SUM(a), 0), MAX(LOWER(b)) FROM t GROUP BY c HAVING COUNT(*)>1",
        "SELECT row_number() OVER (PARTITION BY a ORDER BY b) FROM t",
        "SELECT CAST(a AS numeric(10, 2)), REPLACE(a, 'b', 'c') FROM t",
        "SELECT a FROM t WHERE EXISTS (SELECT 1) AND a NOT IN (1, 2) OR (a LIKE 'b')",
        "SELECT 1; SELECT 2;",
    ],
    POSTGRESQL: [
        "(SELECT 1) UNION ALL (SELECT 2)",
        "((SELECT 1))",
        "TABLE t",
        "VALUES (1), (2)",
        "EXPLAIN SELECT 1",
        "EXPLAIN (ANALYZE, FORMAT JSON) SELECT 1",
        "EXPLAIN DELETE FROM t WHERE a = 1",
        "SELECT $$ DELETE $$, E'it\\'s', U&'\\0061'",
        "SELECT a::numeric(10,2), b ->> 'c', d @> '{}', e ? 'f' FROM t",
        "SELECT pg_catalog.lower(a) FROM t",
        "SELECT array_agg(DISTINCT a ORDER BY b) FILTER (WHERE c) FROM t",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t",
        "SELECT SUBSTRING(a FROM 1 FOR 2), EXTRACT(YEAR FROM b) FROM t",
        "SELECT jsonb_path_query(a, '$.b'), to_tsvector('english', c), now() FROM t",
        "SELECT a FROM t AS u (a, b) TABLESAMPLE system (10)",
        "SELECT ST_Distance(a, b), c::geometry(Point, 4326) FROM t",
        "SELECT last_value(a) OVER (), b AT TIME ZONE ('UTC') FROM t",
        "SELECT similarity(a, 'b') FROM t WHERE a LIKE 'c!%%' ESCAPE '!'",
        "SELECT generate_series(1, 3), unnest(ARRAY[1, 2]), gen_random_uuid()",
        "WITH x AS NOT MATERIALIZED (TABLE t), y(a) AS MATERIALIZED (TABLE u) TABLE y",
    ],
    MYSQL: [
        "SHOW TABLES",
        "DESCRIBE t",
        "EXPLAIN FORMAT=JSON SELECT 1",
        "ANALYZE FORMAT=JSON SELECT 1",
        'SELECT "DELETE", `delete` FROM t # DELETE',
        "SELECT GROUP_CONCAT(a ORDER BY b SEPARATOR ','), IF(a, b, c) FROM t",
        "SELECT DATE_FORMAT(a, '%%Y'), CONVERT_TZ(a, 'UTC', 'CET') FROM t",
        "SELECT JSON_EXTRACT(a, '$.b'), TRUNCATE(a, 2) FROM t USE INDEX (i)",
        "SELECT MATCH(a) AGAINST ('b' IN BOOLEAN MODE) FROM t",
        "SELECT 1--1, 2 MEMBER OF (a), last_value FROM t",
    ],
    SQLITE: [
        "EXPLAIN QUERY PLAN SELECT 1",
        "EXPLAIN DELETE FROM t",
        "SELECT [delete] FROM 'update' WHERE a = ?1 AND b = :c",
        "SELECT django_date_trunc('year', a, NULL, NULL), json_extract(a, '$') FROM t",
        "SELECT temp, strftime('%%Y', a) FROM t WHERE b GLOB 'c*'",
    ],
}
OTHERS = {
    "every": [
        ("", "unknown"),
        (" -- nothing", "unknown"),
        ("INSERT INTO t VALUES (1)", "write"),
        ("UPDATE t SET a = 1", "write"),
        ("/* SELECT */ DELETE FROM t", "write"),
        ("WITH x AS (SELECT 1) DELETE FROM t", "write"),
        ("SELECT 1; DELETE FROM t", "unknown"),
        ("DELETE FROM t; DELETE FROM u", "write"),
        ("SELECT a FROM t FOR UPDATE", "write"),
        ("SELECT * FROM (SELECT a FROM t FOR UPDATE) x", "write"),
        ("SELECT my_function(a) FROM t", "unknown"),
        ('SELECT "lower"(a) FROM t', "unknown"),
        ("SELECT other.lower(a) FROM t", "unknown"),
        ("SELECT \u017fum(a) FROM t", "unknown"),
        ("SELECT a INTO b FROM t", "unknown"),
        ("CREATE TABLE t (a int)", "ddl"),
        ("CREATE TEMPORARY TABLE t (a int)", "session"),
        ("ALTER TABLE t ADD a int", "ddl"),
        ("DROP INDEX i", "ddl"),
        ("BEGIN", "transaction"),
        ("SAVEPOINT s", "transaction"),
        ("ROLLBACK TO SAVEPOINT s", "transaction"),
        ("SELECT 'unfinished", "unknown"),
        ("frobnicate", "unknown"),
        ("'text'", "unknown"),
    ],
    POSTGRESQL: [
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", "write"),
        ("SELECT * FROM t FOR NO KEY UPDATE OF t SKIP LOCKED", "write"),
        ("SELECT * FROM t FOR KEY SHARE", "write"),
        ("SELECT nextval('s')", "unknown"),
        ("SELECT pg_catalog.setval('s', 1)", "unknown"),
        ("SELECT currval('s'), lastval()", "unknown"),
        ("SELECT pg_advisory_lock(1)", "unknown"),
        ("SELECT pg_try_advisory_xact_lock(1)", "unknown"),
        ("SELECT pg_notify('a', 'b')", "unknown"),
        ("SELECT set_config('a', 'b', false)", "unknown"),
        ("SELECT current_setting('a')", "unknown"),
        ("SELECT pg_backup_start('a')", "unknown"),
        ("SELECT lo_create(0)", "unknown"),
        ("SELECT * FROM dblink('a', 'b') AS x(a int)", "unknown"),
        ("SELECT 1 FROM t, my_function(1) AS (a int, b text)", "unknown"),
        ("SELECT txid_current(), pg_current_xact_id()", "unknown"),
        ("SELECT pg_export_snapshot()", "unknown"),
        ("SELECT query_to_xml('DELETE FROM t', true, true, '')", "unknown"),
        ("SELECT DISTINCT ON (a) my_function(b) FROM t", "unknown"),
        ("SELECT a[1:my_function(2)] FROM t", "unknown"),
        ("SELECT * FROM pg_temp.t", "unknown"),
        ("SELECT ctid FROM t", "unknown"),
        ("SELECT xmin FROM t", "unknown"),
        ("SELECT last_value FROM s", "unknown"),
        ("SELECT 'a\\', 'b'", "unknown"),
        ("EXPLAIN ANALYZE DELETE FROM t", "write"),
        ("EXPLAIN (ANALYZE) INSERT INTO t VALUES (1)", "write"),
        ("EXPLAIN DELETE FROM t WHERE a = my_function(1)", "unknown"),
        ("EXPLAIN ANALYZE EXECUTE p ((SELECT 1))", "unknown"),
        ("EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1", "unknown"),
        ("COPY t FROM STDIN", "unknown"),
        ("CALL p()", "unknown"),
        ("DO $$ BEGIN DELETE FROM t; END $$", "unknown"),
        ("EXECUTE p", "unknown"),
        ("LOCK TABLE t", "unknown"),
        ("MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE", "write"),
        ("TRUNCATE t", "write"),
        ("SET search_path = a", "session"),
        ("SHOW work_mem", "session"),
        ("LISTEN a", "session"),
        ("PREPARE p AS SELECT 1", "session"),
        ("PREPARE TRANSACTION 'a'", "transaction"),
        ("COMMIT PREPARED 'a'", "transaction"),
        ("VACUUM t", "ddl"),
        ("ANALYZE t", "ddl"),
        ("REFRESH MATERIALIZED VIEW v", "ddl"),
    ],
    MYSQL: [
        ("SELECT @a := 1", "unknown"),
        ("SELECT @@session.sql_mode", "unknown"),
        ("SELECT GET_LOCK('a', 1)", "unknown"),
        ("SELECT RELEASE_LOCK('a')", "unknown"),
        ("SELECT LAST_INSERT_ID()", "unknown"),
        ("SELECT FOUND_ROWS()", "unknown"),
        ("SELECT SQL_CALC_FOUND_ROWS a FROM t", "unknown"),
        ("SELECT SLEEP(1)", "unknown"),
        ("SELECT NEXT VALUE FOR s", "unknown"),
        ("SELECT NEXTVAL(s)", "unknown"),
        ("SELECT s.nextval", "unknown"),
        ("SELECT a FROM t INTO OUTFILE 'x'", "unknown"),
        ("SELECT a FROM t LOCK IN SHARE MODE", "write"),
        ("SELECT a FROM t FOR SHARE", "write"),
        ("SELECT /*!50000 SLEEP(1) */ 1", "unknown"),
        ("SELECT 1 /*M!100100 FOR UPDATE */", "unknown"),
        ("SELECT 1--1; DELETE FROM t", "unknown"),
        ("SELECT 'it\\'s'", "unknown"),
        ("REPLACE INTO t VALUES (1)", "write"),
        ("EXPLAIN DELETE FROM t", "unknown"),
        ("ANALYZE DELETE FROM t", "write"),
        ("ANALYZE TABLE t", "ddl"),
        ("LOAD DATA INFILE 'a' INTO TABLE t", "unknown"),
        ("HANDLER t OPEN", "unknown"),
        ("DO SLEEP(1)", "unknown"),
        ("START TRANSACTION", "transaction"),
        ("START SLAVE", "unknown"),
        ("XA PREPARE 'a'", "transaction"),
        ("USE other", "session"),
    ],
    SQLITE: [
        ("SELECT load_extension('a')", "unknown"),
        ("SELECT last_insert_rowid()", "unknown"),
        ("SELECT changes()", "unknown"),
        ("SELECT rowid FROM t", "unknown"),
        ("SELECT a FROM temp.t", "unknown"),
        ("SELECT a FROM sqlite_temp_master", "unknown"),
        ("PRAGMA foreign_keys = ON", "session"),
        ("ATTACH 'a' AS b", "session"),
        ("REPLACE INTO t VALUES (1)", "write"),
        ("INSERT OR IGNORE INTO t VALUES (1)", "write"),
        ("END", "transaction"),
    ],
}


def cases(table: Mapping[str, Sequence[object]]) -> list[tuple[str, object]]:
    return [
        (vendor, case)
        for group, found in table.items()
        for vendor in (VENDORS if group == "every" else (group,))
        for case in found
    ]


@pytest.mark.parametrize(("vendor", "sql"), cases(READS))
def test_plain_reads(vendor: str, sql: str) -> None:
    found = classify(sql, vendor)
    assert (found.kind, found.reason) == ("read", "")
    assert not found.locks


@pytest.mark.parametrize(("vendor", "case"), cases(OTHERS))
def test_everything_else(vendor: str, case: tuple[str, str]) -> None:
    sql, kind = case
    found = classify(sql, vendor)
    assert found.kind == kind
    assert found.reason


@pytest.mark.parametrize(
    ("vendor", "sql", "target"),
    [
        (POSTGRESQL, 'INSERT INTO "T" (a) VALUES (1)', "T"),
        (POSTGRESQL, "INSERT INTO Foo VALUES (1)", "foo"),
        (MYSQL, "INSERT IGNORE INTO Foo VALUES (1)", "Foo"),
        (MYSQL, "REPLACE INTO `a``b` VALUES (1)", "a`b"),
        (SQLITE, "INSERT OR REPLACE INTO [a b] VALUES (1)", "a b"),
        (POSTGRESQL, "UPDATE ONLY t SET a = (SELECT 1 FROM u JOIN v ON true)", "t"),
        (POSTGRESQL, "UPDATE t AS x SET a = 1 FROM u", "t"),
        (POSTGRESQL, "DELETE FROM t USING u", "t"),
        (POSTGRESQL, "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "t"),
        (POSTGRESQL, "TRUNCATE TABLE ONLY t CASCADE", "t"),
        (POSTGRESQL, "CREATE UNLOGGED TABLE IF NOT EXISTS t (a int)", "t"),
        (SQLITE, "CREATE VIRTUAL TABLE t USING fts5(a)", "t"),
        (POSTGRESQL, "DROP FOREIGN TABLE t", "t"),
        (POSTGRESQL, "CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", "t"),
        (POSTGRESQL, "ALTER TABLE IF EXISTS ONLY t ADD a int", "t"),
        (POSTGRESQL, "DROP TABLE IF EXISTS t CASCADE", "t"),
        # Two tables, a schema, or not a table.
        (POSTGRESQL, "TRUNCATE t, u", None),
        (POSTGRESQL, "DROP TABLE t, u", None),
        (POSTGRESQL, "DELETE FROM public.t", None),
        (POSTGRESQL, "WITH x AS (DELETE FROM t) INSERT INTO u SELECT 1", None),
        (MYSQL, "UPDATE t JOIN u ON t.a = u.a SET t.a = 1", None),
        (MYSQL, "UPDATE t, u SET t.a = 1", None),
        (MYSQL, "DELETE t FROM t JOIN u ON t.a = u.a", None),
        (POSTGRESQL, "CREATE VIEW v AS SELECT 1", None),
        (POSTGRESQL, "CREATE TEMP TABLE t (a int)", None),
        (POSTGRESQL, "SELECT 1 FROM t", None),
    ],
)
def test_target(vendor: str, sql: str, target: str | None) -> None:
    assert classify(sql, vendor).target == target


@pytest.mark.parametrize(
    ("vendor", "sql", "catalog"),
    [
        (POSTGRESQL, "SELECT relname FROM pg_class", True),
        (POSTGRESQL, "SELECT 1 FROM information_schema.tables", True),
        (MYSQL, "SELECT 1 FROM mysql.user", True),
        (MYSQL, "SHOW TABLES", True),
        (MYSQL, "DESC t", True),
        (SQLITE, "SELECT name FROM sqlite_master", True),
        (SQLITE, "SELECT name FROM 'sqlite_schema'", True),
        (MYSQL, "SELECT mysql FROM sys", False),
        (POSTGRESQL, "SELECT page FROM t", False),
    ],
)
def test_catalog(vendor: str, sql: str, catalog: bool) -> None:
    assert classify(sql, vendor).catalog is catalog


def test_fields() -> None:
    assert classify("EXPLAIN ANALYZE SELECT 1", POSTGRESQL) == Statement(
        "read", "SELECT", explain=True
    )
    found = classify("SELECT a FROM t FOR UPDATE; SELECT 1", POSTGRESQL)
    assert (found.kind, found.locks, found.single) == ("unknown", True, False)
    assert classify("SELECT 1;", POSTGRESQL).single
    assert classify("(WITH x AS (SELECT 1) TABLE x)", POSTGRESQL).verb == "TABLE"
    assert classify("WITH x AS (SELECT 1) (SELECT 2)", POSTGRESQL).verb == "SELECT"
    assert classify("LOCK TABLE t", POSTGRESQL).locks
    assert "my_function()" in classify("SELECT my_function()", SQLITE).reason


def test_unknown_calls() -> None:
    sql = 'SELECT f(1), lower(a), "G"(2), x.h(3), COUNT(*) FROM t WHERE b IN (4)'
    assert unknown_calls(sql, POSTGRESQL) == {"f", "G", "h"}
    assert unknown_calls(sql, "oracle") >= {"f", "G", "h"}


@pytest.mark.parametrize("vendor", VENDORS)
def test_no_function_with_side_effects_is_held_to_be_safe(vendor: str) -> None:
    unsafe = """
        NEXTVAL SETVAL CURRVAL LASTVAL LAST_INSERT_ID LAST_INSERT_ROWID CHANGES
        TOTAL_CHANGES ROW_COUNT FOUND_ROWS GET_LOCK RELEASE_LOCK RELEASE_ALL_LOCKS
        IS_FREE_LOCK IS_USED_LOCK SLEEP BENCHMARK LOAD_FILE LOAD_EXTENSION
        MASTER_POS_WAIT MASTER_GTID_WAIT CONNECTION_ID DATABASE SCHEMA USER VERSION
        SET_CONFIG SETSEED CURRENT_SETTING PG_NOTIFY PG_SLEEP PG_ADVISORY_LOCK
        TXID_CURRENT QUERY_TO_XML TABLE_TO_XML CURSOR_TO_XML TS_STAT TS_REWRITE DBLINK
        DBLINK_EXEC LO_IMPORT LO_GET PG_READ_FILE READFILE WRITEFILE EDIT
        FTS3_TOKENIZER CURRENT_DATABASE CURRENT_SCHEMA HANDLER INSERT UPDATE DELETE
        CALL EXECUTE CROSSTAB
    """
    assert SAFE_CALLS[vendor].isdisjoint(unsafe.split())
