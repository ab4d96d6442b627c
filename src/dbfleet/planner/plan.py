"""Statement -> ``Route``. Pure: given the same facts, the same route; no I/O.

The first rung that is proved right is taken. A statement that no rung fits is
refused with the reason and the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Field
from django.db.models.sql.constants import INNER

from dbfleet import lexer
from dbfleet.engines import Engine
from dbfleet.errors import RouteRefused
from dbfleet.placement import Hop
from dbfleet.planner.blocks import Block, Occurrence, groups_by_key
from dbfleet.planner.pruning import (
    ShardOf,
    Values,
    clusters_of,
    possible_values,
    spread_over_joins,
)
from dbfleet.planner.pushdown import any_filter, filter_of
from dbfleet.planner.route import HOME, Fragment, Intent, Route, Rung
from dbfleet.planner.tables import Table, Tables
from dbfleet.topology import Topology

#: clusters that one table's rows can be on; None means every shard
Clusters = frozenset[str] | None


#: kinds of fields whose columns compare as text
_TEXT_KINDS = lexer.word_set("""
    CharField TextField SlugField EmailField URLField FilePathField FileField
    GenericIPAddressField
""")
#: kinds of fields whose columns compare as the values that Python has
_EXACT_KINDS = lexer.word_set("""
    AutoField BigAutoField SmallAutoField IntegerField BigIntegerField
    SmallIntegerField PositiveIntegerField PositiveBigIntegerField
    PositiveSmallIntegerField BooleanField DecimalField FloatField DateField
    DateTimeField TimeField DurationField UUIDField BinaryField
""")


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a decision may depend on."""

    topology: Topology
    engine: Engine
    tables: Tables
    shard_of: ShardOf
    in_transaction: bool

    @property
    def alias(self) -> str:
        return self.topology.alias

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(self.topology.shards)

    def is_exact(self, field: Any) -> bool:
        """Whether equal in the database means equal here, for a column."""
        while field.remote_field:
            field = field.target_field
        if type(field).db_type is not Field.db_type:
            return False  # a column type that a project chose, such as citext
        kind = field.get_internal_type()
        if kind in _TEXT_KINDS:
            is_plain = not getattr(field, "db_collation", None)
            return self.engine.has_binary_text_equality and is_plain
        return kind in _EXACT_KINDS


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL as it will be sent, and what is known of where it came from."""

    sql: str
    blocks: tuple[Block, ...]
    registry: Any
    is_raw: bool = False
    #: compiler of the outermost block, and its locking clause
    outer: Any = None
    locking: str = ""
    #: (sql, params) as the outermost compiler made them
    outer_sql: tuple[str, Any] | None = None


@dataclass(slots=True)
class _Use:
    """How a statement uses one table."""

    table: Table
    places: list[tuple[Block, Occurrence, Clusters]]
    #: seen in the text but in no block: raw SQL, of which nothing is known
    is_hidden: bool = False

    @property
    def clusters(self) -> Clusters:
        if self.is_hidden or any(found is None for _, _, found in self.places):
            return None
        return frozenset().union(*(found or () for _, _, found in self.places))


def plan_read(facts: Facts, statement: Statement) -> Route:
    """Route a SELECT of a sharded alias."""
    uses = uses_of(facts, statement)
    replica_ok = not facts.in_transaction and not statement.locking
    sharded = [use for use in uses if use.table.is_sharded]
    if not sharded:
        reason = "no table of the statement is sharded"
        return _one(facts, Intent.READ, HOME, reason, replica_ok)
    pinned = pinned_to(facts, uses)
    if pinned is not None:
        return _one(facts, Intent.READ, pinned, _pin_reason(sharded), replica_ok)
    return _gather(facts, statement, uses, replica_ok)


def plan_pinned(table: Table, alias: str, shard: str, in_transaction: bool) -> Route:
    """Route a read that :mod:`dbfleet.planner.simple` proved to be of one shard."""
    route = table.pins.get((shard, in_transaction))
    if route is None:
        route = table.pins[shard, in_transaction] = Route(
            alias,
            Intent.READ,
            Rung.NODE,
            (shard,),
            table.pin_reason,
            replica_ok=not in_transaction,
        )
    return route


def plan_cluster(
    topology: Topology, *, in_transaction: bool, locks: bool, level: str
) -> Route:
    """Route a SELECT of an alias that is one cluster."""
    replicas_wanted = topology.home.is_replicated and not (in_transaction or locks)
    if not topology.home.is_replicated:
        reason = "the alias has no replicas"
    elif in_transaction:
        reason = "inside a transaction every statement goes to the primary"
    elif locks:
        reason = "rows are locked on the primary"
    elif level == "strong":
        replicas_wanted, reason = False, "strong consistency reads from the primary"
    else:
        reason = "a replica that has caught up with this session, else the primary"
    return Route(
        topology.alias,
        Intent.READ,
        Rung.NODE,
        (HOME,),
        reason,
        replica_ok=replicas_wanted,
    )


def limited_to(route: Route, shard: str) -> Route:
    """The part of a route that one shard has; home's own tables stay home's."""
    if route.rung is Rung.NODE:
        if route.clusters == (HOME,):
            return route
        reason = f"limited to shard {shard!r} by on_shard"
        return replace(route, clusters=(shard,), reason=reason)
    fragments = tuple(
        part if part.clusters == (HOME,) else replace(part, clusters=(shard,))
        for part in route.fragments
    )
    return replace(
        route,
        clusters=(shard,),
        fragments=fragments,
        reason=f"{route.reason}; limited to shard {shard!r} by on_shard",
    )


def plan_write(facts: Facts, statement: Statement, target: Table) -> Route:
    """Route an UPDATE or DELETE of a sharded alias.

    Rung GATHER means: find the keys (and new values) by a gathered SELECT first,
    then write by key.
    """
    uses = uses_of(facts, statement)
    others = [use for use in uses if use.table.name != target.name]
    own = next((use for use in uses if use.table.name == target.name), None)
    is_single = own is None or (len(own.places) == 1 and not own.is_hidden)
    if target.is_sharded:
        pinned = pinned_to(facts, uses)
        if pinned is not None:
            return _one(facts, Intent.WRITE, pinned, _pin_reason([own or uses[0]]))
    elif not target.is_reference and not any(u.table.is_sharded for u in others):
        return _one(facts, Intent.WRITE, HOME, "the table is home's own")
    if is_single and all(use.table.is_reference for use in others):
        if target.is_reference:
            clusters = (HOME, *facts.shards)
            reason = "a reference table is written on every node"
        else:
            found = own.clusters if own is not None else None
            clusters = in_order(facts, found)
            reason = "each shard decides its own rows"
        return Route(facts.alias, Intent.WRITE, Rung.SCATTER, clusters, reason)
    return Route(
        facts.alias,
        Intent.WRITE,
        Rung.GATHER,
        (HOME, *facts.shards),
        "rows are chosen with other tables: keys are picked first",
    )


def uses_of(facts: Facts, statement: Statement) -> list[_Use]:
    """Every known table of the statement, with the clusters of each occurrence."""
    known = facts.tables.all(statement.registry)
    uses: dict[str, _Use] = {}
    for block in statement.blocks:
        _add_block(facts, block, known, uses)
    vendor = facts.engine.vendor
    for table, times in facts.tables.named_in(
        statement.sql, vendor, statement.registry
    ):
        use = uses.get(table.name)
        if use is None or times > len(use.places):
            uses.setdefault(table.name, _Use(table, [])).is_hidden = True
    return list(uses.values())


def _add_block(
    facts: Facts, block: Block, known: dict[str, Table], uses: dict[str, _Use]
) -> None:
    values: Values | None = None
    opts = block.opts
    for occurrence in block.occurrences:
        name = occurrence.table
        table = known.get(name)
        if table is None:
            if opts is None or name != opts.db_table:
                continue
            table = facts.tables.of(opts.concrete_model._meta)
        if values is None:
            stated = possible_values(block.query.where, facts.is_exact)
            values = spread_over_joins(stated, block)
        clusters = None
        if table.is_sharded:
            clusters = _place(facts, block, occurrence.alias, table, values, known)
        use = uses.setdefault(name, _Use(table, []))
        use.places.append((block, occurrence, clusters))


def _place(
    facts: Facts,
    block: Block,
    alias: str,
    table: Table,
    values: Values,
    known: dict[str, Table],
) -> Clusters:
    if not table.key_path:
        return clusters_of(table, alias, values, facts.shard_of)
    hop = table.key_path[0]
    for joined in _parents_of(block, alias, hop):
        parent = known.get(block.query.alias_map[joined].table_name)
        if parent is not None and parent.is_sharded and parent.name == hop.table:
            return _place(facts, block, joined, parent, values, known)
    return None


def _parents_of(block: Block, alias: str, hop: Hop) -> list[str]:
    """Occurrences that are joined to ``alias`` over its foreign key ``hop``."""
    edge = (hop.target_column, hop.column)
    found = []
    for join in block.joins:
        is_up = edge[::-1] in join.join_cols and join.join_type == INNER
        if join.table_alias == alias and edge in join.join_cols:
            found.append(join.parent_alias)
        elif join.parent_alias == alias and is_up:
            found.append(join.table_alias)
    return found


def pinned_to(facts: Facts, uses: Sequence[_Use]) -> str | None:
    """The one shard that holds every row the statement may look at."""
    found: set[str] = set()
    for use in uses:
        if use.table.is_reference:
            continue
        if not use.table.is_sharded:
            return None
        clusters = use.clusters
        if clusters is None or len(clusters) > 1:
            return None
        found |= clusters
    if len(found) > 1 or not any(use.table.is_sharded for use in uses):
        return None
    # Filters that contradict each other find nothing anywhere: any shard says so.
    return next(iter(found), facts.shards[0])


def _pin_reason(sharded: Sequence[_Use]) -> str:
    return sharded[0].table.pin_reason


def _one(
    facts: Facts,
    intent: Intent,
    cluster: str,
    reason: str,
    replica_ok: bool = False,
) -> Route:
    return Route(
        facts.alias, intent, Rung.NODE, (cluster,), reason, replica_ok=replica_ok
    )


def in_order(facts: Facts, clusters: Clusters) -> tuple[str, ...]:
    """Shards in the order of their declaration; never none at all."""
    if clusters is None:
        return facts.shards
    return tuple(s for s in facts.shards if s in clusters) or facts.shards[:1]


def _gather(
    facts: Facts, statement: Statement, uses: Sequence[_Use], replica_ok: bool
) -> Route:
    names = [use.table.label for use in uses if use.table.is_sharded]
    if not facts.engine.can_gather:
        raise RouteRefused(
            "E503",
            f"a query of {', '.join(names)} on {facts.alias!r} needs rows of several "
            f"shards, and {facts.engine.vendor} cannot gather them; filter by the "
            "shard key so that one shard can answer",
        )
    fragments = tuple(_fragment(facts, statement, use) for use in uses)
    clusters = dict.fromkeys(c for part in fragments for c in part.clusters)
    return Route(
        facts.alias,
        Intent.READ,
        Rung.GATHER,
        tuple(clusters),
        f"no filter fixes one shard for {', '.join(names)}",
        fragments,
        replica_ok,
    )


def _fragment(facts: Facts, statement: Statement, use: _Use) -> Fragment:
    table = use.table
    where, params = "", ()
    if not use.is_hidden:
        where, params = any_filter(filter_of(b, o) for b, o, _ in use.places)
    is_opaque = statement.is_raw or use.is_hidden
    columns: tuple[str, ...] = ()  # every column the server knows
    if not is_opaque and not lexer.has_star(statement.sql, facts.engine.vendor):
        used = lexer.names(statement.sql, facts.engine.vendor)
        keep = {*table.pk_columns[:1]}
        columns = tuple(c for c in table.columns if c.lower() in used or c in keep)
    pk = table.pk_columns
    is_local = not table.is_sharded
    return Fragment(
        table=table.name,
        model=table.label,
        columns=columns,
        clusters=(HOME,) if is_local else in_order(facts, use.clusters),
        where=where,
        params=params,
        order_by=pk[0] if len(pk) == 1 else None,
        is_native=is_local and facts.engine.gathers_at_home,
        locking="" if is_local else _locking(statement, use),
        key=pk if _needs_key(facts, statement) else (),
    )


def _needs_key(facts: Facts, statement: Statement) -> bool:
    """Every column is spelled out in GROUP BY, but for windows and in raw SQL."""
    if any(groups_by_key(block.query) for block in statement.blocks):
        return True
    return statement.is_raw and "group" in lexer.names(
        statement.sql, facts.engine.vendor
    )


def _locking(statement: Statement, use: _Use) -> str:
    """Only the tables of the outermost block are locked, as FOR UPDATE does."""
    if not statement.locking:
        return ""
    is_outer = any(block.compiler is statement.outer for block, _, _ in use.places)
    return f" {statement.locking}" if is_outer else ""
