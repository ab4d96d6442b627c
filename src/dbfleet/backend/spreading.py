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
    is_partial = isinstance(route.merge, Partial)
    merge: Merge = route.merge.merge if is_partial else route.merge
    query = compiler.query
    high = merge.high
    if is_partial:
        high = most + 1 if route.merge.groups else None
    if not merge.hidden and not merge.low and high == merge.high:
        sql, params = outer_sql
        return sql, tuple(params)
    before = query.low_mark, query.high_mark
    query.low_mark, query.high_mark = 0, high
    compiler.appended = merge.hidden
    compiler.is_unordered = is_partial
    try:
        sql, params = compiler.as_sql()
    finally:
        query.low_mark, query.high_mark = before
        compiler.appended, compiler.is_unordered = (), False
    return sql, tuple(params)
