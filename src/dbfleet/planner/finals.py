"""Aggregates of which more is asked than to be combined: HAVING, arithmetic, order.

Shards compute the bare aggregates of their rows. The combined groups are handed to one
database as a relation, and Django's own SQL runs over it, with a column in the place of
each aggregate and of each value that is grouped by. So nothing of SQL is computed here.
Pure: nothing here talks to a server.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db.models import Aggregate, Avg, StdDev, Value, Variance
from django.db.models.expressions import (
    Col,
    Expression,
    ExpressionWrapper,
    SQLiteNumericMixin,
    Subquery,
)
from django.db.models.functions import Cast, Coalesce
from django.db.models.lookups import Lookup, YearLookup
from django.db.models.sql import Query

from dbfleet.engines import INLINE
from dbfleet.planner.colocation import Spread, Unproved
from dbfleet.planner.merging import Column, Columns, Merge, Sql, bare, kind_of
from dbfleet.planner.partials import (
    Combine,
    Finish,
    Partial,
    combine_of,
    fix_shard,
    has_hidden_digits,
    partial_of,
    split_of,
)
from dbfleet.planner.repeatable import parts_of, unrepeatable_part
from dbfleet.planner.uses import Facts, Statement


def aggregate_of(facts: Facts, statement: Statement, spread: Spread) -> Partial:
    """How the aggregates of a statement become its answer; raises Unproved."""
    if statement.outer.query is not spread.block.query:
        if _is_of_groups(spread):
            return _Finals(facts, statement, spread).partial()
    elif _needs_finish(statement):
        return _Finals(facts, statement, spread).partial()
    return partial_of(facts, statement, spread)


def _is_of_groups(spread: Spread) -> bool:
    """Whether a subquery that is aggregated has rows made of rows of several shards."""
    query, shape = spread.block.query, spread.block.compiler.shape
    if query.group_by is not None:
        return not fix_shard(shape.grouped, spread) or query.is_sliced
    chosen = [expression for expression, _, _ in shape.chosen]
    return bool(query.distinct) and not fix_shard(chosen, spread)


def _needs_finish(statement: Statement) -> bool:
    shape = statement.outer.shape
    ordered = (resolved.expression for resolved, _ in shape.ordering)
    wanted = (*(expression for expression, _, _ in shape.chosen), *ordered)
    return bool(
        shape.has_having
        or statement.outer.query.distinct
        or not all(map(_is_plain, map(bare, wanted)))
    )


def _is_plain(expression: Any) -> bool:
    """Whether combining gives its value: an aggregate, also one with a default."""
    if not getattr(expression, "contains_aggregate", False):
        return True
    if isinstance(expression, Coalesce):
        expression, *others = expression.get_source_expressions()
        if len(others) != 1 or not isinstance(others[0], Value):
            return False
    return isinstance(expression, Aggregate)


class GroupColumn(SQLiteNumericMixin, Expression):
    """A column of the combined groups, in the place of what it was made from."""

    def __init__(self, place: int, made_from: Any) -> None:
        super().__init__(output_field=made_from.output_field)
        self.place, self.is_stored = place, isinstance(made_from, Col)

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        return f"{INLINE}.c{self.place}", []

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        # The relation declares the type of a stored column. A decimal that was computed
        # compares as a number because Django casts it, and so must what stands for it.
        if self.is_stored:
            return self.as_sql(compiler, connection)
        return super().as_sqlite(compiler, connection, **extra)


class _Finals:
    """Splits one statement: what shards are asked for, what is asked of the result."""

    def __init__(self, facts: Facts, statement: Statement, spread: Spread) -> None:
        self.facts, self.spread = facts, spread
        self.compiler = spread.block.compiler
        self.query, self.shape = spread.block.query, self.compiler.shape
        #: what aggregates the rows of the finished groups, if anything does
        self.outer = None
        if statement.outer.query is not self.query:
            self.outer = statement.outer
        self._check()
        self.columns = Columns(facts, self.compiler)
        #: grouped expression -> its place in a shard's row
        self.grouped: dict[Any, int] = {}
        self.groups: dict[int, Column] = {}
        self.combines: dict[int, Combine] = {}
        self.carried: list[Column] = []

    def _check(self) -> None:
        if not self.facts.engine.can_finish:
            raise Unproved("an aggregate stands within an expression")
        if self.query.distinct and (self.query.distinct_fields or self.shape.ordering):
            raise Unproved("it keeps distinct ones of what is aggregated, in an order")
        if self.shape.has_having and not self.shape.grouped:
            raise Unproved("its HAVING looks at all rows as one group")
        if self.outer is None:
            return
        for expression, _, _ in self.outer.shape.chosen:
            if any(isinstance(part, Subquery) for part in parts_of(expression)):
                raise Unproved("a subquery stands beside its aggregates")

    def partial(self) -> Partial:
        grouped = self.shape.grouped
        if self.query.group_by is None and self.query.distinct:
            grouped = [expression for expression, _, _ in self.shape.chosen]
        for expression in map(bare, grouped):
            at = self.columns.stored_at(expression)
            self.grouped[expression] = at
            self.groups[at] = self.columns.column(at)
        finish = self._finish()
        combines = tuple(self.combines.values())
        needed = {at for one in combines for at in (one.at, *one.parts)}
        blank = frozenset(
            at
            for at, (expression, _, _) in enumerate(self.shape.chosen)
            if getattr(expression, "contains_aggregate", False) and at not in needed
        )
        groups = tuple(self.groups.values())
        split, empty = split_of(self.columns, self.groups, combines, blank)
        return Partial(self._merge(), groups, combines, blank, finish, split, empty)

    def _merge(self) -> Merge:
        """What the answer looks like when it is finished."""
        hidden = self.columns.hidden
        if self.outer is not None:
            return Merge(len(self.outer.shape.chosen), (), hidden)
        low, high = self.query.low_mark, self.query.high_mark
        return Merge(self.columns.width, (), hidden, None, low, high)

    # -- what is asked of the combined groups ---------------------------------------

    def _finish(self) -> Finish:
        query, ops = self.query, self.compiler.connection.ops
        chosen = [
            self._selected(expression, alias if self.outer is not None else None)
            for expression, _, alias in self.shape.chosen
        ]
        head = ["SELECT DISTINCT" if query.distinct else "SELECT"]
        parts = [_listed(chosen), (f"FROM {INLINE}", ())]
        if self.shape.has_having:
            sql, params = self._compiled(self._replaced(self.compiler.having))
            parts.append((f"WHERE {sql}", params))
        ordering = [self._ordered(resolved) for resolved, _ in self.shape.ordering]
        if ordering:
            sql, params = _listed(ordering)
            parts.append((f"ORDER BY {sql}", params))
        if query.is_sliced:
            limit = ops.limit_offset_sql(query.low_mark, query.high_mark)
            parts.append((limit, ()))
        if not self.carried:
            raise Unproved("nothing of its groups is asked for")
        sql = " ".join([*head, *(text for text, _ in parts)])
        params = tuple(value for _, values in parts for value in values)
        if self.outer is not None:
            return self._aggregated(sql, params)
        texts = {place for place, one in enumerate(self.carried) if one.is_text}
        loose = frozenset(
            at
            for at, (text, _) in enumerate(chosen)
            if any(f"{INLINE}.c{place}" in text for place in texts)
        )
        return Finish(tuple(self.carried), sql, params, loose)

    def _aggregated(self, sql: str, params: tuple[Any, ...]) -> Finish:
        """Aggregates of the finished groups, as Django has them over a subquery."""
        assert self.outer is not None
        chosen = [compiled for _, compiled, _ in self.outer.shape.chosen]
        text, values = _listed([(own, tuple(more)) for own, more in chosen])
        loose: frozenset[int] = frozenset()
        if any(one.is_text for one in self.carried):
            loose = frozenset(range(len(chosen)))
        sql = f"SELECT {text} FROM ({sql}) subquery"
        return Finish(tuple(self.carried), sql, (*values, *params), loose, True)

    def _selected(self, expression: Any, alias: str | None) -> Sql:
        is_shown = self.outer is None
        found = self._replaced(expression, is_whole=is_shown)
        sql, params = self._compiled(found)
        sql, params = found.select_format(self.compiler, sql, params)
        if alias is not None:
            sql = f"{sql} AS {self.compiler.connection.ops.quote_name(alias)}"
        return sql, tuple(params)

    def _ordered(self, resolved: Any) -> Sql:
        ordered = resolved.copy()
        ordered.set_source_expressions([self._replaced(resolved.expression)])
        return self._compiled(ordered)

    def _compiled(self, expression: Any) -> Sql:
        try:
            sql, params = self.compiler.compile(expression)
        except (EmptyResultSet, FullResultSet):
            raise Unproved("it has a condition that is always the same") from None
        return sql, tuple(params)

    def _replaced(self, node: Any, *, is_whole: bool = False) -> Any:
        """A copy with columns of the groups in the place of what they were made from.

        ``is_whole``: the value is handed out as it is, nothing is computed with it.
        """
        node = bare(node)
        if node is None or isinstance(node, Value):
            return node
        if isinstance(node, Aggregate):
            return self._carry(self._combined(node), node, is_whole)
        if node in self.grouped:
            return self._carry(self.grouped[node], node, is_whole)
        if isinstance(node, (Query, Subquery)):
            raise Unproved("a subquery stands beside its aggregates")
        if isinstance(node, YearLookup) and node.lhs in self.grouped:
            raise Unproved("a year is grouped by and its days are compared")
        sources: list[Any] = []
        if hasattr(node, "get_source_expressions"):
            sources = node.get_source_expressions()
        if not sources or _hides_expressions(node):
            what = type(node).__name__
            raise Unproved(f"a {what} is neither grouped by nor aggregated")
        if getattr(node, "contains_over_clause", False):
            raise Unproved("a window looks at groups of all shards")
        unlike = unrepeatable_part(node)
        if unlike is not None:
            raise Unproved(f"{unlike} has to be computed in one place")
        found = node.copy()
        found.set_source_expressions([self._replaced(source) for source in sources])
        return found

    def _combined(self, aggregate: Any) -> int:
        if isinstance(aggregate, (StdDev, Variance)):
            raise Unproved("digits of a deviation are compared")
        at = self.columns.at(aggregate)
        if at not in self.combines:
            self.combines[at] = combine_of(self.columns, self.spread, at)
        return at

    def _carry(self, at: int, made_from: Any, is_whole: bool) -> GroupColumn:
        engine = self.facts.engine
        is_average = isinstance(made_from, Avg) and not engine.shows_all_digits
        if not is_whole and (is_average or has_hidden_digits(self.facts, made_from)):
            raise Unproved("a quotient has more digits than its server shows")
        if isinstance(made_from, (Cast, ExpressionWrapper)):
            raise Unproved("the type of what it groups by is the server's to know")
        column = self.columns.column(at)
        kind = kind_of(made_from)
        if kind in engine.uncarried:
            raise Unproved(f"a {kind} cannot be handed to another server as it is")
        source = None
        if isinstance(made_from, Col):
            target: Any = made_from.target
            source = str(target.model._meta.db_table), str(target.column)
        wanted = replace(column, source=source or column.source)
        if wanted not in self.carried:
            self.carried.append(wanted)
        return GroupColumn(self.carried.index(wanted), made_from)


def _hides_expressions(node: Any) -> bool:
    """Whether a lookup compares with expressions that it does not show, in a list."""
    if not isinstance(node, Lookup) or not node.rhs_is_direct_value():
        return False
    given = node.rhs if isinstance(node.rhs, (list, tuple, set)) else [node.rhs]
    return any(hasattr(one, "resolve_expression") for one in given)


def _listed(parts: list[Sql]) -> Sql:
    sql = ", ".join(text for text, _ in parts)
    return sql, tuple(value for _, values in parts for value in values)
