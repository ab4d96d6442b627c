"""Where the rows of one model live on its alias.

Guards one invariant: a shard key is given as columns that a database knows, so
that nobody below needs Django's fields to find a row's shard.

``REFERENCE`` and ``LOCAL`` are also what a user writes as ``Meta.shard_key``.
"""

from __future__ import annotations

from typing import NamedTuple


class Local:
    """Rows live in home alone."""

    def __repr__(self) -> str:
        return "LOCAL"

    def __reduce__(self) -> str:
        return "LOCAL"  # a copy is the constant itself


class Reference:
    """Every shard, and home, holds all rows."""

    def __repr__(self) -> str:
        return "REFERENCE"

    def __reduce__(self) -> str:
        return "REFERENCE"  # a copy is the constant itself


class Hop(NamedTuple):
    """One step from a child's row to its parent's: ``table.column = parent's``."""

    field: str
    column: str
    #: The parent, as ``app_label.model_name``, and its table.
    model: str
    table: str
    #: The column of ``table`` that ``column`` refers to.
    target_column: str


class ShardKey(NamedTuple):
    """The columns whose values decide the shard of a row.

    With an empty ``path`` they are columns of the model's own table. Otherwise
    they are columns of the table that the last hop reaches, and a row's shard is
    the one of the parent row that its path leads to.
    """

    fields: tuple[str, ...]
    columns: tuple[str, ...]
    path: tuple[Hop, ...] = ()


class Sharded(NamedTuple):
    """Rows are spread by ``key``.

    ``key`` is None only for a historical model that does not have the key's field
    yet (or any more): its rows can be read, none can be placed.
    """

    key: ShardKey | None


Layout = Local | Reference | Sharded

LOCAL = Local()
REFERENCE = Reference()
