"""Which shards can hold the rows that a query block looks at.

Sound before sharp: unknown means every shard. From a block's AND-ed equalities
and INs (under OR only what every branch fixes) come sets of possible values for
columns; joins on equal columns carry them on. A key whose columns all have values
has a set of shards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from django.db.models.expressions import Col
from django.db.models.fields.tuple_lookups import TupleExact, TupleIn
from django.db.models.lookups import Exact, In
from django.db.models.sql.constants import INNER
from django.db.models.sql.where import AND, OR, WhereNode

from dbfleet.planner.blocks import Block, is_djangos
from dbfleet.planner.tables import Table

#: (table alias, column) -> the only values its rows may have
Values = dict[tuple[str, str], frozenset[Any]]
#: whether equality on a field means equal values
IsExact = Callable[[Any], bool]
#: (key fields, key values) -> shard name
ShardOf = Callable[[tuple[Any, ...], tuple[Any, ...]], str]

#: more keys than this in one IN are not worth placing one by one
MAX_KEYS = 10_000


def possible_values(node: Any, is_exact: IsExact) -> Values:
    """What ``node``, taken as true, says of columns; empty when unsure.

    ``is_exact`` tells the fields whose equality is equality of values; under a
    case-insensitive collation 'a' also finds 'A', on whatever shard that is.
    """
    if isinstance(node, WhereNode):
        if node.negated or not node.children:
            return {}
        parts = [possible_values(child, is_exact) for child in node.children]
        if node.connector == AND:
            return _all_of(parts)
        if node.connector == OR:
            return _any_of(parts)
        return {}
    return _lookup_values(node, is_exact)


def _lookup_values(node: Any, is_exact: IsExact) -> Values:
    if not is_djangos(node):
        return {}
    if isinstance(node, TupleExact):
        return _tuple_values(node, [node.rhs], is_exact)
    if isinstance(node, TupleIn):
        return _tuple_values(node, node.rhs, is_exact)
    if isinstance(node, Exact) and isinstance(node.lhs, Col):
        return _column_values(node.lhs, [node.rhs], is_exact)
    if isinstance(node, In) and isinstance(node.lhs, Col):
        if hasattr(node.rhs, "resolve_expression") or len(node.rhs) > MAX_KEYS:
            return {}
        return _column_values(node.lhs, node.rhs, is_exact)
    return {}


def _column_values(column: Col, values: Iterable[Any], is_exact: IsExact) -> Values:
    if not is_exact(column.target):
        return {}
    found = []
    for value in values:
        if hasattr(value, "resolve_expression") or hasattr(value, "as_sql"):
            return {}
        if value is not None:  # NULL equals nothing
            found.append(value)
    name: Any = column.target.column
    try:
        return {(column.alias, name): frozenset(found)}
    except TypeError:  # an unhashable value, such as JSON
        return {}


def _tuple_values(node: Any, rows: Any, is_exact: IsExact) -> Values:
    """Column by column: weaker than the tuple, never wrong."""
    columns = list(node.lhs)
    if not isinstance(rows, (list, tuple, set, frozenset)) or len(rows) > MAX_KEYS:
        return {}
    rows = list(rows)
    if not all(isinstance(row, (list, tuple)) for row in rows):
        return {}
    values: Values = {}
    for at, column in enumerate(columns):
        if isinstance(column, Col):
            values |= _column_values(column, [row[at] for row in rows], is_exact)
    return values


def _all_of(parts: list[Values]) -> Values:
    merged: Values = {}
    for part in parts:
        for column, values in part.items():
            merged[column] = merged[column] & values if column in merged else values
    return merged


def _any_of(parts: list[Values]) -> Values:
    common = set(parts[0]).intersection(*parts[1:]) if parts else set()
    return {column: frozenset().union(*(p[column] for p in parts)) for column in common}


def spread_over_joins(values: Values, block: Block) -> Values:
    """Carry values along ``a.x = b.y`` of a block's joins.

    From parent to child always: a child row that matches has the parent's value.
    From child to parent only over an inner join, where a parent without a match is
    no result.
    """
    values = dict(values)
    joins = block.joins
    for _ in range(len(joins) + 1):
        changed = False
        for join in joins:
            for parent_column, column in join.join_cols:
                if not isinstance(column, str):
                    continue
                above = (join.parent_alias, parent_column)
                below = (join.table_alias, column)
                changed |= _narrow(values, above, below)
                if join.join_type == INNER:
                    changed |= _narrow(values, below, above)
        if not changed:
            break
    return values


def _narrow(values: Values, source: tuple[str, str], target: tuple[str, str]) -> bool:
    if source not in values:
        return False
    narrowed = values[source] & values.get(target, values[source])
    if values.get(target) == narrowed:
        return False
    values[target] = narrowed
    return True


def clusters_of(
    table: Table, alias: str, values: Values, shard_of: ShardOf
) -> frozenset[str] | None:
    """The shards that may hold rows of one table occurrence; None means any."""
    fields = table.key_fields
    if not fields:
        return None
    sets = [values.get((alias, field.column)) for field in fields]
    if any(found is None for found in sets):
        return None
    keys = list(itertools.islice(itertools.product(*sets), MAX_KEYS + 1))  # type: ignore[arg-type]
    if len(keys) > MAX_KEYS:
        return None
    return frozenset(shard_of(fields, key) for key in keys)
