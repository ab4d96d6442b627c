"""Events: every decision that was executed, told to whoever subscribed.

With no subscriber an event costs one truth test of ``subscribers`` and is not even
built, so a project that does not listen pays nothing.
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
#: who is told; empty: building an event is not worth its cost
subscribers: list[Subscriber] = []


def emit(name: str, **fields: Any) -> None:
    """Tell every subscriber; a subscriber that fails is logged and passed over."""
    if not subscribers:
        return
    event = Event(name, fields)
    for subscriber in tuple(subscribers):
        try:
            subscriber(event)
        except Exception:
            logger.exception("a subscriber of dbfleet events failed on %s", name)


@contextlib.contextmanager
def subscribed(subscriber: Subscriber) -> Iterator[None]:
    """Call ``subscriber`` with each :class:`Event` until the block ends."""
    subscribers.append(subscriber)
    try:
        yield
    finally:
        subscribers.remove(subscriber)
