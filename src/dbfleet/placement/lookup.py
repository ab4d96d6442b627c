"""Which alias a model lives on.

Guards two invariants: a placed model always has an answer, and a historical model
of a migration has the same one as today's model of its name, because placement is
looked up by label, never on the class that is at hand.

Precedence: ``DBFLEET["PLACEMENT"]`` for the model, then for its app, then
``Meta.using``. A proxy follows its concrete model, a multi-table child its root,
an automatic many-to-many table the model that declares the field.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.signals import setting_changed
from django.db.models import Model
from django.db.models.signals import class_prepared

from dbfleet import conf
from dbfleet.conf import Target, most_specific
from dbfleet.topology.mistakes import Mistakes

# label -> target; asked for by every query, so one dict lookup must do.
_targets: dict[tuple[str, str], Target | None] = {}


def alias_for(app_label: str, model_name: str) -> Target | None:
    """The alias, or the policy over aliases, a model is placed on; None if nowhere.

    Costs a dict lookup after the first time. Raises ``ConfigurationError`` when
    ``DBFLEET`` or the model's ``Meta.using`` cannot be understood.
    """
    key = (app_label, model_name)
    try:
        return _targets[key]
    except KeyError:
        target = _targets[key] = _find(app_label, model_name.lower(), None)
        return target


def alias_for_model(model: type[Model]) -> Target | None:
    """:func:`alias_for` a class; a historical one whose name is gone included."""
    opts = model._meta
    assert opts.model_name is not None
    try:
        return _targets[opts.app_label, opts.model_name]
    except KeyError:
        if registered(opts.app_label, opts.model_name) is not None:
            return alias_for(opts.app_label, opts.model_name)
        # Not remembered: the same name may have another root in another state.
        return _find(opts.app_label, opts.model_name, model)


def aliases_of(target: Target) -> tuple[str, ...]:
    """Every alias that a target may choose."""
    if isinstance(target, str):
        return (target,)
    return tuple(getattr(target, "aliases", ()))


def root_of(model: Any) -> Any:
    """The model whose placement decides: owner, concrete model, topmost parent."""
    seen = set()
    while model not in seen:
        seen.add(model)
        opts = model._meta
        # What stands for a model in the database cache has no more than a label.
        if getattr(opts, "auto_created", False):
            model = opts.auto_created
        elif opts.proxy:
            model = opts.concrete_model
        elif getattr(opts, "parents", None):
            model = next(iter(opts.parents))
    return model


def registered(app_label: str, model_name: str) -> type[Model] | None:
    """Today's model of that label; works while models are still being imported."""
    return apps.all_models.get(app_label, {}).get(model_name)


def _find(app_label: str, model_name: str, model: type[Model] | None) -> Target | None:
    root = registered(app_label, model_name) or model
    if root is not None:
        opts = root_of(root)._meta
        app_label, model_name = opts.app_label, opts.model_name
    target = most_specific(conf.settings().placement, app_label, model_name)
    if target is not None:
        return target
    today = registered(app_label, model_name)
    return None if today is None else meta_target(today)


def meta_target(model: type[Model]) -> Target | None:
    """What the model's own ``Meta.using`` says, checked."""
    given = getattr(model._meta, "using", None)
    if given is None:
        return None
    mistakes = Mistakes()
    target = conf.read_target(f"{model._meta.label}.Meta.using", given, mistakes)
    mistakes.raise_any()
    return target


def forget() -> None:
    """Look everything up again."""
    _targets.clear()


def _setting_changed(*, setting: str, **kwargs: Any) -> None:
    if setting in ("DBFLEET", "INSTALLED_APPS"):
        forget()


def _class_prepared(sender: Any, **kwargs: Any) -> None:
    # Historical models have a registry of their own and decide nothing.
    if sender._meta.apps is apps:
        forget()


setting_changed.connect(_setting_changed, dispatch_uid="dbfleet.placement")
class_prepared.connect(_class_prepared, dispatch_uid="dbfleet.placement")
