"""Refuses statements over models that are placed on different aliases.

Django itself ships such SQL and learns from the server that a table is missing, or
reads a stale table of the same name. Installed only where a placement is declared;
then it looks at the tables of each query block once more while SQL is compiled, on
every alias, of dbfleet or not. No I/O.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, router
from django.db.models import deletion
from django.db.models.sql import compiler as sql

from dbfleet import conf, placement
from dbfleet.errors import ConfigurationError, CrossAliasQuery


class _Placements:
    """Table -> (model, aliases it is placed on), for today's models."""

    def __init__(self) -> None:
        self.count = 0
        self.tables: dict[str, tuple[Any, frozenset[str]]] = {}
        self.unplaced: dict[str, Any] = {}
        self.targets: frozenset[str] = frozenset()
        self._settings: Any = None

    def read(self) -> dict[str, tuple[Any, frozenset[str]]]:
        count = sum(map(len, apps.all_models.values()))
        settings = conf.settings()
        if count != self.count or settings is not self._settings:
            self.count, self._settings = count, settings
            self.tables = dict(_placed())
            self.unplaced = {
                model._meta.db_table: model
                for model in apps.get_models(include_auto_created=True)
                if model._meta.db_table not in self.tables
            }
            self.targets = frozenset().union(*(a for _, a in self.tables.values()))
        return self.tables


def _placed() -> Any:
    for model in apps.get_models(include_auto_created=True):
        target = placement.alias_for_model(model)
        if target is not None:
            aliases = frozenset(placement.aliases_of(target))
            yield model._meta.db_table, (model, aliases)


_placements = _Placements()


def is_needed() -> bool:
    """Whether any model is placed at all; mistakes are the system checks' matter."""
    try:
        return bool(_placements.read())
    except ConfigurationError:
        return False


def check(compiler: Any) -> None:
    """Raise CrossAliasQuery if a block joins what its alias does not hold.

    A block whose own model is used on another alias than its placement was sent
    there by ``using()``, which wins; so was everything on an alias that no placement
    names.
    """
    placed = _placements.read()
    alias = compiler.connection.alias
    if alias not in _placements.targets and alias != DEFAULT_DB_ALIAS:
        return
    query = compiler.query
    base = query.get_meta().db_table if query.model is not None else None
    own = placed.get(base) if base is not None else None
    if own is not None and alias not in own[1] and not query.subquery:
        return
    is_placed = own is not None or query.subquery
    for name in tuple(query.alias_map):
        if not query.alias_refcount.get(name):
            continue
        table = query.alias_map[name].table_name
        found = placed.get(table) or (_unplaced(table) if is_placed else None)
        if found is not None and alias not in found[1]:
            raise _refused(query, name, found, alias)


def _unplaced(table: str) -> tuple[Any, frozenset[str]] | None:
    """Where the routers keep a table that nobody placed."""
    model = _placements.unplaced.get(table)
    if model is None:
        return None
    return model, frozenset({router.db_for_write(model)})


def _refused(
    query: Any, name: str, found: tuple[Any, frozenset[str]], alias: str
) -> CrossAliasQuery:
    model, aliases = found
    join = query.alias_map[name]
    field = getattr(join, "join_field", None)
    via = f" (joined by {getattr(field, 'name', '')!r})" if field else ""
    label = query.get_meta().label
    return CrossAliasQuery(
        "E301",
        f"a query of {label} on alias {alias!r} needs {model._meta.label}{via}, which "
        f"is placed on {' or '.join(map(repr, sorted(aliases)))}; it was not sent. "
        f"Fetch the keys first and filter by them: "
        f"filter(<field>__in=list({model.__name__}.objects.filter(...)"
        f'.values_list("pk", flat=True))), use prefetch_related() in place of '
        "select_related(), or place both models on one alias",
    )


def install() -> None:
    """Wrap the two places where a statement meets other models' tables; idempotent."""
    original = sql.SQLCompiler.get_from_clause
    if getattr(original, "is_guarded", False):
        return

    @functools.wraps(original)
    def get_from_clause(self: Any, *args: Any, **kwargs: Any) -> Any:
        check(self)
        return original(self, *args, **kwargs)

    get_from_clause.is_guarded = True  # type: ignore[attr-defined]
    sql.SQLCompiler.get_from_clause = get_from_clause  # type: ignore[method-assign]
    deletion.Collector.related_objects = _guarded_cascade(  # type: ignore[method-assign]
        deletion.Collector.related_objects
    )


def _guarded_cascade(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def related_objects(
        self: Any, related_model: Any, *args: Any, **kwargs: Any
    ) -> Any:
        table = related_model._meta.concrete_model._meta.db_table
        found = _placements.read().get(table)
        known = self.using in _placements.targets or self.using == DEFAULT_DB_ALIAS
        if found is not None and known and self.using not in found[1]:
            raise CrossAliasQuery(
                "E301",
                f"deleting on alias {self.using!r} would cascade to "
                f"{related_model._meta.label}, which is placed on "
                f"{' or '.join(map(repr, sorted(found[1])))}; nothing was deleted. "
                f"Delete or change its rows first and give the foreign key "
                "on_delete=DO_NOTHING, or place both models on one alias",
            )
        return original(self, related_model, *args, **kwargs)

    return related_objects
