"""The journal of a schema change that no server can roll back.

Where DDL is outside a transaction (MySQL always, elsewhere a migration with
``atomic = False``) each statement is recorded in home before it is sent, and each node
after it took it. Invariant: the journal is empty unless a change stopped half-way, and
then the next schema change either goes on from there or is refused. Nothing is ever
skipped that the journal does not say was done by the same statement at the same place.

Shards come before home, so that a statement that a shard refuses is made again by the
same migration: Django reads what exists from home.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.utils import Error

from dbfleet.errors import NodeUnavailable, SchemaChangeStopped
from dbfleet.executor.failures import reason_of
from dbfleet.observe import events
from dbfleet.planner.route import HOME
from dbfleet.sharding import ledger

#: what clears the journal, for an operator who repaired the nodes by hand
CLEAR_SQL = "DELETE FROM dbfleet_ddl"

_TEXT_LENGTH = 1000


@dataclass(slots=True)
class Entry:
    """One statement of a schema change and the clusters that took it."""

    digest: str
    text: str
    done: list[str]


class Journal:
    """The schema change of one schema editor."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper, self.engine = wrapper, wrapper.engine
        self._entries: list[Entry] | None = None
        self._at = 0
        self._is_stopped = False

    def run(self, text: str, execute: Callable[[str], None]) -> None:
        """Execute a statement on every cluster that has not taken it yet.

        One round trip on home before the first cluster and one after each. Raises
        SchemaChangeStopped when it is left half-way, and when an earlier change was
        and this is not the same one; otherwise the statement's own error.
        """
        entry = self._next(text)
        for cluster in (*self.wrapper.topology.shards, HOME):
            if cluster in entry.done:
                events.emit("ddl_skipped", cluster=cluster, sql=text)
                continue
            try:
                execute(cluster)
            except Error as error:
                is_away = isinstance(error, NodeUnavailable) and self._at > 1
                if entry.done or is_away:
                    self._is_stopped = True
                    raise self._stopped(entry, cluster, error) from error
                raise
            entry.done.append(cluster)
            self._write(
                "UPDATE dbfleet_ddl SET done = %s WHERE position = %s",
                [" ".join(entry.done), self._at],
            )

    def end(self, *, is_complete: bool) -> None:
        """The editor is left: forget what is complete, or the same everywhere."""
        if self._entries is None or self._is_stopped:
            return
        if is_complete and self._at < len(self._entries):
            raise self._differs(self._entries[self._at], "it ends before that")
        self._write(CLEAR_SQL)

    # -- entries --------------------------------------------------------------------

    def _next(self, text: str) -> Entry:
        digest = hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
        if self._entries is None:
            self._entries = self._load()
            if self._entries and self._entries[0].digest != digest:
                # Tables that exist already are not created again.
                self._at = len(self._entries) - 1
        if self._at < len(self._entries):
            entry = self._entries[self._at]
            if entry.digest != digest:
                self._is_stopped = True
                raise self._differs(entry, f"it begins with {_short(text)}")
        else:
            entry = Entry(digest, text, [])
            self._entries.append(entry)
            self._write(
                "INSERT INTO dbfleet_ddl (position, digest, statement, done) "
                "VALUES (%s, %s, %s, '')",
                [self._at + 1, digest, text[:_TEXT_LENGTH]],
            )
        self._at += 1
        return entry

    def _load(self) -> list[Entry]:
        ledger.shard_map(self.wrapper)  # creates the tables of home
        sql = "SELECT digest, statement, done FROM dbfleet_ddl ORDER BY position"
        rows = self.engine.fetch(self._home(), sql)
        return [Entry(row[0], row[1], row[2].split()) for row in rows]

    def _home(self) -> Any:
        """A connection to home that no transaction of the migration can undo."""
        if not self.engine.gathers_at_home:
            return self.wrapper
        return self.wrapper.nodes.extra("ddl")

    def _write(self, sql: str, params: Sequence[Any] | None = None) -> None:
        self.engine.run(self._home(), sql, params).close()

    # -- errors ---------------------------------------------------------------------

    def _stopped(self, entry: Entry, cluster: str, error: Error) -> SchemaChangeStopped:
        nodes = self.wrapper.nodes
        clusters = (*self.wrapper.topology.shards, HOME)
        rest = [nodes.clusters[c].primary for c in clusters if c not in entry.done]
        done = [nodes.clusters[c].primary for c in entry.done]
        assert self._entries is not None
        return SchemaChangeStopped(
            "E406",
            f"a schema change of alias {self.wrapper.alias!r} stopped at "
            f"{nodes.clusters[cluster].primary} ({reason_of(error)}). Statement "
            f"{self._at}, {_short(entry.text)}, is done on {', '.join(done) or 'none'} "
            f"and not on {', '.join(rest)}; those before it are done on every node. "
            "Remove the cause and run migrate again: it goes on from there. To give "
            f"the change up instead, undo it by hand and run in home: {CLEAR_SQL}",
        )

    def _differs(self, entry: Entry, how: str) -> SchemaChangeStopped:
        nodes = self.wrapper.nodes
        done = ", ".join(nodes.clusters[c].primary for c in entry.done) or "none"
        return SchemaChangeStopped(
            "E406",
            f"alias {self.wrapper.alias!r} has a schema change that stopped half-way "
            f"and this is another one: {how}, the other goes on with "
            f"{_short(entry.text)}, done on {done}. Nothing was sent. Finish that "
            "change first, or undo it by hand on these nodes and run in home: "
            f"{CLEAR_SQL}",
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:117]}...")
