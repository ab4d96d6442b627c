"""Databases that no setting names: given at run time, closed with their scope.

Guards one invariant: what one thread, task, request or process has open and has
written is never seen by another; see :mod:`dbfleet.runtime.scopes` for databases,
:mod:`dbfleet.runtime.requests` for sessions, :mod:`dbfleet.runtime.fork` for
processes.
"""

from dbfleet.runtime import handler, requests
from dbfleet.runtime.fork import track
from dbfleet.runtime.names import RuntimeAlias, safe_alias
from dbfleet.runtime.scopes import MAX_OPEN, Scope, close_runtime, scope

__all__ = [
    "MAX_OPEN",
    "RuntimeAlias",
    "Scope",
    "close_runtime",
    "install",
    "safe_alias",
    "scope",
    "track",
]


def install() -> None:
    """Make every ``using`` take a topology value, every request its own session.

    Idempotent and offline. Costs a project that uses neither one look-up for each
    ``using`` and two context variables for each request.
    """
    handler.install()
    requests.install()
