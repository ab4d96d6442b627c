"""Runs a gather: opens the fragments' nodes, sets the limits, explains an overflow."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db.utils import Error

from dbfleet import conf
from dbfleet.engines import FragmentSpec, GatheredRows, Overflow
from dbfleet.errors import GatherLimitExceeded
from dbfleet.observe import events
from dbfleet.planner.route import HOME, Fragment, Route


class Gatherer:
    """One gather of one statement; ``routing`` gives it nodes."""

    def __init__(self, routing: Any, route: Route, query: Any = None) -> None:
        self.routing, self.route, self.query = routing, route, query
        self.wrapper = routing.wrapper

    def run(self, sql: str, params: Any) -> GatheredRows:
        """Fetch the fragments and run the statement over them, complete in memory.

        A replica that is lost meanwhile is replaced; nothing of the statement has run
        yet. Raises GatherLimitExceeded, before the statement runs, when a fragment
        passes its limit; the caller's transaction goes on.
        """
        limits = conf.settings().gather_for(self.routing.topology)
        for _ in self.routing.topology.nodes:
            home = self.routing.node(HOME, is_write=False)
            specs = [self._spec(home, part) for part in self.route.fragments]
            try:
                return self._gather(home, specs, sql, params, limits)
            except Overflow as overflow:
                raise self._too_large(overflow, limits) from None
            except Error as error:
                nodes = [node for spec in specs for node in spec.nodes]
                if not self._replaces_any(nodes, error):
                    raise
        raise AssertionError("every node was lost and none was the primary")

    def _gather(
        self, home: Any, specs: list[FragmentSpec], sql: str, params: Any, limits: Any
    ) -> GatheredRows:
        engine = self.wrapper.engine
        if any(spec.locking for spec in specs):
            sql = engine.without_locking(sql)
        result: GatheredRows = engine.gather(
            home,
            specs,
            sql,
            params,
            max_rows=limits.max_rows,
            max_bytes=limits.max_bytes,
            inline_rows=limits.inline_rows,
        )
        events.emit("gathered", alias=self.wrapper.alias, rows=result.fetched_rows)
        return result

    def _replaces_any(self, nodes: list[Any], error: Error) -> bool:
        """Whether a replica among the nodes was lost, and is now left alone."""
        lost = [self.wrapper.nodes.is_replaceable(node, error) for node in nodes]
        return any(lost)

    def _spec(self, home: Any, part: Fragment) -> FragmentSpec:
        routing = self.routing
        columns = part.columns or self.wrapper.engine.table_columns(home, part.table)
        if part.is_native:
            nodes = []
        elif self.route.replica_ok and not part.locking:
            nodes = [routing.reader(cluster, self.query) for cluster in part.clusters]
        else:
            is_write = bool(part.locking)
            nodes = [routing.node(c, is_write=is_write) for c in part.clusters]
        return FragmentSpec(
            part.table,
            columns,
            part.where,
            part.params,
            tuple(nodes),
            part.order_by,
            part.locking,
            part.is_native,
            part.key,
            () if part.is_native else tuple(map(part.filter_at, part.clusters)),
        )

    def _too_large(self, overflow: Overflow, limits: Any) -> GatherLimitExceeded:
        part = next(p for p in self.route.fragments if p.table == overflow.table)
        table = self.routing.tables.all(apps).get(part.table)
        key = ", ".join(table.key_columns) if table is not None else ""
        hint = f"filter by its shard key ({key})" if key else "add a filter"
        what, code, limit = (
            (f"more than {limits.max_rows} rows", "E501", "MAX_ROWS")
            if overflow.rows is not None
            else (f"more than {limits.max_bytes} bytes", "E502", "MAX_BYTES")
        )
        filters = f" (pushed filter: {part.where})" if part.where else " unfiltered"
        return GatherLimitExceeded(
            code,
            f"a query on alias {self.wrapper.alias!r} needs {what} of {part.model} "
            f"from {len(part.clusters)} shards{filters}; nothing was changed. Either "
            f"{hint} or another column, or raise GATHER[{limit!r}]",
        )
