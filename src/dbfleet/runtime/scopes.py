"""Run-time databases that are open, who opened them, and when they are closed.

Guards two invariants: a connection belongs to one thread (in an event loop, to one
task) and to one scope, and it is closed at the latest when either ends.

The scope travels by a context variable, so a task and the threads that work for it
see the scopes around them; the connections themselves never travel.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from asgiref.sync import sync_to_async
from django.db.utils import load_backend
from django.utils.asyncio import async_unsafe

from dbfleet.errors import RuntimeDatabaseError
from dbfleet.runtime.names import RuntimeAlias

#: run-time databases that one thread may have open at once
MAX_OPEN = 32


class Scope:
    """Closes, when it ends, every run-time database that was opened inside.

    A database that was open before stays open, and is the one that is used inside.
    Scopes nest. In async code write ``async with``.
    """

    def __init__(
        self, parent: Scope | None = None, *, is_request: bool = False
    ) -> None:
        self.parent = parent
        self.is_request = is_request
        self.is_closed = False
        # Weak: an owner that ends first closes what it has itself.
        self._owners: weakref.WeakSet[Owner] = weakref.WeakSet()

    def chain(self) -> Iterator[Scope]:
        """The scopes that are open here, the innermost first."""
        scope: Scope | None = self
        while scope is not None:
            if not scope.is_closed:
                yield scope
            scope = scope.parent

    def join(self, owner: Owner) -> None:
        self._owners.add(owner)

    def close(self) -> None:
        """Close what any thread opened in this scope."""
        self.is_closed = True
        with contextlib.suppress(KeyError):  # none is left
            while True:
                self._owners.pop().close(self)

    def _begin(self) -> None:
        if self.parent is not None:
            raise RuntimeError("a scope is entered once; make another by scope()")
        self.parent = current()
        _current.set(self)

    def leave(self) -> None:
        """The running context returns to the scope around this one."""
        if _current.get() is self:
            _current.set(self.parent)

    @async_unsafe("In async code write 'async with dbfleet.scope()'.")
    def __enter__(self) -> Scope:
        self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()
        self.close()

    async def __aenter__(self) -> Scope:
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()
        await self.aclose()

    async def aclose(self) -> None:
        """:meth:`close`, in the thread where Django's async methods do their work."""
        if self._owners:
            # Shielded: a cancelled task closes its databases all the same.
            await asyncio.shield(sync_to_async(self.close)())
        self.is_closed = True


#: holds what is opened outside any scope, until its thread or task ends
_root = Scope()
_current: ContextVar[Scope | None] = ContextVar("dbfleet_scope", default=None)


def scope() -> Scope:
    """Close the run-time databases that are opened inside the block, at its end.

    ``with dbfleet.scope():``, in async code ``async with dbfleet.scope():``. No
    round trips of its own; a transaction still open there is rolled back.
    """
    return Scope()


def current() -> Scope:
    """The innermost scope of the running context."""
    return _current.get() or _root


def innermost() -> Scope | None:
    """The innermost scope that the running context has entered, if any."""
    return _current.get()


def enter(entered: Scope | None) -> None:
    """Make ``entered`` the scope of the running context, as it is."""
    _current.set(entered)


class Owner:
    """What one thread, or one task of an event loop, has open."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.open: dict[Scope, dict[str, Any]] = {}
        #: every wrapper of a fleet that was made here, of whatever alias
        self.wrappers: weakref.WeakSet[Any] = weakref.WeakSet()

    def database(self, alias: str) -> Any | None:
        """The open run-time database of that name, in the scopes around; None."""
        for one in current().chain():
            found = self.open.get(one, {}).get(alias)
            if found is not None:
                return found
        return None

    def open_database(self, alias: RuntimeAlias) -> Any:
        """Make the wrapper of a run-time database, not connected yet."""
        if sum(map(len, self.open.values())) >= MAX_OPEN:
            raise RuntimeDatabaseError(
                "E108",
                f"{MAX_OPEN} run-time databases are open in this thread, so {alias} "
                "was not opened: end the scope of those that are no longer needed, "
                "'with dbfleet.scope():', or call dbfleet.close_runtime()",
            )
        backend = load_backend(alias.settings["ENGINE"])
        wrapper = backend.DatabaseWrapper(alias.settings, alias)
        into = next(current().chain(), _root)
        into.join(self)
        self.open.setdefault(into, {})[alias] = wrapper
        return wrapper

    def databases(self) -> list[Any]:
        """Every run-time database that is open here."""
        return [one for opened in list(self.open.values()) for one in opened.values()]

    def close(self, closed: Scope) -> None:
        for wrapper in self.open.pop(closed, {}).values():
            _end(wrapper)

    def close_all(self) -> None:
        for one in list(self.open):
            self.close(one)

    def __del__(self) -> None:
        # A forked child has the objects of its parent's threads, not the right to
        # end their sessions.
        if self.pid != os.getpid() or sys.is_finalizing():
            return
        for wrapper in list(self.wrappers):
            # A thread that shared its connection left it for others to close.
            if not wrapper.allow_thread_sharing:
                _close(wrapper)


class _Threads(threading.local):
    """The owner of each thread; it goes with its thread."""

    owner: Owner | None = None


_threads = _Threads()
_tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], Owner] = (
    weakref.WeakKeyDictionary()
)


def owner() -> Owner:
    """The owner of what the running thread or task opens."""
    task = _running_task()
    if task is None:
        if _threads.owner is None:
            _threads.owner = Owner()
        return _threads.owner
    found = _tasks.get(task)
    if found is None:
        found = _tasks[task] = Owner()
    return found


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def database(alias: RuntimeAlias) -> Any:
    """The running thread's connection to a run-time database; offline."""
    here = owner()
    found = here.database(alias)
    return here.open_database(alias) if found is None else found


def close_runtime() -> None:
    """Close every run-time database of the calling thread, whatever its scope.

    A transaction that is open there is rolled back.
    """
    owner().close_all()


atexit.register(close_runtime)


def _end(wrapper: Any) -> None:
    """Close a run-time database for good: whoever still holds it cannot reopen it."""
    _close(wrapper)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeDatabaseError(
            "E107",
            f"{wrapper.alias} was closed when its scope ended, so this connection "
            "cannot be used any more: ask dbfleet for it again, connections[<value>]",
        )

    wrapper.ensure_connection = wrapper.nodes.node = refuse


def _close(wrapper: Any) -> None:
    nodes = list(wrapper.nodes.opened()) if wrapper.nodes is not None else []
    if wrapper.connection is None and all(node.connection is None for node in nodes):
        return
    # The thread that made it may have ended, or another one ends the scope.
    wrapper.inc_thread_sharing()
    try:
        with contextlib.suppress(Exception):  # nothing of it is needed any more
            wrapper.close()
    finally:
        wrapper.dec_thread_sharing()
