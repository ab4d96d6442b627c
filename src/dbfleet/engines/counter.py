"""SQLite's positions: a count of commits, kept in the database itself.

A file has no log that a copy of it could be compared by. So each commit of a primary
with replicas raises a number in ``dbfleet_commits``, in its own transaction, and a read
of a copy asks for that number in the snapshot that it reads its rows from. The table
is made by the first write; a table that is made anew draws another epoch. All of it is
local: no question goes over a network.

Guards two invariants: rows and number are of one snapshot; and a number that a primary
told is never told again for other rows, as far as this process can see.

Sources: SQLite manual, "Isolation In SQLite", "SQL As Understood By SQLite: BEGIN
TRANSACTION" (a COMMIT leaves pending reads their snapshot), "Write-Ahead Logging".
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from django.db.utils import OperationalError

from dbfleet import lexer
from dbfleet.engines.base import Engine, execute
from dbfleet.engines.gathering import GatheredRows
from dbfleet.engines.positions import Position, Verdict

_TABLE = (
    "CREATE TABLE IF NOT EXISTS dbfleet_commits (id integer NOT NULL PRIMARY KEY "
    "CHECK (id = 1), epoch varchar(16) NOT NULL, number bigint NOT NULL)"
)
_TOLD = "SELECT epoch, number FROM dbfleet_commits"
_RAISE = "UPDATE dbfleet_commits SET number = number + 1"
_FIRST = "INSERT INTO dbfleet_commits VALUES (1, ?, 1)"
_ANEW = "UPDATE dbfleet_commits SET epoch = ?"

#: statements that change rows or tables; each can stand in a transaction
_COUNTED = lexer.word_set(
    "INSERT REPLACE UPDATE DELETE WITH CREATE ALTER DROP ANALYZE REINDEX"
)

MANY_FILES = 1000

#: a primary's file -> the highest position that it told
_heads: dict[str, Position] = {}


class CommitCounter(Engine):
    """Where an SQLite file is in the commits of its primary."""

    tracks_positions: ClassVar[bool] = True
    counts_commits: ClassVar[bool] = True
    is_local: ClassVar[bool] = True

    # -- comparing --------------------------------------------------------------

    def is_of_content(self, error: BaseException) -> bool:
        return "no such " in str(error) or super().is_of_content(error)

    def compare(self, have: Position, want: Position) -> Verdict:
        if have.system == want.system:
            is_covered = have.value >= want.value
            return Verdict.COVERED if is_covered else Verdict.BEHIND
        # The copy is of another database than the one that the primary is now.
        is_current = any(want.system == head.system for head in _heads.values())
        return Verdict.BEHIND if is_current else Verdict.UNKNOWN

    def is_older(self, have: Position, wants: Iterable[Position]) -> bool:
        return any(
            have.system == want.system and have.value < want.value for want in wants
        )

    def merge(
        self, floors: tuple[Position, ...], more: Iterable[Position]
    ) -> tuple[Position, ...]:
        found = {one.system: one for one in floors}
        for one in more:
            known = found.get(one.system)
            if known is None or known.value < one.value:
                found[one.system] = one
        return tuple(found.values())

    def learn_history(self, primary: Any, have: Position) -> None:
        self.position(primary)  # which epoch is the primary's now

    def dump(self, position: Position) -> str:
        return f"{position.system}.{position.value:x}"

    def load(self, text: str) -> Position:
        epoch, _, number = text.partition(".")
        if not epoch or int(epoch, 16) < 0:
            raise ValueError(text)
        return Position(int(number, 16), system=epoch)

    # -- asking -----------------------------------------------------------------

    def position(self, primary: Any) -> Position | None:
        found = self.applied(primary)
        if found is not None:
            _told(primary, found)
        return found

    def applied(self, replica: Any) -> Position | None:
        try:
            rows = self.fetch(replica, _TOLD)
        except OperationalError as error:
            if _has_no_table(error):
                return None
            raise
        return _position(rows[0]) if rows else None

    def read_at(self, node: Any, cursor: Any, sql: str, params: Any) -> Position | None:
        connection = node.connection
        is_mine = not connection.in_transaction
        if is_mine:
            connection.execute("BEGIN")
        try:
            row = connection.execute(_TOLD).fetchone()
            if row is None:
                return None
            execute(cursor, sql, params)
        except node.Database.OperationalError as error:
            if _has_no_table(error):
                return None
            raise
        finally:
            if is_mine and connection.in_transaction:
                connection.execute("COMMIT")  # rows still to come keep their snapshot
        return _position(row)

    # -- counting ---------------------------------------------------------------

    @contextlib.contextmanager
    def counted(self, primary: Any, sql: str) -> Iterator[list[Position]]:
        connection, told = primary.connection, list[Position]()
        is_counted = _verb(sql) in _COUNTED
        if connection.in_transaction or not is_counted:
            # Of a transaction that the project began by hand nobody knows its end.
            yield told
            if is_counted and connection.in_transaction:
                _raise(primary)
            return
        connection.execute("BEGIN")
        try:
            yield told
            found = _raise(primary)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        _told(primary, found)
        told.append(found)

    def write_at(
        self, node: Any, cursor: Any, sql: str, params: Any
    ) -> tuple[GatheredRows | None, Position | None]:
        held = None
        with self.counted(node, sql) as told:
            execute(cursor, sql, params)
            if cursor.description is not None and _verb(sql) in _COUNTED:
                # A write whose rows are not all read cannot be committed.
                rows = cursor.fetchall()
                held = GatheredRows(rows, cursor.description, cursor.rowcount)
        return held, told[0] if told else None

    def tells_commit(self, node: Any) -> bool:
        connection, transaction = node.connection, node.transaction
        return (
            connection is not None
            and connection.in_transaction
            and bool(transaction.home_wrote)
        )

    def commit_at(self, node: Any) -> Position | None:
        found = _raise(node)
        node.connection.commit()
        _told(node, found)
        return found

    def count_commit(self, primary: Any) -> None:
        with primary.wrap_database_errors:
            if primary.connection.in_transaction:
                _raise(primary)


def _raise(primary: Any) -> Position:
    """Raise the number in the open transaction of a primary."""
    connection = primary.connection
    try:
        is_there = connection.execute(_RAISE).rowcount == 1
    except primary.Database.OperationalError as error:
        if not _has_no_table(error):
            raise
        connection.execute(_TABLE)
        is_there = False
    if not is_there:
        connection.execute(_FIRST, [_epoch()])
    found = _position(connection.execute(_TOLD).fetchone())
    head = _heads.get(_file(primary))
    if head is None or head.system != found.system or head.value < found.value:
        return found
    # An older backup took the file's place: its numbers would come a second time.
    found = found._replace(system=_epoch())
    connection.execute(_ANEW, [found.system])
    return found


def _told(primary: Any, position: Position) -> None:
    """A primary committed up to ``position``."""
    file = _file(primary)
    head = _heads.get(file)
    if head is None or head.system != position.system or head.value < position.value:
        if len(_heads) >= MANY_FILES:
            _heads.clear()  # those of run-time databases come and go
        _heads[file] = position


def _file(primary: Any) -> str:
    return str(primary.settings_dict["NAME"])


def _epoch() -> str:
    return secrets.token_hex(8)


def _position(row: Any) -> Position:
    return Position(int(row[1]), system=str(row[0]))


def _has_no_table(error: BaseException) -> bool:
    return "no such table: dbfleet_commits" in str(error)


def _verb(sql: str) -> str:
    return lexer.value_at(lexer.significant(sql, "sqlite"), 0)
