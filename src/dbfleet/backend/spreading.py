"""What the shards are sent for a statement that is merged: Django's own SQL, made once
more with the columns and limits that the merge needs.
"""

from __future__ import annotations

from typing import Any

from dbfleet.planner.merging import Merge, Sql
from dbfleet.planner.partials import Partial
from dbfleet.planner.route import Route


def shard_sql(compiler: Any, route: Route, outer_sql: Any, most: int) -> Sql:
    """SQL for one shard; no I/O.

    Every shard sends the first ``high`` rows, of which ``low`` are dropped when all are
    in order: which ones those are nobody knows before. Of groups all are needed: one
    more than ``most`` shows that they are too many.
    """
    partial: Partial | None = route.merge if isinstance(route.merge, Partial) else None
    merge: Merge = route.merge if partial is None else partial.merge
    query = compiler.query
    high, is_changed = merge.high, False
    if partial is not None:
        high = most + 1 if partial.is_grouped else None
        is_changed = partial.finish is not None or partial.split is not None
        compiler.blank, compiler.split = partial.blank, partial.split
    is_same = not merge.hidden and not merge.low and high == merge.high
    if is_same and not is_changed:
        sql, params = outer_sql
        return sql, tuple(params)
    before = query.low_mark, query.high_mark
    query.low_mark, query.high_mark = 0, high
    compiler.appended = merge.hidden
    compiler.is_partial = partial is not None
    try:
        sql, params = compiler.as_sql()
    finally:
        query.low_mark, query.high_mark = before
        compiler.appended, compiler.is_partial = (), False
    return sql, tuple(params)
