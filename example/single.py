"""``on_single()``: the same code, with every model on one plain database.

Guards one invariant: what runs inside touches no server of the fleet, so that an
answer from there owes nothing to dbfleet.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from django.db.models import Model

ALIAS = "single"

_is_on_single = contextvars.ContextVar("is_on_single", default=False)


def is_on_single() -> bool:
    """Whether the running code is inside ``on_single()``."""
    return _is_on_single.get()


@contextlib.contextmanager
def on_single() -> Iterator[None]:
    """Read and write on the single database until the block ends."""
    token = _is_on_single.set(True)
    try:
        yield
    finally:
        _is_on_single.reset(token)


class SingleRouter:
    """Stands before dbfleet's router and speaks of the single database only."""

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        is_ours = model._meta.app_label != "legacy"
        return ALIAS if is_ours and is_on_single() else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return app_label != "legacy" if db == ALIAS else None
