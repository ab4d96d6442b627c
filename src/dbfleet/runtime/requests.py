"""A request is a session and a scope of its own; nothing of it reaches the next one.

Guards one invariant: when a request begins, its context holds no run-time database,
no consistency level, no pin and no write of another request, whatever the server
did with its threads and tasks in between.

Under WSGI Django's signals run in the request's thread and context. Under ASGI they
run in copies of it (Django 5.2), so there the handler itself is wrapped. A request
of Django's test client belongs to its test and sees what the test wrote.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from django.core.signals import request_finished, request_started

from dbfleet import sessions
from dbfleet.runtime import scopes
from dbfleet.runtime.scopes import Scope
from dbfleet.sessions import pins


def install() -> None:
    """Connect to Django's requests; idempotent."""
    request_started.connect(_started, dispatch_uid="dbfleet.runtime")
    request_finished.connect(_finished, dispatch_uid="dbfleet.runtime")
    _wrap_asgi()


def _started(sender: Any, **kwargs: Any) -> None:
    if "environ" not in kwargs:
        # The first request of a process whose handler was imported late: there is
        # none before it that it could inherit from.
        _wrap_asgi()
    elif _is_test_client(sender):
        scopes.enter(Scope(scopes.current(), is_request=True))
    else:
        _leave_request()  # one that the server never finished
        _forget_session()
        sessions.begin()
        scopes.enter(Scope(is_request=True))


def _finished(sender: Any, **kwargs: Any) -> None:
    left = _leave_request()
    if left is not None and left.parent is None:
        _forget_session()


def _forget_session() -> None:
    sessions.forget()
    pins.forget()


def _leave_request() -> Scope | None:
    scope = scopes.innermost()
    while scope is not None and not scope.is_request:
        scope = scope.parent
    if scope is not None:
        scopes.enter(scope.parent)
        scope.close()
    return scope


def _is_test_client(sender: Any) -> bool:
    classes = getattr(sender, "__mro__", ())
    return any(one.__module__ == "django.test.client" for one in classes)


def _wrap_asgi() -> None:
    """Begin a session in the task of each ASGI request; only if ASGI is in use."""
    module = sys.modules.get("django.core.handlers.asgi")
    handler: Any = getattr(module, "ASGIHandler", None)  # absent while it is imported
    if handler is None or hasattr(handler.handle, "begins_session"):
        return
    handle = handler.handle

    @functools.wraps(handle)
    async def with_session(*args: Any, **kwargs: Any) -> Any:
        request = Scope(is_request=True)
        _forget_session()
        sessions.begin()
        scopes.enter(request)
        try:
            return await handle(*args, **kwargs)
        finally:
            scopes.enter(None)
            _forget_session()
            await request.aclose()

    with_session.begins_session = True  # type: ignore[attr-defined]
    handler.handle = with_session
