"""``queryset.consistency(level)``: how old this queryset's answers may be."""

from __future__ import annotations

from typing import Any, TypeVar

from django.db.models import QuerySet
from django.db.models.manager import BaseManager

from dbfleet.levels import Level, read_level

_Queryset = TypeVar("_Queryset", bound="QuerySet[Any]")


def consistency(queryset: _Queryset, level: str | Level) -> _Queryset:
    """The same queryset, read at ``level``: "strong", "session", "eventual" or
    ``bounded(max_lag_s=…)``.

    Stronger than a ``dbfleet.consistency()`` block and than every setting. What it
    prefetches is other querysets: give them a ``Prefetch``, or use the block. On an
    alias that is no fleet, and inside a transaction, it changes nothing. No round trip.
    Raises ConfigurationError for another level.
    """
    chosen = read_level(level)
    clone: _Queryset = queryset.all()
    clone.query.fleet_level = chosen  # type: ignore[attr-defined]
    return clone


def install() -> None:
    """Give every queryset and manager ``consistency()``; idempotent."""
    QuerySet.consistency = consistency  # type: ignore[attr-defined]
    BaseManager.consistency = _of_all  # type: ignore[attr-defined]


# Django copies a queryset's methods to managers of its own; this one is set on both.
consistency.queryset_only = True  # type: ignore[attr-defined]


def _of_all(manager: Any, level: str | Level) -> Any:
    return consistency(manager.all(), level)
