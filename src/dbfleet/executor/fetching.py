"""Reads the fragments of a gather from their clusters.

Guards two invariants: no more is kept than the limits allow, and when this ends, no
node is still at work for the gather. Clusters are read at once by
:mod:`dbfleet.executor.fanout`; one after another where rows are locked (two statements
could wait for each other in a circle over two servers, which neither sees), on SQLite,
and in a test's emulated fleet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dbfleet import conf
from dbfleet.engines import Budget, Fetched, FragmentSpec, Overflow, Portion
from dbfleet.executor import fanout
from dbfleet.executor.emulated import emulated
from dbfleet.executor.reducing import Reducer, Wanted
from dbfleet.planner.route import HOME, Filter, Fragment, Route


class Fetcher:
    """The fragments of one statement; ``routing`` gives it nodes."""

    def __init__(self, routing: Any, route: Route, query: Any, limits: Any) -> None:
        self.routing, self.route, self.query = routing, route, query
        self.wrapper, self.limits = routing.wrapper, limits
        self.fragments = {part.table: part for part in route.fragments}
        #: table -> the columns that are fetched
        self.columns: dict[str, tuple[str, ...]] = {}
        #: (cluster, whether rows are locked) -> the node that is read
        self.nodes: dict[tuple[str, bool], Any] = {}
        #: what arrived, also what was read in vain
        self.rows = self.bytes = 0
        #: the tables of which rows were left behind, as others told
        self.reduced: tuple[str, ...] = ()

    def run(self, home: Any) -> list[Fetched]:
        """Every fragment that has to travel, complete; small tables of home's among
        them where that helped. One round trip to each node, at once; with reductions
        (:mod:`dbfleet.executor.reducing`) one more for each step.

        Raises :class:`Overflow`.
        """
        if self.wrapper.engine.gathers_at_home:
            self.nodes[HOME, False] = home
        wanted = self.wanted(home, [p for p in self.route.fragments if not p.is_native])
        if self.route.reductions and len(self.fragments) > 1:
            reducer = Reducer(self, home, wanted)
            found = reducer.run()
            self.reduced = tuple(sorted(reducer.reduced))
        else:
            budget = Budget(self.limits.max_rows, self.limits.max_bytes)
            found = self.read(wanted, budget.max_rows + 1, budget)
            if budget.is_over:
                raise Overflow(budget.largest, is_rows=budget.is_over_rows)
        return [
            Fetched(_spec(part, self.columns[table]), found[table])
            for table, part in self.fragments.items()
            if table in found
        ]

    def wanted(self, home: Any, fragments: Sequence[Fragment]) -> Wanted:
        """What each cluster is asked for of these fragments; the catalogue is read
        where their columns are not known."""
        found: Wanted = {}
        for part in fragments:
            engine = self.wrapper.engine
            columns = part.columns or engine.table_columns(home, part.table)
            self.columns[part.table] = columns
            spec = _spec(part, columns)
            filters = {cluster: part.filter_at(cluster) for cluster in part.clusters}
            found[part.table] = {
                cluster: spec._replace(where=where, params=params)
                for cluster, (where, params) in filters.items()
            }
        return found

    # -- reading --------------------------------------------------------------------

    def read(
        self, wanted: Wanted, limit: int, budget: Budget
    ) -> dict[str, tuple[Portion, ...]]:
        """The portions of each table, in the order of its clusters; at most ``limit``
        rows from each. Not complete once the budget is passed."""
        found = self._on_all(
            wanted, partial(self._read_cluster, limit=limit, budget=budget)
        )
        self.rows += budget.rows
        self.bytes += budget.bytes
        return {
            table: tuple(
                found[cluster][table] for cluster in parts if table in found[cluster]
            )
            for table, parts in wanted.items()
        }

    def _read_cluster(
        self, cluster: str, specs: list[FragmentSpec], limit: int, budget: Budget
    ) -> dict[str, Portion]:
        found = {}
        for spec in specs:
            if budget.is_over:
                break
            node = self.nodes[cluster, bool(spec.locking)]
            found[spec.table] = self.wrapper.engine.read(node, spec, limit, budget)
        return found

    def sizes(self, wanted: Wanted) -> dict[str, int | None]:
        """About how many rows each table has, as the servers' planners estimate; None
        where one has no idea. A round trip for each to each node, at once."""
        if not wanted:
            return {}
        found = self._on_all(wanted, self._size_cluster)
        sizes: dict[str, int | None] = {}
        for table, parts in wanted.items():
            some = [found[cluster][table] for cluster in parts]
            sizes[table] = None if None in some else sum(some)
        return sizes

    def _size_cluster(
        self, cluster: str, specs: list[FragmentSpec]
    ) -> dict[str, int | None]:
        estimate = self.wrapper.engine.estimate
        return {
            spec.table: estimate(self.nodes[cluster, bool(spec.locking)], spec)
            for spec in specs
        }

    def _on_all(
        self, wanted: Wanted, work: Callable[[str, list[FragmentSpec]], Any]
    ) -> dict[str, Any]:
        """What the work finds on each cluster, for the parts of tables that are
        wanted of it; of the shards at once, where that helps."""
        by_cluster: dict[str, list[FragmentSpec]] = {}
        for parts in wanted.values():
            for cluster, spec in parts.items():
                by_cluster.setdefault(cluster, []).append(spec)
        # One order for all statements, for those that lock.
        steps = {
            cluster: partial(work, cluster, by_cluster[cluster])
            for cluster in dict.fromkeys([HOME, *self.routing.topology.holders])
            if cluster in by_cluster
        }
        for cluster in steps:
            self._open(cluster, by_cluster[cluster])
        locks = any(part.locking for part in self.fragments.values())
        in_turn = self.wrapper.engine.is_local or bool(emulated) or locks
        shards = [cluster for cluster in steps if cluster != HOME]
        if in_turn or len(shards) < 2:
            return {cluster: step() for cluster, step in steps.items()}
        found = {HOME: steps[HOME]()} if HOME in steps else {}
        jobs = {cluster: self._job(cluster, steps[cluster]) for cluster in shards}
        limits = conf.settings().fanout
        return found | fanout.run(self.wrapper.alias, jobs, limits)

    def _open(self, cluster: str, specs: list[FragmentSpec]) -> None:
        """Choose the nodes of a cluster, once for all fragments."""
        routing = self.routing
        for is_write in {bool(spec.locking): None for spec in specs}:
            key = cluster, is_write
            if key in self.nodes:
                continue
            if self.route.replica_ok and not is_write:
                self.nodes[key] = routing.reader(cluster, self.query)
            else:
                self.nodes[key] = routing.node(cluster, is_write=is_write)

    def _job(self, cluster: str, step: Any) -> fanout.Job:
        [node] = [node for (name, _), node in self.nodes.items() if name == cluster]
        return fanout.Job(
            step,
            partial(self.wrapper.engine.cancel, node),
            partial(self._abandon, node),
        )

    def _abandon(self, node: Any) -> None:
        connection, node.connection = node.connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it may end by itself just now
                self.wrapper.engine.sever(connection)


def _spec(part: Fragment, columns: tuple[str, ...]) -> FragmentSpec:
    return FragmentSpec(
        part.table,
        columns,
        *Filter(part.where, part.params),
        part.order_by,
        part.locking,
        part.key,
    )
