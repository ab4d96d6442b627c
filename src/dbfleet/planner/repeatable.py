"""Which expressions mean the same on every server that runs them.

A shard may compute a row's value only if one database would have computed the same.
Unknown means no: a project's own function, raw SQL, the time, chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from django.db.models import Aggregate, Func, Transform
from django.db.models.sql import Query
from django.db.models.sql.where import WhereNode

from dbfleet import lexer
from dbfleet.planner.blocks import Block

#: Django's own expressions whose value depends on where and when they are computed, or
#: on SQL that nothing is known of
_UNREPEATABLE = lexer.word_set("""
    Random Now TransactionNow RandomUUID UUID4 UUID7 RawSQL ExtraWhere
""")
#: classes that take the function's name from whoever makes them
_NAMED_BY_USER = frozenset({Func, Aggregate, Transform})


def unrepeatable(block: Block) -> str | None:
    """What of a query block a shard must not compute by itself, None if nothing."""
    query = block.query
    if query.extra_tables or query.extra or query.extra_order_by:
        return "extra()"
    ordering = [*query.order_by]
    if query.default_ordering and block.opts is not None:
        ordering += block.opts.ordering or ()
    if "?" in ordering:
        return "the random order"
    for root in _roots(block):
        what = unrepeatable_part(root)
        if what is not None:
            return what
    return None


def unrepeatable_part(expression: Any) -> str | None:
    """What of an expression a shard must not compute by itself, None if nothing."""
    for node in parts_of(expression):
        if not _is_repeatable(node):
            return type(node).__name__
    return None


def _roots(block: Block) -> Iterator[Any]:
    query = block.query
    yield query.where
    yield from query.annotations.values()
    yield from query.select
    yield from (e for e in query.order_by if not isinstance(e, str))
    if isinstance(query.group_by, Iterable):
        yield from query.group_by
    for occurrence in block.occurrences:
        filtered = getattr(query.alias_map[occurrence.alias], "filtered_relation", None)
        if filtered is not None:
            yield getattr(filtered, "resolved_condition", None) or filtered.condition


def parts_of(node: Any) -> Iterator[Any]:
    """A node and all below it, but for nested queries: each is a block of its own."""
    pending = [node]
    while pending:
        node = pending.pop()
        if node is None or isinstance(node, (Query, str)):
            continue
        yield node
        if isinstance(node, WhereNode):
            pending += node.children
        elif hasattr(node, "get_source_expressions"):
            pending += node.get_source_expressions()


def _is_repeatable(node: Any) -> bool:
    kind: Any = type(node)
    if not _is_known(kind):
        return False
    extra = getattr(node, "extra", None)
    return not extra or not ("function" in extra or "template" in extra)


@lru_cache(maxsize=512)
def _is_known(kind: type) -> bool:
    return (
        kind.__module__.partition(".")[0] == "django"
        and kind.__name__ not in _UNREPEATABLE
        and kind not in _NAMED_BY_USER
    )
