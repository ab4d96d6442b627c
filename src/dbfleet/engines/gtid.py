"""Positions of MariaDB and MySQL: sets of global transaction ids.

Sources: MariaDB Knowledge Base, "Global Transaction ID", "MASTER_GTID_WAIT"; MySQL
manual, "GTID Format and Storage", "WAIT_FOR_EXECUTED_GTID_SET".

MariaDB: ``domain-server-sequence`` for each domain. MySQL: ``uuid:1-5:7`` for each
source. Both are kept as text, which is what their servers compare as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from dbfleet.engines.base import Engine, Position, Verdict

#: the last interval of each source: (source, first, last)
_Ranges = tuple[tuple[str, int, int], ...]


class GtidPositions(Engine):
    """Where a MariaDB or MySQL server is in its log."""

    tracks_positions: ClassVar[bool] = True

    def position(self, primary: Any) -> Position | None:
        name = "gtid_binlog_pos" if primary.mysql_is_mariadb else "gtid_executed"
        return _read(self.fetch(primary, f"SELECT @@global.{name}"))

    def is_standby(self, node: Any) -> bool:
        return self.is_replica(node) is True

    def applied(self, replica: Any) -> Position | None:
        name = "gtid_slave_pos" if replica.mysql_is_mariadb else "gtid_executed"
        return _read(self.fetch(replica, f"SELECT @@global.{name}"))

    def compare(self, have: Position, want: Position) -> Verdict:
        has = _ranges(have.value)
        for source, first, last in _ranges(want.value):
            if not any(s == source and f <= first and last <= t for s, f, t in has):
                return Verdict.BEHIND
        return Verdict.COVERED

    def merge(
        self, floors: tuple[Position, ...], more: Iterable[Position]
    ) -> tuple[Position, ...]:
        kept = list(floors)
        for one in more:
            if not any(self.covers(known, [one]) for known in kept):
                kept = [known for known in kept if not self.covers(one, [known])]
                kept.append(one)
        return tuple(kept)

    def dump(self, position: Position) -> str:
        return str(position.value).replace(",", "+")

    def load(self, text: str) -> Position:
        value = text.replace("+", ",")
        _ranges(value)  # raises ValueError
        return Position(value)

    def wait(
        self, replica: Any, wants: Sequence[Position], timeout_s: float
    ) -> Position | None:
        if replica.mysql_is_mariadb:
            sql = "SELECT MASTER_GTID_WAIT(%s, %s)"
        else:
            sql = "SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s)"
        for want in wants:
            self.fetch(replica, sql, [want.value, timeout_s])
        return self.applied(replica)


def _read(rows: Sequence[tuple[Any, ...]]) -> Position | None:
    text = str(rows[0][0] or "").replace("\n", "")
    return Position(text) if text else None


@lru_cache(maxsize=1024)
def _ranges(text: str) -> _Ranges:
    """Intervals of each source; on MariaDB a sequence covers all before it."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        if ":" not in part:
            domain, _, number = part.split("-")
            found.append((domain, 0, int(number)))
            continue
        source, *intervals = part.split(":")
        for interval in intervals:
            first, _, last = interval.partition("-")
            found.append((source, int(first), int(last or first)))
    return tuple(found)
