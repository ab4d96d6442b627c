"""What a fragment may leave behind: filters and columns of one table.

A condition is pushed only if it is AND-ed in its block, speaks of one occurrence
that no outer join can make NULL, and uses nothing but that occurrence's columns,
constants and functions that give the same answer on every server. The final SQL
applies it again, so leaving one out costs rows, never correctness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db.models import lookups
from django.db.models.expressions import Col, Value
from django.db.models.fields.related_lookups import (
    RelatedExact,
    RelatedGreaterThan,
    RelatedGreaterThanOrEqual,
    RelatedIn,
    RelatedIsNull,
    RelatedLessThan,
    RelatedLessThanOrEqual,
)
from django.db.models.sql.where import AND, WhereNode

from dbfleet.planner.blocks import Block, Occurrence, is_djangos

#: more alternatives than this are slower for a shard than sending every row
MAX_ALTERNATIVES = 16

_SAFE_LOOKUPS = (
    lookups.Exact,
    lookups.In,
    lookups.GreaterThan,
    lookups.GreaterThanOrEqual,
    lookups.LessThan,
    lookups.LessThanOrEqual,
    lookups.Range,
    lookups.IsNull,
    lookups.IExact,
    lookups.PatternLookup,
    RelatedExact,
    RelatedIn,
    RelatedGreaterThan,
    RelatedGreaterThanOrEqual,
    RelatedLessThan,
    RelatedLessThanOrEqual,
    RelatedIsNull,
)


def conjuncts(where: Any) -> Iterator[Any]:
    """The conditions that all must hold."""
    if isinstance(where, WhereNode) and where.connector == AND and not where.negated:
        for child in where.children:
            yield from conjuncts(child)
    elif where is not None:
        yield where


def is_local_to(node: Any, alias: str) -> bool:
    """Whether ``node`` can be decided from the row of one occurrence alone."""
    if isinstance(node, WhereNode):
        return bool(node.children) and all(
            is_local_to(child, alias) for child in node.children
        )
    if not is_djangos(node) or not isinstance(node, _SAFE_LOOKUPS):
        return False
    if getattr(node, "bilateral_transforms", None):
        return False
    return isinstance(node.lhs, Col) and node.lhs.alias == alias and _is_plain(node)


def _is_plain(lookup: Any) -> bool:
    rhs = lookup.rhs
    if isinstance(rhs, (Value, Col)):
        return isinstance(rhs, Value) or rhs.alias == lookup.lhs.alias
    if hasattr(rhs, "resolve_expression") or hasattr(rhs, "as_sql"):
        return False
    if isinstance(rhs, (list, tuple, set, frozenset)):
        return not any(
            hasattr(v, "resolve_expression") or hasattr(v, "as_sql") for v in rhs
        )
    return True


def filter_of(
    block: Block,
    occurrence: Occurrence,
    limited: Callable[[Any], Any] = lambda node: node,
) -> tuple[str, tuple[Any, ...]]:
    """Compiled conditions over the bare table, ``""`` if none can be pushed.

    ``limited`` may put a stronger condition in the place of one.
    """
    if not occurrence.is_inner:
        return "", ()
    compiler = block.compiler
    change = {occurrence.alias: occurrence.table}
    parts: list[str] = []
    params: list[Any] = []
    for node in conjuncts(block.query.where):
        if not is_local_to(node, occurrence.alias):
            continue
        bare = limited(node).relabeled_clone(change)
        try:
            sql, values = compiler.compile(bare)
        except FullResultSet:
            continue
        except EmptyResultSet:
            return "1 = 0", ()
        parts.append(sql)
        params += values
    return " AND ".join(f"({part})" for part in parts), tuple(params)


def any_filter(
    filters: Iterable[tuple[str, tuple[Any, ...]]],
) -> tuple[str, tuple[Any, ...]]:
    """OR of the filters of all occurrences; one without a filter wants all rows."""
    parts: list[tuple[str, tuple[Any, ...]]] = []
    for part in filters:
        if not part[0]:
            return "", ()
        if part not in parts:
            parts.append(part)
    if len(parts) > MAX_ALTERNATIVES:
        return "", ()
    joined = " OR ".join(f"({sql})" for sql, _ in parts)
    return joined, tuple(value for _, params in parts for value in params)
