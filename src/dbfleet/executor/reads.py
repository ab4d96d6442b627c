"""The cursor of a read: finds its node when it is executed, below Django's log.

Guards two invariants: rows are handed out only once the node that sent them has proved
what the session demands; and a read is repeated elsewhere only while no row of it was
handed out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from django.db.utils import Error

from dbfleet import conf
from dbfleet.errors import ReadInterrupted
from dbfleet.executor.failures import reason_of
from dbfleet.executor.replicas import Choice, Place, Replicas
from dbfleet.health import breaker, load
from dbfleet.health.fallback import falling_back
from dbfleet.observe import events


class ReadCursor:
    """Stands where a driver's cursor would, for one statement after another."""

    def __init__(self, routing: Any, place: Place, name: str | None) -> None:
        self._routing, self._place, self._name = routing, place, name
        self._replicas: Replicas = routing.wrapper.nodes.replicas
        self.inner: Any = None

    fetchmany: Any
    #: the node that was asked last
    asked: Any = None
    #: whoever wanted the rows has left: no other node is asked
    is_over = False
    #: what the node that was tried last has shown is among what is demanded
    _is_older = False
    #: the position that a node told with its rows
    _told: Any = None
    #: when waiting for replicas ends, for all of them together
    _ends_at: float | None = None

    def execute(self, sql: Any, params: Any = None) -> Any:
        """Execute on the first node that can answer; each is tried once."""
        if self.inner is not None:
            self._drop()
        self._is_older = False
        own = self._replicas.usual(self._place)
        if own is not None and self._has_answered(own, sql, params):
            self._replicas.stayed(self._place, own)
        else:
            self._execute_elsewhere(own, sql, params)
        if self._name is None:
            self.fetchmany = self.inner.fetchmany  # asked for each portion of rows
        return self

    def _execute_elsewhere(self, own: Choice | None, sql: Any, params: Any) -> None:
        for choice in self._replicas.choices(self._place, own, self._is_older):
            with self._counted(choice):
                has_answered = self._has_answered(choice, sql, params)
            if has_answered:
                self._replicas.served(self._place, choice)
                break
        self._ends_at = None

    def _counted(self, choice: Choice) -> contextlib.AbstractContextManager[None]:
        if not choice.is_fallback:
            return contextlib.nullcontext()
        limit = conf.settings().max_fallback_reads
        return falling_back(self._replicas.key_of(self._place), limit)

    def _has_answered(self, choice: Choice, sql: Any, params: Any) -> bool:
        """Ask a node, and let its load and the breaker know how that went."""
        name = choice.name or self._replicas.primary_of(self._place)
        if events.subscribers:
            self._tell_sent(name)
        started = load.started(name)
        try:
            ask = self._is_proved if choice.wants else self._send
            has_answered = ask(choice, sql, params)
        except BaseException as error:
            load.finished(name, started, True)
            if not isinstance(error, Error) or not self._is_passed_on(choice, error):
                raise
            return self._is_answered_by_primary(error, sql, params)
        load.finished(name, started)
        breaker.succeeded(name)
        return has_answered or self._has_caught_up(choice, sql, params)

    def _is_passed_on(self, choice: Choice, error: Error) -> bool:
        """Whether somebody else may answer what this node could not."""
        self._is_older = False
        return not self.is_over and self._replicas.nodes.is_replaceable(
            choice.node, error
        )

    def _is_answered_by_primary(self, error: Error, sql: Any, params: Any) -> bool:
        if not self._replicas.engine.is_read_only_error(error):
            return False
        # The query writes, after all: the primary has to run it.
        return self._send(Choice(self._primary(), None), sql, params)

    def _has_caught_up(self, choice: Choice, sql: Any, params: Any) -> bool:
        """Wait for a node that was behind, if it is worth it, and ask it again."""
        self._is_older = self._replicas.is_older(choice, self._told)
        self._drop()  # a named cursor, which the statement opens again
        if not self._replicas.waited(self._place.cluster, choice, self._left_s()):
            return False
        return self._has_answered(choice._replace(wants=()), sql, params)

    def _tell_sent(self, name: str) -> None:
        """A node is asked; of several in one statement the last one answers."""
        events.emit(
            "sent",
            alias=self._routing.topology.alias,
            cluster=self._place.cluster,
            node=name,
            level=self._place.level.name,
            is_write=False,
        )

    def _left_s(self) -> float:
        now = time.monotonic()
        if self._ends_at is None:
            self._ends_at = now + conf.settings().wait_timeout_s
        return self._ends_at - now

    def _send(self, choice: Choice, sql: Any, params: Any) -> bool:
        self.asked = node = choice.node
        try:
            if self._name or node.connection is None:
                inner = self._routing.vendor_cursor(node, self._name)
            else:
                inner = node.create_cursor()
            self.inner = inner
            if params is None:
                inner.execute(sql)
            else:
                inner.execute(sql, params)
        except Exception:
            with node.wrap_database_errors:  # entered only now: most reads succeed
                raise
        return True

    def _is_proved(self, choice: Choice, sql: Any, params: Any) -> bool:
        self.asked = node = choice.node
        self._told = None
        try:
            with node.wrap_database_errors:
                self.inner = self._routing.vendor_cursor(node, self._name)
                have = self._replicas.engine.read_at(node, self.inner, str(sql), params)
        except Error as error:
            # A table that is newer than what was applied, say: whoever has applied
            # what is demanded answers, or says the same.
            is_of_content = self._replicas.engine.is_of_content(error)
            if not is_of_content or self._replicas.nodes.is_replaceable(node, error):
                raise
            return False
        self._told = have
        return self._replicas.is_proved(self._place.cluster, choice, have)

    def _primary(self) -> Any:
        return self._routing.node(self._place.cluster, is_write=True)

    def _drop(self) -> None:
        self.close()
        self.inner = None

    def executemany(self, sql: Any, param_list: Any) -> Any:
        """Not a read: on the primary."""
        self._drop()
        node = self._primary()
        with node.wrap_database_errors:
            self.inner = self._routing.vendor_cursor(node, self._name)
            return self.inner.executemany(sql, param_list)

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inner)


class StreamCursor(ReadCursor):
    """A read whose rows the server keeps and sends in portions."""

    _sent: tuple[Any, Any] = ("", None)
    _rows = 0

    def execute(self, sql: Any, params: Any = None) -> Any:
        self._sent, self._rows = (sql, params), 0
        return super().execute(sql, params)

    def fetchmany(self, *size: int) -> Any:
        """The next rows; the first ones may come from another node."""
        left = 1 + len(self._replicas.nodes.clusters[self._place.cluster].replicas)
        while True:
            left -= 1
            try:
                with self._node.wrap_database_errors:
                    rows = self.inner.fetchmany(*size)
            except Error as error:
                self._begin_again(error, is_last=not left)
                continue
            self._rows += len(rows)
            return rows

    def close(self) -> None:
        # A named cursor is closed by a statement. With its connection it is gone, and
        # whoever read the rows has them all.
        self._replicas.nodes.streaming.discard(self)
        with contextlib.suppress(self._routing.wrapper.Database.Error):
            super().close()

    def _begin_again(self, error: Error, *, is_last: bool) -> None:
        name = self._node.alias
        if self.is_over:
            raise error
        if not self._replicas.nodes.is_replaceable(self._node, error):
            raise error
        if self._rows or is_last:
            raise ReadInterrupted(
                "E208",
                f"{name} was lost after {self._rows} rows of a read "
                f"({reason_of(error)}); the rest cannot be had from another server "
                "without repeating or skipping rows. Go on after the last row that "
                "was handled, by a filter on an ordered unique column",
            ) from error
        events.emit("read_repeated", node=name)
        self._drop()
        super().execute(*self._sent)

    _node: Any = None

    @property
    def node(self) -> Any:
        """The node that keeps its rows."""
        return self._node

    def _send(self, choice: Choice, sql: Any, params: Any) -> bool:
        self._node = choice.node
        self._replicas.nodes.streaming.add(self)
        return super()._send(choice, sql, params)

    def _is_proved(self, choice: Choice, sql: Any, params: Any) -> bool:
        self._node = choice.node
        self._replicas.nodes.streaming.add(self)
        return super()._is_proved(choice, sql, params)
