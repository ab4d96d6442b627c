"""Events: every decision that was executed, told to whoever subscribed.

With no subscriber an event costs one truth test and is not even built, so a
project that does not listen pays nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

logger = logging.getLogger("dbfleet")


class Event(NamedTuple):
    """One thing that happened: ``name`` is stable, ``fields`` never hold SQL
    parameters or secrets."""

    name: str
    fields: dict[str, Any]


Subscriber = Callable[[Event], None]
_subscribers: list[Subscriber] = []


def emit(name: str, **fields: Any) -> None:
    """Tell every subscriber; a subscriber that fails is logged and passed over."""
    if not _subscribers:
        return
    event = Event(name, fields)
    for subscriber in tuple(_subscribers):
        try:
            subscriber(event)
        except Exception:
            logger.exception("a subscriber of dbfleet events failed on %s", name)


def is_observed() -> bool:
    """Whether building an event is worth its cost."""
    return bool(_subscribers)


@contextlib.contextmanager
def subscribed(subscriber: Subscriber) -> Iterator[None]:
    """Call ``subscriber`` with each :class:`Event` until the block ends."""
    _subscribers.append(subscriber)
    try:
        yield
    finally:
        _subscribers.remove(subscriber)
