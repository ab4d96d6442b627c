"""How much the shards may send for one statement whose rows stay in memory.

A shard's groups are not the answer's: what is combined can be many times as large. So
it has the limits of a gather. Guards one invariant: past them nothing is combined.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from dbfleet.errors import GatherLimitExceeded
from dbfleet.executor.ordering import Row
from dbfleet.topology.snapshot import GatherLimits

#: rows that are taken from a driver before they are counted
PORTION = 2000
_OTHER_BYTES = 8


class Budget:
    """Rows and bytes that are left; the threads of one statement share it."""

    def __init__(self, limits: GatherLimits, what: str) -> None:
        self._limits, self._what = limits, what
        self._lock = threading.Lock()
        self._rows = self._bytes = 0

    def fetch(self, cursor: Any) -> list[Row]:
        """Every row of a cursor that was executed; raises GatherLimitExceeded E501 or
        E502 as soon as all cursors together have passed a limit."""
        found: list[Row] = []
        while portion := cursor.fetchmany(PORTION):
            self._spend(portion)
            found += portion
        return found

    def _spend(self, rows: Sequence[Row]) -> None:
        size = sum(map(size_of, rows))
        with self._lock:
            self._rows += len(rows)
            self._bytes += size
            has_rows = self._rows <= self._limits.max_rows
            has_bytes = self._bytes <= self._limits.max_bytes
        if has_rows and has_bytes:
            return
        code, much, limit = (
            ("E502", f"{self._limits.max_bytes} bytes", "MAX_BYTES")
            if has_rows
            else ("E501", f"{self._limits.max_rows} rows", "MAX_ROWS")
        )
        raise GatherLimitExceeded(
            code,
            f"{self._what} needs more than {much} of its shards to combine them; "
            "nothing was changed. Filter, group by fewer values or by the shard key "
            f"as well, or raise GATHER[{limit!r}]",
        )


def size_of(row: Row) -> int:
    """The bytes of a row's texts, and about those of its other values."""
    return sum(
        len(value) if isinstance(value, (str, bytes, memoryview)) else _OTHER_BYTES
        for value in row
    )
