"""Runs a gather over foreign tables, where its route says so.

Guards one invariant: before a statement is sent it is looked up that home's foreign
tables lead to the primaries that this process itself would read, and have the columns
of today. Where a route is open, whatever goes wrong here is no answer and no error:
nothing was changed, and the rows are fetched instead.
"""

from __future__ import annotations

import time
from typing import Any

from django.db.utils import Error

from dbfleet import conf
from dbfleet.engines import GatheredRows
from dbfleet.engines.foreign_postgresql import ForeignLink, ForeignPart
from dbfleet.errors import FanoutTimeout, NodeUnavailable, RouteRefused
from dbfleet.executor import costs
from dbfleet.executor.failures import reason_of
from dbfleet.observe import events
from dbfleet.planner.route import HOME, Route, Source

INSTALL = "run manage.py fleet gather --install"


class ForeignReader:
    """One statement over foreign tables; ``routing`` gives nodes."""

    def __init__(self, routing: Any, route: Route, source: Source) -> None:
        self.routing, self.route, self.source = routing, route, source
        self.wrapper = routing.wrapper
        self.alias: str = routing.topology.alias
        self.parts = [part for part in route.fragments if not part.is_native]

    def run(self, sql: str, params: Any) -> GatheredRows | None:
        """The answer; None where an open route had better fetch the rows.

        One round trip to look at the tables, then those of
        :meth:`~dbfleet.engines.foreign_postgresql.ForeignTables.gather`.
        Where the setting leaves no choice: RouteRefused E506 for tables that are
        missing or stale, NodeUnavailable E507 for a shard that home cannot read,
        FanoutTimeout E505.
        """
        started = time.monotonic()
        home = self.routing.node(HOME, is_write=False)
        if not self.parts or not _is_idle(home):
            return None
        fault = self.fault(home)
        if fault is not None:
            if not self.source.is_open:
                raise self._unusable(fault)
            costs.note_fault(self.alias, f"{fault}: {INSTALL}")
            return None
        deadline_s = conf.settings().fanout.deadline_s
        limits = [s for s in (self.source.limit_s, deadline_s) if s is not None]
        try:
            found: GatheredRows = self.wrapper.engine.foreign.gather(
                home, self._tables(home), sql, params, min(limits, default=None)
            )
        except Error as error:
            if home.connection is None or self.wrapper.engine.is_closed(home):
                raise
            self._failed(error, deadline_s)
            return None
        took = time.monotonic() - started
        if self.source.is_open:
            costs.by_fdw(self.alias, self.source.text, took)
        events.emit(
            "gathered",
            alias=self.alias,
            source=self.source.name,
            rows=0,
            bytes=0,
            reduced=(),
            seconds=took,
        )
        return found

    def fault(self, home: Any) -> str | None:
        """Why home's foreign tables do not show what the primaries have; one round trip
        to home, and connections to the shards where there are none yet."""
        tables = [part.table for part in self.parts]
        links = [self._link(shard) for shard in self._shards()]
        found: str | None = self.wrapper.engine.foreign.fault(home, links, tables)
        return found

    def _shards(self) -> list[str]:
        return list(dict.fromkeys(c for part in self.parts for c in part.clusters))

    def _link(self, shard: str) -> ForeignLink:
        return link_of(self.routing, shard)

    def _tables(self, home: Any) -> list[ForeignPart]:
        engine = self.wrapper.engine
        return [
            ForeignPart(
                part.table,
                part.columns or engine.table_columns(home, part.table),
                {cluster: part.filter_at(cluster) for cluster in part.clusters},
                part.table in self.source.spooled,
            )
            for part in self.parts
        ]

    def _failed(self, error: Error, deadline_s: float | None) -> None:
        """Remember it where rows can be fetched instead, else raise what it means."""
        engine = self.wrapper.engine
        failure = engine.foreign.failure(error)
        if self.source.is_open:
            costs.by_fdw(self.alias, self.source.text, float("inf"))
            if failure is not None and not engine.foreign.is_timeout(error):
                costs.note_fault(
                    self.alias, f"home could not read shards: {failure[0]}"
                )
            events.emit("fdw_failed", alias=self.alias, reason=reason_of(error))
            return
        if failure is None:
            raise error
        shard = failure[1]
        where = f"shard {shard}" if shard else f"one of {', '.join(self._shards())}"
        if engine.foreign.is_timeout(error):
            raise FanoutTimeout(
                "E505",
                f"{where} of alias {self.alias!r} did not answer home's foreign tables "
                f"in time ({failure[0]}); the statement was given up. Filter by the "
                'shard key so that fewer are asked, or raise FANOUT["DEADLINE_S"] and '
                f"{INSTALL}",
            ) from error
        raise NodeUnavailable(
            "E507",
            f"home of alias {self.alias!r} cannot read {where} through its foreign "
            f"tables ({failure[0]}); nothing was changed. See that home's server "
            f"reaches the shard's, {INSTALL} if its address or password changed, or "
            "set GATHER['SOURCE'] to 'auto'",
        ) from error

    def _unusable(self, fault: str) -> RouteRefused:
        models = ", ".join(part.model for part in self.parts)
        return RouteRefused(
            "E506",
            f"a gather of {models} on alias {self.alias!r} cannot use foreign tables: "
            f"{fault}; nothing was sent: {INSTALL} --database {self.alias}, or set "
            "GATHER['SOURCE'] to 'auto'",
        )


def link_of(routing: Any, shard: str) -> ForeignLink:
    """How home reaches a shard's primary as this process knows it."""
    node = routing.node(shard, is_write=False)
    hosts = conf.settings().gather_for(routing.topology).fdw_hosts
    found: ForeignLink = routing.wrapper.engine.foreign.link(node, shard, hosts)
    return found


def _is_idle(home: Any) -> bool:
    """Whether home's connection is in no transaction, which would be the caller's."""
    home.ensure_connection()
    is_idle = int(home.connection.info.transaction_status) == 0
    return bool(is_idle and home.connection.autocommit)
