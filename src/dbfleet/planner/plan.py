"""Statement -> ``Route``. Pure: given the same facts, the same route; no I/O.

The first rung that is proved right is taken. A statement that no rung fits is
refused with the reason and the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dbfleet.errors import RouteRefused
from dbfleet.planner.colocation import Unproved, spread_of
from dbfleet.planner.finals import aggregate_of
from dbfleet.planner.fragments import fragment_of
from dbfleet.planner.lookups import Lookups
from dbfleet.planner.merging import merge_of
from dbfleet.planner.partials import aggregates, is_grouped_by_shard
from dbfleet.planner.reducing import reductions_of
from dbfleet.planner.route import HOME, Intent, Route, Rung
from dbfleet.planner.sources import source_of
from dbfleet.planner.tables import Table
from dbfleet.planner.unions import union_of
from dbfleet.planner.uses import Clusters, Facts, Statement, Use, uses_of
from dbfleet.topology import Topology


def plan_read(facts: Facts, statement: Statement) -> Route:
    """Route a SELECT of a sharded alias."""
    lookups = Lookups(facts)
    uses = uses_of(facts, statement, lookups)
    if facts.only_scatter:
        uses = [use.unpruned() for use in uses]
    return _with_lookups(lookups, _plan_read(facts, statement, uses))


def _with_lookups(lookups: Lookups, route: Route) -> Route:
    """Say what home could be asked, or which of its answers left fewer shards."""
    if lookups.used:
        names = ", ".join(ask.label for ask in lookups.used.values())
        whose = "the shards'" if lookups.facts.topology.claims == "shards" else "home's"
        told = f"{whose} lookup of {names} names the shards"
        is_by_key = route.rung is Rung.NODE
        return replace(route, reason=told if is_by_key else f"{route.reason}; {told}")
    if lookups.asks and route.rung is not Rung.NODE:
        return replace(route, asks=tuple(lookups.asks.values()))
    return route


def _plan_read(facts: Facts, statement: Statement, uses: Sequence[Use]) -> Route:
    replica_ok = not facts.in_transaction and not statement.locking
    sharded = [use for use in uses if use.table.is_sharded]
    if not sharded:
        reason = "no table of the statement is sharded"
        return _one(facts, Intent.READ, HOME, reason, replica_ok)
    pinned = pinned_to(facts, uses)
    if pinned is not None:
        return _one(facts, Intent.READ, pinned, _pin_reason(sharded), replica_ok)
    try:
        return _spread(facts, statement, uses, replica_ok)
    except Unproved as unproved:
        return _gather(facts, statement, uses, replica_ok, str(unproved))


def _spread(
    facts: Facts, statement: Statement, uses: Sequence[Use], replica_ok: bool
) -> Route:
    """Every shard answers for its own rows; raises Unproved."""
    if facts.only_gather:
        raise Unproved("other rungs are switched off")
    merge: Any
    if statement.outer is not None and statement.outer.query.combinator:
        merge, clusters = union_of(facts, statement, uses)
        return _merged(facts, Rung.MERGE, merge, clusters, replica_ok)
    spread = spread_of(facts, statement, uses)
    if spread.clusters is not None and len(spread.clusters) < 2:
        return _merged(facts, Rung.MERGE, None, spread.clusters, replica_ok)
    if aggregates(statement) and statement.locking:
        raise Unproved("it locks rows that it aggregates")
    if aggregates(statement) and not is_grouped_by_shard(statement, spread):
        rung, merge = Rung.PARTIAL, aggregate_of(facts, statement, spread)
    else:
        rung, merge = Rung.MERGE, merge_of(facts, statement, spread)
    return _merged(facts, rung, merge, spread.clusters, replica_ok)


def _merged(
    facts: Facts, rung: Rung, merge: Any, clusters: Clusters, replica_ok: bool
) -> Route:
    """What shards answer for their own rows; one of them has nothing to be merged."""
    if clusters is not None and len(clusters) < 2:
        [shard] = facts.in_order(clusters)
        reason = "one shard answers for all rows"
        return _one(facts, Intent.READ, shard, reason, replica_ok)
    is_partial = rung is Rung.PARTIAL
    does = "aggregates" if is_partial else "answers for"
    return Route(
        facts.alias,
        Intent.READ,
        rung,
        facts.in_order(clusters),
        f"each shard {does} its own rows",
        replica_ok=replica_ok,
        merge=merge,
        epoch=facts.epoch,
    )


def plan_pinned(
    table: Table, alias: str, shard: str, in_transaction: bool, epoch: int | None = None
) -> Route:
    """Route a read that :mod:`dbfleet.planner.simple` proved to be of one shard."""
    route = table.pins.get((shard, in_transaction, epoch))
    if route is None:
        route = table.pins[shard, in_transaction, epoch] = Route(
            alias,
            Intent.READ,
            Rung.NODE,
            (shard,),
            table.pin_reason,
            replica_ok=not in_transaction,
            epoch=epoch,
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


def plan_gathered(facts: Facts, statement: Statement, why: str) -> Route:
    """Route a SELECT that a distributed engine refused: its tables are gathered."""
    uses = uses_of(facts, statement)
    return replace(
        _gather(facts, statement, uses, replica_ok=False, why=why), reason=why
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
    lookups = Lookups(facts)
    uses = uses_of(facts, statement, lookups)
    route = _plan_write(facts, uses, target)
    return _with_lookups(lookups, route)


def _plan_write(facts: Facts, uses: Sequence[Use], target: Table) -> Route:
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
            clusters = facts.in_order(found)
            reason = "each shard decides its own rows"
        return Route(
            facts.alias,
            Intent.WRITE,
            Rung.SCATTER,
            clusters,
            reason,
            epoch=facts.epoch,
        )
    return Route(
        facts.alias,
        Intent.WRITE,
        Rung.GATHER,
        (HOME, *facts.shards),
        "rows are chosen with other tables: keys are picked first",
        epoch=facts.epoch,
    )


def pinned_to(facts: Facts, uses: Sequence[Use]) -> str | None:
    """The one shard that holds every row the statement may look at."""
    found: set[str] = set()
    only_shard = _only_shard(facts)
    for use in uses:
        if use.table.is_reference:
            continue
        if not use.table.is_sharded:
            return None
        clusters = use.clusters
        if clusters is None and not use.is_hidden:
            clusters = only_shard
        if clusters is None or len(clusters) > 1:
            return None
        found |= clusters
    if len(found) > 1 or not any(use.table.is_sharded for use in uses):
        return None
    # Filters that contradict each other find nothing anywhere: any shard says so.
    return next(iter(found), facts.shards[0])


def _only_shard(facts: Facts) -> Clusters:
    """The shard of an alias that has one: it holds every row, whatever is asked for."""
    is_compared = facts.only_gather or facts.only_scatter
    if is_compared or len(facts.topology.shards) != 1:
        return None
    return frozenset(facts.topology.shards)


def _pin_reason(sharded: Sequence[Use]) -> str:
    if any(use.clusters is None for use in sharded):
        return "the only shard has every row"
    return sharded[0].table.pin_reason


def _one(
    facts: Facts,
    intent: Intent,
    cluster: str,
    reason: str,
    replica_ok: bool = False,
) -> Route:
    return Route(
        facts.alias,
        intent,
        Rung.NODE,
        (cluster,),
        reason,
        replica_ok=replica_ok,
        epoch=facts.epoch,
    )


def _gather(
    facts: Facts,
    statement: Statement,
    uses: Sequence[Use],
    replica_ok: bool,
    why: str,
) -> Route:
    names = [use.table.label for use in uses if use.table.is_sharded]
    if not facts.engine.can_gather:
        raise RouteRefused(
            "E503",
            f"a query of {', '.join(names)} on {facts.alias!r} needs rows of several "
            f"shards, and {facts.engine.vendor} cannot gather them; filter by the "
            "shard key so that one shard can answer",
        )
    fragments = tuple(fragment_of(facts, statement, use) for use in uses)
    clusters = dict.fromkeys(c for part in fragments for c in part.clusters)
    return Route(
        facts.alias,
        Intent.READ,
        Rung.GATHER,
        tuple(clusters),
        f"no filter fixes one shard for {', '.join(names)}, and {why}",
        fragments,
        reductions_of(facts, statement, uses),
        replica_ok,
        epoch=facts.epoch,
        source=source_of(facts, statement, uses, fragments, replica_ok),
    )
