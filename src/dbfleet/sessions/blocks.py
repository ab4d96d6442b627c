"""Consistency levels of blocks and views.

Guards one invariant: what a view returns is still read at the view's level when it is
read later, by a template that renders or by a stream that is sent.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction

from dbfleet.levels import Level, read_level

_Function = TypeVar("_Function", bound=Callable[..., Any])

_level: contextvars.ContextVar[Level | None] = contextvars.ContextVar(
    "dbfleet_consistency", default=None
)


def chosen_level() -> Level | None:
    """The level of the innermost :func:`consistency` block, if any."""
    return _level.get()


def forget() -> None:
    """End every block, as one that never ended itself would leave them."""
    if _level.get() is not None:
        _level.set(None)


class Consistency:
    """A block, or a decorator of functions and views; see :func:`consistency`."""

    __slots__ = ("_outer", "level")

    def __init__(self, level: Level) -> None:
        self.level = level
        self._outer: list[Level | None] = []

    def __enter__(self) -> None:
        self._outer.append(_level.get())
        _level.set(self.level)

    def __exit__(self, *exc_info: object) -> None:
        _level.set(self._outer.pop())

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__()

    def __call__(self, function: _Function) -> _Function:
        if isinstance(function, type):
            raise TypeError(
                f"consistency() decorates functions; for the class "
                f"{function.__name__} use @method_decorator(consistency(…), "
                'name="dispatch")'
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(
            function
        ):
            raise TypeError(
                "consistency() does not decorate generators, which run after it has "
                "ended; use a block inside"
            )
        if iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                return await self._awaited(function(*args, **kwargs))

            return awaited  # type: ignore[return-value]

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with Consistency(self.level):
                found = function(*args, **kwargs)
            # The dispatch() of an async class-based view is no coroutine function.
            return (
                self._awaited(found)
                if inspect.isawaitable(found)
                else self._kept(found)
            )

        return called  # type: ignore[return-value]

    async def _awaited(self, running: Any) -> Any:
        with Consistency(self.level):
            found = await running
        return self._kept(found)

    def _kept(self, response: Any) -> Any:
        """A view's response, whose own reads are at the same level."""
        if getattr(response, "is_rendered", True) is False:
            response.render = functools.partial(self._render, response, response.render)
        elif getattr(response, "streaming", False) and not getattr(
            response, "file_to_stream", None
        ):
            rows = response.streaming_content
            each = self._aeach if response.is_async else self._each
            response.streaming_content = each(rows)
        return response

    def _render(self, response: Any, render: Callable[[], Any]) -> Any:
        del response.render  # a rendered response may be pickled for a cache
        with Consistency(self.level):
            return render()

    # A generator shares its caller's context between two items, so the level is
    # that of each step alone.

    def _each(self, rows: Any) -> Iterator[Any]:
        steps = iter(rows)
        while True:
            with Consistency(self.level):
                try:
                    row = next(steps)
                except StopIteration:
                    return
            yield row

    async def _aeach(self, rows: Any) -> AsyncIterator[Any]:
        steps = aiter(rows)
        while True:
            with Consistency(self.level):
                try:
                    row = await anext(steps)
                except StopAsyncIteration:
                    return
            yield row


def consistency(level: str | Level) -> Consistency:
    """Read at ``level`` inside the block: "strong", "session", "eventual" or
    ``bounded(max_lag_s=…)``.

    Strong reads go to the primary. Session reads see everything this session wrote or
    has seen. Bounded reads miss at most the last seconds. Eventual reads take any
    replica. No round trips of its own. Raises ConfigurationError for another level.

    ``with`` and ``async with`` make a block. As a decorator it takes functions and
    views, sync and async, and class-based views through ``method_decorator(…,
    name="dispatch")``; what their templates read when they are rendered, and their
    streams when they are sent, is read at the same level. Blocks inside win.
    """
    return Consistency(read_level(level))
