"""An ordered read of several shards whose rows are not all in memory at once.

Each shard's server keeps its rows and sends portions. What is buffered is put in order
and handed out up to where a shard's next portion could come before; then that shard is
asked again. So at most two portions of each shard are in memory.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

from django.db.utils import Error

from dbfleet.executor.cursors import RowsCursor
from dbfleet.executor.merging import Merger, NotAsDeclared, ShardCursor
from dbfleet.executor.ordering import Distinct, Row, in_order
from dbfleet.observe import events


class StreamMergeCursor(RowsCursor):
    """Stands where a driver's server-side cursor would."""

    def __init__(self, merger: Merger, name: str, empty: Any) -> None:
        super().__init__(empty)
        self._merger, self._name = merger, name
        self._cursors: dict[str, ShardCursor] = {}
        self._buffers: dict[str, list[Row]] = {}
        self._ready: list[Row] = []
        self._distinct: Distinct | None = None
        self._passed = 0
        #: the whole answer was gathered instead
        self._is_held = False

    def execute(self, sql: str, params: Any = None) -> StreamMergeCursor:
        merger = self._merger
        self._cursors = {
            cluster: merger.cursor(cluster, self._name)
            for cluster in merger.route.clusters
        }
        steps = {c: one.execute for c, one in self._cursors.items()}
        merger.on_all(steps, self._cursors)
        if merger.merge.distinct is not None:
            self._distinct = Distinct(merger.merge.distinct, merger.merge.keys)
        self._buffers = {cluster: [] for cluster in self._cursors}
        self._passed = 0
        self._sent = sql, params
        return self

    def fetchmany(self, size: int | None = None) -> Any:
        wanted = self.arraysize if size is None else size
        if self._is_held:
            return super().fetchmany(wanted)
        try:
            while len(self._ready) < wanted and self._cursors:
                self._load(wanted)
        except NotAsDeclared as problem:
            if self._passed:  # every portion has the same types
                raise
            events.emit(
                "rerouted", alias=self._merger.wrapper.alias, reason=str(problem)
            )
            self.close()
            self.hold(self._merger.gathered(*self._sent))
            self._is_held = True
            return super().fetchmany(wanted)
        rows, self._ready = self._ready[:wanted], self._ready[wanted:]
        return rows or self.empty

    def _load(self, size: int) -> None:
        """Fetch for every shard whose buffer is empty, then hand on what is certain."""
        merger = self._merger
        due = {c: one for c, one in self._cursors.items() if not self._buffers[c]}
        steps = {c: partial(one.fetchmany, size) for c, one in due.items()}
        for cluster, rows in merger.on_all(steps, due).items():
            if not rows:
                self._cursors.pop(cluster).close()
                del self._buffers[cluster]
            else:
                self.description = due[cluster].description
                self._buffers[cluster] = rows
        if not self._buffers:
            return
        held = [row for rows in self._buffers.values() for row in rows]
        ranks = merger.ranks(held, self.description)
        certain = self._certain(held, ranks) if merger.merge.keys else held
        passed = set(map(id, certain))
        for cluster, rows in self._buffers.items():
            self._buffers[cluster] = [row for row in rows if id(row) not in passed]
        if self._distinct is not None:
            certain = self._distinct.first_of(certain, {})
        self._hand_on(certain)

    def _certain(self, held: list[Row], ranks: Any) -> list[Row]:
        """The rows before which nothing more can come, in order."""
        last = {id(rows[-1]) for rows in self._buffers.values()}
        ordered = in_order(held, self._merger.merge.keys, ranks)
        for at, row in enumerate(ordered):
            if id(row) in last:
                return ordered[: at + 1]
        return ordered

    def _hand_on(self, rows: list[Row]) -> None:
        merge, before = self._merger.merge, self._passed
        self._passed += len(rows)
        start = max(0, merge.low - before)
        stop = None if merge.high is None else max(0, merge.high - before)
        kept = rows[start:stop]
        if merge.hidden:
            kept = [row[: merge.width] for row in kept]
        self._ready += kept
        if merge.high is not None and self._passed >= merge.high:
            self.close()

    def close(self) -> None:
        cursors, self._cursors, self._buffers = self._cursors, {}, {}
        # What led here is to be told, not that a connection went with it.
        for cursor in cursors.values():
            with contextlib.suppress(Error, self._merger.wrapper.Database.Error):
                cursor.close()

    def fetchone(self) -> Any:
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchall(self) -> list[Any]:
        found: list[Any] = []
        while rows := self.fetchmany(2000):
            found += rows
        return found
