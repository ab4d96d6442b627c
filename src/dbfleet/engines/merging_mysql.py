"""MySQL and MariaDB: how values compare, and the digits of an average.

Sources: MySQL manual, "Arithmetic Operators" (``div_precision_increment``),
"JSON_TABLE", "Column Character Set and Collation".
"""

from __future__ import annotations

import decimal
import json
import socket
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, ClassVar

from dbfleet.engines.base import Engine

#: the protocol's types of numbers, dates and times
_DIRECT = frozenset({0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 246})
#: VARCHAR, the BLOB family (of which TEXT is one), VAR_STRING, STRING
_TEXT = frozenset({15, 249, 250, 251, 252, 253, 254})
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
