"""``django.tasks`` (Django 6.0 and later): a task goes on from who enqueued it.

Guards two invariants: a task sees what was committed and seen before it was enqueued;
nothing of it is demanded of what its worker runs next. A task that is run at once,
while it is being enqueued, is part of its caller's session.

The token travels as a keyword argument of the task, which every backend stores and the
function never sees.
"""

from __future__ import annotations

import contextlib
import contextvars
from typing import TYPE_CHECKING, Any

from django.tasks.base import Task
from django.utils.module_loading import import_string

from dbfleet.sessions import tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYWORD = "_dbfleet_token"

_is_enqueuing: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "dbfleet_enqueuing", default=False
)


class _Carrying:
    """What a class of tasks gains."""

    __slots__ = ()

    def enqueue(self, *args: Any, **kwargs: Any) -> Any:
        with _enqueuing():
            kwargs[KEYWORD] = tokens.token()
            return super().enqueue(*args, **kwargs)  # type: ignore[misc]

    async def aenqueue(self, *args: Any, **kwargs: Any) -> Any:
        with _enqueuing():
            kwargs[KEYWORD] = tokens.token()
            return await super().aenqueue(*args, **kwargs)  # type: ignore[misc]

    def call(self, *args: Any, **kwargs: Any) -> Any:
        with _running(kwargs):
            return super().call(*args, **kwargs)  # type: ignore[misc]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        with _running(kwargs):
            return await super().acall(*args, **kwargs)  # type: ignore[misc]

    def __reduce__(self) -> Any:
        # This class has no place that it could be imported from; the task has.
        return _restored, super().__reduce__()[1]


def _restored(fields: dict[str, Any]) -> Any:
    return type(import_string(fields["func"]))._reconstruct(fields)


class TokenMixin:
    """Makes any task backend carry sessions: put it before the backend's class.

    ``class Backend(TokenMixin, DatabaseBackend)``, named in ``TASKS`` where tasks are
    declared and where they are run. No round trips. Arguments of results hold one more
    keyword, ``_dbfleet_token``.
    """

    task_class: type[Any] = Task

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls.task_class, _Carrying):
            cls.task_class = carrying(cls.task_class)


def carrying(task_class: type[Any]) -> type[Any]:
    """The class of tasks, whose tasks carry sessions."""
    names = {"__module__": __name__, "__slots__": ()}
    return type(f"Carrying{task_class.__name__}", (_Carrying, task_class), names)


@contextlib.contextmanager
def _enqueuing() -> Iterator[None]:
    token = _is_enqueuing.set(True)
    try:
        yield
    finally:
        _is_enqueuing.reset(token)


@contextlib.contextmanager
def _running(kwargs: dict[str, Any]) -> Iterator[None]:
    """The task's session; none of its own if it is run inside of ``enqueue``."""
    is_carried = KEYWORD in kwargs
    token = kwargs.pop(KEYWORD, "")
    if not is_carried or _is_enqueuing.get():
        yield
        return
    with tokens.resume(token, merge=False):
        yield
