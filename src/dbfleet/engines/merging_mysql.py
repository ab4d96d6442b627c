"""MySQL and MariaDB: how values compare, and the digits of an average.

Sources: MySQL manual, "Arithmetic Operators" (``div_precision_increment``),
"JSON_TABLE", "Column Character Set and Collation".
"""

from __future__ import annotations

import decimal
import json
import socket
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar

from dbfleet.engines.base import Engine
from dbfleet.engines.gathering import GatheredRows, Row
from dbfleet.engines.inline import (
    INLINE,
    InlineColumn,
    NotCarried,
    inline_names,
)

#: the protocol's types of numbers, dates and times
_DIRECT = frozenset({0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 246})
#: VARCHAR, the BLOB family (of which TEXT is one), VAR_STRING, STRING
_TEXT = frozenset({15, 249, 250, 251, 252, 253, 254})
_INTEGERS = frozenset({1, 2, 3, 8, 9})
_DOUBLE, _DATE, _DATETIME, _DECIMAL = 5, 10, 12, 246
_MOST_FRACTION = 6
_BIGGEST = 2**63
#: a message that every server takes; more rows are gathered, which sends them in parts
_MOST_INLINE_BYTES = 4 * 2**20
#: digits that AVG has more than its argument, by default, and at most
_MORE_DIGITS = 4
_MOST_DIGITS = 38
WIDE = decimal.Context(prec=200, rounding=decimal.ROUND_HALF_UP)


class MySQLMerging(Engine):
    """What a merge of several servers' rows has to know."""

    #: MariaDB rounds it to four digits more than its argument has
    has_whole_deviations: ClassVar[bool] = False
    #: decimals are divided in groups of nine digits, and rounded when they are sent
    shows_all_digits: ClassVar[bool] = False
    can_finish: ClassVar[bool] = True
    uncarried: ClassVar[frozenset[str]] = frozenset({"TimeField", "BinaryField"})

    def comparison(self, described: Any) -> str | None:
        if described[1] in _DIRECT:
            return "direct"
        return "text" if described[1] in _TEXT else None

    def text_order(self, node: Any) -> str | None:
        return "by column"

    def can_rank(self, home: Any) -> bool:
        return not home.mysql_is_mariadb or home.mysql_version >= (10, 6)

    def rank(
        self, home: Any, texts: Sequence[str], source: tuple[str, str] | None
    ) -> dict[str, int]:
        assert source is not None  # a computed text is not merged here
        collation = self._collation(home, *source)
        rows = self.fetch(
            home,
            "SELECT i, DENSE_RANK() OVER (ORDER BY t COLLATE "
            f"{collation}) FROM JSON_TABLE(CONVERT(%s USING "
            f"{collation.partition('_')[0]}), '$[*]' COLUMNS (i FOR ORDINALITY, "
            f"t LONGTEXT PATH '$')) AS j",
            [json.dumps(list(texts), ensure_ascii=False)],
        )
        return {texts[at - 1]: rank for at, rank in rows}

    def _collation(self, home: Any, table: str, column: str) -> str:
        cache = home.catalogue.setdefault("collations", {})
        if table not in cache:
            rows = self.fetch(
                home,
                "SELECT column_name, collation_name FROM information_schema.columns "
                "WHERE table_schema = DATABASE() AND table_name = %s",
                [table],
            )
            cache[table] = dict(rows)
        return str(cache[table][column])

    def finish(
        self,
        home: Any,
        columns: Sequence[InlineColumn],
        rows: Sequence[Row],
        sql: str,
        params: Sequence[Any],
    ) -> GatheredRows:
        if not self.can_rank(home):
            raise NotCarried("this server cannot be handed rows")
        kinds = [_inline_type(column) for column in columns]
        texts = [
            [
                _as_text(value, column)
                for value, column in zip(row, columns, strict=True)
            ]
            for row in rows
        ]
        document = json.dumps(texts, ensure_ascii=False)
        if len(document) > _MOST_INLINE_BYTES:
            raise NotCarried("the groups are too large for one message")
        names = inline_names(columns)
        paths = ", ".join(
            f"{name} {kind} PATH '$[{at}]' ERROR ON ERROR"
            for at, (name, kind) in enumerate(zip(names, kinds, strict=True))
        )
        values = ", ".join(
            self._collated(home, name, column)
            for name, column in zip(names, columns, strict=True)
        )
        head = (
            f"WITH {INLINE} ({', '.join(names)}) AS (SELECT {values} FROM "
            f"JSON_TABLE(CONVERT(%s USING utf8mb4), '$[*]' COLUMNS ({paths})) AS j)"
        )
        return self.answer(home, f"{head} {sql}", [document, *params])

    def _collated(self, home: Any, name: str, column: InlineColumn) -> str:
        if not column.is_text:
            return name
        assert column.source is not None  # a computed text is not merged here
        collation = self._collation(home, *column.source)
        charset = collation.partition("_")[0]
        return f"CONVERT({name} USING {charset}) COLLATE {collation}"

    def average(self, total: Any, count: int) -> Any:
        if isinstance(total, float):
            return total / count
        exact = Decimal(total)
        exponent = exact.as_tuple().exponent
        scale = -exponent if isinstance(exponent, int) else 0
        digits = WIDE.scaleb(Decimal(1), -min(scale + _MORE_DIGITS, _MOST_DIGITS))
        # Exact to far more digits than are kept, so that rounding happens once.
        return WIDE.divide(exact, Decimal(count)).quantize(digits, context=WIDE)

    def cancel(self, node: Any, timeout_s: float) -> None:
        connection = node.connection
        if connection is None or not hasattr(connection, "thread_id"):
            return
        other = node.copy()
        limits = self.probe_settings(node.settings_dict, max(1, round(timeout_s)))
        other.settings_dict = limits
        other.owner = None
        try:
            self.run(other, f"KILL QUERY {int(connection.thread_id())}").close()
        finally:
            other.close()

    def sever(self, connection: Any) -> None:
        wire = getattr(connection, "_sock", None)  # PyMySQL's
        if wire is not None:
            wire.shutdown(socket.SHUT_RDWR)


def _inline_type(column: InlineColumn) -> str:
    """The type of a JSON_TABLE's column that holds what a server sent."""
    if column.is_text:
        return "LONGTEXT"
    kind, length, scale = (column.described[at] for at in (1, 4, 5))
    if kind in _INTEGERS:
        return "BIGINT"
    if kind == _DECIMAL:
        return f"DECIMAL({_precision(length, scale)}, {scale})"
    if kind == _DATETIME:
        return f"DATETIME({min(scale, _MOST_FRACTION)})"
    if kind == _DOUBLE:
        return "DOUBLE"
    if kind == _DATE:
        return "DATE"
    raise NotCarried("a column has a type of its own")


def _precision(length: int, scale: int) -> int:
    """A decimal's digits, of the characters that it is shown in."""
    return length - 1 - (scale > 0)


def _as_text(value: Any, column: InlineColumn) -> str | None:
    """A value as JSON_TABLE reads it, which cuts off silently what does not fit."""
    if value is None:
        return None
    kind, length, scale = (column.described[at] for at in (1, 4, 5))
    if column.is_text:
        fits = isinstance(value, str)
    elif kind in _INTEGERS:
        fits = isinstance(value, int) and -_BIGGEST <= value < _BIGGEST
    elif kind == _DECIMAL:
        fits = isinstance(value, Decimal) and _fits(
            value, _precision(length, scale), scale
        )
    elif kind == _DOUBLE:
        return repr(value)
    else:
        wanted = datetime if kind == _DATETIME else date
        fits = isinstance(value, wanted)
        value = value.isoformat(" ") if isinstance(value, datetime) else value
    if not fits:
        raise NotCarried("a value is not of its column's type")
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _fits(value: Decimal, length: int, scale: int) -> bool:
    exponent = value.as_tuple().exponent
    is_within = isinstance(exponent, int) and -exponent <= scale
    return is_within and value.adjusted() < _precision(length, scale) - scale
