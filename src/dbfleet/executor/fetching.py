"""Reads the fragments of a gather from their clusters.

Guards two invariants: no more is kept than the limits allow, and when this ends, no
node is still at work for the gather. Clusters are read at once by
:mod:`dbfleet.executor.fanout`; one after another where rows are locked (two statements
could wait for each other in a circle over two servers, which neither sees), on SQLite,
and in a test's emulated fleet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Any

from dbfleet import conf
from dbfleet.engines import Budget, Fetched, FragmentSpec, Overflow, Portion
from dbfleet.executor import fanout
from dbfleet.executor.emulated import emulated
from dbfleet.planner.route import HOME, Filter, Fragment, Route

#: cluster -> the part of a fragment that is read from it
Parts = dict[str, FragmentSpec]


class Fetcher:
    """The fragments of one statement; ``routing`` gives it nodes."""

    def __init__(self, routing: Any, route: Route, query: Any, limits: Any) -> None:
        self.routing, self.route, self.query = routing, route, query
        self.wrapper, self.limits = routing.wrapper, limits
        self.fragments = {p.table: p for p in route.fragments if not p.is_native}
        #: (cluster, whether rows are locked) -> the node that is read
        self.nodes: dict[tuple[str, bool], Any] = {}
        self.fetched_rows = 0

    def run(self, home: Any) -> list[Fetched]:
        """Every fragment that has to travel; one round trip for each to each node.

        Raises :class:`Overflow`.
        """
        columns = {
            table: part.columns or self.wrapper.engine.table_columns(home, table)
            for table, part in self.fragments.items()
        }
        wanted = {
            table: self._parts(part, columns[table])
            for table, part in self.fragments.items()
        }
        found = self._read(
            wanted,
            self.limits.max_rows + 1,
            Budget(self.limits.max_rows, self.limits.max_bytes),
        )
        return [
            Fetched(_spec(self.fragments[table], columns[table]), portions)
            for table, portions in found.items()
        ]

    def _parts(self, part: Fragment, columns: tuple[str, ...]) -> Parts:
        spec = _spec(part, columns)
        filters = {cluster: part.filter_at(cluster) for cluster in part.clusters}
        return {
            cluster: spec._replace(where=where, params=params)
            for cluster, (where, params) in filters.items()
        }

    # -- reading --------------------------------------------------------------------

    def _read(
        self, wanted: Mapping[str, Parts], limit: int, budget: Budget
    ) -> dict[str, tuple[Portion, ...]]:
        """The portions of each table, in the order of its clusters; at most ``limit``
        rows from each. Raises Overflow once the budget is passed."""
        by_cluster: dict[str, list[FragmentSpec]] = {}
        for parts in wanted.values():
            for cluster, spec in parts.items():
                by_cluster.setdefault(cluster, []).append(spec)
        # One order for all statements, for those that lock.
        steps = {
            cluster: partial(
                self._read_cluster, cluster, by_cluster[cluster], limit, budget
            )
            for cluster in dict.fromkeys([HOME, *self.routing.topology.holders])
            if cluster in by_cluster
        }
        found = self._on_all(steps)
        self.fetched_rows += budget.rows
        if budget.is_over:
            raise Overflow(budget.largest, is_rows=budget.rows > budget.max_rows)
        return {
            table: tuple(found[cluster][table] for cluster in parts)
            for table, parts in wanted.items()
        }

    def _read_cluster(
        self, cluster: str, specs: list[FragmentSpec], limit: int, budget: Budget
    ) -> dict[str, Portion]:
        found = {}
        for spec in specs:
            if budget.is_over:
                return {}
            node = self.nodes[cluster, bool(spec.locking)]
            found[spec.table] = self.wrapper.engine.read(node, spec, limit, budget)
        return found

    def _on_all(self, steps: Mapping[str, Any]) -> dict[str, Any]:
        """Each step's result; of the shards at once, where that helps."""
        for cluster in steps:
            self._open(cluster)
        locks = any(part.locking for part in self.fragments.values())
        in_turn = self.wrapper.engine.is_local or bool(emulated) or locks
        shards = [cluster for cluster in steps if cluster != HOME]
        if in_turn or len(shards) < 2:
            return {cluster: step() for cluster, step in steps.items()}
        found = {HOME: steps[HOME]()} if HOME in steps else {}
        jobs = {cluster: self._job(cluster, steps[cluster]) for cluster in shards}
        limits = conf.settings().fanout
        return found | fanout.run(self.wrapper.alias, jobs, limits)

    def _open(self, cluster: str) -> None:
        """Choose the nodes of a cluster, once for all fragments."""
        routing = self.routing
        for part in self.fragments.values():
            key = cluster, bool(part.locking)
            if cluster not in part.clusters or key in self.nodes:
                continue
            if self.route.replica_ok and not part.locking:
                self.nodes[key] = routing.reader(cluster, self.query)
            else:
                is_write = bool(part.locking)
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
