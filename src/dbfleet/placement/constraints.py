"""Which constraints of a sharded model one shard can keep alone.

Guards one invariant: a constraint counts as kept by a shard only if two rows that
violate it are surely on the same one, which is when it requires equal shard keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.db.models import AutoField, F, UniqueConstraint

from dbfleet.placement.layouts import ShardKey


class Spread(NamedTuple):
    """A constraint whose violators may be on different shards."""

    #: How the model spells it: ``unique=True of 'code'``, ``constraint 'one_name'``.
    text: str
    #: Whether claims in home can enforce it; an exclusion constraint they cannot.
    is_enforceable: bool


def spread_constraints(opts: Any, key: ShardKey) -> Iterator[Spread]:
    """The constraints on a model's table that do not require equal shard keys.

    An automatic primary key is none: its values are leased from home.
    """
    decisive = _deciding_fields(key)
    for field in opts.local_concrete_fields:
        is_unique = field.unique and not isinstance(field, AutoField)
        if is_unique and not decisive <= {field.name}:
            kind = "primary_key" if field.primary_key else "unique"
            yield Spread(f"{kind}=True of '{field.name}'", True)
    for names in opts.unique_together:
        if not decisive <= set(names):
            yield Spread(f"unique_together {tuple(names)!r}", True)
    for constraint in opts.constraints:
        if isinstance(constraint, UniqueConstraint):
            equal = {*constraint.fields, *_plain_fields(constraint.expressions)}
        elif _is_exclusion(constraint):
            equal = {*_plain_fields(e for e, op in constraint.expressions if op == "=")}
        else:
            continue
        if not decisive <= equal:
            is_unique = isinstance(constraint, UniqueConstraint)
            yield Spread(f"constraint '{constraint.name}'", is_unique)


def _deciding_fields(key: ShardKey) -> set[str]:
    # Rows with the same parent have the same key, so the foreign key decides it.
    return {key.path[0].field} if key.path else set(key.fields)


def _plain_fields(expressions: Any) -> Iterator[str]:
    for expression in expressions:
        if isinstance(expression, str):
            yield expression
        elif isinstance(expression, F):
            yield expression.deconstruct()[1][0]


def _is_exclusion(constraint: object) -> bool:
    # Named, not imported: its module needs a PostgreSQL driver.
    return any(
        kind.__module__ == "django.contrib.postgres.constraints"
        and kind.__name__ == "ExclusionConstraint"
        for kind in type(constraint).__mro__
    )
