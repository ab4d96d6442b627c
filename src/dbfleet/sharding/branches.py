"""``bulk_update``: each shard is sent the branches of the rows that it holds.

``bulk_update`` writes one ``CASE WHEN pk = … THEN … END`` for each field, with a branch
for each row, which a server tries one after the other for every row that it finds.
Invariant: a branch is left out only where its row is known to be on another shard.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from django.db.models import Case, When
from django.db.models.expressions import Col
from django.db.models.functions import Cast
from django.db.models.lookups import In
from django.db.models.sql import Query
from django.db.models.sql.where import AND, WhereNode

from dbfleet.planner import simple
from dbfleet.planner.tables import Table


def has_branches(values: Iterable[Any]) -> bool:
    """Whether an UPDATE has a branch for each of its rows; no I/O."""
    return any(_branches(value) is not None for _, _, value in values)


def narrowed(
    values: Sequence[Any], pk_field: Any, elsewhere: Collection[Any]
) -> list[Any]:
    """The values without branches of the rows ``elsewhere``, given by primary key."""
    if not elsewhere:
        return list(values)
    return [
        (field, model, _without(value, pk_field, elsewhere))
        for field, model, value in values
    ]


def _without(value: Any, pk_field: Any, elsewhere: Collection[Any]) -> Any:
    branches = _branches(value)
    if branches is None:
        return value
    kept = [
        when for when in branches if _row_of(when, pk_field, elsewhere) not in elsewhere
    ]
    if not kept or len(kept) == len(branches):
        return value
    changed = value.copy()
    if isinstance(value, Case):
        changed.cases = kept
    else:
        inner = value.get_source_expressions()[0].copy()
        inner.cases = kept
        changed.set_source_expressions([inner])
    return changed


def _branches(value: Any) -> list[When] | None:
    """The branches of one field's CASE, if that is what it is and nothing more."""
    if type(value) is Cast:
        [value] = value.get_source_expressions()
    if type(value) is not Case:
        return None
    whens: list[When] = value.cases
    return whens if whens and all(map(_is_branch, whens)) else None


def _is_branch(when: When) -> bool:
    where: Any = when.condition
    if not isinstance(where, WhereNode) or where.negated or len(where.children) != 1:
        return False
    lookup: Any = where.children[0]
    if type(lookup) not in simple.EXACT or type(lookup.lhs) is not Col:
        return False
    return bool(lookup.lhs.target.primary_key)


def _row_of(when: When, pk_field: Any, elsewhere: Collection[Any]) -> Any:
    """The primary key of a branch's row, as rows are read; the branch itself if it
    is no plain value."""
    condition: Any = when.condition
    value = condition.children[0].rhs
    try:
        found = pk_field.to_python(value)
        hash(found)
    except Exception:  # noqa: BLE001 - what a field raises for what it cannot read
        return when
    return found


def listed(query: Query, table: Table) -> list[Any] | None:
    """The primary keys that a query lists, if it asks for nothing else; no I/O."""
    where: Any = query.where
    if where.negated or where.connector != AND or len(where.children) != 1:
        return None
    [lookup] = where.children
    [pk_field, *more] = table.pk_fields
    if more or type(lookup) is not In or type(lookup.lhs) is not Col:
        return None
    if lookup.lhs.target is not pk_field or query.is_sliced or query.distinct:
        return None
    if sum(map(bool, query.alias_refcount.values())) > 1 or query.combinator:
        return None
    values = lookup.rhs
    if not isinstance(values, (list, tuple, set, frozenset)):
        return None
    if any(hasattr(value, "resolve_expression") for value in values):
        return None
    return [value for value in dict.fromkeys(values) if value is not None]
