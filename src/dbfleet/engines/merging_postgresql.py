"""PostgreSQL: how values compare, and the digits of an average.

Sources: PostgreSQL manual, "Collation Support", "unnest"; ``select_div_scale`` in
``src/backend/utils/adt/numeric.c`` for the scale of a quotient.
"""

from __future__ import annotations

import decimal
import os
import re
import socket
from collections.abc import Sequence
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

#: types whose values Python compares as the server does: bool, bytea, int8, int2,
#: int4, oid, float4, float8, date, time, timestamp, timestamptz, interval, numeric,
#: uuid. (timetz is not: equal moments in other zones differ to the server.)
_DIRECT = frozenset(
    {16, 17, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1186, 1700, 2950}
)
#: types whose values come back as they were sent; one of interval may count in months
_CARRIED = {
    16: "boolean",
    17: "bytea",
    20: "bigint",
    21: "smallint",
    23: "integer",
    25: "text",
    701: "double precision",
    1043: "varchar",
    1082: "date",
    1083: "time",
    1114: "timestamp",
    1184: "timestamptz",
    1700: "numeric",
    2950: "uuid",
}
#: text and varchar
_TEXT = frozenset({25, 1043})
#: a numeric holds 131072 digits before the point and 16383 behind it
WIDE = decimal.Context(prec=147455, Emax=10**6, Emin=-(10**6))
_NUMERIC_MIN_SIG_DIGITS = 16
_NUMERIC_MAX_DISPLAY_SCALE = 1000
_BYTEWISE = re.compile(r"(C|POSIX|C\.utf-?8)", re.IGNORECASE)


class PostgreSQLMerging(Engine):
    """What a merge of several servers' rows has to know."""

    nulls_are_largest: ClassVar[bool] = True
    has_one_collation: ClassVar[bool] = True
    can_finish: ClassVar[bool] = True
    uncarried: ClassVar[frozenset[str]] = frozenset({"DurationField"})

    def comparison(self, described: Any) -> str | None:
        if described.type_code in _DIRECT:
            return "direct"
        return "text" if described.type_code in _TEXT else None

    def text_order(self, node: Any) -> str | None:
        # The provider came with 15; a "C" of ICU's would be another order.
        provider = (
            "to_jsonb(d)->>'datlocprovider', coalesce(to_jsonb(d)->>'datlocale', "
            "to_jsonb(d)->>'daticulocale'), to_jsonb(d)->>'datcollversion'"
        )
        rows = self.fetch(
            node,
            f"SELECT datcollate, pg_encoding_to_char(encoding), {provider} "
            "FROM pg_database d WHERE datname = current_database()",
        )
        collate, encoding, kind, locale, version = rows[0]
        name = locale if kind == "b" else collate
        if kind != "i" and encoding == "UTF8" and _BYTEWISE.fullmatch(name or ""):
            return None
        return f"{kind} {collate} {locale} {version} {encoding}"

    def rank(
        self, home: Any, texts: Sequence[str], source: tuple[str, str] | None
    ) -> dict[str, int]:
        # Text that is equal has equal bytes: other collations have to be named.
        rows = self.fetch(
            home, "SELECT t FROM unnest(%s::text[]) AS u(t) ORDER BY t", [list(texts)]
        )
        return {row[0]: at for at, row in enumerate(rows)}

    def finish(
        self,
        home: Any,
        columns: Sequence[InlineColumn],
        rows: Sequence[Row],
        sql: str,
        params: Sequence[Any],
    ) -> GatheredRows:
        kinds = [_CARRIED.get(column.described.type_code) for column in columns]
        if None in kinds:
            raise NotCarried(f"column {kinds.index(None) + 1} has a type of its own")
        # An array's values have the type of its elements, a numeric's scale included.
        arrays = ", ".join(f"%s::{kind}[]" for kind in kinds)
        names = ", ".join(inline_names(columns))
        lists = [[row[at] for row in rows] for at in range(len(columns))]
        head = f"WITH {INLINE} ({names}) AS (SELECT * FROM unnest({arrays}))"
        return self.answer(home, f"{head} {sql}", [*lists, *params])

    def average(self, total: Any, count: int) -> Any:
        if isinstance(total, float):
            return total / count
        return numeric_quotient(Decimal(total), Decimal(count))

    def cancel(self, node: Any, timeout_s: float) -> None:
        connection = node.connection
        if connection is None:
            return
        if hasattr(connection, "cancel_safe"):
            connection.cancel_safe(timeout=timeout_s)
        else:
            connection.cancel()

    def sever(self, connection: Any) -> None:
        # Closing it would not wake whoever waits for its socket.
        with socket.socket(fileno=os.dup(connection.fileno())) as wire:
            wire.shutdown(socket.SHUT_RDWR)


def numeric_quotient(dividend: Decimal, divisor: Decimal) -> Decimal:
    """``dividend / divisor`` with the digits that the server's numeric has.

    At least 16 significant ones, counted in the groups of four that it computes in.
    """
    if not dividend.is_finite():
        return dividend
    weight, first = _leading(dividend)
    weight_below, first_below = _leading(divisor)
    groups = weight - weight_below
    if first <= first_below:
        groups -= 1
    scale = max(
        _NUMERIC_MIN_SIG_DIGITS - groups * 4, _scale(dividend), _scale(divisor), 0
    )
    scale = min(scale, _NUMERIC_MAX_DISPLAY_SCALE)
    # One rounding only: integers, and half goes away from zero.
    sign = -1 if (dividend < 0) != (divisor < 0) else 1
    top, bottom = _as_integers(dividend, divisor, scale)
    quotient, rest = divmod(top, bottom)
    if rest * 2 >= bottom:
        quotient += 1
    return WIDE.scaleb(Decimal(sign * quotient), -scale)


def _as_integers(dividend: Decimal, divisor: Decimal, scale: int) -> tuple[int, int]:
    # abs() would round to the digits of the caller's own decimal context.
    shift = max(_scale(dividend), _scale(divisor))
    top = int(WIDE.scaleb(dividend.copy_abs(), shift + scale))
    return top, int(WIDE.scaleb(divisor.copy_abs(), shift))


def _scale(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else 0


def _leading(value: Decimal) -> tuple[int, int]:
    """The weight, as a power of 10000, and the value of the first group of digits."""
    if not value:
        return 0, 0
    weight = value.adjusted() // 4
    return weight, int(WIDE.scaleb(value.copy_abs(), -4 * weight))
