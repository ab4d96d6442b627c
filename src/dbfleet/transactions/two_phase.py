"""Several writers of one transaction commit as one.

Protocol (Gray and Lamport, "Consensus on Transaction Commit", presumed abort with
the decision in one participant's own log): writers other than home prepare, home
commits the decision row with its own work, the prepared ones commit. Where shards keep
claims, one of them decides in the place of a home that wrote nothing.

Invariant: after any outcome no node keeps a transaction of ours prepared, except one
that an error has named.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.utils import Error

from dbfleet.errors import (
    CommitPending,
    CommitUnknown,
    RollbackPending,
    TwoPhaseUnavailable,
)
from dbfleet.executor.failures import reason_of
from dbfleet.observe import events

HOME = "home"

#: how long a decision can be read; a server's clock may be off by a day
DECISIONS_KEPT = datetime.timedelta(days=8)
DECISIONS_BETWEEN_PRUNING = 1000
_decisions = itertools.count(1)


@dataclass(slots=True)
class Participant:
    """A node inside the transaction."""

    cluster: str
    node: Any
    gid: str
    #: the driver's connection that has the transaction; no other one may go on
    connection: Any
    #: its name in the settings
    server: str
    #: a branch that only writes claims, on a second connection to the node
    is_keeper: bool = False
    wrote: bool = False

    @property
    def key(self) -> str:
        return key_of(self.cluster, is_keeper=self.is_keeper)


def key_of(cluster: str, *, is_keeper: bool) -> str:
    return f"{cluster}+claims" if is_keeper else cluster


class TwoPhase:
    """The part of a transaction that prepares and decides."""

    wrapper: Any
    engine: Any
    enlisted: dict[str, Participant]
    home_wrote: bool
    _id: str
    _begin_home: Any
    _has_ended: Any

    def _commit_prepared(
        self, writers: list[Participant], commit_home: Callable[[], Any]
    ) -> None:
        prepared: list[Participant] = []
        decider = self._decider(writers)
        try:
            for part in writers:
                if part is not decider:
                    self._prepare(part)
                    prepared.append(part)
                    del self.enlisted[part.key]
            self._write_decision(prepared, decider)
            if decider is not None:
                commit_home()  # it only read, and may still refuse
        except BaseException as error:
            # A PREPARE without an answer may have happened.
            unsure = [p for p in writers if p not in prepared and self._has_ended(p)]
            self._undo(prepared, unsure, error)
            raise
        events.emit("commit_prepared", id=self._id, nodes=[p.cluster for p in prepared])
        try:
            if decider is None:
                commit_home()
            else:
                self.engine.commit(decider.node, decider.gid)
                del self.enlisted[decider.key]
        except Error as error:
            if self.engine.is_lost(decider.node if decider else self.wrapper):
                raise self._undecided(prepared, decider, error) from error
            self._undo(prepared, [], error)
            raise
        self._finish_prepared(prepared)

    def _decider(self, writers: list[Participant]) -> Participant | None:
        """Who commits the decision with its own work; None: home.

        Claims have to be seen before rows are, so a branch of claims can be first as
        well as home. Home has no part in what it did not write.
        """
        if self.home_wrote:
            return None
        return next((part for part in writers if part.is_keeper), None)

    def _prepare(self, part: Participant) -> None:
        try:
            self.engine.prepare(part.node, part.gid)
        except TwoPhaseUnavailable:
            self.enlisted.pop(part.key, None)
            raise
        except Error as error:
            if "prepared transactions are disabled" not in str(error):
                raise
            raise TwoPhaseUnavailable(
                "E601",
                f"{part.server} cannot prepare transactions, so writes to "
                f"several nodes of alias {self.wrapper.alias!r} cannot be made atomic; "
                "all was rolled back. Set max_prepared_transactions on the server, or "
                'COMMIT = "best_effort" for the alias to accept partial commits',
            ) from error

    def _write_decision(
        self, prepared: list[Participant], decider: Participant | None
    ) -> None:
        if decider is None:
            self._begin_home()
        node = self.wrapper if decider is None else decider.node
        names = " ".join(part.key for part in prepared)
        self.engine.run(
            node,
            "INSERT INTO dbfleet_decision (gid, participants, decided_at) "
            "VALUES (%s, %s, CURRENT_TIMESTAMP)",
            [self._id, names],
        ).close()
        if next(_decisions) % DECISIONS_BETWEEN_PRUNING == 0:
            self._prune_decisions(node)

    def _prune_decisions(self, node: Any) -> None:
        """Forget decisions that nothing prepared can still be waiting for."""
        old = datetime.datetime.now(datetime.UTC) - DECISIONS_KEPT
        self.engine.run(
            node,
            "DELETE FROM dbfleet_decision WHERE decided_at < %s",
            [old.strftime("%Y-%m-%d %H:%M:%S")],
        ).close()

    def _undo(
        self,
        prepared: list[Participant],
        unsure: list[Participant],
        error: BaseException,
    ) -> None:
        """Roll back what is, or may be, prepared; raises RollbackPending."""
        pending = []
        for part in [*prepared, *unsure]:
            try:
                if part in unsure:
                    part.node.close()
                self.engine.rollback_prepared(part.node, part.gid)
            except Error:
                pending.append(part)
        if pending:
            raise RollbackPending(
                "E604",
                f"transaction {self._id} of {self.wrapper.alias!r} is rolled back "
                f"({reason_of(error)}), but these nodes did not answer and may hold "
                "it prepared: " + self._settling(pending, commit=False),
            ) from error

    def _finish_prepared(self, prepared: list[Participant]) -> None:
        pending: list[Participant] = []
        for part in sorted(prepared, key=lambda part: not part.is_keeper):
            try:
                # No row is shown before its claims are, which lookups rely on.
                if part.is_keeper or not any(left.is_keeper for left in pending):
                    self.engine.commit_prepared(part.node, part.gid)
                else:
                    pending.append(part)
            except Error:
                pending.append(part)
        if pending:
            raise CommitPending(
                "E603",
                f"transaction {self._id} of {self.wrapper.alias!r} is committed, but "
                "these nodes still hold it prepared; in this order: "
                + self._settling(pending, commit=True),
            )

    def _undecided(
        self, prepared: list[Participant], decider: Participant | None, error: Error
    ) -> CommitUnknown:
        who = HOME if decider is None else decider.server
        return CommitUnknown(
            "E602",
            f"{who} of {self.wrapper.alias!r} did not answer the commit of "
            f"{self._id} ({reason_of(error)}). If SELECT 1 FROM dbfleet_decision WHERE "
            f"gid = '{self._id}' finds a row in {who}, run "
            + self._settling(prepared, commit=True)
            + "; if not, run "
            + self._settling(prepared, commit=False),
        )

    def _settling(self, parts: list[Participant], *, commit: bool) -> str:
        return "; ".join(
            f"on {part.server}: {self.engine.settling_sql(part.gid, commit=commit)}"
            for part in sorted(parts, key=lambda part: not part.is_keeper)
        )
