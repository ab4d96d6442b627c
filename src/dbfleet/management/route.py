"""Prints where a queryset would go and why, without running it.

The queryset is ``Model._default_manager`` with the given filters. Values are read by
the field that they are compared with; lists of ``in`` and ``range`` are parted by
commas, ``isnull`` is true or false. The shard map is read, home may be asked for a
lookup, with ``--sizes`` the servers for estimates; nothing else is sent.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, FieldError, ValidationError
from django.core.management.base import CommandError
from django.db import connections
from django.db.models import Field, Model, QuerySet
from django.db.models.constants import LOOKUP_SEP

from dbfleet.explain import explain_route
from dbfleet.planner.route import Route

HELP = "print the route of a queryset without running it"
#: lookups whose value is of the field's own type
_SAME_TYPE = frozenset(["exact", "iexact", "gt", "gte", "lt", "lte"])
_LISTS = frozenset(["in", "range"])
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="app.Model")
    for name, text in (
        ("--filter", "keep rows with this value; may be repeated"),
        ("--exclude", "leave out rows with this value; may be repeated"),
    ):
        parser.add_argument(
            name, action="append", default=[], metavar="field=value", help=text
        )
    parser.add_argument("--order-by", action="append", default=[], metavar="field")
    parser.add_argument("--database", help="an alias; the routers' choice by default")
    parser.add_argument(
        "--sizes",
        action="store_true",
        help="have the servers estimate the rows of a gather's fragments",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(
    stdout: Any,
    *,
    model: str,
    filter: Sequence[str],  # noqa: A002 - the option's name
    exclude: Sequence[str],
    order_by: Sequence[str],
    database: str | None,
    sizes: bool,
    json: bool,
    **options: Any,
) -> None:
    """Print the route; raises CommandError for what names no model, field or value,
    FleetError where the queryset would be refused."""
    found = _model(model)
    queryset: QuerySet[Any] = found._default_manager.all()
    if database is not None:
        if database not in connections.settings:
            known = ", ".join(connections.settings)
            raise CommandError(f"there is no alias {database!r}; there are: {known}")
        queryset = queryset.using(database)
    try:
        for condition in filter:
            queryset = queryset.filter(**_condition(found, condition))
        for condition in exclude:
            queryset = queryset.exclude(**_condition(found, condition))
        if order_by:
            queryset = queryset.order_by(*order_by)
        route = explain_route(queryset, sizes=sizes)
    except (FieldError, ValueError, TypeError) as error:
        raise CommandError(f"{found._meta.label}: {error}") from error
    stdout.write(_as_json(route) if json else route.describe())


def _model(label: str) -> type[Model]:
    try:
        return apps.get_model(label)
    except (LookupError, ValueError) as error:
        labels = (one._meta.label for one in apps.get_models())
        known = ", ".join(sorted(labels))
        raise CommandError(
            f"there is no model {label!r}; give one as app.Model: {known}"
        ) from error


def _condition(model: type[Model], given: str) -> dict[str, Any]:
    """``field__lookup=text`` as a keyword of ``filter()``."""
    path, equals, text = given.partition("=")
    if not equals or not path:
        raise CommandError(f"{given!r} is no condition; write field=value")
    field, rest = _field(model, path)
    lookup = rest[-1] if rest else "exact"
    if field.get_lookup(lookup) is None:
        lookup = "exact"  # the last part is a transform
    return {path: _value(_compared(field, rest), path, lookup, text)}


def _field(model: type[Model], path: str) -> tuple[Any, list[str]]:
    """The field that a path leads to, and the transforms and lookup after it."""
    names = path.split(LOOKUP_SEP)
    field: Any = None
    opts: Any = model._meta
    for at, name in enumerate(names):
        try:
            field = opts.pk if name == "pk" else opts.get_field(name)
        except FieldDoesNotExist:
            if field is None or not _is_lookup(field, name):
                known = ", ".join(sorted(one.name for one in opts.get_fields()))
                raise CommandError(
                    f"{opts.label} has no field {name!r}; it has: {known}"
                ) from None
            return field, names[at:]
        if not field.is_relation or at + 1 == len(names):
            return _concrete(field), names[at + 1 :]
        opts = field.related_model._meta
    raise AssertionError(path)


def _is_lookup(field: Any, name: str) -> bool:
    """Whether a name after a field may be a lookup; after a relation it must be."""
    if not field.is_relation:
        return True  # Django's own error suggests a better one
    return isinstance(field, Field) and bool(
        field.get_lookup(name) or field.get_transform(name)
    )


def _concrete(field: Any) -> Any:
    """A relation that is followed backwards is compared by the other model's key."""
    return field if isinstance(field, Field) else field.related_model._meta.pk


def _compared(field: Any, rest: Sequence[str]) -> Any:
    """The field whose values are compared, after transforms such as ``year``."""
    for name in rest:
        transform = field.get_transform(name)
        if transform is None:
            break
        output = getattr(transform, "output_field", None)
        if not isinstance(output, Field):
            return None  # only known once it is compiled: the text is the value
        field = output
    return field


def _value(field: Any, path: str, lookup: str, text: str) -> Any:
    if lookup == "isnull":
        if text.lower() not in _TRUTH:
            raise CommandError(f"{path} is true or false, not {text!r}")
        return _TRUTH[text.lower()]
    if field is None or lookup not in _SAME_TYPE | _LISTS:
        return text
    parts = text.split(",") if lookup in _LISTS else [text]
    try:
        values = [field.to_python(part) for part in parts]
    except (ValidationError, ValueError, TypeError) as error:
        reason = " ".join(getattr(error, "messages", [str(error)]))
        raise CommandError(f"{path}={text}: {reason}") from error
    return values if lookup in _LISTS else values[0]


def _as_json(route: Route) -> str:
    """The route without parameters: what is filtered by may be a secret."""
    fragments = [
        {
            "model": part.model,
            "table": part.table,
            "columns": part.columns,
            "clusters": part.clusters,
            "where": part.where,
            "rows": part.rows,
        }
        for part in route.fragments
    ]
    return json.dumps(
        {
            "alias": route.alias,
            "intent": route.intent,
            "rung": route.rung,
            "clusters": route.clusters,
            "nodes": route.nodes,
            "replica_ok": route.replica_ok,
            "reason": route.reason,
            "epoch": route.epoch,
            "fragments": fragments,
            "source": None if route.source is None else route.source.name,
            "source_reason": None if route.source is None else route.source.reason,
            "reductions": [one.describe() for one in route.reductions],
        },
        indent=2,
    )
