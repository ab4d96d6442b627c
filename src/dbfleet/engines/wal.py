"""PostgreSQL's positions: timelines and LSNs, in the messages of reads and commits.

Sources: PostgreSQL manual, "System Administration Functions" (recovery control),
"Message Flow" (a simple query with several statements), "Timelines", "WAIT FOR"; the
timeline history file is written by ``writeTimeLineHistory``
(``src/backend/access/transam``).
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from django.db.utils import Error, ProgrammingError

from dbfleet.engines.base import Engine, execute
from dbfleet.engines.gathering import GatheredRows
from dbfleet.engines.positions import Position, Verdict

_INTRANS, _INERROR = 2, 3
#: PostgreSQL manual, "WAIT FOR"
_WAITS_SINCE = 19_00_00
_CANCELLED = "57014"

#: after COMMIT, in a statement of its own: never before the commit's own record
_INSERTED = "SELECT pg_current_wal_insert_lsn()"
#: what never changes while a connection to a primary lives, asked once
_ORIGIN = (
    ", pg_walfile_name(pg_current_wal_insert_lsn()), "
    "(SELECT system_identifier FROM pg_control_system())"
)
_APPLIED = "SELECT pg_last_wal_replay_lsn(), (pg_stat_get_wal_receiver()).received_tli"
_PREPARED = "dbfleet_applied"
#: the process that applies the log; a crash of any process begins it anew
_STARTED = (
    "SELECT coalesce((SELECT backend_start FROM pg_stat_activity "
    "WHERE backend_type = 'startup'), pg_postmaster_start_time())::text"
)
#: a line of some 40 bytes for each promotion there ever was
_HISTORY_BYTES = 2**20

#: (system, timeline) -> for each timeline before it, where it was left
_forks: dict[tuple[str, int], dict[int, int]] = {}


class WalPositions(Engine):
    """Where a PostgreSQL server is in its log."""

    tracks_positions: ClassVar[bool] = True

    # -- comparing --------------------------------------------------------------

    def compare(self, have: Position, want: Position) -> Verdict:
        if have.timeline is None or have.value < want.value:
            return Verdict.BEHIND
        assert want.timeline is not None
        if have.timeline == want.timeline:
            return Verdict.COVERED
        if have.timeline < want.timeline:
            return Verdict.BEHIND
        forks = _forks.get((want.system, have.timeline))
        if forks is None:
            return Verdict.UNKNOWN
        left_at = forks.get(want.timeline)
        if left_at is None or want.value > left_at:
            return Verdict.LOST
        return Verdict.COVERED

    def is_older(self, have: Position, wants: Iterable[Position]) -> bool:
        # A standby that receives nothing tells no timeline, and may be far ahead.
        return have.timeline is not None and any(
            have.timeline == want.timeline and have.value < want.value for want in wants
        )

    def merge(
        self, floors: tuple[Position, ...], more: Iterable[Position]
    ) -> tuple[Position, ...]:
        found = {(one.system, one.timeline): one for one in floors}
        for one in more:
            place = (one.system, one.timeline)
            known = found.get(place)
            if known is None or known.value < one.value:
                found[place] = one
        return tuple(found.values())

    def learn_history(self, primary: Any, have: Position) -> None:
        known = self.position(primary)
        if known is None or have.timeline is None:
            return
        name = f"pg_wal/{have.timeline:08X}.history"
        forks: dict[int, int] = {}
        try:
            rows = self.fetch(
                primary, "SELECT pg_read_file(%s, 0, %s, true)", [name, _HISTORY_BYTES]
            )
        except ProgrammingError:
            return  # this role may not read it
        for line in (rows[0][0] or "").splitlines():
            parts = line.split()
            if len(parts) >= 2 and parts[0].isdigit():
                forks[int(parts[0])] = _number(parts[1])
        if forks:
            _forks[known.system, have.timeline] = forks

    def dump(self, position: Position) -> str:
        return f"{position.system}.{position.timeline:x}.{position.value:x}"

    def load(self, text: str) -> Position:
        system, timeline, value = text.split(".")
        if not system.isdigit():
            raise ValueError(text)
        return Position(int(value, 16), int(timeline, 16), system)

    def is_recovery_conflict(self, error: BaseException) -> bool:
        # ERRCODE_T_R_SERIALIZATION_FAILURE, or _DEADLOCK for a buffer pin; a single
        # read of ours gets neither otherwise.
        return getattr(error.__cause__, "sqlstate", None) in {"40001", "40P01"}

    # -- asking -----------------------------------------------------------------

    def position(self, primary: Any) -> Position | None:
        try:
            rows = self.fetch(primary, _inserted(primary))
        except ProgrammingError:
            return None  # this role may not ask
        return _position(primary, rows[0])

    def applied(self, replica: Any) -> Position | None:
        lsn, timeline = self.fetch(replica, _APPLIED)[0]
        return None if lsn is None else Position(_number(lsn), timeline)

    def wait(
        self, replica: Any, wants: Sequence[Position], timeout_s: float
    ) -> Position | None:
        """Polls before PostgreSQL 19; since then two round trips, of which the first
        ends when the log is applied (``WAIT FOR LSN``)."""
        replica.ensure_connection()
        if replica.connection.info.server_version < _WAITS_SINCE:
            return super().wait(replica, wants, timeout_s)
        # Of timelines it knows nothing: what was applied then is judged as ever.
        last = max(want.value for want in wants)
        lsn = f"{last >> 32:X}/{last & 0xFFFFFFFF:X}"
        # Whole milliseconds, and never 0, which means for ever.
        options = f"MODE 'standby_replay', TIMEOUT {_milliseconds(timeout_s)}, NO_THROW"
        try:
            self.run(replica, f"WAIT FOR LSN '{lsn}' WITH ({options})").close()
        except Error as error:
            if getattr(error.__cause__, "sqlstate", None) != _CANCELLED:
                raise  # else the role's statement_timeout is shorter
        return self.applied(replica)

    def track_commits(self, primary: Any) -> None:
        # Asked here: were it refused after a COMMIT in the same message, a write that
        # happened would look as if it had failed.
        connection = primary.connection
        has_one = hasattr(connection, "dbfleet_origin")
        if _is_psycopg3(connection) and not has_one and not self.is_standby(primary):
            self.position(primary)

    # -- in the message of a statement --------------------------------------------

    def run_of(self, replica: Any) -> str:
        return str(getattr(replica.connection, "dbfleet_run", ""))

    def known_timeline(self, primary: Any) -> int | None:
        origin = getattr(primary.connection, "dbfleet_origin", None)
        return None if origin is None else int(origin[0])

    def is_standby(self, node: Any) -> bool:
        # Told by the server unasked, since PostgreSQL 14.
        return bool(node.connection.info.parameter_status("in_hot_standby") == "on")

    def timeline(self, primary: Any) -> int:
        primary.ensure_connection()
        if self.known_timeline(primary) is None:
            self.position(primary)
        return self.known_timeline(primary) or 0

    def prepare_guard(self, replica: Any) -> None:
        # Planned once. Behind a transaction pooler a statement that was prepared is
        # another connection's; projects there switch server-side cursors off.
        is_pooled = replica.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS")
        has_one = hasattr(replica.connection, "dbfleet_run")
        if has_one or not _is_psycopg3(replica.connection):
            return
        started = str(self.fetch(replica, _STARTED)[0][0])
        replica.connection.dbfleet_run = f"{zlib.crc32(started.encode()):08x}"
        if is_pooled:
            return
        self.run(replica, f"PREPARE {_PREPARED} AS {_APPLIED}").close()
        replica.connection.dbfleet_guard = f"EXECUTE {_PREPARED}"

    def read_at(self, node: Any, cursor: Any, sql: str, params: Any) -> Position | None:
        if not _takes_several(cursor):
            return super().read_at(node, cursor, sql, params)
        guard = getattr(node.connection, "dbfleet_guard", _APPLIED)
        execute(cursor, f"{guard};\n{sql}", params)
        # As libpq has them: the driver's loading of a row costs more than reading it.
        told = cursor.pgresult
        lsn, timeline = told.get_value(0, 0), told.get_value(0, 1)
        cursor.nextset()
        if lsn is None:
            return None
        return Position(
            _number(lsn.decode()), None if timeline is None else int(timeline)
        )

    def write_at(
        self, node: Any, cursor: Any, sql: str, params: Any
    ) -> tuple[GatheredRows | None, Position | None]:
        if not _takes_several(cursor) or self.known_timeline(node) is None:
            return super().write_at(node, cursor, sql, params)
        try:
            execute(cursor, f"BEGIN;\n{sql}\n;COMMIT;\n{_INSERTED}", params)
        except node.Database.Error:
            _leave_failed(node.connection)
            raise
        cursor.nextset()
        rows = [] if cursor.description is None else cursor.fetchall()
        held = GatheredRows(rows, cursor.description, cursor.rowcount)
        cursor.nextset()
        cursor.nextset()
        return held, _position(node, cursor.fetchone())

    def tells_commit(self, node: Any) -> bool:
        connection = node.connection
        return (
            connection is not None
            and _is_psycopg3(connection)
            and self.known_timeline(node) is not None
            and connection.info.transaction_status == _INTRANS
        )

    def commit_at(self, node: Any) -> Position | None:
        cursor = node.connection.cursor()
        cursor.execute(f"COMMIT;\n{_INSERTED}")
        if cursor.statusmessage != "COMMIT":
            return None
        cursor.nextset()
        found = _position(node, cursor.fetchone())
        cursor.close()
        return found


def _inserted(node: Any) -> str:
    has_origin = hasattr(node.connection, "dbfleet_origin")
    return _INSERTED if has_origin else _INSERTED + _ORIGIN


def _position(node: Any, row: Any) -> Position:
    if len(row) > 1:
        # A timeline ends with the server process that writes it, so with this.
        with contextlib.suppress(AttributeError):
            node.connection.dbfleet_origin = (int(row[1][:8], 16), str(row[2]))
        return Position(_number(row[0]), int(row[1][:8], 16), str(row[2]))
    timeline, system = node.connection.dbfleet_origin
    return Position(_number(row[0]), timeline, system)


def _milliseconds(time_s: float) -> int:
    return min(max(1, round(time_s * 1000)), 2**31 - 1)


def _number(lsn: str) -> int:
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def _takes_several(cursor: Any) -> bool:
    """Whether a driver's cursor sends several statements with parameters at once."""
    names = _bases(cursor.__class__)
    # A named cursor of Django's is both; its statement stands inside a DECLARE.
    return "ClientCursorMixin" in names and "ServerCursor" not in names


def _is_psycopg3(connection: Any) -> bool:
    return "psycopg.Connection" in _bases(connection.__class__)


@lru_cache(maxsize=64)
def _bases(kind: Any) -> frozenset[str]:
    names = {one.__name__ for one in kind.__mro__}
    return frozenset(names | {f"{o.__module__}.{o.__name__}" for o in kind.__mro__})


def _leave_failed(connection: Any) -> None:
    """End the block that a failed statement left open."""
    with contextlib.suppress(Error, Exception):
        if connection.info.transaction_status in (_INTRANS, _INERROR):
            connection.rollback()
