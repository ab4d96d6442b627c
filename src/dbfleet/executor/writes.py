"""The cursor of a write in autocommit: its own message tells where it is in the log.

Guards one invariant: a write that may have happened is in the session's demands,
whatever became of its answer.
"""

from __future__ import annotations

from typing import Any

from dbfleet.executor.cursors import RowsCursor
from dbfleet.executor.nodes import NodeSet


class WriteCursor(RowsCursor):
    """Stands where the driver's cursor ``inner`` on a primary would."""

    def __init__(self, nodes: NodeSet, cluster: str, node: Any, inner: Any) -> None:
        super().__init__(nodes.wrapper.features.empty_fetchmany_value)
        self._nodes, self._cluster = nodes, cluster
        self._node, self.inner = node, inner
        #: whether the rows are here, not with the driver's cursor
        self._holds = False

    def execute(self, sql: Any, params: Any = None) -> WriteCursor:
        position = None
        try:
            held, position = self._nodes.engine.write_at(
                self._node, self.inner, str(sql), params
            )
        finally:
            self._nodes.saw(self._cluster, position)
        self._holds = held is not None
        if held is not None:
            self.hold(held)
        else:
            self.rowcount = self.inner.rowcount
            self.description = self.inner.description
            self.lastrowid = getattr(self.inner, "lastrowid", None)
        return self

    def executemany(self, sql: Any, param_list: Any) -> Any:
        self._holds = False
        try:
            with self._nodes.engine.counted(self._node, str(sql)):
                return self.inner.executemany(sql, param_list)
        finally:
            self._nodes.saw(self._cluster)
            self.rowcount = self.inner.rowcount

    def fetchmany(self, size: int | None = None) -> Any:
        if self._holds:
            return super().fetchmany(size)
        return self.inner.fetchmany(*([] if size is None else [size]))

    def fetchall(self) -> Any:
        return super().fetchall() if self._holds else self.inner.fetchall()

    def fetchone(self) -> Any:
        return super().fetchone() if self._holds else self.inner.fetchone()

    def close(self) -> None:
        super().close()
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def counting(nodes: NodeSet, cluster: str, node: Any, inner: Any) -> Any:
    """The cursor of a hand-written write; where we count commits, one that counts."""
    if not nodes.counts(cluster):
        return inner
    return WriteCursor(nodes, cluster, node, inner)
