"""The session of the running context: begun, copied, shared, ended."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

from dbfleet.sessions import blocks
from dbfleet.sessions.state import Session

_session: contextvars.ContextVar[Session | None] = contextvars.ContextVar(
    "dbfleet_session", default=None
)


def _owner() -> Any:
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:  # no event loop runs in this thread
        return threading.get_ident()


def peek() -> Session | None:
    """The session of the running context, if it has one; not to be changed."""
    return _session.get()


def current() -> Session:
    """The session of the running context, begun if there is none."""
    found = _session.get()
    if found is not None and found.owner is None:
        return found
    owner = _owner()
    if found is None:
        found = Session(owner)
    elif found.owner != owner:
        found = found.copy(owner)
    else:
        return found
    _session.set(found)
    return found


def begin(inherited: Session | None = None) -> Session:
    """Begin a declared session in the running context, until :func:`forget`."""
    found = Session() if inherited is None else inherited.copy(None)
    _session.set(found)
    return found


def restore(found: Session | None) -> None:
    """Go on with a session that :func:`peek` told before."""
    _session.set(found)


def forget() -> None:
    """End the session: nothing was written, no level is chosen."""
    if _session.get() is not None:
        _session.set(None)
    blocks.forget()


def session() -> contextlib.AbstractContextManager[Session]:
    """A session of its own for the block: what was seen before it demands nothing.

    Tasks and threads that copy the block's context share it. No round trips.
    """
    return _declared()


@contextlib.contextmanager
def _declared() -> Iterator[Session]:
    token = _session.set(Session())
    try:
        yield current()
    finally:
        _session.reset(token)


def lend() -> Session:
    """The running context's session for other threads that work for it meanwhile."""
    return current().lent()
