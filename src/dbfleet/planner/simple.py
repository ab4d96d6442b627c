"""The commonest statement, routed before it is compiled: ``get()`` by its shard key.

Proves from the query alone that its SQL will look at one table, and which value
fixes the shard. Says nothing of any other query: :mod:`dbfleet.planner.plan` does.
"""

from __future__ import annotations

from typing import Any

from django.db.models import Field
from django.db.models.expressions import Col
from django.db.models.fields.related_lookups import RelatedExact
from django.db.models.lookups import Exact, IntegerFieldExact
from django.db.models.sql import Query
from django.db.models.sql.where import AND

from dbfleet.planner.tables import Table

#: lookups that are plain equality
EXACT = frozenset({Exact, IntegerFieldExact, RelatedExact})


def only_key(table: Table) -> Any:
    """The field that a simple query fixes the shard by; None if there is none.

    None also for tables whose columns may bring other tables into the SQL: those of
    a parent model, and what a project's own kind of field makes of its column.
    """
    if not table.is_sharded or len(table.key_fields) != 1 or table.opts.parents:
        return None
    if any(map(_writes_sql, table.opts.concrete_fields)):
        return None
    return table.key_fields[0]


def _writes_sql(field: Any) -> bool:
    """Whether a kind of field has SQL of its own where its column or value stands."""
    if type(field).select_format is not Field.select_format:
        return True
    names = ("get_placeholder", "get_placeholder_sql")  # until, since Django 6.1
    found = [getattr(type(field), name, None) for name in names]
    return any(own and own.__module__ != Field.__module__ for own in found)


def key_value(query: Any, key: Any) -> Any:
    """The value that the filters of a simple query fix ``key`` to, else None."""
    if type(query) is not Query or not _is_bare(query):
        return None
    where: Any = query.where
    if where.negated or where.connector != AND:
        return None
    refcounts = query.alias_refcount  # of joins trimmed away, nobody uses the table
    if len(refcounts) != 1 and sum(map(bool, refcounts.values())) != 1:
        return None
    found = None
    for lookup in where.children:
        if type(lookup) not in EXACT or type(lookup.lhs) is not Col:
            return None
        value = lookup.rhs
        if hasattr(value, "as_sql") or hasattr(value, "resolve_expression"):
            return None
        if lookup.lhs.target is key:
            if found is not None:
                return None
            found = value
    return found


def _is_bare(query: Any) -> bool:
    """Whether nothing but filters and columns of its own table is asked for."""
    has_more = (
        query.annotations
        or query.select
        or not query.default_cols
        or query.select_related
        or query.select_for_update
        or query.distinct
        or query.combinator
        or query.extra
        or query.extra_tables
        or query.order_by
        or query.extra_order_by
        or query.explain_info
        or query.group_by is not None
        or (query.default_ordering and query.get_meta().ordering)
    )
    return not has_more
