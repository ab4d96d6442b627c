"""Django's system checks: what settings and models say about each other.

Guards one invariant: a check opens no connection and reports every mistake it can
find in one run, under the codes that the errors at run time have.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.db import connections, router
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import CreateModel, RenameModel

from dbfleet import conf, topology
from dbfleet.conf import FleetSettings, Target
from dbfleet.errors import ConfigurationError
from dbfleet.placement.constraints import spread_constraints
from dbfleet.placement.keys import KeyProblem, column_misfit, find_key
from dbfleet.placement.layout import layout, meta_rule, rule_for, settings_rule
from dbfleet.placement.layouts import Reference, Sharded
from dbfleet.placement.lookup import (
    alias_for_model,
    aliases_of,
    meta_target,
    registered,
    root_of,
)
from dbfleet.placement.lookups import find_lookup, lookup_names
from dbfleet.placement.router import PlacementRouter
from dbfleet.policies import Named
from dbfleet.replicas import Call, SourceFailed
from dbfleet.sharding import ids
from dbfleet.topology import Topology
from dbfleet.topology.mistakes import Mistake, Mistakes, unknown_name


def check_settings(**kwargs: Any) -> list[checks.CheckMessage]:
    """``DATABASES`` and ``DBFLEET``: their form, and the names they use."""
    mistakes, fleet = _read_settings()
    for label, target in fleet.placement.items():
        _check_aliases(f"DBFLEET['PLACEMENT']['{label}']", target, mistakes)
    for setting, labels in (
        ("PLACEMENT", fleet.placement),
        ("POLICIES", fleet.policies),
        ("SHARD_KEYS, REFERENCE or LOCAL", fleet.shard_rules),
        ("SHARD_LOOKUPS", fleet.lookups),
        ("IDS", [label for label in fleet.ids if label != conf.ANY]),
    ):
        for label in labels:
            _check_label(f"DBFLEET {setting}", label, mistakes)
    for label in {*fleet.placement, *fleet.shard_rules}:
        _check_root(label, mistakes)
    for label in fleet.lookups:
        if "." not in label:
            where = "DBFLEET['SHARD_LOOKUPS']"
            text = f"'{label}' is an app; name a model, 'app.Model'"
            mistakes.add("E004", where, text)
    _check_policies(fleet, mistakes)
    _check_sources(mistakes)
    return [_message(mistake) for mistake in mistakes]


def check_models(**kwargs: Any) -> list[checks.CheckMessage]:
    """``Meta.using``, shard keys and constraints of every model."""
    unsound, fleet = _read_settings()
    if unsound:
        return []  # told by check_settings
    mistakes = Mistakes()
    models = apps.get_models(include_auto_created=True)
    is_placed = [_check_using(model, mistakes) for model in models]
    if (any(is_placed) or fleet.placement) and not _has_router():
        mistakes.add(
            "E109",
            "DATABASE_ROUTERS",
            "models are placed by DBFLEET['PLACEMENT'] or Meta.using, but "
            "'dbfleet.PlacementRouter' is not among the routers: add it",
        )
    if not mistakes:
        topologies = _topologies()
        for model in models:
            if not model._meta.proxy:
                _check_sharding(model, topologies, fleet, mistakes)
    return [_message(mistake) for mistake in mistakes]


def _read_settings() -> tuple[Mistakes, FleetSettings]:
    mistakes = topology.find_mistakes(settings.DATABASES)
    return mistakes, conf.read(getattr(settings, "DBFLEET", {}), mistakes)


def _message(mistake: Mistake) -> checks.CheckMessage:
    kind = checks.Warning if mistake.code.startswith("W") else checks.Error
    return kind(mistake.text, obj=mistake.where, id=f"dbfleet.{mistake.code}")


def _check_sources(mistakes: Mistakes) -> None:
    """A function that is to find replicas exists; it is not called."""
    for where, source in topology.sources(settings.DATABASES):
        if isinstance(source, Call):
            try:
                source.resolved()
            except SourceFailed as error:
                mistakes.add("E004", where, f"REPLICAS CALL {error}")


# --- names in settings ---------------------------------------------------------


def _check_aliases(where: str, target: Target, mistakes: Mistakes) -> None:
    for alias in aliases_of(target):
        if alias not in settings.DATABASES:
            text = unknown_name(alias, settings.DATABASES)
            mistakes.add("E101", where, f"alias {text}")


def _check_label(where: str, label: str, mistakes: Mistakes) -> None:
    app_label, dot, model_name = label.partition(".")
    labels = {config.label for config in apps.get_app_configs()}
    if app_label not in labels:
        mistakes.add("E102", where, f"app {unknown_name(app_label, labels)}")
    elif dot and not _is_model(app_label, model_name):
        known = {f"{app_label}.{name}" for name in apps.all_models[app_label]}
        mistakes.add("E102", where, f"model {unknown_name(label, known)}")


def _is_model(app_label: str, model_name: str) -> bool:
    """Whether the model exists, or its app's migrations know it from the past."""
    if registered(app_label, model_name) is not None:
        return True
    # A placement of a model since deleted or renamed says where to replay it.
    loader = MigrationLoader(None, ignore_no_migrations=True)
    return any(
        app == app_label
        and any(
            (isinstance(step, CreateModel) and step.name_lower == model_name)
            or (isinstance(step, RenameModel) and step.new_name_lower == model_name)
            for step in migration.operations
        )
        for (app, _), migration in loader.disk_migrations.items()
    )


def _check_root(label: str, mistakes: Mistakes) -> None:
    """A setting for a model that follows another one would do nothing."""
    app_label, dot, model_name = label.partition(".")
    model = registered(app_label, model_name) if dot else None
    if model is None:
        return
    root = root_of(model)
    is_through = bool(model._meta.auto_created)
    if root is not model and not is_through:
        mistakes.add(
            "E005",
            "DBFLEET",
            f"'{model._meta.label}' is stored with '{root._meta.label}' and follows "
            f"it; name '{root._meta.label}' instead",
        )


def _check_policies(fleet: FleetSettings, mistakes: Mistakes) -> None:
    policies = {
        f"DBFLEET['POLICIES']['{label}']": policy
        for label, policy in fleet.policies.items()
    }
    policies["DBFLEET['POLICY']"] = fleet.policy
    if not mistakes:
        for alias, one in _topologies().items():
            for cluster in one.clusters:
                if cluster.policy is not None:
                    policies[f"POLICY of {alias}"] = cluster.policy
    for where, policy in policies.items():
        if isinstance(policy, Named):
            try:
                policy.resolve()
            except ConfigurationError as error:
                mistakes.add_error(where, error)


# --- models --------------------------------------------------------------------


def _topologies() -> dict[str, Topology]:
    return topology.load_all(connections.settings)


def _has_router() -> bool:
    return any(isinstance(one, PlacementRouter) for one in router.routers)


def _check_using(model: Any, mistakes: Mistakes) -> bool:
    """Check the model's own ``Meta.using``; whether it has one."""
    root = root_of(model)
    try:
        target, roots = meta_target(model), meta_target(root)
    except ConfigurationError as error:
        mistakes.add_error(model._meta.label, error)
        return True
    if target is None:
        return False
    where = f"{model._meta.label}.Meta.using"
    _check_aliases(where, target, mistakes)
    if roots != target:
        mistakes.add(
            "E005",
            where,
            f"does nothing: its rows live with those of '{root._meta.label}', whose "
            f"placement decides; remove it",
        )
    return True


def _aliases(model: Any) -> tuple[str, ...]:
    """Where the model's rows are written, the user's own routers asked last."""
    target = alias_for_model(model)
    return aliases_of(target) if target else (router.db_for_write(model),)


def _check_sharding(
    model: Any,
    topologies: dict[str, Topology],
    fleet: FleetSettings,
    mistakes: Mistakes,
) -> None:
    opts = model._meta
    homes = [
        topologies[alias]
        for alias in _aliases(model)
        if alias in topologies and topologies[alias].has_layouts
    ]
    try:
        own_rule = meta_rule(model)
        rule = rule_for(opts.app_label, opts.model_name)
    except ConfigurationError as error:
        mistakes.add_error(opts.label, error)
        return
    try:
        names = lookup_names(opts)
    except ConfigurationError as error:
        mistakes.add_error(opts.label, error)
        return
    if not homes:
        if f"{opts.app_label}.{opts.model_name}" in fleet.lookups:
            mistakes.add(
                "E111",
                opts.label,
                "DBFLEET['SHARD_LOOKUPS'] names it, but it is not on a sharded alias: "
                "place it on one, or remove its lookups",
            )
        is_own = settings_rule(opts.app_label, opts.model_name) is None
        _check_unused_key(opts, rule, is_own, topologies, mistakes)
        return
    if opts.parents and own_rule is not None:
        mistakes.add(
            "E005",
            opts.label,
            f"Meta.shard_key does nothing: its rows live with those of "
            f"'{root_of(model)._meta.label}', whose key decides",
        )
    try:
        if isinstance(rule, tuple) and not opts.parents:
            find_key(opts, rule, allow_null=False)
        found = layout(homes[0], opts)
    except KeyProblem as problem:
        mistakes.add(problem.code, opts.label, f"its shard key: {problem}")
    except ConfigurationError:
        return  # the parent's key is wrong, which is told for the parent
    else:
        _check_distribution(homes, opts, found, mistakes)
        _check_constraints(opts, found, mistakes)
        _check_lookups(opts, names, found, mistakes)
        _check_ids(opts, found, fleet, mistakes)


def _check_lookups(
    opts: Any, names: tuple[str, ...], found: object, mistakes: Mistakes
) -> None:
    if names and not isinstance(found, Sharded):
        text = "it is looked up by nothing: every node, or home, has all its rows"
        mistakes.add("E111", opts.label, f"{text}; remove its lookups")
        return
    for name in names:
        try:
            find_lookup(opts, name)
        except KeyProblem as problem:
            mistakes.add(problem.code, opts.label, f"its lookup {problem}")


def _check_unused_key(
    opts: Any,
    rule: conf.ShardRule | None,
    is_own: bool,
    topologies: dict[str, Topology],
    mistakes: Mistakes,
) -> None:
    if not isinstance(rule, tuple):
        return
    # A model of a reusable app may declare a key for those projects that shard.
    if is_own and not any(one.has_layouts for one in topologies.values()):
        return
    where = "Meta.shard_key" if is_own else "DBFLEET['SHARD_KEYS']"
    mistakes.add(
        "E106",
        opts.label,
        f"{where} declares {'__'.join(rule)!r}, but the model is not on a sharded "
        f"alias: place it on one, or remove the key",
    )


def _check_distribution(
    homes: list[Topology], opts: Any, found: object, mistakes: Mistakes
) -> None:
    if not isinstance(found, Sharded) or found.key is None:
        return
    for home in homes:
        problem = home.distributed_by and column_misfit(found.key)
        if problem:
            where = f"on alias {home.alias!r}, distributed by {home.distributed_by}"
            mistakes.add("E112", opts.label, f"{where}: {problem}")


def _check_ids(
    opts: Any, found: object, fleet: FleetSettings, mistakes: Mistakes
) -> None:
    """The primary key can hold what ``IDS`` fills it with."""
    if not isinstance(found, (Sharded, Reference)) or opts.parents:
        return
    kind = fleet.ids_for(opts.app_label, opts.model_name)
    text = ids.misfit(kind, opts)
    is_named = f"{opts.app_label}.{opts.model_name}" in fleet.ids
    if text is None and is_named and not ids.is_filled(kind, opts):
        text = f"{opts.pk.name} never waits for one: remove the setting"
    if text is not None:
        where = "DBFLEET['IDS']"
        mistakes.add(
            "E110",
            opts.label,
            f"{where} gives it {kind!r} ids, and {text}, or set {where} = "
            f"{{'{opts.label}': 'leased'}}",
        )


def _check_constraints(opts: Any, found: object, mistakes: Mistakes) -> None:
    if not isinstance(found, Sharded) or found.key is None:
        return
    key = ", ".join([found.key.path[0].field] if found.key.path else found.key.fields)
    remedy = "add the key to it if it need not hold over all shards"
    if opts.auto_created:
        owner = next(field.name for field in opts.local_fields if field.is_relation)
        remedy = (
            f"DBFLEET['SHARD_KEYS'] = {{'{opts.label}': '{owner}'}} keeps a row's "
            f"links on one shard instead"
        )
    for spread in spread_constraints(opts, found.key):
        if spread.is_enforceable:
            mistakes.add(
                "W105",
                opts.label,
                f"{spread.text} does not contain the shard key ({key}): it is "
                f"enforced through home, at the cost of one more participant in "
                f"each write; {remedy}",
            )
        else:
            mistakes.add(
                "E105",
                opts.label,
                f"{spread.text} excludes rows of other shards, which no shard can "
                f"see: add the shard key ({key}) with '=', or place the model in home",
            )
