"""What the shards are sent for a statement that is merged: Django's own SQL, made once
more with the columns and limits that the merge needs.
"""

from __future__ import annotations

from typing import Any

from dbfleet.planner.merging import Merge, Sql
from dbfleet.planner.partials import Partial
from dbfleet.planner.route import Route
from dbfleet.planner.uses import Statement


def shard_sql(statement: Statement, route: Route, most: int) -> Sql:
    """SQL for one shard; no I/O.

    Every shard sends the first ``high`` rows, of which ``low`` are dropped when all are
    in order: which ones those are nobody knows before. Of groups all are needed: one
    more than ``most`` shows that they are too many.
    """
    if isinstance(route.merge, Partial):
        return _partial_sql(statement, route.merge, most)
    merge: Merge = route.merge
    if not merge.hidden and not merge.low:
        return _as_it_is(statement)
    return _made_anew(statement.outer, merge.high, merge.hidden)


def _as_it_is(statement: Statement) -> Sql:
    sql, params = statement.outer_sql or ("", ())
    return sql, tuple(params)


def _partial_sql(statement: Statement, partial: Partial, most: int) -> Sql:
    if not partial.is_grouped and not partial.finish and not partial.merge.hidden:
        return _as_it_is(statement)
    compiler, options = statement.outer, {}
    if partial.finish is not None and partial.finish.is_nested:
        compiler, options = _inner(statement), {"with_col_aliases": True}
    compiler.blank, compiler.split = partial.blank, partial.split
    compiler.is_partial = True
    high = most + 1 if partial.is_grouped else None
    try:
        return _made_anew(compiler, high, partial.merge.hidden, **options)
    finally:
        compiler.is_partial = False


def _inner(statement: Statement) -> Any:
    """The compiler of the subquery that a statement aggregates."""
    inner = statement.outer.query.inner_query
    return next(b.compiler for b in statement.blocks if b.query is inner)


def _made_anew(compiler: Any, high: int | None, hidden: Any, **options: Any) -> Sql:
    query = compiler.query
    before = query.low_mark, query.high_mark
    query.low_mark, query.high_mark = 0, high
    compiler.appended = hidden
    try:
        sql, params = compiler.as_sql(**options)
    finally:
        query.low_mark, query.high_mark = before
        compiler.appended = ()
    return sql, tuple(params)
