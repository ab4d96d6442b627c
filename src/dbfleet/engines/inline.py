"""Rows that a statement is handed, beside those that its server has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

#: the name under which a statement finds rows that it is handed, as columns c0, c1, ...
INLINE = "dbfleet_groups"


class InlineColumn(NamedTuple):
    """A column of rows that a statement is handed.

    ``described`` is what the driver said of it when a shard sent it; ``source`` the
    table and column whose stored values it has, untouched, if one.
    """

    described: Any
    is_text: bool = False
    source: tuple[str, str] | None = None


class NotCarried(Exception):
    """Values of a column cannot be handed to a server as another one sent them."""


def inline_names(columns: Sequence[InlineColumn]) -> list[str]:
    """The names by which a statement finds the columns that it is handed."""
    return [f"c{at}" for at in range(len(columns))]
