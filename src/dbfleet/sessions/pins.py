"""Blocks that say where statements go: ``on_shard`` and ``pin``.

Kept in the running context, like the session itself: a block of one task, thread or
request is not seen by another.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from dbfleet.sessions import consistency

_EMPTY: Mapping[str, str] = MappingProxyType({})
_shards: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    "dbfleet_shards", default=_EMPTY
)


def shard_for(alias: str) -> str | None:
    """The shard that reads of ``alias`` are limited to in this block, if any."""
    return _shards.get().get(alias)


def forget() -> None:
    """End every block, as one that never ended itself would leave them."""
    if _shards.get():
        _shards.set(_EMPTY)


@contextlib.contextmanager
def on_shard(alias: str, shard: str) -> Iterator[None]:
    """Limit ``alias`` to one of its shards inside the block.

    Reads, raw SQL included, see the rows of that shard and home's own tables.
    ``update()`` and ``delete()`` change rows of that shard alone; new rows still go
    where their key belongs. No round trips of its own. Raises RouteRefused E404 at
    the first statement if the alias has no such shard.
    """
    token = _shards.set(MappingProxyType({**_shards.get(), alias: shard}))
    try:
        yield
    finally:
        _shards.reset(token)


def pin(role: str) -> contextlib.AbstractContextManager[None]:
    """``with pin("primary")``: read from primaries inside the block."""
    if role != "primary":
        raise ValueError(f'the only role to pin to is "primary", not {role!r}')
    return consistency("strong")
