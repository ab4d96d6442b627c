"""Replicas played by their primary, in the test's own process and transaction.

Guards one invariant: everything that decides is the project's real code (sessions,
levels, policies, carriers, routing). Replaced are only the servers' answers: the
position of a primary is a count of its writes, that of a replica the count at which
it stands still, and its rows are the primary's, now or as they were.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from django.apps import apps
from django.db import connections

from dbfleet import sessions
from dbfleet.engines import Engine, Position
from dbfleet.engines.past import Past, past_of
from dbfleet.engines.positions import Verdict
from dbfleet.errors import NodeUnavailable
from dbfleet.executor.cursors import RowsCursor
from dbfleet.executor.emulated import emulated
from dbfleet.sessions import applied, lag

#: the system that positions of an emulation belong to
SYSTEM = "emulated"


class Replayed:
    """One cluster: how many writes its primary took, how many its replicas show."""

    def __init__(self) -> None:
        self.written = 0
        #: None: a replica shows everything at once
        self.shown: int | None = None
        #: the rows that a replica shows while it lags
        self.past: Past | None = None

    @property
    def applied(self) -> int:
        return self.written if self.shown is None else self.shown


class EmulatedEngine(Engine):
    """What of an engine speaks about positions; mixed into the server's own."""

    emulation: AliasEmulation
    tracks_positions = True
    counts_commits = is_local = False

    def position(self, primary: Any) -> Position | None:
        cluster = self.emulation.cluster_of(primary)
        return _position(self.emulation.clusters[cluster].written)

    def applied(self, replica: Any) -> Position | None:
        return _position(self.emulation.clusters[replica.cluster].applied)

    def compare(self, have: Position, want: Position) -> Verdict:
        if want.system != SYSTEM:  # from before the emulation, which shows it
            return Verdict.COVERED
        is_covered = have.system == SYSTEM and have.value >= want.value
        return Verdict.COVERED if is_covered else Verdict.BEHIND

    def is_older(self, have: Position, wants: Iterable[Position]) -> bool:
        return any(have.value < want.value for want in wants)

    def merge(
        self, floors: tuple[Position, ...], more: Iterable[Position]
    ) -> tuple[Position, ...]:
        own = [one for one in (*floors, *more) if one.system == SYSTEM]
        return (max(own),) if own else ()

    def dump(self, position: Position) -> str:
        return f"test-{position.value}"

    def load(self, text: str) -> Position:
        head, _, value = text.partition("-")
        if head != "test":
            raise ValueError(text)
        return _position(int(value))

    def timeline(self, primary: Any) -> int:
        return 0

    def known_timeline(self, node: Any) -> int | None:
        return None

    def learn_history(self, primary: Any, have: Position) -> None:
        """There is one timeline."""

    def wait(
        self, replica: Any, wants: Sequence[Position], timeout_s: float
    ) -> Position | None:
        """An emulated replica does not catch up by itself: nothing to wait for."""
        return self.applied(replica)

    def read_at(self, node: Any, cursor: Any, sql: str, params: Any) -> Position | None:
        return Engine.read_at(self, node, cursor, sql, params)

    def write_at(
        self, node: Any, cursor: Any, sql: str, params: Any
    ) -> tuple[Any, Position | None]:
        return Engine.write_at(self, node, cursor, sql, params)

    def counted(self, primary: Any, sql: str) -> Any:
        return Engine.counted(self, primary, sql)

    def count_commit(self, primary: Any) -> None:
        """A primary's writes are counted as they are sent."""

    def tells_commit(self, node: Any) -> bool:
        return False

    def named_cursor(self, node: Any, name: str) -> Any:
        if isinstance(node, EmulatedReplica):
            return node.create_cursor()
        return super().named_cursor(node, name)


def _position(count: int) -> Position:
    return Position(count, 0, SYSTEM)


@lru_cache(maxsize=8)
def _engine_class(real: Any) -> type[Any]:
    return type(f"Emulated{real.__name__}", (EmulatedEngine, real), {})


class PastCursor(RowsCursor):
    """Stands where a driver's cursor on a lagging replica would."""

    def __init__(self, past: Past, node: Any) -> None:
        super().__init__(node.features.empty_fetchmany_value)
        self._past, self._node = past, node
        self.inner = node.create_cursor()

    def execute(self, sql: Any, params: Any = None) -> PastCursor:
        self.hold(self._past.read(self._node, self.inner, sql, params))
        return self

    @contextlib.contextmanager
    def copy(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._past.shown(self._node), self.inner.copy(*args, **kwargs) as rows:
            yield rows

    def __enter__(self) -> PastCursor:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        super().close()
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class EmulatedReplica:
    """A primary's wrapper under a replica's name; its cursors show what that shows."""

    is_replica_node = True

    def __init__(self, primary: Any, cluster: str, name: str, past: Past | None):
        self._primary, self._past = primary, past
        self.cluster, self.alias = cluster, name
        self.settings_dict = primary.settings_dict.copy()

    def create_cursor(self, name: str | None = None) -> Any:
        # A cursor that the server keeps would look at another moment's search path.
        if self._past is None:
            return self._primary.create_cursor()
        return PastCursor(self._past, self._primary)

    def close(self) -> None:
        """The connection is the primary's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._primary, name)


class AliasEmulation:
    """The replicas of one alias, while a block of a test lasts."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        wrapper: Any = connections[alias]
        self.names = wrapper.nodes.clusters
        self.clusters = {name: Replayed() for name in self.names}
        #: nodes that are down, by name
        self.down: frozenset[str] = frozenset()
        self.users = 0
        self._has_refused = False
        self._adopted: weakref.WeakSet[Any] = weakref.WeakSet()
        self._engine: Any = None
        self._sessions: list[Any] = []
        self._lock = threading.Lock()

    # -- taking over ------------------------------------------------------------

    def begin(self) -> None:
        from dbfleet.runtime.fork import _alive

        self._forget()
        for one in tuple(_alive):
            wrapper = one()
            if wrapper is not None and wrapper.alias == self.alias and wrapper.nodes:
                self.adopt(wrapper.nodes)
                # A SET or PRAGMA of the test run itself, by a migration or a flush.
                wrapper.routing.forget_kept()
        emulated[self.alias] = self
        session = sessions.peek()
        if session is not None:  # what it has seen so far every replica shows
            self._drop(session)

    def end(self) -> None:
        emulated.pop(self.alias, None)
        for nodes in list(self._adopted):
            self._set_engine(nodes, nodes.emulated_engine)
            nodes.clusters.update(nodes.emulated_clusters)
        for session in (*self._sessions, sessions.peek()):
            if session is not None:
                self._drop(session)
        self._forget()

    def _drop(self, session: Any) -> None:
        for cluster in self.names:
            session.clusters.pop(f"{self.alias}/{cluster}", None)

    def _forget(self) -> None:
        """Nothing is known of servers that are others from now on."""
        lag.forget()
        for declared in self.names.values():
            for name in declared.replicas:
                applied.forget(name)

    def adopt(self, nodes: Any) -> None:
        with self._lock:
            if nodes in self._adopted:
                return
            self._adopted.add(nodes)
        real = nodes.engine
        nodes.emulated_engine = real
        nodes.emulated_clusters = dict(nodes.clusters)
        for name, declared in nodes.emulated_clusters.items():
            if declared.source is not None:  # which nobody asks in a test
                played = f"{declared.name}/replica1"
                known = nodes.wrapper.settings_dict["NODES"]
                known.setdefault(played, dict(known[declared.primary]))
                nodes.clusters[name] = declared._replace(replicas=(played,))
        kind: Any = type(real)
        engine = _engine_class(kind)()
        engine.emulation = self
        self._set_engine(nodes, engine)

    def _set_engine(self, nodes: Any, engine: Any) -> None:
        wrapper = nodes.wrapper
        nodes.engine = nodes.replicas.engine = engine
        wrapper.__dict__["engine"] = engine
        transaction = getattr(wrapper, "transaction", None)
        if transaction is not None:  # None yet where a wrapper is being made
            transaction.__dict__["engine"] = engine

    # -- what the executor asks -----------------------------------------------------

    def check_primary(self, cluster: str) -> None:
        name = self.names[cluster].primary
        if name in self.down:
            self._has_refused = True
            raise NodeUnavailable(
                "E204",
                f"{name} of alias {self.alias!r} cannot be reached (a test took it "
                "down); nothing was sent to it: check that the server runs and that "
                "its address and credentials are right",
            )

    def replica(self, nodes: Any, cluster: str, name: str) -> Any:
        if name in self.down:
            return None
        primary = self._primary(nodes, cluster)
        return EmulatedReplica(primary, cluster, name, self.clusters[cluster].past)

    def _primary(self, nodes: Any, cluster: str) -> Any:
        """A cluster's primary, inside the test's transaction if there is one."""
        node = nodes.node(self.names[cluster].primary)
        if node.connection is None:
            node.ensure_connection()
        transaction = nodes.wrapper.transaction
        if transaction.is_open:
            transaction.touch(cluster, node, is_write=False)
        return node

    def sent(self, nodes: Any, cluster: str, *, is_write: bool) -> None:
        if is_write:
            with self._lock:
                self.clusters[cluster].written += 1
        elif not nodes.wrapper.transaction.is_of_project:
            return
        # A block of the project's code ends without a COMMIT inside a TestCase.
        session = sessions.current()
        if session not in self._sessions:
            self._sessions.append(session)
        session.saw_unknown(nodes.keys[cluster])

    def is_harness(self, wrapper: Any) -> bool:
        blocks = getattr(wrapper, "atomic_blocks", ())
        is_harness = (
            wrapper.in_atomic_block
            and not wrapper.transaction.is_internal
            and all(getattr(block, "_from_testcase", False) for block in blocks)
        )
        if is_harness and self._has_refused:
            # Django marks the test's transaction as broken, though nothing was sent
            # and nobody but the test has one.
            wrapper.needs_rollback = self._has_refused = False
        return is_harness

    def mend(self) -> None:
        """Statements that a primary refused did not break the test's transaction."""
        self.is_harness(connections[self.alias])
        self._has_refused = False

    def cluster_of(self, node: Any) -> str:
        names = [name for name, c in self.names.items() if c.primary == node.alias]
        return names[0] if names else "home"

    # -- lag ------------------------------------------------------------------------

    @property
    def is_lagging(self) -> bool:
        return any(state.past is not None for state in self.clusters.values())

    def keep(self) -> None:
        """Replicas show the rows of this moment from now on."""
        wrapper: Any = connections[self.alias]
        nodes = wrapper.nodes
        views = [model._meta.db_table for model in apps.get_models()]
        engine = nodes.engine
        for cluster, state in self.clusters.items():
            if not self.names[cluster].replicas:
                continue
            past = past_of(engine, self._primary(nodes, cluster), views)
            self._let_go(state)
            state.past, state.shown = past, state.written

    def let_go(self) -> None:
        """Replicas show everything at once again."""
        for state in self.clusters.values():
            self._let_go(state)
            state.shown = None

    def _let_go(self, state: Replayed) -> None:
        past, state.past = state.past, None
        if past is not None:
            past.forget()


@contextlib.contextmanager
def emulation(alias: str) -> Iterator[AliasEmulation]:
    """The emulation of an alias, begun if there is none; blocks may be nested.

    Raises ValueError for an alias that declares no replicas.
    """
    found = emulated.get(alias)
    if found is None:
        found = _begun(alias)
    assert isinstance(found, AliasEmulation)
    found.users += 1
    try:
        yield found
    finally:
        found.users -= 1
        if not found.users:
            found.end()


def _begun(alias: str) -> AliasEmulation:
    nodes = getattr(connections[alias], "nodes", None)
    if nodes is None or not any(one.is_replicated for one in nodes.clusters.values()):
        raise ValueError(
            f"alias {alias!r} declares no replicas, so none of them can lag or be "
            "down: declare some in DATABASES; a test needs no server for them"
        )
    found = AliasEmulation(alias)
    found.begin()
    return found
