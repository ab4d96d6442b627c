"""Cursors that stand where a driver's cursor would, over several nodes.

Django wraps them like any other cursor, so its log, its test guards and its
``execute_wrapper`` see one statement for each statement of the alias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from dbfleet.engines import GatheredRows


class RowsCursor:
    """Rows that are complete in memory, behind the interface of PEP 249."""

    arraysize = 100

    def __init__(self, empty: Any = ()) -> None:
        #: what the driver's fetchmany() returns at the end; Django compares with it
        self.empty = empty
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid = None
        self._rows: list[Any] = []
        self._at = 0

    def hold(self, result: GatheredRows) -> None:
        self._rows, self._at = result.rows, 0
        self.description, self.rowcount = result.description, result.rowcount

    def fetchone(self) -> Any:
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchmany(self, size: int | None = None) -> Any:
        end = self._at + (self.arraysize if size is None else size)
        rows = self._rows[self._at : end]
        self._at += len(rows)
        return rows or self.empty

    def fetchall(self) -> list[Any]:
        rows = self._rows[self._at :]
        self._at = len(self._rows)
        return rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchall())

    def close(self) -> None:
        self._rows = []


class GatherCursor(RowsCursor):
    """Runs one statement by a gather; ``run`` is bound to its plan."""

    def __init__(self, run: Callable[[str, Any], GatheredRows], empty: Any) -> None:
        super().__init__(empty)
        self._run = run

    def execute(self, sql: str, params: Any = None) -> GatherCursor:
        self.hold(self._run(sql, params))
        return self


class ScatterCursor(RowsCursor):
    """Runs one statement on several nodes in turn; counts and rows add up."""

    def __init__(
        self,
        nodes: Sequence[Callable[[], Any]],
        empty: Any,
        counted: Callable[[Any, str], AbstractContextManager[Any]] | None = None,
    ) -> None:
        super().__init__(empty)
        self._nodes, self._counted = nodes, counted
        #: what carries a step out on all of the nodes, in place of one after the other
        self.at_once: Callable[[list[Any], Callable[[Any], Any]], list[Any]] | None
        self.at_once = None
        #: what follows from a statement that every node has carried out
        self.after: Callable[[], None] | None = None

    @property
    def connection(self) -> Any:
        """The driver's connection of the first node, for quoting."""
        return self._nodes[0]().connection

    def _each(self, sql: str, action: Callable[[Any], Any]) -> ScatterCursor:
        def step(node: Any) -> GatheredRows:
            node.ensure_connection()
            counted = self._counted(node, sql) if self._counted else nullcontext()
            with node.wrap_database_errors, counted:
                cursor = node.create_cursor()
                action(cursor)
                rows = [] if cursor.description is None else cursor.fetchall()
                found = GatheredRows(rows, cursor.description, cursor.rowcount)
                cursor.close()
            return found

        self.rowcount, self._rows, self._at = 0, [], 0
        opened = (get_node() for get_node in self._nodes)
        results = (
            map(step, opened)
            if self.at_once is None
            else self.at_once(list(opened), step)
        )
        for one in results:
            self.rowcount += max(one.rowcount, 0)
            self.description = one.description
            self._rows.extend(one.rows)
        if self.after is not None:
            self.after()
        return self

    def execute(self, sql: str, params: Any = None) -> ScatterCursor:
        if params is None:
            return self._each(sql, lambda cursor: cursor.execute(sql))
        return self._each(sql, lambda cursor: cursor.execute(sql, params))

    def executemany(self, sql: str, param_list: Any) -> ScatterCursor:
        rows = list(param_list)
        return self._each(sql, lambda cursor: cursor.executemany(sql, rows))


class StepsCursor(RowsCursor):
    """Stands for a statement that is carried out in several steps of other SQL."""

    def __init__(self, run: Callable[[], tuple[int, list[Any]]], empty: Any) -> None:
        super().__init__(empty)
        self._run = run

    def execute(self, sql: str, params: Any = None) -> StepsCursor:
        self.rowcount, self._rows = self._run()
        self._at = 0
        return self
