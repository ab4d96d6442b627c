"""The transaction of one alias wrapper, over every node it touches.

Home begins with the alias; another node is enlisted when a statement first touches
it: BEGIN, then the savepoints that are open. Invariant: after any outcome no node
keeps a transaction of ours open, except a prepared one that an error has named.

How several writers commit as one is :mod:`dbfleet.transactions.two_phase`'s.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from django.db.backends.utils import debug_transaction
from django.db.utils import Error

from dbfleet.errors import (
    CommitUnknown,
    NodeUnavailable,
    RouteRefused,
    TransactionAborted,
)
from dbfleet.executor.emulated import emulated
from dbfleet.executor.failures import reason_of
from dbfleet.transactions.two_phase import HOME, Participant, TwoPhase, key_of

if TYPE_CHECKING:
    from dbfleet.engines import Engine


class FleetTransaction(TwoPhase):
    """Enlists nodes and carries a commit to every one of them."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        self.enlisted: dict[str, Participant] = {}
        self.savepoints: list[str] = []
        #: what was set for the transaction before any query, for nodes yet to begin
        self._first: list[str] = []
        self.home_wrote = False
        #: a statement reached home, so the session may have seen something there
        self.home_touched = False
        #: the time zone of nodes was set within the transaction
        self.changed_timezone = False
        #: a transaction of one statement, begun by us under autocommit
        self.is_internal = False
        self._home_begun = False
        self._id = ""
        self._internal_count = 0

    @cached_property
    def engine(self) -> Engine:
        return self.wrapper.engine  # type: ignore[no-any-return]

    # -- state ------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether statements run inside a transaction; no I/O."""
        wrapper = self.wrapper
        if wrapper.in_atomic_block or self.is_internal:
            return True
        if wrapper.connection is not None:
            return not wrapper.autocommit
        return not wrapper.settings_dict["AUTOCOMMIT"]

    @property
    def is_of_project(self) -> bool:
        """Whether it is open, and not merely a test's own around the tested code."""
        return self.is_open and not (emulated and emulated.is_harness(self.wrapper))

    @property
    def is_aborted(self) -> bool:
        """Whether a node failed, so that only a rollback is accepted; no I/O."""
        nodes = [self.wrapper, *(p.node for p in self.enlisted.values())]
        engine = self.engine
        return engine.aborts_on_error and any(map(engine.is_aborted, nodes))

    def check_usable(self) -> None:
        """Refuse statements once one node has failed, as one server would."""
        if self.is_aborted:
            self.wrapper.validate_no_broken_transaction()
            raise TransactionAborted(
                "current transaction is aborted, commands ignored until end of "
                "transaction block"
            )

    # -- enlisting ----------------------------------------------------------------

    def touch(
        self, cluster: str, node: Any, *, is_write: bool, is_keeper: bool = False
    ) -> None:
        """Make ``node`` part of the transaction; one round trip the first time."""
        if cluster == HOME:
            self.home_touched = True
            self.home_wrote = self.home_wrote or is_write
            self._begin_home()
            return
        part = self.enlisted.get(key_of(cluster, is_keeper=is_keeper))
        if part is None:
            gid = self._gid(cluster, is_keeper=is_keeper)
            self.engine.begin(node, gid, self._first)
            server = self.wrapper.nodes.clusters[cluster].primary
            part = Participant(cluster, node, gid, node.connection, server, is_keeper)
            self.enlisted[part.key] = part
            for name in self.savepoints:
                self.engine.savepoint(node, name)
        elif self._has_ended(part):
            raise self._ended(part)
        part.wrote = part.wrote or is_write

    def takes_first(self, sql: str) -> bool:
        """Whether ``sql`` is kept for the nodes that are not in the transaction yet,
        which could not take it after they have begun; no I/O."""
        is_kept = self.is_open and not self.savepoints and self.engine.comes_first(sql)
        if is_kept:
            self._first.append(sql)
        return is_kept

    def holds(self, cluster: str) -> bool:
        """Whether something of the transaction is on this cluster's primary."""
        if cluster == HOME:
            return self.wrapper.connection is not None
        return cluster in self.enlisted or self.has_keeper(cluster)

    @property
    def shards(self) -> list[str]:
        """The shards whose rows the transaction has read or written; no I/O."""
        return [part.cluster for part in self.enlisted.values() if not part.is_keeper]

    def has_keeper(self, cluster: str) -> bool:
        """Whether the transaction wrote claims on this shard; no I/O."""
        return key_of(cluster, is_keeper=True) in self.enlisted

    def _has_ended(self, part: Participant) -> bool:
        node = part.node
        return node.connection is not part.connection or self.engine.is_closed(node)

    def _ended(self, part: Participant) -> NodeUnavailable:
        return NodeUnavailable(
            "E204",
            f"{part.server} of alias {self.wrapper.alias!r} lost its connection "
            "inside the transaction, and with it what was done there: the transaction "
            "can only be rolled back, on every node",
        )

    def gid_of(self, cluster: str) -> str:
        """What ``cluster`` would prepare as; empty if it is not enlisted. No I/O."""
        part = self.enlisted.get(cluster)
        return "" if part is None else part.gid

    def _gid(self, cluster: str, *, is_keeper: bool) -> str:
        if not self._id:
            # With the shard's number at most 64 bytes, the limit of MySQL.
            self._id = f"dbfleet_{uuid.uuid4().hex[:20]}"
        number = list(self.wrapper.topology.shards).index(cluster)
        return f"{self._id}_{'c' if is_keeper else ''}{number}"

    def _begin_home(self) -> None:
        if self.is_internal and not self._home_begun:
            self.engine.run(self.wrapper, "BEGIN").close()
            self._home_begun = True
            for name in self.savepoints:
                self.engine.savepoint(self.wrapper, name)

    def leave_shards(self) -> None:
        """Take shards that only read out of the transaction, for a statement that
        would end it on each node by itself."""
        wrote = [part.cluster for part in self.enlisted.values() if part.wrote]
        if wrote:
            raise RouteRefused(
                "E402",
                f"DDL on alias {self.wrapper.alias!r} would commit what this "
                f"transaction wrote on {', '.join(wrote)}, each shard alone; it was "
                "not sent: commit first, or run it outside of atomic()",
            )
        for part in list(self.enlisted.values()):
            self.engine.commit(part.node, part.gid)
            del self.enlisted[part.key]

    # -- savepoints -----------------------------------------------------------------

    def savepoint(self, name: str) -> None:
        """A savepoint was set on home: set it on every enlisted node."""
        self.savepoints.append(name)
        for part in self.enlisted.values():
            self.engine.savepoint(part.node, name)

    def rollback_to(self, name: str) -> None:
        """Undo what enlisted nodes did since the savepoint, which stays open."""
        if name in self.savepoints:
            del self.savepoints[self.savepoints.index(name) + 1 :]
        for part in self.enlisted.values():
            self.engine.rollback_to(part.node, name)
        if self.changed_timezone:
            self.wrapper.nodes.ensure_timezone()

    def release(self, name: str) -> None:
        """Forget the savepoint and those set after it."""
        if name in self.savepoints:
            del self.savepoints[self.savepoints.index(name) :]
        for part in self.enlisted.values():
            self.engine.release(part.node, name)

    # -- one statement over several nodes ---------------------------------------------

    @contextlib.contextmanager
    def statement(self) -> Iterator[None]:
        """Make a statement that takes several steps all or nothing.

        Outside a transaction it gets one of its own. Inside, a server that goes on
        after an error gets a savepoint; one that does not is simply aborted.
        """
        if self.is_internal:
            yield
        elif not self.is_open:
            with self._own():
                yield
        elif self.engine.aborts_on_error:
            yield
        else:
            with self._inner():
                yield

    @contextlib.contextmanager
    def _own(self) -> Iterator[None]:
        # Home may be needed for the decision only, too late to replace it.
        self.wrapper.close_if_health_check_failed()
        self.is_internal = True
        try:
            yield
            self.commit(self._commit_home)
        except BaseException:
            # A shard may still refuse, or be lost, when it is told to prepare.
            self._rollback_home()
            self.rollback()
            raise
        finally:
            self.is_internal = self._home_begun = False

    def _commit_home(self) -> None:
        if self._home_begun:
            self.engine.run(self.wrapper, "COMMIT").close()

    def _rollback_home(self) -> None:
        """End home's part, unless its COMMIT was answered, or will never be."""
        wrapper = self.wrapper
        if not self._home_begun or self.engine.is_closed(wrapper):
            return
        try:
            self.engine.run(wrapper, "ROLLBACK").close()
        except Error:
            with contextlib.suppress(Exception):
                wrapper._close()  # not close(): that of home closes every node
            wrapper.connection = None  # its server rolls back

    @contextlib.contextmanager
    def _inner(self) -> Iterator[None]:
        self._internal_count += 1
        name = f"dbfleet_s{self._internal_count}"
        self.engine.savepoint(self.wrapper, name)
        self.savepoint(name)
        try:
            yield
        except BaseException:
            # A deadlock has undone the whole transaction, savepoints included; its
            # own error is what the caller must see.
            with contextlib.suppress(Error):
                self.engine.rollback_to(self.wrapper, name)
                self.rollback_to(name)
                self.engine.release(self.wrapper, name)
                self.release(name)
            raise
        self.engine.release(self.wrapper, name)
        self.release(name)

    # -- the end --------------------------------------------------------------------

    def commit(self, commit_home: Callable[[], Any]) -> None:
        """Commit every node; ``commit_home`` commits home's own work.

        One writer: one round trip for each node. Several: two for each writer but
        home. Raises CommitUnknown or CommitPending when a reply is missing;
        nothing is repeated.
        """
        writers = [part for part in self.enlisted.values() if part.wrote]
        try:
            self.wrapper.nodes.check_leaders(self)
            for part in writers:
                if self._has_ended(part):
                    raise self._ended(part)
            commit_home = partial(self._tell, commit_home)
            if not writers:
                self._commit_alone(commit_home)
            elif len(writers) + self.home_wrote == 1:
                commit_home()  # first: what was only read there may still be refused
                self._commit_each(writers)
            elif self._is_two_phase():
                self._commit_prepared(writers, commit_home)
            else:
                self._commit_in_order(writers, commit_home)
        except BaseException:
            self._saw(writers)  # a commit that was lost may be there
            self.wrapper.nodes.saw(HOME)
            self.rollback()  # whatever is still enlisted
            raise
        self._saw(writers)
        self._finish()

    def _tell(self, commit_home: Callable[[], Any]) -> None:
        """Commit home; the session learns at which position, if the commit's own
        message tells it."""
        wrapper, position = self.wrapper, None
        if wrapper.topology.home.is_replicated and self.engine.tells_commit(wrapper):
            with debug_transaction(wrapper, "COMMIT"), wrapper.wrap_database_errors:
                position = self.engine.commit_at(wrapper)
        else:
            commit_home()
        self._home_begun = False
        wrapper.nodes.saw(HOME, position)

    def _saw(self, parts: Iterable[Participant]) -> None:
        for part in parts:
            if not part.is_keeper:  # claims are never read on a replica
                self.wrapper.nodes.saw(part.cluster)

    def _commit_alone(self, commit_home: Callable[[], Any]) -> None:
        try:
            commit_home()
        except Error as error:
            if self.home_wrote and self.engine.is_lost(self.wrapper):
                home = self.wrapper.topology.home.primary
                raise self._unanswered(home, error) from error
            raise

    def _is_two_phase(self) -> bool:
        is_wanted = self.wrapper.topology.commit == "two_phase"
        return bool(self.engine.can_prepare and is_wanted)

    def _commit_each(self, parts: list[Participant]) -> None:
        clusters = self.wrapper.nodes.clusters
        for part in parts:
            try:
                if clusters[part.cluster].is_replicated:
                    self.engine.count_commit(part.node)
                self.engine.commit(part.node, part.gid)
            except Error as error:
                if self.engine.is_lost(part.node):
                    raise self._unanswered(part.server, error) from error
                raise
            del self.enlisted[part.key]

    def _commit_in_order(
        self, writers: list[Participant], commit_home: Callable[[], Any]
    ) -> None:
        done: list[str] = []
        for part in writers:
            try:
                self._commit_each([part])
            except Error as error:
                if not done:
                    raise
                raise self._partial(done, part.cluster, error) from error
            done.append(part.cluster)
        try:
            commit_home()
        except Error as error:
            raise self._partial(done, HOME, error) from error

    def _partial(self, done: list[str], failed: str, error: Error) -> CommitUnknown:
        return CommitUnknown(
            "E602",
            f"a commit over several nodes of {self.wrapper.alias!r} stopped: "
            f"{', '.join(done)} committed, {failed} failed ({reason_of(error)}). This "
            "alias cannot commit several nodes as one (SQLite, or COMMIT = "
            "'best_effort'); compare the rows on these nodes and repair by hand",
        )

    def _unanswered(self, node: str, error: Error) -> CommitUnknown:
        return CommitUnknown(
            "E602",
            f"{node} of {self.wrapper.alias!r} did not answer its COMMIT "
            f"({reason_of(error)}): it may have happened. Read the rows before "
            "writing again",
        )

    def rollback(self) -> None:
        """Roll back every enlisted node; a node that cannot is disconnected, and
        its server rolls back."""
        self._saw(self.enlisted.values())
        for part in list(self.enlisted.values()):
            self._end(part, self.engine.rollback)
        self.enlisted.clear()
        self._finish()

    def _end(self, part: Participant, action: Callable[[Any, str], None]) -> None:
        try:
            if not self._has_ended(part):
                action(part.node, part.gid)
                return
        except Error:
            pass
        with contextlib.suppress(Exception):
            part.node.close()
        part.node.connection = None

    def abandon(self) -> None:
        """Forget everything, without a word to any node: it is another process's."""
        self.enlisted.clear()
        self.is_internal = self._home_begun = False
        self._finish()

    def _finish(self) -> None:
        for part in list(self.enlisted.values()):  # nodes that only read
            self._end(part, self.engine.commit)
        self.enlisted.clear()
        self.savepoints.clear()
        self._first.clear()
        self.home_wrote = self.home_touched = False
        self._id = ""
        if self.changed_timezone:
            # What a transaction set its rollback, also to a savepoint, sets back.
            self.changed_timezone = False
            self.wrapper.nodes.ensure_timezone()
