"""What a gather fetches of one table: columns, rows, and from which shards.

Sound before sharp: what might be needed is fetched. Pure: no I/O.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

from django.db.models.lookups import In

from dbfleet import lexer
from dbfleet.planner.blocks import groups_by_key
from dbfleet.planner.pruning import possible_values
from dbfleet.planner.pushdown import any_filter, conjuncts, filter_of, is_local_to
from dbfleet.planner.route import HOME, Filter, Fragment
from dbfleet.planner.tables import Table
from dbfleet.planner.uses import Facts, Statement, Use


def fragment_of(facts: Facts, statement: Statement, use: Use) -> Fragment:
    """The rows of one table that the statement may look at."""
    table = use.table
    where, params = "", ()
    if not use.is_hidden:
        where, params = any_filter(filter_of(b, o) for b, o, _ in use.places)
    pk = table.pk_columns
    is_local = not table.is_sharded
    clusters = (HOME,) if is_local else facts.in_order(use.clusters)
    return Fragment(
        table=table.name,
        model=table.label,
        columns=_columns(facts, statement, use),
        clusters=clusters,
        where=where,
        params=params,
        own=_own_filters(facts, use, clusters) if where else (),
        order_by=pk[0] if len(pk) == 1 else None,
        is_native=is_local and facts.engine.gathers_at_home,
        locking="" if is_local else _locking(statement, use),
        key=pk if _needs_key(facts, statement) else (),
    )


# -- columns --------------------------------------------------------------------------


def _columns(facts: Facts, statement: Statement, use: Use) -> tuple[str, ...]:
    """The columns that the text may use; none are every column the server knows.

    A name behind the alias of another table's occurrence is not of this one. A name
    that stands alone, or behind an alias that no block has, may be of any table.
    """
    vendor = facts.engine.vendor
    is_opaque = statement.is_raw or use.is_hidden
    if is_opaque or lexer.has_star(statement.sql, vendor):
        return ()
    own = {use.table.name.lower(), *(o.alias.lower() for _, o, _ in use.places)}
    others = {o.alias.lower() for b in statement.blocks for o in b.occurrences} - own
    used = frozenset[str]().union(
        *(
            names
            for qualifier, names in lexer.names_by_qualifier(
                statement.sql, vendor
            ).items()
            if qualifier not in others
        )
    )
    keys = use.table.pk_columns
    keep = {*keys} if _needs_key(facts, statement) else {*keys[:1]}
    return tuple(c for c in use.table.columns if c.lower() in used or c in keep)


def _needs_key(facts: Facts, statement: Statement) -> bool:
    """Where a column is inferred from the key: every one is spelled out in GROUP BY,
    but for windows, in raw SQL, and where rows keep their key."""
    for block in statement.blocks:
        is_grouped = block.query.group_by and facts.engine.keeps_keys
        if is_grouped or groups_by_key(block.query):
            return True
    return statement.is_raw and "group" in lexer.names(
        statement.sql, facts.engine.vendor
    )


# -- rows -----------------------------------------------------------------------------


def _own_filters(facts: Facts, use: Use, clusters: tuple[str, ...]) -> tuple[Any, ...]:
    """What each shard is asked for, where lists of keys differ from shard to shard."""
    table = use.table
    if len(clusters) < 2 or len(table.key_fields) != 1:
        return ()
    lists: dict[int, dict[Any, str | None]] = {}
    for node in _key_lists(use):
        placed = _placed(facts, table, node)
        if placed is not None:
            lists[id(node)] = placed
    if not lists:
        return ()
    return tuple(
        (
            cluster,
            Filter(
                *any_filter(
                    filter_of(b, o, partial(_limited, lists, cluster))
                    for b, o, _ in use.places
                )
            ),
        )
        for cluster in clusters
    )


def _key_lists(use: Use) -> Iterator[Any]:
    """AND-ed ``key IN (values)`` of occurrences that are filtered."""
    [column] = use.table.key_columns
    for block, occurrence, _ in use.places:
        for node in conjuncts(block.query.where):
            if (
                isinstance(node, In)
                and occurrence.is_inner
                and is_local_to(node, occurrence.alias)
                and node.lhs.target.column == column
            ):
                yield node


def _placed(facts: Facts, table: Table, node: Any) -> dict[Any, str | None] | None:
    """Value -> its shard for each value of a list; None if that is not known."""
    branches = possible_values(node, facts.is_exact)
    key = node.lhs.alias, node.lhs.target.column
    if len(branches) != 1 or not isinstance(branches[0].get(key), frozenset):
        return None
    values: Any = branches[0][key]
    places = facts.places(table.key_fields, [(value,) for value in values])
    return dict(zip(values, places, strict=True))


def _limited(lists: dict[int, dict[Any, str | None]], cluster: str, node: Any) -> Any:
    """A condition with the values that rows of one shard may have."""
    placed = lists.get(id(node))
    if placed is None:
        return node
    limited = copy.copy(node)
    limited.rhs = [value for value in node.rhs if placed.get(value) == cluster]
    return limited


def _locking(statement: Statement, use: Use) -> str:
    """Only the tables of the outermost block are locked, as FOR UPDATE does."""
    if not statement.locking:
        return ""
    is_outer = any(block.compiler is statement.outer for block, _, _ in use.places)
    return f" {statement.locking}" if is_outer else ""
