"""How the rows that shards answer become the answer of one database.

Read off the compiled statement: what it is ordered by, where the order's values stand
in a row, what makes two rows equal, how many rows are wanted. Columns that the answer
does not have but the merge needs are appended to what the shards are asked for. Pure:
nothing here talks to a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import EmptyResultSet, FieldError, FullResultSet
from django.db.models import Field
from django.db.models.expressions import Col, ColPairs, OrderBy, Ref
from django.db.models.functions import Collate

from dbfleet import lexer
from dbfleet.planner.colocation import Spread, Unproved
from dbfleet.planner.repeatable import parts_of, unrepeatable_part
from dbfleet.planner.uses import Facts, Statement

#: SQL and its parameters
Sql = tuple[str, tuple[Any, ...]]

#: kinds of fields whose values Python puts in the order that every server does
_DIRECT = lexer.word_set("""
    AutoField BigAutoField SmallAutoField IntegerField BigIntegerField
    SmallIntegerField PositiveIntegerField PositiveBigIntegerField
    PositiveSmallIntegerField BooleanField DecimalField FloatField DateField
    DateTimeField TimeField DurationField BinaryField
""")
#: kinds whose values a server may have to put in order, by its collation
_TEXT = lexer.word_set("""
    CharField TextField SlugField EmailField URLField FilePathField FileField
""")


@dataclass(frozen=True, slots=True)
class Column:
    """Where a value stands in a shard's row, and how two of them compare."""

    at: int
    #: as text, by a collation; the stored column whose collation it is, if one
    is_text: bool = False
    source: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """One part of an order."""

    column: Column
    descending: bool = False
    nulls_first: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """What is done with the rows of several shards.

    Shards return ``width`` columns of the answer, then the ``hidden`` ones. Rows are
    put in the order of ``keys``, of equal ones (over ``distinct``) one is kept, and
    those from ``low`` up to ``high`` are the answer.
    """

    width: int
    keys: tuple[Key, ...] = ()
    hidden: tuple[Sql, ...] = field(default=(), repr=False)
    distinct: tuple[Column, ...] | None = None
    low: int = 0
    high: int | None = None
    #: the order is nobody's wish: rows come as one table would have been filled
    is_implied: bool = False

    @property
    def columns(self) -> tuple[Column, ...]:
        """Every column that is compared."""
        return (*(key.column for key in self.keys), *(self.distinct or ()))

    def describe(self) -> str:
        order = ", ".join(
            f"{key.column.at + 1}{' desc' if key.descending else ''}"
            for key in self.keys
        )
        words = [f"ordered by column {order}" if order else "in any order"]
        if self.distinct is not None:
            words.append("distinct")
        if self.low or self.high is not None:
            high = "" if self.high is None else self.high
            words.append(f"rows {self.low}:{high}")
        return ", ".join(words)


class Columns:
    """The columns that shards are asked for: the answer's, then hidden ones."""

    def __init__(self, facts: Facts, compiler: Any) -> None:
        self.facts, self.compiler = facts, compiler
        chosen = compiler.shape.chosen
        if any(isinstance(expression, ColPairs) for expression, _, _ in chosen):
            raise Unproved("it selects a composite key as one value")
        if any(_is_of_two(compiler, expression) for expression, _, _ in chosen):
            raise Unproved("its distinct rows have a column more for the place of NULL")
        self.expressions = [bare(expression) for expression, _, _ in chosen]
        self.sql: list[Sql] = [(sql, tuple(params)) for _, (sql, params), _ in chosen]
        self.width = len(chosen)
        #: the column by whose values shards split their groups, if one
        self.split: int | None = None

    @property
    def hidden(self) -> tuple[Sql, ...]:
        return tuple(self.sql[self.width :])

    def at(self, expression: Any) -> int:
        """Where a value stands; appended if nothing like it is selected."""
        return self.at_sql(expression, self.compiled(expression))

    def stored_at(self, expression: Any) -> int:
        """The same for a value as it is stored, past the driver's converters."""
        if not isinstance(expression, Col):
            return self.at(expression)
        sql, params = self.compiled(expression)
        return self.at_sql(expression, (self.facts.engine.as_stored(sql), params))

    def at_sql(self, expression: Any, sql: Sql) -> int:
        if sql in self.sql:
            return self.sql.index(sql)
        self.sql.append(sql)
        self.expressions.append(expression)
        return len(self.sql) - 1

    def compiled(self, expression: Any) -> Sql:
        """An expression as it would be selected."""
        try:
            sql, params = self.compiler.compile(expression)
            sql, params = expression.select_format(self.compiler, sql, params)
        except (EmptyResultSet, FullResultSet):
            raise Unproved("it needs a condition that is always the same") from None
        except FieldError:  # one database is not asked for the type of what it sorts by
            raise Unproved(_no_type(expression)) from None
        return sql, tuple(params)

    def column(self, at: int) -> Column:
        """How the values of a column compare; raises Unproved if that is not known."""
        expression = self.expressions[at]
        kind, source = comparison_of(self.facts, expression)
        return Column(at, kind == "text", source)


def _is_of_two(compiler: Any, expression: Any) -> bool:
    """Whether DISTINCT selects what is sorted by, and before it whether it is NULL: so
    Django has it where a server knows no NULLS FIRST."""
    if compiler.connection.features.supports_order_by_nulls_modifier:
        return False
    is_order = isinstance(expression, OrderBy)
    return is_order and bool(expression.nulls_first or expression.nulls_last)


def comparison_of(facts: Facts, expression: Any) -> tuple[str, Any]:
    """``"direct"`` or ``"text"`` with the column whose collation it has, if one."""
    field = _field_of(expression)
    kind = field.get_internal_type()
    is_plain = type(field).db_type is Field.db_type
    if is_plain and kind in _DIRECT:
        return "direct", None
    if is_plain and kind in _TEXT:
        return "text", _collation_source(facts, expression)
    if is_plain and kind == "UUIDField" and facts.engine.has_binary_text_equality:
        return "direct", None
    raise Unproved(f"values of a {kind} are compared by the server alone")


def kind_of(expression: Any) -> str:
    """The kind of field that has the values of an expression."""
    return str(_field_of(expression).get_internal_type())


def _no_type(expression: Any) -> str:
    return f"nothing is known of the type of {type(expression).__name__}"


def _field_of(expression: Any) -> Any:
    try:
        field: Any = getattr(expression, "_output_field_or_none", None)
    except FieldError:
        field = None
    if field is None:
        raise Unproved(_no_type(expression))
    while field.remote_field:
        field = field.target_field
    return field


def _collation_source(facts: Facts, expression: Any) -> tuple[str, str] | None:
    for part in parts_of(expression):
        target = getattr(part, "target", None)
        if isinstance(part, Collate) or getattr(target, "db_collation", None):
            raise Unproved("a text has a collation of its own")
    if isinstance(expression, Col):
        target = expression.target
        return str(target.model._meta.db_table), str(target.column)
    if facts.engine.has_one_collation:
        return None
    raise Unproved("the collation of a computed text is the server's to know")


def bare(expression: Any) -> Any:
    """What a reference to a selected column stands for."""
    while isinstance(expression, Ref):
        [expression] = expression.get_source_expressions()
    return expression


def merge_of(facts: Facts, statement: Statement, spread: Spread) -> Merge:
    """How the rows of a statement without aggregates over shards are merged."""
    compiler, query = statement.outer, statement.outer.query
    if query is not spread.block.query:
        raise Unproved("it counts the rows of a subquery")
    columns = Columns(facts, statement.outer)
    keys = order_of(facts, columns)
    is_implied = False
    distinct = None
    if query.distinct:
        if query.distinct_fields:
            _check_distinct_on(query)
            distinct = _distinct_on(columns, compiler)
        else:
            distinct = tuple(map(columns.column, range(columns.width)))
    elif not keys and query.group_by is None:
        keys = _filling_order(columns, spread)
        is_implied = bool(keys)
    return Merge(
        columns.width,
        keys,
        columns.hidden,
        distinct,
        query.low_mark,
        query.high_mark,
        is_implied,
    )


def order_of(facts: Facts, columns: Columns) -> tuple[Key, ...]:
    """The order that a statement asks for."""
    keys = []
    for resolved, _ in columns.compiler.shape.ordering:
        expression = bare(resolved.expression)
        what = unrepeatable_part(expression)
        if what is not None:
            raise Unproved(f"{what} has to be computed in one place")
        at = columns.at(expression)
        if at >= columns.width and getattr(expression, "contains_over_clause", False):
            raise Unproved("a window looks at rows of all shards")
        keys.append(key_of(facts, resolved, columns.column(at)))
    return tuple(keys)


def key_of(facts: Facts, resolved: Any, column: Column) -> Key:
    """One part of an order, with the vendor's place of NULL where it names none."""
    nulls_first = bool(resolved.nulls_first)
    if not resolved.nulls_first and not resolved.nulls_last:
        nulls_first = resolved.descending == facts.engine.nulls_are_largest
    return Key(column, bool(resolved.descending), nulls_first)


def _check_distinct_on(query: Any) -> None:
    if len(query.distinct_fields) > len(query.order_by):
        raise Unproved("of equal rows (distinct on) any one may be returned")


def _distinct_on(columns: Columns, compiler: Any) -> tuple[Column, ...]:
    """DISTINCT ON: the server has checked that the order begins with its fields."""
    count = len(compiler.query.distinct_fields)
    ordering = compiler.shape.ordering[:count]
    return tuple(
        columns.column(columns.at(bare(resolved.expression)))
        for resolved, _ in ordering
    )


def _filling_order(columns: Columns, spread: Spread) -> tuple[Key, ...]:
    """The first table's primary key, in whose order one table would be filled."""
    block = spread.block
    first = block.occurrences[0]
    model = block.query.model
    if model is None or model._meta.db_table != first.table:
        return ()
    fields: Sequence[Any] = model._meta.pk_fields
    if len(fields) != 1:
        return ()
    column = fields[0].get_col(first.alias)
    try:
        kind, _ = comparison_of(columns.facts, column)
    except Unproved:
        return ()
    if kind != "direct":
        return ()
    return (Key(columns.column(columns.at(column))),)
