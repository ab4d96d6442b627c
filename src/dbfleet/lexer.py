"""Reads SQL text token by token: which names it uses, where a WITH may be put.

It is a lexer, not a parser. The invariant: it errs to one side only. ``names`` and
``table_occurrences`` may say too much, never too little; ``has_star`` may be true
without cause, never false without proof. Text whose meaning depends on a server's
settings, or that cannot be read, becomes an ``unclear`` token, and then every answer
is its most careful one (``statements.classify`` calls such a statement unknown).

``vendor`` is Django's: ``postgresql``, ``mysql`` (MariaDB too) or ``sqlite``; the text
of any other vendor is one unclear token. Answers are cached by text, so a repeated
statement costs one dictionary lookup.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

CACHED_TEXTS = 2048
CACHED_TEXT_CHARS = 20_000

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Token(NamedTuple):
    """A piece of a statement; ``sql[start:end]`` is its text.

    ``value`` is a word's upper-case copy, a quoted name without its quotes, else the
    text. A parenthesis has the depth of what surrounds it.
    """

    kind: str  # word quoted string number param comment op unclear
    value: str
    start: int
    end: int
    depth: int


class Insertion(NamedTuple):
    """Where common table expressions can be put into a statement.

    ``before`` a query that has none, ``after_with`` where its own follow, ``none``
    where the statement is not a query.
    """

    kind: Literal["before", "after_with", "none"]
    offset: int

    def apply(self, sql: str, ctes: str) -> str:
        """Return the statement with ``name AS (...)[, ...]`` put in its place."""
        head, tail = sql[: self.offset], sql[self.offset :]
        if self.kind == "before":
            return f"{head}WITH {ctes} {tail}"
        if self.kind == "after_with":
            return f"{head} {ctes},{tail}"
        raise ValueError("this statement has no place for a WITH")


# The identifier characters that the three lexers share. Every character above ASCII
# belongs to a name, a no-break space too, so \w and \s do not describe them. Said by
# what they are not: a range of all Unicode takes milliseconds to compile.
_FIRST = r"[^\x00-@\[-\^`{-\x7f]"
_TAGGED = r"[^\x00-/:-@\[-\^`{-\x7f]"
_NEXT = r"[^\x00-#%-/:-@\[-\^`{-\x7f]"
_WORD = f"{_FIRST}{_NEXT}*+"
_BLOCK = r"/\*(?:[^*]++|\*(?!/))*+\*/"
_NESTED = r"/\*(?:[^*/]++|\*(?!/)|/(?!\*))*+\*/"
for _ in range(3):
    _NESTED = rf"/\*(?:[^*/]++|\*(?!/)|/(?!\*)|{_NESTED})*+\*/"
# A placeholder of a driver, unless it may as well be a modulo: "%s", not "%sales".
_FORMAT = rf"%(?:\([^()]*\))?[sbt](?!{_NEXT})"
_GLUED_FORMAT = r"%(?:\([^()]*\))?[sbt]"
_TAG = rf"(?:{_FIRST}{_TAGGED}*+)?"
_DOLLAR = rf"\$(?P<tag>{_TAG})\$[\s\S]*?\$(?P=tag)\$"
_ESCAPED = r"'(?:[^'\\]++|\\[\s\S]|'')*+'"
_PLAIN = r"'(?:[^']++|'')*+'"
_CONTROL = r"[\x00-\x08\x0e-\x1f\x7f]"

# Per vendor: quoted name, string, word, placeholder, comment, what cannot be read.
_GRAMMAR = {
    "postgresql": (
        r'(?:[uU]&)?"(?:[^"]++|"")*+"',
        rf"[eE]{_ESCAPED}|(?:[bBnNxX]|[uU]&)?{_PLAIN}|{_DOLLAR}",
        _WORD,
        rf"{_FORMAT}|\$[0-9]+",
        rf"--[^\n\r]*+|{_NESTED}",
        rf"\${_TAG}\$[\s\S]*",
    ),
    "mysql": (
        r'`(?:[^`]++|``)*+`|"(?:[^"\\]++|\\[\s\S]|"")*+"',
        rf"[bBnNxX]?{_ESCAPED}",
        rf"\$*{_WORD}|[0-9]++(?:{_FIRST}|\$){_NEXT}*+",
        rf"{_FORMAT}|\?",
        rf"--(?=[\x00-\x20]|\Z)[^\n]*+|\#[^\n]*+|(?!/\*M?!){_BLOCK}",
        r"`[\s\S]*",
    ),
    "sqlite": (
        r'"(?:[^"]++|"")*+"|`(?:[^`]++|``)*+`|\[[^\]]*+\]',
        rf"[xX]?{_PLAIN}",
        _WORD,
        rf"{_FORMAT}|\?[0-9]*+|[:@$]{_NEXT}++",
        rf"--[^\n]*+|{_BLOCK}",
        r"[`\[][\s\S]*",
    ),
}


@lru_cache(maxsize=8)
def _pattern(vendor: str) -> re.Pattern[str]:
    """The tokens of a vendor; compiled for those whose SQL is read."""
    quoted, string, word, param, comment, unclear = _GRAMMAR[vendor]
    return re.compile(
        rf"""[ \t\n\r\f\v]*+(?:
        (?P<quoted>{quoted})|(?P<string>{string})|(?P<comment>{comment})
        |(?P<number>(?:0[xXbBoO][0-9a-fA-F_]++
            |[0-9][0-9_]*+(?:\.[0-9_]*+)?+(?:[eE][+-]?[0-9]++)?+)(?!{_NEXT}))
        |(?P<param>{param})|(?P<word>{word})
        |(?P<unclear>['"][\s\S]*|/\*[\s\S]*|{unclear}|[0-9](?:{_NEXT}|\.)*+
            |{_GLUED_FORMAT}|{_CONTROL})
        |(?P<op>%%|[\s\S]))""",
        re.VERBOSE,
    )


#: The kinds of tokens that may be a name. MySQL's "quoted" may be a string as well;
#: SQLite takes a 'string' for a name where only a name can stand.
NAME_KINDS = {
    "postgresql": ("word", "quoted"),
    "mysql": ("word", "quoted"),
    "sqlite": ("word", "quoted", "string"),
}
_CONTINUED = re.compile(rf"{_NEXT}+")


def word_set(words: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(words.split())


def by_text(
    function: Callable[Concatenate[str, _P], _T],
) -> Callable[Concatenate[str, _P], _T]:
    """Cache a function of SQL text; texts too long to keep are computed anew."""
    cached = lru_cache(maxsize=CACHED_TEXTS)(function)

    @wraps(function)
    def lookup(sql: str, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if len(sql) > CACHED_TEXT_CHARS:
            return function(sql, *args, **kwargs)
        return cached(sql, *args, **kwargs)  # type: ignore[arg-type]

    return lookup


def _ends_elsewhere(sql: str, start: int, end: int, quote: str) -> bool:
    # Whether a backslash escapes a quote is a server's setting
    # (standard_conforming_strings, NO_BACKSLASH_ESCAPES). A last "\'" that no other
    # quote follows is harmless: read the other way, the statement is not valid.
    at = sql[start:end].replace("\\\\", "  ").find("\\" + quote)
    return at >= 0 and (at < end - start - 2 or sql.find(quote, end) >= 0)


def _read(sql: str, vendor: str, kind: str, start: int, end: int) -> tuple[str, str]:
    """Return the kind and value of a quoted name or a string."""
    text = sql[start:end]
    if kind == "string":
        settled = vendor == "sqlite" or text[0] in "eE$"
        if not settled and "\\" in text and _ends_elsewhere(sql, start, end, "'"):
            return "unclear", text
        if vendor == "sqlite" and text[0] == "'":
            return kind, text[1:-1].replace("''", "'")
        return kind, text
    quote = text[0]
    if quote in "uU" or (
        vendor == "mysql" and "\\" in text and _ends_elsewhere(sql, start, end, quote)
    ):
        return "unclear", text
    return kind, text[1:-1].replace(quote * 2, quote) if quote != "[" else text[1:-1]


@lru_cache(maxsize=32)
def tokenize(sql: str, vendor: str) -> tuple[Token, ...]:
    """Split a statement into tokens; what lies between them is white space.

    Never raises. The text of an unknown vendor is one unclear token.
    """
    if vendor not in _GRAMMAR:
        return (Token("unclear", sql, 0, len(sql), 0),)
    tokens = []
    depth = 0
    for match in _pattern(vendor).finditer(sql):
        kind = match.lastgroup or "op"
        value = match[kind]
        end = match.end()
        start = end - len(value)
        if kind == "op":
            if value == ")":
                depth -= 1
            tokens.append(Token(kind, value, start, end, depth))
            if value == "(":
                depth += 1
            continue
        if kind == "word":
            # Upper case would turn a long s into S, another name into a keyword.
            value = value.upper() if value.isascii() else value
        elif kind in ("quoted", "string"):
            kind, value = _read(sql, vendor, kind, start, end)
        tokens.append(Token(kind, value, start, end, depth))
    return tuple(tokens)


@lru_cache(maxsize=32)
def significant(sql: str, vendor: str) -> tuple[Token, ...]:
    """Return the tokens without the comments."""
    return tuple(t for t in tokenize(sql, vendor) if t.kind != "comment")


def is_unclear(sql: str, vendor: str) -> bool:
    """Return whether a part of the text cannot be read with certainty."""
    return any(t.kind == "unclear" for t in tokenize(sql, vendor))


@by_text
def names(sql: str, vendor: str) -> frozenset[str]:
    """Return every identifier that the statement may use, a superset.

    Each is given as written and in lower case, keywords included, so a table or
    column that is absent in both forms is not used. A ``*`` names nothing: see
    :func:`has_star`.
    """
    found: set[str] = set()
    for kind, value, start, end, _ in tokenize(sql, vendor):
        if kind == "word":
            found.add(sql[start:end])
        elif kind in NAME_KINDS.get(vendor, ()):
            found.add(value)
        elif kind == "param":
            # Without parameters a driver passes "a %s" on: a modulo.
            found.update(_CONTINUED.findall(value))
    if is_unclear(sql, vendor):
        found.update(_CONTINUED.findall(sql))
    return frozenset(found.union(map(str.lower, found)))


def _folded(sql: str, token: Token) -> str:
    # A word's upper-case copy has lost more than its case.
    text = sql[token.start : token.end] if token.kind == "word" else token.value
    return text.lower()


@by_text
def names_by_qualifier(sql: str, vendor: str) -> Mapping[str, frozenset[str]]:
    """Return the names that stand behind each qualifier, ``alias.name``, and under
    ``""`` those that stand alone. All in lower case; together a superset of the
    columns used, as :func:`names` is.
    """
    if is_unclear(sql, vendor):
        return {"": names(sql, vendor)}
    found: dict[str, set[str]] = {"": set()}
    tokens = significant(sql, vendor)
    for i, token in enumerate(tokens):
        if token.kind == "param":
            found[""].update(map(str.lower, _CONTINUED.findall(token.value)))
        if token.kind not in NAME_KINDS.get(vendor, ()):
            continue
        if value_at(tokens, i - 1) == ".":
            qualifier = _folded(sql, tokens[i - 2]) if i > 1 else ""
            found.setdefault(qualifier, set()).add(_folded(sql, token))
        elif value_at(tokens, i + 1) != ".":
            found[""].add(_folded(sql, token))
    return {qualifier: frozenset(some) for qualifier, some in found.items()}


def table_occurrences(sql: str, vendor: str, name: str) -> int:
    """Count the places where the name stands as a table, not as ``name.column``.

    Never fewer than there are: a bare column of that name counts too, and letter
    case is ignored. ``schema.name`` is not counted: see :func:`is_qualified`.
    """
    found = _occurrences(sql, vendor)
    return sql.lower().count(name.lower()) if found is None else found[name.lower()]


@by_text
def _occurrences(sql: str, vendor: str) -> Counter[str] | None:
    """How often each name stands as a table; None where the text is unclear."""
    if is_unclear(sql, vendor):
        return None
    tokens, kinds = significant(sql, vendor), NAME_KINDS[vendor]
    return Counter(
        token.value.lower()
        for i, token in enumerate(tokens)
        if token.kind in kinds
        and value_at(tokens, i - 1) not in (".", "AS")
        and value_at(tokens, i + 1) != "."
    )


def value_at(tokens: Sequence[Token], i: int) -> str:
    """Return the word or operator at an index; empty for anything else."""
    if 0 <= i < len(tokens) and tokens[i].kind in ("word", "op"):
        return tokens[i].value
    return ""


_STARTS_FROM = word_set("FROM JOIN STRAIGHT_JOIN UPDATE INTO TABLE")
_ENDS_FROM = word_set("""
    SELECT WHERE GROUP HAVING WINDOW ORDER LIMIT OFFSET FETCH UNION EXCEPT INTERSECT
    RETURNING SET VALUES
""")
_BEFORE_TABLE = _STARTS_FROM | {"ONLY", "LATERAL", "USING", ",", "("}


def _clauses(tokens: Sequence[Token]) -> list[str]:
    """Tell for each token where it stands: "from", "on" (a join's) or "expression"."""
    at_depth = {0: "expression"}
    found = []
    for i, (kind, value, _, _, depth) in enumerate(tokens):
        clause = at_depth.get(depth, "expression")
        before = value_at(tokens, i - 1)
        if kind == "op" and value == "(":
            joined = clause == "from" and before in _BEFORE_TABLE
            at_depth[depth + 1] = "from" if joined else "expression"
        elif kind == "op" and value == "," and clause == "on":
            clause = "from"
        elif kind == "word" and value in _STARTS_FROM:
            clause = "expression" if before == "DISTINCT" else "from"
        elif kind == "word" and clause == "from":
            if value == "ON" or (value == "USING" and value_at(tokens, i + 1) == "("):
                clause = "on"
            elif value in _ENDS_FROM and before != "FOR":  # USE INDEX FOR ORDER BY
                clause = "expression"
        elif kind == "word" and value in _ENDS_FROM:
            clause = "expression"
        at_depth[depth] = clause
        found.append(clause)
    return found


_AFTER_TABLE = word_set("""
    WHERE ON USING LEFT RIGHT FULL INNER OUTER CROSS NATURAL JOIN STRAIGHT_JOIN GROUP
    HAVING WINDOW ORDER LIMIT OFFSET FETCH UNION EXCEPT INTERSECT FOR LOCK SET INTO
    RETURNING PARTITION USE FORCE IGNORE TABLESAMPLE
""")


@by_text
def table_places(sql: str, vendor: str, name: str) -> tuple[tuple[int, int, bool], ...]:
    """Return where the name stands as a table of a FROM or JOIN: start, end, and
    whether an alias follows. No place where the text is unclear."""
    if is_unclear(sql, vendor):
        return ()
    tokens, found = significant(sql, vendor), []
    for i, (token, clause) in enumerate(zip(tokens, _clauses(tokens), strict=True)):
        if (
            clause == "from"
            and token.kind in NAME_KINDS[vendor]
            and _folded(sql, token) == name.lower()
            and value_at(tokens, i - 1) in _BEFORE_TABLE
            and value_at(tokens, i + 1) != "."
        ):
            after = tokens[i + 1] if i + 1 < len(tokens) else None
            has_alias = after is not None and (
                after.kind in NAME_KINDS[vendor] and after.value not in _AFTER_TABLE
            )
            found.append((token.start, token.end, has_alias))
    return tuple(found)


def is_qualified(sql: str, vendor: str, name: str) -> bool:
    """Return whether the table may be named with its schema, as ``schema.name``.

    Such a name passes by a WITH or a temporary table of the same name.
    """
    found = _qualified(sql, vendor)
    return name.lower() in (sql.lower() if found is None else found)


@by_text
def _qualified(sql: str, vendor: str) -> frozenset[str] | None:
    """The tables that are named with a schema; None where the text is unclear."""
    if is_unclear(sql, vendor):
        return None
    tokens, kinds = significant(sql, vendor), NAME_KINDS[vendor]
    return frozenset(
        token.value.lower()
        for i, (token, clause) in enumerate(zip(tokens, _clauses(tokens), strict=True))
        if clause == "from" and token.kind in kinds and value_at(tokens, i - 1) == "."
    )


# What can follow the star of a select list; an operand cannot.
_AFTER_STAR = word_set("""
    FROM INTO WHERE GROUP HAVING WINDOW ORDER LIMIT OFFSET FETCH FOR UNION EXCEPT
    INTERSECT MINUS LOCK PROCEDURE RETURNING AS END THEN ELSE WHEN AND OR
""")
_BEFORE_STAR = word_set("SELECT DISTINCT ALL RETURNING DISTINCTROW")
_OPERANDS = ("word", "quoted", "string", "number", "param")


def _multiplies(tokens: Sequence[Token], i: int) -> bool:
    if not 0 < i < len(tokens) - 1:
        return False
    before, after = tokens[i - 1], tokens[i + 1]
    return (
        (before.kind in _OPERANDS or before.value in (")", "]"))
        and (after.kind in _OPERANDS or after.value in ("(", "-", "+"))
        and value_at(tokens, i - 1) not in _BEFORE_STAR
        and value_at(tokens, i + 1) not in _AFTER_STAR
    )


@by_text
def has_star(sql: str, vendor: str) -> bool:
    """Return whether the statement may use columns that it does not name.

    By ``*`` or ``t.*`` (not a product, not ``COUNT(*)``), ``TABLE t``, NATURAL JOIN,
    and on PostgreSQL by whole rows (``row_to_json(t)``) or renamed columns
    (``t AS x(a, b)``). True where in doubt.
    """
    if is_unclear(sql, vendor):
        return True
    tokens = significant(sql, vendor)
    for i, token in enumerate(tokens):
        if token.kind == "word" and token.value in ("TABLE", "NATURAL"):
            return True
        if token.value == "*" and token.kind == "op":
            counts = [value_at(tokens, j) for j in (i - 2, i - 1, i + 1)]
            if counts != ["COUNT", "(", ")"] and not _multiplies(tokens, i):
                return True
    return vendor == "postgresql" and _uses_whole_rows(tokens)


_JOIN_WORDS = _STARTS_FROM | word_set(
    "LEFT RIGHT FULL INNER OUTER CROSS AS ONLY LATERAL"
)


def _uses_whole_rows(tokens: Sequence[Token]) -> bool:
    # Names in a FROM clause are tables and aliases; one that stands bare in an
    # expression is a row.
    tables: set[str] = set()
    expressions: set[str] = set()
    for i, (token, clause) in enumerate(zip(tokens, _clauses(tokens), strict=True)):
        before, after = value_at(tokens, i - 1), value_at(tokens, i + 1)
        if token.kind not in ("word", "quoted") or "." in (before, after):
            continue
        if clause != "from":
            defines = after == "AS" and value_at(tokens, i + 2) in _BEFORE_CTE
            calls = after == "(" and token.kind == "word"
            if before != "AS" and not defines and not calls:
                expressions.add(token.value.lower())
        elif token.kind == "quoted" or token.value not in _JOIN_WORDS:
            if after == "(" and before not in _BEFORE_TABLE:
                return True  # "t AS x(a, b)" names the columns anew
            tables.add(token.value.lower())
    return not tables.isdisjoint(expressions)


_BEFORE_CTE = frozenset(("(", "MATERIALIZED", "NOT"))
_QUERY = word_set("SELECT VALUES TABLE WITH")
_EXPLAIN_OPTIONS = word_set("""
    EXPLAIN DESCRIBE DESC ANALYZE ANALYSE VERBOSE QUERY PLAN EXTENDED PARTITIONS FORMAT
    ( ) =
""")
_EXPLAINED = _QUERY | word_set("INSERT UPDATE DELETE MERGE REPLACE")


class Explain(NamedTuple):
    """The EXPLAIN before a statement: where that starts, and whether it is run."""

    start: int
    analyze: bool


def explain_prefix(tokens: Sequence[Token], vendor: str) -> Explain | None:
    """Return the EXPLAIN that the statement starts with, if any.

    ``start`` is the number of tokens before the explained statement; it is the
    number of all tokens where none is plainly explained (``DESCRIBE t``).
    """
    first = value_at(tokens, 0)
    # MariaDB explains by ANALYZE alone, but ANALYZE TABLE is another statement.
    runs = vendor == "mysql" and first == "ANALYZE"
    if first not in ("EXPLAIN", "DESCRIBE", "DESC") and (
        not runs or value_at(tokens, 1) not in _EXPLAINED - {"TABLE"} | {"FORMAT"}
    ):
        return None
    analyze = False
    for i, token in enumerate(tokens):
        value = value_at(tokens, i)
        analyze = analyze or value in ("ANALYZE", "ANALYSE")
        subquery = value == "(" and value_at(tokens, i + 1) in _QUERY | {"("}
        if token.depth == 0 and (value in _EXPLAINED or subquery):
            return Explain(i, analyze)
        known = value in _EXPLAIN_OPTIONS or value_at(tokens, i - 1) == "="
        if token.depth == 0 and not known:
            break
    return Explain(len(tokens), analyze)


@by_text
def insertion_point(sql: str, vendor: str) -> Insertion:
    """Return where a WITH can be put into a query, after an EXPLAIN if there is one."""
    nowhere = Insertion("none", 0)
    tokens = list(significant(sql, vendor))
    while value_at(tokens, len(tokens) - 1) == ";":
        tokens.pop()
    if is_unclear(sql, vendor) or any(t.value == ";" for t in tokens if t.kind == "op"):
        return nowhere
    explain = explain_prefix(tokens, vendor)
    start = explain.start if explain else 0
    first = value_at(tokens, start)
    if first == "WITH":
        if value_at(tokens, start + 1) == "RECURSIVE":
            start += 1
        return Insertion("after_with", tokens[start].end)
    if first in _QUERY or first == "(":
        return Insertion("before", tokens[start].start)
    return nowhere


_LOCKING = re.compile(
    r"""(?:(?:FOR\ (?:UPDATE|NO\ KEY\ UPDATE|SHARE|KEY\ SHARE)
        (?:\ OF\ name(?:\ \.\ name)*(?:\ ,\ name(?:\ \.\ name)*)*)?
        (?:\ NOWAIT|\ SKIP\ LOCKED|\ WAIT\ [0-9]+)?
        |LOCK\ IN\ SHARE\ MODE)(?:\ |$))+;?""",
    re.VERBOSE,
)


@by_text
def strip_locking(sql: str, vendor: str) -> tuple[str, bool]:
    """Return the statement without its last FOR UPDATE or SHARE clauses.

    The flag tells that no locking clause is left; where one is, in a subquery or in
    a form that is not known, the text is returned unchanged.
    """
    tokens = significant(sql, vendor)
    starts = [i for i in range(len(tokens)) if is_locking(tokens, i)]
    if is_unclear(sql, vendor):
        return sql, False
    if not starts:
        return sql, True
    first = starts[0]
    tail = tokens[first:]
    shape = " ".join(
        "name" if _is_name(tail, i) else token.value for i, token in enumerate(tail)
    )
    if tail[0].depth or not _LOCKING.fullmatch(shape):
        return sql, False
    end = tail[-1].start if tail[-1].value == ";" else tail[-1].end
    return sql[: tail[0].start].rstrip() + sql[end:], True


def is_locking(tokens: Sequence[Token], i: int) -> bool:
    """Return whether a clause that locks rows starts at this token."""
    value, after = value_at(tokens, i), value_at(tokens, i + 1)
    if value == "FOR":
        return after in ("UPDATE", "SHARE", "NO", "KEY")
    return value == "LOCK" and after == "IN"


def _is_name(tokens: Sequence[Token], i: int) -> bool:
    return tokens[i].kind == "quoted" or (
        tokens[i].kind == "word" and value_at(tokens, i - 1) in ("OF", ",", ".")
    )
