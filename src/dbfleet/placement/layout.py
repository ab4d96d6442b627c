"""Which layout a model's table has on its alias, decided by label.

Guards one invariant: today's configuration decides for a historical model too, so
that a migration replayed on an empty fleet puts every row where today's code looks
for it.

Precedence: ``SHARD_KEYS``, ``REFERENCE`` or ``LOCAL`` for the model, then for its
app, then ``Meta.shard_key``, then the primary key.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps

from dbfleet import conf
from dbfleet.conf import ShardRule, most_specific
from dbfleet.errors import ConfigurationError
from dbfleet.placement.keys import KeyProblem, find_key, parent_key, primary_key
from dbfleet.placement.layouts import (
    LOCAL,
    REFERENCE,
    Layout,
    Local,
    Reference,
    Sharded,
)
from dbfleet.placement.lookup import registered
from dbfleet.topology.mistakes import Mistakes
from dbfleet.topology.snapshot import Topology

_MIGRATIONS_TABLE = "django_migrations"


def layout(topology: Topology, opts: Any) -> Layout:
    """The layout of the table of a model, given by its (historical) ``Options``.

    Looks nothing up in a database. Raises ``ConfigurationError`` E103 when today's
    model lacks its own key; a historical one that does is ``Sharded(key=None)``.
    """
    opts = opts.concrete_model._meta if opts.concrete_model else opts
    if (
        not topology.has_layouts
        or opts.app_label == "dbfleet"
        or opts.db_table == _MIGRATIONS_TABLE
    ):
        return LOCAL
    link = parent_link(opts)
    if link is not None:
        return _of_child(topology, opts, link)
    rule = rule_for(opts.app_label, opts.model_name)
    if rule is None and opts.auto_created:
        owner = layout(topology, opts.auto_created._meta)
        if not isinstance(owner, Sharded):
            return owner
    match rule:
        case "reference":
            return REFERENCE
        case "local":
            return LOCAL
        case None:
            return Sharded(primary_key(opts))
        case names:
            return _by_names(opts, names)


def _by_names(opts: Any, names: tuple[str, ...]) -> Sharded:
    try:
        return Sharded(find_key(opts, names, allow_null=True))
    except KeyProblem as problem:
        if opts.apps is not apps:
            return Sharded(None)
        raise ConfigurationError(
            problem.code,
            f"{opts.label}: the shard key {'__'.join(names)!r} cannot be used: "
            f"{problem}",
        ) from problem


def _of_child(topology: Topology, opts: Any, link: Any) -> Layout:
    parent = layout(topology, link.remote_field.model._meta)
    if isinstance(parent, Sharded) and parent.key is not None:
        return Sharded(parent_key(opts, link, parent.key))
    return parent


def parent_link(opts: Any) -> Any | None:
    """The field by which a multi-table child refers to its (first) parent."""
    return next((link for link in opts.parents.values() if link is not None), None)


def rule_for(app_label: str, model_name: str) -> ShardRule | None:
    """What settings or today's ``Meta.shard_key`` declare; None means the default."""
    rule = settings_rule(app_label, model_name)
    if rule is not None:
        return rule
    model = registered(app_label, model_name)
    return None if model is None else meta_rule(model)


def settings_rule(app_label: str, model_name: str) -> ShardRule | None:
    """What ``SHARD_KEYS``, ``REFERENCE`` and ``LOCAL`` declare."""
    return most_specific(conf.settings().shard_rules, app_label, model_name)


def meta_rule(model: Any) -> ShardRule | None:
    """What the model's own ``Meta.shard_key`` says, checked."""
    given = getattr(model._meta, "shard_key", None)
    if given is None:
        return None
    if isinstance(given, Reference):
        return "reference"
    if isinstance(given, Local):
        return "local"
    mistakes = Mistakes()
    rule = conf.read_key(f"{model._meta.label}.Meta.shard_key", given, mistakes)
    mistakes.raise_any()
    return rule
