"""``connections`` and the ``using`` of Django's models, taught topology values.

Guards two invariants: an alias of ``DATABASES`` costs no more than a look-up, and a
URL never gets past these entry points, so that no ``_state.db``, signal, log or
pickle holds its password.

Methods are wrapped, never copied: each passes its arguments on with ``using`` made
safe, and nothing else changed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand
from django.db import connections
from django.db.models import Model, QuerySet
from django.db.models.deletion import Collector
from django.db.models.manager import BaseManager
from django.db.models.query import RawQuerySet
from django.utils.connection import ConnectionDoesNotExist

from dbfleet.runtime import scopes
from dbfleet.runtime.names import PREFIX, RuntimeAlias, safe_alias, unknown

#: Django's methods that take an alias: class, method, the argument's name
_ENTRY_POINTS: tuple[tuple[type[Any], str, str], ...] = (
    (BaseManager, "db_manager", "using"),
    (Collector, "__init__", "using"),
    (Model, "save_base", "using"),
    (QuerySet, "using", "alias"),
    (RawQuerySet, "__init__", "using"),
    (RawQuerySet, "using", "alias"),
)


class RuntimeConnections:
    """What the handler of ``connections`` adds to Django's own."""

    settings: dict[str, Any]
    _connections: Any

    def __getitem__(self, alias: Any) -> Any:
        if type(alias) is str:
            try:
                return getattr(self._connections, alias)  # open already, as mostly
            except AttributeError:
                pass
        alias = safe_alias(alias)
        if isinstance(alias, RuntimeAlias):
            return scopes.database(alias)
        if alias is None:
            return super().__getitem__(alias)  # type: ignore[misc]
        found = scopes.owner().database(alias) if alias.startswith(PREFIX) else None
        if found is not None:
            return found
        try:
            return super().__getitem__(alias)  # type: ignore[misc]
        except ConnectionDoesNotExist:
            # Django's message would quote what may be a mistyped URL.
            if alias.startswith(PREFIX) or "@" in alias:
                raise unknown(alias) from None
            raise

    def all(self, initialized_only: bool = False) -> list[Any]:
        found: list[Any] = super().all(initialized_only)  # type: ignore[misc]
        if initialized_only:
            found += scopes.owner().databases()
        return found

    def close_all(self) -> None:
        super().close_all()  # type: ignore[misc]
        scopes.close_runtime()


def install() -> None:
    """Teach ``connections`` and Django's models; idempotent, offline."""
    kind = type(connections)
    if issubclass(kind, RuntimeConnections):
        return
    # Whatever stands there, also a subclass by somebody else, keeps its behaviour.
    connections.__class__ = type(kind.__name__, (RuntimeConnections, kind), {})
    for owner, name, argument in _ENTRY_POINTS:
        setattr(owner, name, _accepting(getattr(owner, name), argument))
    BaseCommand.execute = _with_safe_options(BaseCommand.execute)  # type: ignore[method-assign]
    own: Any = vars(QuerySet)["db"]
    QuerySet.db = property(_safe_db(own.fget), doc=own.__doc__)  # type: ignore[assignment,method-assign]


def _accepting(method: Callable[..., Any], argument: str) -> Callable[..., Any]:
    """``method``, whose argument of that name may be a topology value."""
    position = list(inspect.signature(method).parameters).index(argument)

    @functools.wraps(method)
    def accepting(*args: Any, **kwargs: Any) -> Any:
        if argument in kwargs:
            kwargs[argument] = safe_alias(kwargs[argument])
        elif len(args) > position:
            given = args[position]
            safe = safe_alias(given)
            if safe is not given:
                args = (*args[:position], safe, *args[position + 1 :])
        return method(*args, **kwargs)

    return accepting


def _with_safe_options(execute: Callable[..., Any]) -> Callable[..., Any]:
    """``BaseCommand.execute``, whose databases may be topology values."""

    @functools.wraps(execute)
    def with_safe_options(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("database"):
            options["database"] = safe_alias(options["database"])
        if options.get("databases"):
            options["databases"] = [safe_alias(one) for one in options["databases"]]
        return execute(self, *args, **options)

    return with_safe_options


def _safe_db(get: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def db(self: Any) -> Any:
        # The constructor's using= is met here; a pickle holds what is kept here.
        given = self._db
        if given is not None:
            self._db = safe_alias(given)
        return get(self)

    return db
