"""What travels in a gather: fragments, their rows, how much of them, and its result.

No I/O. A budget is shared by the threads that read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Row = tuple[Any, ...]


class FragmentSpec(NamedTuple):
    """The part of one table that a gather needs.

    ``where`` is compiled SQL over the bare table with ``%s`` placeholders.
    """

    table: str
    columns: tuple[str, ...]
    where: str
    params: tuple[Any, ...]
    order_by: str | None = None
    locking: str = ""
    #: columns of a primary key that hand-written SQL may rely on in GROUP BY
    key: tuple[str, ...] = ()


class Portion:
    """Rows of a fragment from one node, as its driver gave them."""

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> Iterable[Row]:
        return self._rows

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        return sum(map(size_of, self._rows))


class Fetched(NamedTuple):
    """A fragment and all of its rows, node by node."""

    spec: FragmentSpec
    portions: tuple[Portion, ...]

    def __len__(self) -> int:
        return sum(map(len, self.portions))

    def rows(self) -> list[Row]:
        return [row for portion in self.portions for row in portion.rows()]


@dataclass(slots=True)
class GatheredRows:
    """The result of a gathered statement, complete in memory."""

    rows: list[Row]
    description: Any
    rowcount: int
    fetched_rows: int = 0
    statements: list[str] = field(default_factory=list)


class Budget:
    """Rows and bytes that may still be fetched; counted by several threads."""

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self.max_rows, self.max_bytes = max_rows, max_bytes
        self.rows = self.bytes = 0
        self._by_table: dict[str, int] = {}
        self._lock = threading.Lock()

    def spend(self, table: str, rows: int, size: int) -> bool:
        """Count rows that arrived; False if they are too many to be kept."""
        with self._lock:
            self.rows += rows
            self.bytes += size
            self._by_table[table] = self._by_table.get(table, 0) + size
        return not self.is_over

    @property
    def largest(self) -> str:
        """The table of which most has arrived."""
        return max(self._by_table, key=lambda table: self._by_table[table])

    @property
    def is_over(self) -> bool:
        return self.is_over_rows or self.bytes > self.max_bytes

    @property
    def is_over_rows(self) -> bool:
        return self.rows > self.max_rows


class Overflow(Exception):
    """A gather passed its limit; the executor turns it into an error."""

    def __init__(self, table: str, *, is_rows: bool) -> None:
        super().__init__(table)
        self.table, self.is_rows = table, is_rows


def size_of(row: Row) -> int:
    """About how many bytes a driver's values are."""
    return sum(len(v) if isinstance(v, (str, bytes)) else 8 for v in row)
