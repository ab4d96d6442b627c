"""Runs a gather: sets the limits, replaces a lost node, explains an overflow."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from django.apps import apps
from django.db.utils import Error

from dbfleet import conf
from dbfleet.engines import GatheredRows, Overflow
from dbfleet.errors import FanoutTimeout, GatherLimitExceeded
from dbfleet.executor import costs
from dbfleet.executor.fetching import Fetcher
from dbfleet.executor.foreign import ForeignReader
from dbfleet.observe import events
from dbfleet.planner.route import HOME, Route
from dbfleet.planner.sources import FDW


class Gatherer:
    """One gather of one statement; ``routing`` gives it nodes."""

    def __init__(self, routing: Any, route: Route, query: Any = None) -> None:
        self.routing, self.route, self.query = routing, route, query
        self.wrapper = routing.wrapper

    def run(self, sql: str, params: Any) -> GatheredRows:
        """Fetch the fragments and run the statement over them, complete in memory.

        A replica that is lost meanwhile is replaced; nothing of the statement has run
        yet. Raises GatherLimitExceeded, before the statement runs, when the fragments
        pass a limit (the caller's transaction goes on), and FanoutTimeout.

        Over home's foreign tables where the route says so; see
        :meth:`~dbfleet.executor.foreign.ForeignReader.run`.
        """
        source = self.route.source
        if source is not None and source.name == FDW:
            found = ForeignReader(self.routing, self.route, source).run(sql, params)
            if found is not None:
                return found
        return self._by_rows(sql, params)

    def _by_rows(self, sql: str, params: Any) -> GatheredRows:
        limits = conf.settings().gather_for(self.routing.topology)
        for _ in self.routing.topology.nodes:
            home = self.routing.node(HOME, is_write=False)
            fetcher = Fetcher(self.routing, self.route, self.query, limits)
            try:
                return self._gather(home, fetcher, sql, params, limits)
            except Overflow as overflow:
                found = self._over_foreign_tables(sql, params)
                if found is not None:
                    return found
                raise self._too_large(overflow, limits) from None
            except FanoutTimeout:
                raise
            except Error as error:
                if not self._replaces_any([*fetcher.nodes.values()], error):
                    raise
        raise AssertionError("every node was lost and none was the primary")

    def _over_foreign_tables(self, sql: str, params: Any) -> GatheredRows | None:
        """Rows that are too many to be fetched, where home may read them; else None."""
        source = self.route.source
        if source is None or not source.is_open:
            return None
        costs.too_large(self.wrapper.alias, source.text)
        if source.name == FDW:
            return None  # that way was tried first
        source = source._replace(name=FDW)
        return ForeignReader(self.routing, self.route, source).run(sql, params)

    def sized(self) -> Route:
        """The route with what the servers estimate of each fragment's rows; a round
        trip for each to each node, at once."""
        limits = conf.settings().gather_for(self.routing.topology)
        home = self.routing.node(HOME, is_write=False)
        fetcher = Fetcher(self.routing, self.route, self.query, limits)
        rows = fetcher.sizes(fetcher.wanted(home, self.route.fragments))
        parts = self.route.fragments
        sized = tuple(replace(part, rows=rows[part.table]) for part in parts)
        return replace(self.route, fragments=sized)

    def _gather(
        self, home: Any, fetcher: Fetcher, sql: str, params: Any, limits: Any
    ) -> GatheredRows:
        engine, source = self.wrapper.engine, self.route.source
        started = time.monotonic()
        fetched = fetcher.run(home)
        if any(one.spec.locking for one in fetched):
            sql = engine.without_locking(sql)
        result: GatheredRows = engine.gather(
            home, fetched, sql, params, inline_rows=limits.inline_rows
        )
        result.fetched_rows = fetcher.rows
        took = time.monotonic() - started
        if source is not None and source.is_open:
            costs.by_rows(self.wrapper.alias, source.text, took, fetcher.rows)
        events.emit(
            "gathered",
            alias=self.wrapper.alias,
            source="rows",
            rows=fetcher.rows,
            bytes=fetcher.bytes,
            reduced=fetcher.reduced,
            seconds=took,
        )
        return result

    def _replaces_any(self, nodes: list[Any], error: Error) -> bool:
        """Whether a replica among the nodes was lost, and is now left alone."""
        lost = [self.wrapper.nodes.is_replaceable(node, error) for node in nodes]
        return any(lost)

    def _too_large(self, overflow: Overflow, limits: Any) -> GatherLimitExceeded:
        part = next(p for p in self.route.fragments if p.table == overflow.table)
        table = self.routing.tables.all(apps).get(part.table)
        key = ", ".join(table.key_columns) if table is not None else ""
        hint = f"filter by its shard key ({key})" if key else "add a filter"
        what, code, limit = (
            (f"more than {limits.max_rows} rows", "E501", "MAX_ROWS")
            if overflow.is_rows
            else (f"more than {limits.max_bytes} bytes", "E502", "MAX_BYTES")
        )
        filters = f" (pushed filter: {part.where})" if part.where else " unfiltered"
        return GatherLimitExceeded(
            code,
            f"a query on alias {self.wrapper.alias!r} needs {what} of {part.model} "
            f"from {len(part.clusters)} shards{filters}; nothing was changed. Either "
            f"{hint} or another column, or raise GATHER[{limit!r}]",
        )
