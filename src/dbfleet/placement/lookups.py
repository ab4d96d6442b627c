"""Which columns of a sharded model its rows are looked up by, besides the shard key.

Guards one invariant: a lookup is unique by itself, over all shards, so that home's
claims say where each of its values is. Precedence: ``SHARD_LOOKUPS`` for the model,
then ``Meta.shard_lookups``.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Field, UniqueConstraint

from dbfleet import conf
from dbfleet.errors import ConfigurationError
from dbfleet.placement.keys import KeyProblem
from dbfleet.placement.lookup import registered
from dbfleet.topology.mistakes import Mistakes

#: kinds of fields whose equal values have one text that home can be asked by
_KINDS = frozenset(
    {
        "AutoField",
        "BigAutoField",
        "SmallAutoField",
        "IntegerField",
        "BigIntegerField",
        "SmallIntegerField",
        "PositiveIntegerField",
        "PositiveBigIntegerField",
        "PositiveSmallIntegerField",
        "UUIDField",
        "CharField",
        "TextField",
        "SlugField",
        "FilePathField",
        "FileField",
    }
)


def lookup_names(opts: Any) -> tuple[str, ...]:
    """What settings or today's ``Meta.shard_lookups`` name; raises
    ``ConfigurationError`` for what is no list of names."""
    found = conf.settings().lookups.get(f"{opts.app_label}.{opts.model_name}")
    if found is not None:
        return found
    model = registered(opts.app_label, opts.model_name)
    return () if model is None else meta_names(model)


def meta_names(model: Any) -> tuple[str, ...]:
    """What the model's own ``Meta.shard_lookups`` says, checked."""
    given = getattr(model._meta, "shard_lookups", ())
    mistakes = Mistakes()
    where = f"{model._meta.label}.Meta.shard_lookups"
    names = conf.read_names(where, given, mistakes)
    mistakes.raise_any()
    return names or ()


def lookup_fields(opts: Any) -> tuple[Any, ...]:
    """The declared lookups of a model, given by its (historical) ``Options``.

    Raises ``ConfigurationError`` E111 where one cannot be kept for today's model; a
    historical one that lacks a field has one less.
    """
    found = []
    for name in lookup_names(opts):
        try:
            found.append(find_lookup(opts, name))
        except KeyProblem as problem:
            if opts.apps is not apps:
                continue
            raise ConfigurationError(
                problem.code, f"{opts.label}: the lookup {problem}"
            ) from problem
    return tuple(found)


def find_lookup(opts: Any, name: str) -> Any:
    """The field of a lookup; raises :class:`KeyProblem` E111."""
    try:
        field = opts.pk if name == "pk" else opts.get_field(name)
    except FieldDoesNotExist:
        field = None
    if field not in opts.local_concrete_fields:
        raise KeyProblem("E111", f"'{name}' is no column of the table of {opts.label}")
    if not field.unique and not any(
        isinstance(one, UniqueConstraint)
        and tuple(one.fields) == (field.name,)
        and one.condition is None
        for one in opts.constraints
    ):
        raise KeyProblem(
            "E111",
            f"'{name}' of {opts.label} is not unique by itself, so several shards may "
            "have rows with one value. Only a field with unique=True, or a constraint "
            "of its own, can be a lookup",
        )
    stored = field
    while stored.remote_field:
        stored = stored.target_field
    kind = stored.get_internal_type()
    has_own_sql = any(
        getattr(type(stored), name, None) is not getattr(Field, name, None)
        for name in ("get_placeholder", "get_placeholder_sql")
    )
    if kind not in _KINDS or type(stored).db_type is not Field.db_type or has_own_sql:
        raise KeyProblem(
            "E111",
            f"'{name}' of {opts.label} is a {type(stored).__name__}: equal values may "
            "be written differently. Lookups are of text, whole numbers and UUIDs",
        )
    return field
