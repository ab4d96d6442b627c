"""Tells what raw SQL does: read, write, or something only the primary may be asked.

The invariant: a statement is a ``read`` only if it plainly is one. Anything that may
write, lock, or depend on its session (a function that is not known to be free of side
effects, a user variable, a temporary table) is ``unknown``, and unknown means the
primary. What a lexer cannot see, a view, operator or cast that calls a function which
writes, is stopped by the replicas' read-only connections.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from dbfleet.lexer import (
    NAME_KINDS,
    Token,
    by_text,
    explain_prefix,
    is_locking,
    is_unclear,
    significant,
    value_at,
    word_set,
)

Kind = Literal["read", "write", "ddl", "session", "transaction", "unknown"]


@dataclass(frozen=True, slots=True)
class Statement:
    """What is known of a statement.

    ``session`` is what changes or shows the state of one connection (SET, PRAGMA, a
    temporary table). With several statements ``single`` is false, the kind is the one
    they all have or unknown, and the other fields are those of the first.
    """

    kind: Kind
    #: The statement's first word, for a WITH that of its query; upper case.
    verb: str = ""
    #: It takes row or table locks.
    locks: bool = False
    explain: bool = False
    single: bool = True
    #: The one table that is written or defined, where it is named without a schema.
    target: str | None = None
    #: It reads the catalog, which is each server's own.
    catalog: bool = False
    #: Why it is not a read; empty if it is.
    reason: str = ""


_VERBS: dict[Kind, frozenset[str]] = {
    "read": word_set("SELECT VALUES TABLE"),
    "write": word_set("INSERT UPDATE DELETE MERGE REPLACE TRUNCATE"),
    "ddl": word_set("""
        CREATE ALTER DROP RENAME COMMENT REINDEX VACUUM ANALYZE ANALYSE CLUSTER REFRESH
        GRANT REVOKE REASSIGN SECURITY OPTIMIZE REPAIR
    """),
    "session": word_set("""
        SET RESET SHOW PRAGMA DISCARD USE LISTEN UNLISTEN DECLARE FETCH MOVE CLOSE
        PREPARE DEALLOCATE ATTACH DETACH
    """),
    "transaction": word_set("""
        BEGIN START COMMIT END ROLLBACK ABORT SAVEPOINT RELEASE XA
    """),
}
_KINDS = {verb: kind for kind, verbs in _VERBS.items() for verb in verbs}
_WRITES = word_set("INSERT UPDATE DELETE MERGE")
# Words that no plain read holds, beside locking clauses and calls of functions.
_NEVER_IN_READS = _WRITES | word_set("""
    INTO CALL COPY EXECUTE LOCK PROCEDURE NEXTVAL LASTVAL CURRVAL SETVAL
    SQL_CALC_FOUND_ROWS
""")
_NEVER_BARE = word_set("REPLACE TRUNCATE")
_SUSPECT = _NEVER_IN_READS | _NEVER_BARE | {"FOR", "@", "LAST_VALUE"}
_SYSTEM_COLUMNS = {
    "postgresql": word_set("CTID XMIN XMAX CMIN CMAX TABLEOID"),
    "sqlite": word_set("ROWID _ROWID_ OID"),
    "mysql": frozenset[str](),
}
_CATALOGS = word_set("INFORMATION_SCHEMA PERFORMANCE_SCHEMA DBSTAT")
_CATALOG_PREFIXES = {"postgresql": ("PG_",), "sqlite": ("SQLITE_", "PRAGMA_")}
_TEMPORARY_PREFIXES = {"postgresql": ("PG_TEMP",), "sqlite": ("SQLITE_TEMP", "TEMP.")}

# Words that may stand before a parenthesis and call nothing.
_KEYWORDS = word_set("""
    SELECT DISTINCT ALL ANY SOME FROM JOIN LATERAL ONLY ON USING WHERE AND OR NOT IN IS
    BETWEEN LIKE ILIKE TO ESCAPE EXISTS CASE WHEN THEN ELSE BY HAVING UNION EXCEPT
    INTERSECT LIMIT OFFSET VALUES ROW ARRAY INTERVAL AS MATERIALIZED WITH OVER FILTER
    GROUP SETS CUBE ROLLUP GROUPING
""")
# Types with a length, conversions, and functions of the SQL standard.
_COMMON = word_set("""
    NUMERIC DECIMAL VARCHAR CHAR CHARACTER VARYING NCHAR BIT FLOAT TIMESTAMP TIME DATE
    CAST COALESCE NULLIF EXTRACT SUBSTRING POSITION OVERLAY TRIM COUNT SUM AVG MIN MAX
    STDDEV STDDEV_POP STDDEV_SAMP VAR_POP VAR_SAMP VARIANCE ROW_NUMBER RANK DENSE_RANK
    PERCENT_RANK CUME_DIST NTILE LAG LEAD FIRST_VALUE LAST_VALUE NTH_VALUE UPPER LOWER
    LENGTH CHAR_LENGTH CHARACTER_LENGTH OCTET_LENGTH CONCAT CONCAT_WS REPLACE REPEAT
    REVERSE LPAD RPAD LTRIM RTRIM SUBSTR ASCII MD5 SIGN ABS CEIL CEILING FLOOR ROUND MOD
    POWER POW EXP LN LOG LOG10 SQRT PI SIN COS TAN COT ASIN ACOS ATAN ATAN2 DEGREES
    RADIANS CURRENT_TIMESTAMP CURRENT_TIME CURRENT_DATE LOCALTIME LOCALTIMESTAMP
    JSON_OBJECT JSON_ARRAY
""")
_SQLITE = word_set("""
    ACOSH ASINH ATANH BITXOR BM25 COSH FORMAT GLOB GROUP_CONCAT HEX HIGHLIGHT IFNULL IIF
    IF INSTR JSON JSONB JSON_ARRAY_LENGTH JSON_ARRAY_INSERT JSONB_ARRAY
    JSONB_ARRAY_INSERT JSONB_EACH JSONB_EXTRACT JSONB_GROUP_ARRAY JSONB_GROUP_OBJECT
    JSONB_INSERT JSONB_OBJECT JSONB_PATCH JSONB_REMOVE JSONB_REPLACE JSONB_SET
    JSONB_TREE JSON_EACH JSON_ERROR_POSITION JSON_EXTRACT JSON_GROUP_ARRAY
    JSON_GROUP_OBJECT JSON_INSERT JSON_PATCH JSON_PRETTY JSON_QUOTE JSON_REMOVE
    JSON_REPLACE JSON_SET JSON_TREE JSON_TYPE JSON_VALID JULIANDAY LIKELIHOOD LIKELY
    LOG2 MATCH MEDIAN OFFSETS PERCENTILE PERCENTILE_CONT PERCENTILE_DISC PRINTF QUOTE
    RAND RANDOM RANDOMBLOB REGEXP SHA1 SHA224 SHA256 SHA384 SHA512 SINH SNIPPET SOUNDEX
    STRFTIME STRING_AGG TANH TIMEDIFF TOTAL TRUNC TYPEOF UNHEX UNICODE UNISTR
    UNISTR_QUOTE UNIXEPOCH UNLIKELY ZEROBLOB DJANGO_DATE_EXTRACT DJANGO_DATE_TRUNC
    DJANGO_DATETIME_CAST_DATE DJANGO_DATETIME_CAST_TIME DJANGO_DATETIME_EXTRACT
    DJANGO_DATETIME_TRUNC DJANGO_FORMAT_DTDELTA DJANGO_TIME_DIFF DJANGO_TIME_EXTRACT
    DJANGO_TIME_TRUNC DJANGO_TIMESTAMP_DIFF DATETIME ANY_VALUE BIT_AND BIT_OR BIT_XOR
    UUIDV4 UUIDV7
""")
_MYSQL = word_set("""
    AGAINST COLUMNS CONVERT DIV INDEX KEY MATCH PARTITION REGEXP RLIKE XOR ADDDATE
    ADDTIME AES_DECRYPT AES_ENCRYPT ANY_VALUE BIN BIN_TO_UUID BIT_AND BIT_COUNT
    BIT_LENGTH BIT_OR BIT_XOR CHARSET COERCIBILITY COLLATION COMPRESS CONV CONVERT_TZ
    CRC32 CRC32C CURDATE CURTIME DATEDIFF DATE_ADD DATE_FORMAT DATE_SUB DAY DAYNAME
    DAYOFMONTH DAYOFWEEK DAYOFYEAR ELT EXPORT_SET EXTRACTVALUE FIELD FIND_IN_SET FORMAT
    FORMAT_BYTES FORMAT_PICO_TIME FROM_BASE64 FROM_DAYS FROM_UNIXTIME GET_FORMAT
    GREATEST GROUP_CONCAT HEX HOUR IF IFNULL INET6_ATON INET6_NTOA INET_ATON INET_NTOA
    INSTR ISNULL IS_IPV4 IS_IPV4_COMPAT IS_IPV4_MAPPED IS_IPV6 IS_UUID JSON_ARRAY_APPEND
    JSON_ARRAY_INSERT JSON_ARRAY_INTERSECT JSON_COMPACT JSON_CONTAINS JSON_CONTAINS_PATH
    JSON_DEPTH JSON_DETAILED JSON_EQUALS JSON_EXTRACT JSON_INSERT JSON_KEYS
    JSON_KEY_VALUE JSON_LENGTH JSON_LOOSE JSON_MERGE JSON_MERGE_PATCH
    JSON_MERGE_PRESERVE JSON_NORMALIZE JSON_OBJECT_FILTER_KEYS JSON_OBJECT_TO_ARRAY
    JSON_OVERLAPS JSON_PRETTY JSON_QUOTE JSON_REMOVE JSON_REPLACE JSON_SCHEMA_VALID
    JSON_SCHEMA_VALIDATION_REPORT JSON_SEARCH JSON_SET JSON_STORAGE_SIZE JSON_TABLE
    JSON_TYPE JSON_UNQUOTE JSON_VALID LAST_DAY LCASE LEAST LEFT LOCATE LOG2 MAKEDATE
    MAKETIME MAKE_SET MEDIAN MICROSECOND MID MINUTE MONTH MONTHNAME NATURAL_SORT_KEY NOW
    NVL NVL2 OCT ORD PERCENTILE_CONT PERCENTILE_DISC PERIOD_ADD PERIOD_DIFF QUARTER
    QUOTE RAND RANDOM_BYTES REGEXP_INSTR REGEXP_LIKE REGEXP_REPLACE REGEXP_SUBSTR RIGHT
    SECOND SEC_TO_TIME SFORMAT SHA SHA1 SHA2 SIGNED SOUNDEX SPACE STD STRCMP STR_TO_DATE
    SUBDATE SUBSTRING_INDEX SUBTIME SYSDATE TIMEDIFF TIMESTAMPADD TIMESTAMPDIFF
    TIME_FORMAT TIME_TO_SEC TO_BASE64 TO_CHAR TO_DAYS TO_SECONDS TRUNCATE UCASE
    UNCOMPRESS UNCOMPRESSED_LENGTH UNHEX UNIX_TIMESTAMP UNSIGNED UPDATEXML UTC_DATE
    UTC_TIME UTC_TIMESTAMP UUID UUID_TO_BIN UUID_V4 UUID_V7 WEEK WEEKDAY WEEKOFYEAR
    WEIGHT_STRING YEAR YEARWEEK SYS_GUID BINARY VARBINARY DATETIME JSON_VALUE
    JSON_EXISTS JSON_ARRAYAGG JSON_OBJECTAGG JSON_QUERY OF DEFAULT
""")
# With those of the extensions hstore, pgcrypto, pg_trgm, unaccent and uuid-ossp.
_POSTGRESQL = word_set("""
    BPCHAR FLOAT4 FLOAT8 INT2 INT4 INT8 BOOL TEXT TIMESTAMPTZ TIMETZ VARBIT ACOSD ACOSH
    AGE ANY_VALUE ARRAY_AGG ARRAY_APPEND ARRAY_CAT ARRAY_DIMS ARRAY_FILL ARRAY_LENGTH
    ARRAY_LOWER ARRAY_NDIMS ARRAY_POSITION ARRAY_POSITIONS ARRAY_PREPEND ARRAY_REMOVE
    ARRAY_REPLACE ARRAY_REVERSE ARRAY_SAMPLE ARRAY_SHUFFLE ARRAY_SORT ARRAY_TO_JSON
    ARRAY_TO_STRING ARRAY_TO_TSVECTOR ARRAY_UPPER ASIND ASINH ATAN2D ATAND ATANH BIT_AND
    BIT_COUNT BIT_LENGTH BIT_OR BIT_XOR BOOL_AND BOOL_OR BTRIM CARDINALITY CASEFOLD CBRT
    CHR CLOCK_TIMESTAMP CONVERT_FROM CONVERT_TO CORR COSD COSH COTD COVAR_POP COVAR_SAMP
    CRC32 CRC32C DATEMULTIRANGE DATERANGE DATE_ADD DATE_BIN DATE_PART DATE_SUBTRACT
    DATE_TRUNC DECODE DIV ENCODE ENUM_FIRST ENUM_LAST ENUM_RANGE ERF ERFC EVERY
    FACTORIAL FORMAT GAMMA GCD GENERATE_SERIES GENERATE_SUBSCRIPTS GEN_RANDOM_UUID
    GET_BIT GET_BYTE GREATEST HOST HOSTMASK FAMILY BROADCAST NETWORK NETMASK MASKLEN
    SET_MASKLEN ABBREV INET_MERGE INET_SAME_FAMILY INITCAP INT4MULTIRANGE INT4RANGE
    INT8MULTIRANGE INT8RANGE ISEMPTY ISFINITE IS_NORMALIZED JSONB_AGG
    JSONB_ARRAY_ELEMENTS JSONB_ARRAY_ELEMENTS_TEXT JSONB_ARRAY_LENGTH JSONB_BUILD_ARRAY
    JSONB_BUILD_OBJECT JSONB_EACH JSONB_EACH_TEXT JSONB_EXTRACT_PATH
    JSONB_EXTRACT_PATH_TEXT JSONB_INSERT JSONB_OBJECT JSONB_OBJECT_AGG JSONB_OBJECT_KEYS
    JSONB_PATH_EXISTS JSONB_PATH_EXISTS_TZ JSONB_PATH_MATCH JSONB_PATH_MATCH_TZ
    JSONB_PATH_QUERY JSONB_PATH_QUERY_ARRAY JSONB_PATH_QUERY_ARRAY_TZ
    JSONB_PATH_QUERY_FIRST JSONB_PATH_QUERY_FIRST_TZ JSONB_PATH_QUERY_TZ
    JSONB_POPULATE_RECORD JSONB_POPULATE_RECORDSET JSONB_PRETTY JSONB_SET JSONB_SET_LAX
    JSONB_STRIP_NULLS JSONB_TO_RECORD JSONB_TO_RECORDSET JSONB_TO_TSVECTOR JSONB_TYPEOF
    JSON_AGG JSON_ARRAY_ELEMENTS JSON_ARRAY_ELEMENTS_TEXT JSON_ARRAY_LENGTH
    JSON_BUILD_ARRAY JSON_BUILD_OBJECT JSON_EACH JSON_EACH_TEXT JSON_EXTRACT_PATH
    JSON_EXTRACT_PATH_TEXT JSON_OBJECT_AGG JSON_OBJECT_KEYS JSON_POPULATE_RECORD
    JSON_POPULATE_RECORDSET JSON_SCALAR JSON_SERIALIZE JSON_STRIP_NULLS JSON_TABLE
    JSON_TO_RECORD JSON_TO_RECORDSET JSON_TO_TSVECTOR JSON_TYPEOF JUSTIFY_DAYS
    JUSTIFY_HOURS JUSTIFY_INTERVAL LCM LEAST LEFT LOWER_INC LOWER_INF MAKE_DATE
    MAKE_INTERVAL MAKE_TIME MAKE_TIMESTAMP MAKE_TIMESTAMPTZ MIN_SCALE MODE MULTIRANGE
    NORMALIZE NOW NUMMULTIRANGE NUMNODE NUMRANGE NUM_NONNULLS NUM_NULLS PARSE_IDENT
    PERCENTILE_CONT PERCENTILE_DISC PHRASETO_TSQUERY PLAINTO_TSQUERY QUERYTREE
    QUOTE_IDENT QUOTE_LITERAL QUOTE_NULLABLE RANDOM RANDOM_NORMAL RANGE_AGG
    RANGE_INTERSECT_AGG RANGE_MERGE REGEXP_COUNT REGEXP_INSTR REGEXP_LIKE REGEXP_MATCH
    REGEXP_MATCHES REGEXP_REPLACE REGEXP_SPLIT_TO_ARRAY REGEXP_SPLIT_TO_TABLE
    REGEXP_SUBSTR REGR_AVGX REGR_AVGY REGR_COUNT REGR_INTERCEPT REGR_R2 REGR_SLOPE
    REGR_SXX REGR_SXY REGR_SYY RIGHT ROW_TO_JSON SCALE SETWEIGHT SET_BIT SET_BYTE SHA224
    SHA256 SHA384 SHA512 SIMILARITY SIND SINH SPLIT_PART STARTS_WITH STATEMENT_TIMESTAMP
    STRICT_WORD_SIMILARITY STRING_AGG STRING_TO_ARRAY STRING_TO_TABLE STRIP STRPOS TAND
    TANH TIMEOFDAY TIMEZONE TO_ASCII TO_BIN TO_CHAR TO_DATE TO_HEX TO_JSON TO_JSONB
    TO_NUMBER TO_OCT TO_TIMESTAMP TO_TSQUERY TO_TSVECTOR TRANSACTION_TIMESTAMP TRANSLATE
    TRIM_ARRAY TRIM_SCALE TRUNC TSMULTIRANGE TSQUERY_PHRASE TSRANGE TSTZMULTIRANGE
    TSTZRANGE TSVECTOR_TO_ARRAY TS_DELETE TS_FILTER TS_HEADLINE TS_RANK TS_RANK_CD
    UNACCENT UNISTR UNNEST UPPER_INC UPPER_INF UUIDV4 UUIDV7 UUID_EXTRACT_TIMESTAMP
    UUID_EXTRACT_VERSION UUID_GENERATE_V1 UUID_GENERATE_V4 WEBSEARCH_TO_TSQUERY
    WIDTH_BUCKET WORD_SIMILARITY XMLAGG XMLCOMMENT XMLCONCAT XMLELEMENT XMLEXISTS
    XMLFOREST XMLPARSE XMLPI XMLROOT XMLSERIALIZE XMLTABLE XPATH XPATH_EXISTS AREA BOX
    BOUND_BOX CENTER CIRCLE DIAGONAL DIAMETER HEIGHT ISCLOSED ISOPEN LINE LSEG NPOINTS
    PATH PCLOSE POINT POLYGON POPEN RADIUS SLOPE WIDTH COLUMNS JSON_VALUE JSON_QUERY
    JSON_EXISTS JSON_ARRAYAGG JSON_OBJECTAGG REPEATABLE AKEYS AVALS DIGEST HMAC HSTORE
    HSTORE_TO_JSON HSTORE_TO_JSONB SKEYS SLICE SVALS ZONE OVERLAPS XMLATTRIBUTES
""")

#: Per vendor, what may stand before a parenthesis in a read: upper case.
SAFE_CALLS: dict[str, frozenset[str]] = {
    "postgresql": _KEYWORDS | _COMMON | _POSTGRESQL,
    "mysql": _KEYWORDS | _COMMON | _MYSQL,
    "sqlite": _KEYWORDS | _COMMON | _SQLITE,
}

_ANY_CALL = re.compile(r"(?<![\w$])([\w$]++)[^\w$(]*+\(")
_CTE_STARTS = word_set("SELECT WITH TABLE VALUES INSERT UPDATE DELETE MERGE (")


def _cte_names(tokens: Sequence[Token]) -> set[int]:
    """Return the indexes at which ``name (columns) AS (SELECT ...)`` starts."""
    found: set[int] = set()
    opened: list[int] = []
    for i, token in enumerate(tokens):
        if token.value == "(" and token.kind == "op":
            opened.append(i)
        elif token.value == ")" and token.kind == "op" and opened:
            name = opened.pop() - 1
            body = i + 2
            while value_at(tokens, body) in ("NOT", "MATERIALIZED"):
                body += 1
            if (
                value_at(tokens, name - 1) in ("WITH", "RECURSIVE", ",")
                and value_at(tokens, i + 1) == "AS"
                and value_at(tokens, body) == "("
                and value_at(tokens, body + 1) in _CTE_STARTS
            ):
                found.add(name)
    return found


def _unknown_calls(tokens: Sequence[Token], vendor: str) -> Iterator[str]:
    safe = SAFE_CALLS.get(vendor, frozenset())
    ctes = _cte_names(tokens) if any(t.value == "WITH" for t in tokens) else set()
    for i, (token, bracket) in enumerate(pairwise(tokens)):
        if bracket.value != "(" or token.kind not in ("word", "quoted"):
            continue
        before = value_at(tokens, i - 1)
        is_type = before == ":" == value_at(tokens, i - 2)
        alias = before in ("AS", "INTO", "TABLESAMPLE") or i in ctes
        if is_type or alias:
            continue
        builtin = before != "." or value_at(tokens, i - 2) == "PG_CATALOG"
        spatial = vendor != "sqlite" and token.value.startswith("ST_")
        if token.kind == "word" and builtin and (token.value in safe or spatial):
            continue
        yield token.value.lower() if token.kind == "word" else token.value


@by_text
def unknown_calls(sql: str, vendor: str) -> frozenset[str]:
    """Return the functions called that are not known to be free of side effects.

    Such a function may also read tables that the statement does not name.
    """
    if is_unclear(sql, vendor):
        return frozenset(_ANY_CALL.findall(sql))
    return frozenset(_unknown_calls(significant(sql, vendor), vendor))


def _names(tokens: Sequence[Token], vendor: str) -> set[str]:
    """Return the names and keywords in upper case, and ``name.`` for qualifiers."""
    kinds = NAME_KINDS[vendor]
    found = {token.value.upper() for token in tokens if token.kind in kinds}
    for i, token in enumerate(tokens):
        if token.value == "." and token.kind == "op" and i:
            found.add(tokens[i - 1].value.upper() + ".")
    return found


def _uses_catalog(names: set[str], vendor: str) -> bool:
    if not names.isdisjoint(_CATALOGS):
        return True
    if vendor == "mysql":
        return not names.isdisjoint(("MYSQL.", "SYS."))
    return any(name.startswith(_CATALOG_PREFIXES[vendor]) for name in names)


def _unsettled_name(names: set[str], vendor: str) -> str:
    """Return why the names keep a query from being a plain read, or nothing."""
    for name in names & _SYSTEM_COLUMNS[vendor]:
        return f"it uses {name.lower()}, which each server numbers itself"
    temporary = _TEMPORARY_PREFIXES.get(vendor)
    if temporary and any(name.startswith(temporary) for name in names):
        return "it uses a temporary table"
    return ""


def _unsettled_word(tokens: Sequence[Token], vendor: str) -> tuple[Kind, str] | None:
    """Return what keeps a query with a suspect word from being a plain read."""
    for i in range(len(tokens)):
        value, before = value_at(tokens, i), value_at(tokens, i - 1)
        if is_locking(tokens, i):
            return "write", "it locks rows"
        if value in _WRITES and before == "(":
            return "write", f"it contains {value}"
    for i in range(len(tokens)):
        value, before = value_at(tokens, i), value_at(tokens, i - 1)
        bare = value_at(tokens, i + 1) != "("
        if value in _NEVER_IN_READS or (value in _NEVER_BARE and bare):
            return "unknown", f"it contains {value}"
        # A replica's copy of a PostgreSQL sequence runs ahead of the primary's.
        own = value == "LAST_VALUE" and bare and vendor == "postgresql"
        if own or (value == "FOR" and before == "VALUE"):
            return "unknown", "it reads the state of a sequence"
        if value == "@" and vendor == "mysql":
            return "unknown", "it uses a variable of its session"
    return None


def _classify_query(tokens: Sequence[Token], vendor: str, verb: str) -> Statement:
    names = _names(tokens, vendor)
    values = {token.value for token in tokens if token.kind in ("word", "op")}
    statement = Statement("read", verb, catalog=_uses_catalog(names, vendor))
    found = None if values.isdisjoint(_SUSPECT) else _unsettled_word(tokens, vendor)
    if found:
        locks = any(is_locking(tokens, i) for i in range(len(tokens)))
        return replace(statement, kind=found[0], locks=locks, reason=found[1])
    if reason := _unsettled_name(names, vendor) or _unsettled_call(tokens, vendor):
        return replace(statement, kind="unknown", reason=reason)
    return statement


def _unsettled_call(tokens: Sequence[Token], vendor: str) -> str:
    for name in _unknown_calls(tokens, vendor):
        return f"it calls {name}(), which may write or depend on its session"
    return ""


_VERBS_AFTER_WITH = _WRITES | word_set("SELECT VALUES TABLE REPLACE")
_MODIFIERS = word_set("""
    INTO FROM ONLY TABLE IF NOT EXISTS OR REPLACE ROLLBACK ABORT FAIL IGNORE QUICK
    LOW_PRIORITY HIGH_PRIORITY DELAYED TEMPORARY UNLOGGED
""")


def _target(sql: str, vendor: str, tokens: Sequence[Token], start: int) -> str | None:
    """Return the one table that the verb at ``start`` writes, if it is plain."""
    verb = value_at(tokens, start)
    i = start + 1
    if verb in ("CREATE", "ALTER", "DROP"):
        words = [value_at(tokens, j) for j in range(i, len(tokens))]
        if "INDEX" in words[:2] and "ON" in words:
            i += words.index("ON") + 1
        elif "TABLE" in words[:2]:
            i += words.index("TABLE") + 1
        else:
            return None
    while value_at(tokens, i) in _MODIFIERS:
        i += 1
    if i >= len(tokens) or tokens[i].kind not in ("word", "quoted"):
        return None
    following = [value_at(tokens, i + 1)]
    if verb == "UPDATE":
        values = [value_at(tokens, j) for j in range(i + 1, len(tokens))]
        following = values[: values.index("SET")] if "SET" in values else ["."]
    if not {".", ",", "FROM", "JOIN", "STRAIGHT_JOIN"}.isdisjoint(following):
        return None
    if tokens[i].kind == "quoted":
        return tokens[i].value
    text = sql[tokens[i].start : tokens[i].end]
    return text.lower() if vendor == "postgresql" else text


def _classify_other(
    sql: str, vendor: str, tokens: Sequence[Token], start: int
) -> Statement:
    verb, after = value_at(tokens, start), value_at(tokens, start + 1)
    if verb == "SHOW" and vendor == "mysql":
        return Statement("read", verb, catalog=True)
    kind = _KINDS.get(verb, "unknown")
    words = [value_at(tokens, i) for i in range(start + 1, start + 5)]
    if verb == "CREATE" and not {"TEMP", "TEMPORARY"}.isdisjoint(words):
        kind = "session"
    elif verb == "PREPARE" and after == "TRANSACTION":
        kind = "transaction"
    elif verb == "START" and after != "TRANSACTION":
        kind = "unknown"
    target = None
    nested = any(value_at(tokens, i) in _WRITES for i in range(start))
    if kind in ("write", "ddl") and not nested:
        target = _target(sql, vendor, tokens, start)
    reason = f"its verb is {verb}" if verb else "it starts with no keyword"
    return Statement(kind, verb, verb == "LOCK", target=target, reason=reason)


def _classify_one(sql: str, vendor: str, tokens: Sequence[Token]) -> Statement:
    explain = explain_prefix(tokens, vendor)
    if explain and explain.start == len(tokens):
        described = vendor == "mysql" and len(tokens) in (2, 3, 4)
        if described:
            return Statement("read", "DESCRIBE", catalog=True)
        reason = "it is not clear what it explains"
        return Statement("unknown", "EXPLAIN", explain=True, reason=reason)
    body = tokens[explain.start :] if explain else tokens
    start = 0
    while value_at(body, start) == "(":
        start += 1
    verb = value_at(body, start)
    if verb == "WITH":
        depth = body[start].depth
        found = (
            i
            for i in range(start + 1, len(body))
            if value_at(body, i) in _VERBS_AFTER_WITH and body[i].depth == depth
        )
        start = next(found, start)
        verb = value_at(body, start) if value_at(body, start) != "WITH" else "SELECT"
    if _KINDS.get(verb) == "read":
        statement = _classify_query(body, vendor, verb)
    else:
        statement = _classify_other(sql, vendor, body, start)
        if explain and not explain.analyze and statement.kind == "write":
            # It is planned, not run; but a planner may call functions, and a MariaDB
            # replica that is read-only refuses.
            reason = _unsettled_call(body, vendor)
            if vendor == "mysql":
                reason = "a read-only replica does not explain a write"
            kind: Kind = "unknown" if reason else "read"
            statement = replace(statement, kind=kind, reason=reason)
    return replace(statement, explain=explain is not None)


@by_text
def classify(sql: str, vendor: str) -> Statement:
    """Tell what a raw statement does; ``read`` only where that is plain.

    Pure and cached by text. Never raises: what cannot be read is ``unknown``.
    """
    parts: list[list[Token]] = [[]]
    for token in significant(sql, vendor):
        if token.kind == "op" and token.value == ";":
            parts.append([])
        else:
            parts[-1].append(token)
    parts = [part for part in parts if part]
    if is_unclear(sql, vendor):
        reason = "a part of its text cannot be read with certainty"
        return Statement("unknown", single=False, reason=reason)
    if not parts:
        return Statement("unknown", reason="it is empty")
    found = [_classify_one(sql, vendor, part) for part in parts]
    if len(found) == 1:
        return found[0]
    return replace(
        found[0],
        kind=found[0].kind if len({one.kind for one in found}) == 1 else "unknown",
        single=False,
        locks=any(one.locks for one in found),
        catalog=any(one.catalog for one in found),
        target=None,
        reason=next((one.reason for one in found if one.reason), ""),
    )
