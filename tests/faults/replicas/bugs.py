"""Bugs that the clients' processes can be given, to prove that the checkers see them.

Each is one small change of one method, made when a process starts. Guards one
invariant: a method that is not there any more is an error, never a bug that was not
planted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from django.db.models import QuerySet
from django.db.utils import Error, OperationalError

from dbfleet import sessions
from dbfleet.backend import cursor as raw_cursors
from dbfleet.backend.base import FleetMixin
from dbfleet.backend.routing import Routing
from dbfleet.engines import wal
from dbfleet.engines.base import execute
from dbfleet.engines.gathering import GatheredRows
from dbfleet.engines.mysql import MySQLEngine
from dbfleet.engines.positions import Position, Verdict
from dbfleet.engines.postgresql import PostgreSQLEngine
from dbfleet.executor.nodes import NodeSet
from dbfleet.executor.reads import ReadCursor, StreamCursor
from dbfleet.executor.replicas import Replicas
from dbfleet.executor.writes import WriteCursor
from dbfleet.levels import EVENTUAL
from dbfleet.sessions import applied, context, tokens
from dbfleet.sessions.state import Session
from dbfleet.transactions.transaction import FleetTransaction

ENGINES = (PostgreSQLEngine, MySQLEngine)


class Bug(NamedTuple):
    """A bug, the faults that show it, and how many operations that takes at most."""

    apply: Callable[[], None]
    faults: str = "pause"
    ops: int = 40000
    #: on PostgreSQL alone
    is_wal: bool = False
    #: replicas are promoted meanwhile
    promotes: bool = False


def _replace(place: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a method by what ``make`` makes of it."""
    before = getattr(place, name)
    setattr(place, name, make(before))


def _is(place: Any, name: str, instead: Any) -> None:
    _replace(place, name, lambda before: instead)


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """Nothing that is seen or written is noted."""
    before = NodeSet.saw
    NodeSet.saw = lambda *args, **kwargs: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        NodeSet.saw = before  # type: ignore[method-assign]


def _forgetting(place: Any, name: str) -> None:
    """The session's demands are, after the call, what they were before it."""

    def make(before: Any) -> Any:
        def quietly(self: Any, *args: Any, **kwargs: Any) -> Any:
            nodes: Any = getattr(self, "nodes", None) or getattr(self, "_nodes", None)
            nodes = nodes or self.wrapper.nodes
            nodes.saw = lambda *args, **kwargs: None
            try:
                return before(self, *args, **kwargs)
            finally:
                nodes.__dict__.pop("saw", None)

        return quietly

    _replace(place, name, make)


# -- comparing ---------------------------------------------------------------------


def ignore_floors() -> None:
    for engine in ENGINES:
        _is(engine, "compare", lambda self, have, want: Verdict.COVERED)


def wrong_operand() -> None:
    def compare(self: Any, have: Position, want: Position) -> Verdict:
        return Verdict.COVERED if have.value <= want.value else Verdict.BEHIND

    for engine in ENGINES:
        _is(engine, "compare", compare)


def merge_takes_min() -> None:
    def merge(self: Any, floors: Any, more: Any) -> Any:
        found = {(one.system, one.timeline): one for one in more}
        for one in floors:
            place = (one.system, one.timeline)
            found[place] = min(one, found.get(place, one), key=lambda p: p.value)
        return tuple(found.values())

    for engine in ENGINES:
        _is(engine, "merge", merge)


def near_enough() -> None:
    """A few hundred bytes, or transactions, are taken for nothing."""

    def make(before: Any) -> Any:
        def compare(self: Any, have: Position, want: Position) -> Verdict:
            return before(self, have._replace(value=have.value + 300), want)  # type: ignore[no-any-return]

        return compare

    _replace(PostgreSQLEngine, "compare", make)


# -- taking positions --------------------------------------------------------------


def position_before_commit() -> None:
    def commit_at(self: Any, node: Any) -> Position:
        cursor = node.connection.cursor()
        cursor.execute(f"{wal._inserted(node)};COMMIT")
        return wal._position(node, cursor.fetchone())

    _is(PostgreSQLEngine, "commit_at", commit_at)


def position_inside_write() -> None:
    def write_at(self: Any, node: Any, cursor: Any, sql: str, params: Any) -> Any:
        execute(cursor, f"BEGIN;\n{sql}\n;{wal._inserted(node)};\nCOMMIT", params)
        cursor.nextset()
        rows = [] if cursor.description is None else cursor.fetchall()
        held = GatheredRows(rows, cursor.description, cursor.rowcount)
        cursor.nextset()
        return held, wal._position(node, cursor.fetchone())

    _is(PostgreSQLEngine, "write_at", write_at)


def position_flushed() -> None:
    """The position of the log's last write to disk: of an earlier commit, perhaps."""
    wal._INSERTED = "SELECT '0/0'::pg_lsn + (pg_current_wal_flush_lsn() - '0/3E8')"


# -- guarding reads ----------------------------------------------------------------


def guard_after_query() -> None:
    def read_at(self: Any, node: Any, cursor: Any, sql: str, params: Any) -> Any:
        execute(cursor, sql, params)
        return self.applied(node)

    for engine in ENGINES:
        _is(engine, "read_at", read_at)


def stale_rows() -> None:
    def make(before: Any) -> Any:
        def is_proved(self: Any, *args: Any) -> bool:
            before(self, *args)
            return True

        return is_proved

    _replace(Replicas, "is_proved", make)


def wait_in_vain() -> None:
    def make(before: Any) -> Any:
        def waited(self: Any, *args: Any) -> bool:
            before(self, *args)
            return True

        return waited

    _replace(Replicas, "waited", make)


def keep_applied() -> None:
    _is(applied, "forget", lambda node: None)


def learn_without_proof() -> None:
    """What was wanted of a replica is taken for what it has."""

    def make(before: Any) -> Any:
        def is_proved(self: Any, cluster: str, choice: Any, have: Any) -> bool:
            for want in choice.wants:
                applied._known[choice.name] = want
            return bool(before(self, cluster, choice, have))

        return is_proved

    _replace(Replicas, "is_proved", make)


# -- choosing a server -------------------------------------------------------------


def moves_unasked() -> None:
    def make(before: Any) -> Any:
        def for_session(self: Any, place: Any, *args: Any) -> Any:
            state = sessions.current().of(self.nodes.keys[place.cluster])
            if state.node:
                state.node = None
            return before(self, place, *args)

        return for_session

    _replace(Replicas, "_for_session", make)


def forget_node() -> None:
    _is(Replicas, "served", lambda self, place, choice: None)


def strong_on_replicas() -> None:
    def make(before: Any) -> Any:
        def choices(self: Any, place: Any, *args: Any) -> Any:
            if place.level.name == "strong":
                place = place._replace(level=EVENTUAL)
            return before(self, place, *args)

        return choices

    _replace(Replicas, "choices", make)


def bounded_by_nothing() -> None:
    _is(Replicas, "_lags_less", lambda self, *args: True)


def transactions_on_replicas() -> None:
    _is(Routing, "reads_replicas", lambda self: True)


# -- what a session saw ------------------------------------------------------------


def never_unknown() -> None:
    _is(Session, "saw_unknown", lambda self, cluster, era=None: None)


def learn_nothing() -> None:
    def learn_floor(self: Any, cluster: str, state: Any) -> bool:
        state.is_unknown = False
        return True

    _is(Replicas, "_learn_floor", learn_floor)


def primary_read_unseen() -> None:
    def make(before: Any) -> Any:
        def on_primary(self: Any, cluster: str, *args: Any) -> Any:
            state = sessions.current().of(self.nodes.keys[cluster])
            is_unknown = state.is_unknown
            choice = before(self, cluster, *args)
            state.is_unknown = is_unknown
            return choice

        return on_primary

    def make_served(before: Any) -> Any:
        def served(self: Any, place: Any, choice: Any) -> None:
            state = sessions.current().of(self.nodes.keys[place.cluster])
            is_unknown = state.is_unknown
            before(self, place, choice)
            if choice.name is None:
                state.is_unknown = is_unknown

        return served

    _replace(Replicas, "_on_primary", make)
    _replace(Replicas, "served", make_served)


def rollback_unseen() -> None:
    _forgetting(FleetMixin, "_rollback")


def commit_unseen() -> None:
    _forgetting(FleetTransaction, "commit")


def failed_commit_unseen() -> None:
    """A COMMIT without an answer is not noted, nor the rollback that follows it."""
    has_failed = False

    def make_commit(before: Any) -> Any:
        def commit(self: Any, *args: Any) -> Any:
            nonlocal has_failed
            states = sessions.current().clusters
            known = {key: state.is_unknown for key, state in states.items()}
            try:
                return before(self, *args)
            except BaseException:
                has_failed = True
                for key, is_unknown in known.items():
                    states[key].is_unknown = is_unknown
                raise

        return commit

    def make_rollback(before: Any) -> Any:
        def rollback(self: Any, *args: Any) -> Any:
            nonlocal has_failed
            known = {k: s.is_unknown for k, s in sessions.current().clusters.items()}
            try:
                return before(self, *args)
            finally:
                for key, state in sessions.current().clusters.items():
                    state.is_unknown = known.get(key, False) or not has_failed
                has_failed = False

        return rollback

    _replace(FleetTransaction, "commit", make_commit)
    _replace(FleetMixin, "_rollback", make_rollback)


def write_unseen() -> None:
    _forgetting(WriteCursor, "execute")


def failed_write_unseen() -> None:
    def make(before: Any) -> Any:
        def execute(self: Any, sql: Any, params: Any = None) -> Any:
            state = sessions.current().of(self._nodes.keys[self._cluster])
            is_unknown = state.is_unknown
            try:
                return before(self, sql, params)
            except Exception:
                state.is_unknown = is_unknown
                raise

        return execute

    _replace(WriteCursor, "execute", make)


def _unseen_by(place: Any, name: str) -> None:
    def make(before: Any) -> Any:
        def unseen(*args: Any, **kwargs: Any) -> Any:
            with _unseen():
                return before(*args, **kwargs)

        return unseen

    _replace(place, name, make)


def raw_unseen() -> None:
    _unseen_by(raw_cursors.RawCursor, "execute")


def executemany_unseen() -> None:
    _unseen_by(raw_cursors.RawCursor, "executemany")


def bulk_unseen() -> None:
    for name in ("bulk_update", "bulk_create"):
        _unseen_by(QuerySet, name)


# -- whose a session is ------------------------------------------------------------


def children_apart() -> None:
    """Every thread and task that copies a context gets a session of its own."""
    init = Session.__init__

    def with_owner(self: Any, owner: Any = None) -> None:
        init(self, context._owner() if owner is None else owner)

    _is(Session, "__init__", with_owner)


def nested_ends_outer() -> None:
    import dbfleet

    @contextlib.contextmanager
    def session() -> Iterator[Session]:
        begun = Session()
        context._session.set(begun)
        yield begun
        context._session.set(Session())

    for module in (sessions, dbfleet):
        _is(module, "session", session)


def failure_ends_session() -> None:
    def make(before: Any) -> Any:
        def failed(self: Any, *args: Any) -> None:
            before(self, *args)
            sessions.current().clusters.clear()

        return failed

    _replace(NodeSet, "failed", make)


# -- tokens ------------------------------------------------------------------------


def _token_without(**lost: Any) -> None:
    def make(before: Any) -> Any:
        def part(*args: Any) -> Any:
            found = before(*args)
            return found and found._replace(**lost)

        return part

    _replace(tokens, "_part", make)


def token_loses_floor() -> None:
    _token_without(positions=())


def token_loses_unknown() -> None:
    _token_without(is_unknown=False)


def token_loses_replica() -> None:
    _token_without(replica="")


def resume_replaces() -> None:
    """A token that is taken up ends what the session itself demanded."""

    def make(before: Any) -> Any:
        def apply(token: Any, session: Any) -> None:
            session.clusters.clear()
            before(token, session)

        return apply

    _replace(tokens, "apply", make)


# -- repeating ---------------------------------------------------------------------


def write_again() -> None:
    def make(before: Any) -> Any:
        def execute(self: Any, sql: Any, params: Any = None) -> Any:
            try:
                return before(self, sql, params)
            except (Error, self._node.Database.Error):
                self._node.close()
                self._node.connection = None
                self._node.ensure_connection()
                self.inner = self._node.create_cursor()
                return before(self, sql, params)

        return execute

    _replace(WriteCursor, "execute", make)


def read_again() -> None:
    """A read that was lost after some of its rows begins anew."""

    def make(before: Any) -> Any:
        def begin_again(self: Any, *args: Any, **kwargs: Any) -> None:
            self._rows = 0
            before(self, *args, **kwargs)

        return begin_again

    _replace(StreamCursor, "_begin_again", make)


def swallow_loss() -> None:
    """A write whose connection was lost counts as done."""

    def make(before: Any) -> Any:
        def execute(self: Any, sql: Any, params: Any = None) -> Any:
            try:
                return before(self, sql, params)
            except (OperationalError, self._node.Database.OperationalError):
                self.rowcount = 1
                return self

        return execute

    _replace(WriteCursor, "execute", make)


def rows_of_failure() -> None:
    """Rows of a replica that is too old are kept when the next one cannot be asked."""

    def make(before: Any) -> Any:
        def has_answered(self: Any, choice: Any, *args: Any) -> bool:
            return bool(before(self, choice, *args) or self.inner is not None)

        return has_answered

    _replace(ReadCursor, "_has_answered", make)
    _is(ReadCursor, "_drop", lambda self: None)


LOST = "pause,late,mute,unanswered"

BUGS = {
    "ignore-floors": Bug(ignore_floors),
    "wrong-operand": Bug(wrong_operand),
    "merge-takes-min": Bug(merge_takes_min),
    "near-enough": Bug(near_enough, "late", is_wal=True),
    "position-before-commit": Bug(position_before_commit, "late", is_wal=True),
    "position-inside-write": Bug(position_inside_write, "late", is_wal=True),
    "position-flushed": Bug(position_flushed, "late", is_wal=True),
    "guard-after-query": Bug(guard_after_query, "pause,late,delay", 40000),
    "stale-rows": Bug(stale_rows),
    "wait-in-vain": Bug(wait_in_vain),
    "keep-applied": Bug(keep_applied, "regress", 200000, is_wal=True),
    "learn-without-proof": Bug(learn_without_proof),
    "moves-unasked": Bug(moves_unasked, "late,cut,lose,refuse", 60000),
    "forget-node": Bug(forget_node),
    "strong-on-replicas": Bug(strong_on_replicas),
    "bounded-by-nothing": Bug(bounded_by_nothing),
    "transactions-on-replicas": Bug(transactions_on_replicas),
    "never-unknown": Bug(never_unknown),
    "learn-nothing": Bug(learn_nothing),
    "primary-read-unseen": Bug(primary_read_unseen),
    "rollback-unseen": Bug(rollback_unseen),
    "commit-unseen": Bug(commit_unseen),
    "failed-commit-unseen": Bug(failed_commit_unseen, "pause,late,unanswered", 100000),
    "write-unseen": Bug(write_unseen),
    "failed-write-unseen": Bug(failed_write_unseen, LOST, 60000),
    "raw-unseen": Bug(raw_unseen),
    "executemany-unseen": Bug(executemany_unseen),
    "bulk-unseen": Bug(bulk_unseen),
    "children-apart": Bug(children_apart),
    "nested-ends-outer": Bug(nested_ends_outer),
    "failure-ends-session": Bug(failure_ends_session, "pause,cut,lose,refuse", 40000),
    "token-loses-floor": Bug(token_loses_floor),
    "token-loses-unknown": Bug(token_loses_unknown),
    "token-loses-replica": Bug(token_loses_replica),
    "resume-replaces": Bug(resume_replaces),
    "write-again": Bug(write_again, "lose", 40000),
    "read-again": Bug(read_again, "cut,lose", 40000, is_wal=True),
    "swallow-loss": Bug(swallow_loss, "lose", 40000),
    "rows-of-failure": Bug(rows_of_failure),
}
