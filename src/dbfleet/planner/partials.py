"""Aggregates that shards compute for their own rows, to be combined afterwards.

What an average or a deviation needs besides is asked for in hidden columns. Where a
group lies on one shard as a whole nothing is to be combined: that is a plain merge.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from django.db.models import (
    Aggregate,
    Avg,
    Count,
    Max,
    Min,
    StdDev,
    Sum,
    Value,
    Variance,
)
from django.db.models.expressions import Col, Combinable
from django.db.models.functions import Coalesce

from dbfleet import lexer
from dbfleet.planner.colocation import Spread, Unproved
from dbfleet.planner.merging import (
    Column,
    Columns,
    Merge,
    Sql,
    bare,
    kind_of,
    order_of,
)
from dbfleet.planner.repeatable import parts_of
from dbfleet.planner.uses import Facts, Statement

_NUMBERS = lexer.word_set("""
    AutoField BigAutoField SmallAutoField IntegerField BigIntegerField
    SmallIntegerField PositiveIntegerField PositiveBigIntegerField
    PositiveSmallIntegerField DecimalField FloatField
""")
_DIVIDES = frozenset({Combinable.DIV, Combinable.MOD, Combinable.POW})
_BINARY_FRACTIONS = _NUMBERS - {"DecimalField"}
#: aggregates of other modules that are combined by the name of their class
_BY_NAME = {
    "BoolAnd": "all",
    "BoolOr": "any",
    "BitAnd": "and",
    "BitOr": "or",
    "BitXor": "xor",
}


@dataclass(frozen=True, slots=True)
class Combine:
    """How one column of the answer comes from the same column of each shard.

    ``kind``: ``count``, ``sum``, ``min``, ``max``, ``avg``, ``var_pop``,
    ``var_samp``, ``stddev_pop``, ``stddev_samp``, ``all``, ``any``, ``and``, ``or``,
    ``xor``. ``parts`` are the hidden columns it needs: sum and count of an average;
    count, average and population variance of a deviation.
    """

    at: int
    #: the bare aggregate; where it has a default, another column than ``at``, which
    #: then has what stands for NULL
    bare: int
    kind: str
    parts: tuple[int, ...] = ()
    #: min and max: how values compare
    column: Column | None = None
    #: values of several shards that are equal in it count once
    distinct: Column | None = None

    def describe(self) -> str:
        return self.kind if self.distinct is None else f"{self.kind} of distinct values"


@dataclass(frozen=True, slots=True)
class Finish:
    """A SELECT that one database runs over the combined groups."""

    #: what it is handed; each with the stored column whose values it has, if one
    carried: tuple[Column, ...]
    sql: str = field(repr=False)
    params: tuple[Any, ...] = field(default=(), repr=False)
    #: columns of the answer that are made of texts, of which equal ones may differ
    loose: frozenset[int] = frozenset()
    #: the groups are those of a subquery, whose rows are aggregated
    is_nested: bool = False


@dataclass(frozen=True, slots=True)
class Partial:
    """Groups of all shards are brought together by ``groups``, then merged, or
    finished by a database."""

    merge: Merge
    groups: tuple[Column, ...]
    combines: tuple[Combine, ...]
    #: columns of the answer that shards need not compute
    blank: frozenset[int] = frozenset()
    finish: Finish | None = None
    #: what shards group by besides, so that distinct values are told apart
    split: Sql | None = field(default=None, repr=False)
    #: the one row of no rows, where shards that have none send none
    empty: tuple[Any, ...] | None = None

    @property
    def is_grouped(self) -> bool:
        """Whether a shard may send many rows."""
        return bool(self.groups) or self.split is not None

    def describe(self) -> str:
        kinds = ", ".join(combine.describe() for combine in self.combines)
        by = ", ".join(str(column.at + 1) for column in self.groups)
        then = self.merge.describe() if self.finish is None else "finished by home"
        return f"{kinds}{f' by column {by}' if by else ''}; {then}"


def aggregates(statement: Statement) -> bool:
    """Whether a statement's rows are made of several rows."""
    return statement.outer.query.group_by is not None or any(
        getattr(expression, "contains_aggregate", False)
        for expression, _, _ in statement.outer.shape.chosen
    )


def is_grouped_by_shard(statement: Statement, spread: Spread) -> bool:
    """Whether all rows of a group lie on one shard: its key is grouped by."""
    query = statement.outer.query
    if query.group_by is None or query is not spread.block.query:
        return False
    return fix_shard(statement.outer.shape.grouped, spread)


def fix_shard(expressions: Iterable[Any], spread: Spread) -> bool:
    """Whether rows with equal values of these lie on one shard."""
    columns = {
        (expression.alias, expression.target.column)
        for expression in map(bare, expressions)
        if isinstance(expression, Col)
    }
    return bool(spread.placing) and all(part & columns for part in spread.placing)


def partial_of(facts: Facts, statement: Statement, spread: Spread) -> Partial:
    """How the aggregates of a statement are combined; raises Unproved."""
    query, shape = statement.outer.query, statement.outer.shape
    if query is not spread.block.query:
        _check_inner(spread)
    columns = Columns(facts, statement.outer)
    groups = {}
    for expression in shape.grouped:
        at = columns.at(bare(expression))
        groups[at] = columns.column(at)
    keys = order_of(facts, columns)
    combines = []
    for at in dict.fromkeys([*range(columns.width), *(key.column.at for key in keys)]):
        expression = columns.expressions[at]
        if getattr(expression, "contains_aggregate", False):
            combines.append(combine_of(columns, spread, at))
        elif at not in groups and not isinstance(expression, Value):
            raise Unproved("a column is neither grouped by nor aggregated")
    merge = Merge(
        columns.width, keys, columns.hidden, None, query.low_mark, query.high_mark
    )
    split, empty = split_of(columns, groups, combines)
    return Partial(
        merge, tuple(groups.values()), tuple(combines), split=split, empty=empty
    )


def split_of(
    columns: Columns,
    groups: Mapping[int, Column],
    combines: Iterable[Combine],
    blank: AbstractSet[int] = frozenset(),
) -> tuple[Sql | None, tuple[Any, ...] | None]:
    """What shards group by besides, and the row of a statement without groups that no
    shard has a row for; nobody looks at its ``blank`` columns."""
    if columns.split is None:
        return None, None
    for combine in combines:
        aggregate = columns.expressions[combine.bare]
        if getattr(aggregate, "distinct", False) and combine.distinct is None:
            raise Unproved("distinct values of several columns are aggregated")
    sql, params = columns.compiled(columns.expressions[columns.split])
    if groups:
        return (sql, params), None
    if columns.compiler.query.group_by is not None:
        raise Unproved("it groups by no value of a row")
    known = {one.at for one in combines if one.bare == one.at}
    known |= {at for one in combines for at in one.parts}
    if not known | blank >= set(range(columns.width)):
        raise Unproved("a default stands for distinct values that are not there")
    counts = {one.at for one in combines if one.kind == "count"}
    empty = (0 if at in counts else None for at in range(len(columns.sql)))
    return (sql, params), tuple(empty)


def _check_inner(spread: Spread) -> None:
    """A subquery that is aggregated must give each shard its own rows."""
    query, shape = spread.block.query, spread.block.compiler.shape
    chosen = [expression for expression, _, _ in shape.chosen]
    is_own = not query.is_sliced and not query.distinct_fields
    if query.distinct:
        is_own = is_own and fix_shard(chosen, spread)
    if query.group_by is not None:
        is_own = is_own and fix_shard(shape.grouped, spread)
    elif any(getattr(one, "contains_aggregate", False) for one in chosen):
        is_own = False
    if not is_own:
        raise Unproved("it aggregates rows that are chosen over all shards")


def combine_of(columns: Columns, spread: Spread, at: int) -> Combine:
    """How the aggregate of a column is combined; raises Unproved."""
    aggregate, own = columns.expressions[at], at
    if isinstance(aggregate, Coalesce):
        aggregate, *others = aggregate.get_source_expressions()
        is_default = len(others) == 1 and isinstance(others[0], Value)
        if not is_default or not isinstance(aggregate, Aggregate):
            raise Unproved("an aggregate stands within an expression")
        own = columns.at(aggregate)
    if not isinstance(aggregate, Aggregate):
        raise Unproved("an aggregate stands within an expression")
    if getattr(aggregate, "order_by", None):
        raise Unproved("an aggregate has an order of its own")
    distinct = None
    if getattr(aggregate, "distinct", False) and not _is_placed(aggregate, spread):
        distinct = _split(columns, spread, aggregate)
    return replace(_combine(columns, aggregate, at, own), distinct=distinct)


def _combine(columns: Columns, aggregate: Any, at: int, own: int) -> Combine:
    kind: Any = type(aggregate)
    if kind is Count:
        return Combine(at, own, "count")
    if kind is Sum:
        _check_number(columns, aggregate, _NUMBERS)
        return Combine(at, own, "sum")
    if kind in (Min, Max):
        return Combine(at, own, kind.__name__.lower(), column=columns.column(own))
    if kind is Avg:
        _check_number(columns, aggregate, _NUMBERS)
        parts = columns.at(_as(aggregate, Sum)), columns.at(_as(aggregate, Count))
        return Combine(at, own, "avg", parts)
    if kind in (StdDev, Variance):
        return Combine(at, own, *_deviation(columns, aggregate))
    if kind.__name__ in _BY_NAME:
        return Combine(at, own, _BY_NAME[kind.__name__])
    raise Unproved(f"{kind.__name__} cannot be put together from its parts")


def _deviation(columns: Columns, aggregate: Any) -> tuple[str, tuple[int, ...]]:
    is_whole = columns.facts.engine.has_whole_deviations
    kinds = _BINARY_FRACTIONS if is_whole else {"FloatField"}
    _check_number(columns, aggregate, kinds)
    is_sample = str(aggregate.function).upper().endswith("SAMP")
    if is_sample and not columns.facts.engine.has_null_samples:
        raise Unproved("a shard of one row has no sample's deviation")
    variance = _as(aggregate, Variance)
    variance.function = "VAR_POP"
    wanted = _as(aggregate, Count), _as(aggregate, Avg), variance
    return str(aggregate.function).lower(), tuple(map(columns.at, wanted))


def _is_placed(aggregate: Any, spread: Spread) -> bool:
    """Equal values lie on one shard if they are what places a row."""
    source = aggregate.get_source_expressions()[0]
    if not isinstance(source, Col) or len(spread.placing) != 1:
        return False
    column: Any = source.target.column
    return (source.alias, column) in spread.placing[0]


def _split(columns: Columns, spread: Spread, aggregate: Any) -> Column:
    """Have shards send each group once for each value: what a server then makes of the
    distinct values of a row is that one value, in the type of the aggregate."""
    source = aggregate.get_source_expressions()[0]
    is_own = columns.compiler.query is spread.block.query
    is_known = type(aggregate) in (Count, Sum, Avg) and aggregate.filter is None
    if not is_own or not is_known or not isinstance(source, Col):
        raise Unproved("distinct values of all shards are aggregated")
    at = columns.stored_at(source)
    if columns.split not in (None, at):
        raise Unproved("distinct values of several columns are aggregated")
    columns.split = at
    return columns.column(at)


def _check_number(columns: Columns, aggregate: Any, kinds: AbstractSet[str]) -> None:
    source = aggregate.get_source_expressions()[0]
    if has_hidden_digits(columns.facts, source):
        raise Unproved("a quotient has more digits than its server shows")
    if kind_of(source) not in kinds:
        raise Unproved(f"{type(aggregate).__name__} of what is no plain number")


def has_hidden_digits(facts: Facts, expression: Any) -> bool:
    """Whether a server may compute with digits of a value that it does not send."""
    if facts.engine.shows_all_digits:
        return False
    return any(
        getattr(part, "connector", "") in _DIVIDES
        or type(part).__module__ == "django.db.models.functions.math"
        for part in parts_of(expression)
    )


def _as(aggregate: Any, kind: type) -> Any:
    """The same values, rows and filter under another function."""
    found = copy.copy(aggregate)
    found.__class__ = kind
    found.__dict__.pop("function", None)
    return found
