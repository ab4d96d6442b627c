"""``dbfleet.PlacementRouter``: Django's questions about placement, answered.

Guards two invariants: a placed model is never left to Django's own default, and
a model that nobody placed is left entirely to the routers beside this one.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.models import Model

from dbfleet import conf
from dbfleet.placement.lookup import (
    alias_for,
    alias_for_model,
    aliases_of,
)
from dbfleet.policies import Policy
from dbfleet.topology.loading import is_fleet


class PlacementRouter:
    """Routes every placed model to its alias; put it into ``DATABASE_ROUTERS``.

    No answer costs a round trip.
    """

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        """The alias of a placed model, None for any other.

        What hangs on an instance of a run-time database stays there.
        """
        return self._answer("db_for_read", model, hints)

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        """As :meth:`db_for_read`, for writes."""
        return self._answer("db_for_write", model, hints)

    def _answer(
        self, question: str, model: type[Model], hints: dict[str, Any]
    ) -> str | None:
        instance = hints.get("instance")
        target = alias_for_model(model)
        if instance is None:
            return (
                target if target is None or isinstance(target, str) else _first(target)
            )
        alias = instance._state.db
        origin = alias_for_model(type(instance))
        if _is_runtime(alias):
            return alias  # type: ignore[no-any-return] # it carries its settings
        if isinstance(target, str):
            return target
        if target is not None:
            return str(alias) if alias in aliases_of(target) else _first(target)
        if origin is None or alias not in aliases_of(origin):
            return None
        # Django would send the model to the instance's alias, where it is not.
        return self._asked_elsewhere(question, model, hints)

    def _asked_elsewhere(
        self, question: str, model: type[Model], hints: dict[str, Any]
    ) -> str:
        for other in router.routers:
            ask = getattr(other, question, None)
            answer = ask(model, **hints) if ask and other is not self else None
            if answer:
                return str(answer)
        return DEFAULT_DB_ALIAS

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool | None:
        """True where a placement fixes an end of the relation; else no opinion.

        The models declare the relation and the settings their aliases, so the two
        ends may be apart. Rows placed by a policy are on one of several aliases,
        and what hangs on a run-time database stays there: Django compares.
        """
        if _is_runtime(obj1._state.db) or _is_runtime(obj2._state.db):
            return None
        ends = {type(alias_for_model(type(obj))) for obj in (obj1, obj2)}
        return True if str in ends and ends <= {str, type(None)} else None

    def allow_migrate(
        self, db: str, app_label: str, model_name: str | None = None, **hints: Any
    ) -> bool | None:
        """Whether tables of the model, or of the app, belong on the alias.

        A run-time database takes every table: its rows hang together there.
        """
        if _is_runtime(db):
            return None
        model = hints.get("model")
        # A table that is not managed is never made, only dumped and loaded.
        if _is_read_only(db) and getattr(
            getattr(model, "_meta", None), "managed", True
        ):
            return False
        if model_name is None:
            return _app_may_live_on(db, app_label)
        target = (
            alias_for_model(model)
            if isinstance(model, type)
            else alias_for(app_label, model_name.lower())
        )
        return None if target is None else db in aliases_of(target)


def _first(target: Policy) -> str:
    """The alias that a policy would take now."""
    return target.order(aliases_of(target))[0]


def _app_may_live_on(db: str, app_label: str) -> bool | None:
    """For an operation without a model, such as RunPython: may a model live there?"""
    models = apps.all_models.get(app_label, {})
    targets = [alias_for(app_label, name) for name in list(models)]
    targets.append(conf.settings().placement.get(app_label))
    placed = [target for target in targets if target is not None]
    if any(db in aliases_of(target) for target in placed):
        return True
    has_unplaced = None in targets[:-1] or not placed
    return None if has_unplaced else False


def _is_runtime(db: str | None) -> bool:
    """Whether a database was given at run time, so that no placement names it."""
    return db is not None and db not in connections.settings


def _is_read_only(db: str) -> bool:
    entry: Any = connections.settings.get(db)
    return is_fleet(entry) and entry.get("READ_ONLY", False) is True
