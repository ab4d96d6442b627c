"""Positions of MariaDB and MySQL: sets of global transaction ids.

Sources: MariaDB Knowledge Base, "Global Transaction ID", "MASTER_GTID_WAIT"; MySQL
manual, "GTID Format and Storage", "WAIT_FOR_EXECUTED_GTID_SET".

MariaDB: ``domain-server-sequence`` for each domain. MySQL: ``uuid:1-5:7`` for each
source. Both are kept as text, which is what their servers compare as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from django.utils.regex_helper import _lazy_re_compile

from dbfleet.engines.base import Engine, GatheredRows, Position, Verdict

#: capability and status bits of the protocol (MariaDB Knowledge Base, "Connection")
_SESSION_TRACK = 1 << 23
_STATE_CHANGED = 1 << 14

#: what servers write, and nothing else: it goes into their own functions
_UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?::\d+(?:-\d+)?)+"
_SETS = _lazy_re_compile(rf"(?:\d+-\d+-\d+|{_UUID})(?:,(?:\d+-\d+-\d+|{_UUID}))*")
#: intervals of each source: (domain, server, first, last); MySQL has no domains
_Range = tuple[str, str, int, int]
#: from what proves least to what proves most
_RANK = (Verdict.LOST, Verdict.UNKNOWN, Verdict.BEHIND, Verdict.COVERED)
#: (domain, server that writes it) -> the last sequence of each server before it
_histories: dict[tuple[str, str], dict[tuple[str, str], int]] = {}


class GtidPositions(Engine):
    """Where a MariaDB or MySQL server is in its log."""

    tracks_positions: ClassVar[bool] = True

    def position(self, primary: Any) -> Position | None:
        name = "gtid_binlog_pos" if primary.mysql_is_mariadb else "gtid_executed"
        return _read(self.fetch(primary, f"SELECT @@global.{name}"))

    def is_standby(self, node: Any) -> bool:
        return self.is_replica(node) is True

    def applied(self, replica: Any) -> Position | None:
        name = "gtid_slave_pos" if replica.mysql_is_mariadb else "gtid_executed"
        return _read(self.fetch(replica, f"SELECT @@global.{name}"))

    def compare(self, have: Position, want: Position) -> Verdict:
        has, worst = _ranges(have.value), Verdict.COVERED
        for one in _ranges(want.value):
            found = [_compare(other, one) for other in has]
            verdict = max(found, key=_RANK.index, default=Verdict.BEHIND)
            worst = min(worst, verdict, key=_RANK.index)
        return worst

    def learn_history(self, primary: Any, have: Position) -> None:
        if not primary.mysql_is_mariadb:
            return  # its sets tell by themselves
        text = str(self.fetch(primary, "SELECT @@global.gtid_binlog_state")[0][0] or "")
        last = {(d, s): n for d, s, n in map(_split, filter(None, text.split(",")))}
        for domain, server, _, _ in _ranges(have.value):
            _histories[domain, server] = last

    def merge(
        self, floors: tuple[Position, ...], more: Iterable[Position]
    ) -> tuple[Position, ...]:
        kept = list(floors)
        for one in more:
            if not any(self.covers(known, [one]) for known in kept):
                kept = [known for known in kept if not self.covers(one, [known])]
                kept.append(one)
        return tuple(kept)

    # -- in the message of a commit -------------------------------------------------

    def connection_params(self, node: Any, params: dict[str, Any]) -> dict[str, Any]:
        flag = getattr(getattr(node.Database, "constants", None), "CLIENT", None)
        if flag is None or not hasattr(flag, "SESSION_TRACK"):
            return params  # mysqlclient cannot read what the server would tell
        has = params.get("client_flag", 0) | flag.SESSION_TRACK
        return {**params, "client_flag": has}

    def track_commits(self, primary: Any) -> None:
        tracks = getattr(primary.connection, "client_flag", 0) & _SESSION_TRACK
        if primary.mysql_is_mariadb and tracks:
            sql = "SET SESSION session_track_system_variables = 'last_gtid'"
            self.run(primary, sql).close()
            primary.connection.dbfleet_tracks = True

    def write_at(
        self, node: Any, cursor: Any, sql: str, params: Any
    ) -> tuple[GatheredRows | None, Position | None]:
        cursor.execute(sql, params)
        return None, _told(node.connection, cursor)

    def tells_commit(self, node: Any) -> bool:
        return hasattr(node.connection, "dbfleet_tracks")

    def commit_at(self, node: Any) -> Position | None:
        with node.connection.cursor() as cursor:
            cursor.execute("COMMIT")
            return _told(node.connection, cursor)

    def dump(self, position: Position) -> str:
        return str(position.value).replace(",", "+")

    def load(self, text: str) -> Position:
        value = text.replace("+", ",")
        if not _SETS.fullmatch(value):
            raise ValueError(text)
        return Position(value)

    def wait(
        self, replica: Any, wants: Sequence[Position], timeout_s: float
    ) -> Position | None:
        if replica.mysql_is_mariadb:
            sql = "SELECT MASTER_GTID_WAIT(%s, %s)"
        else:
            sql = "SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s)"
        for want in wants:
            self.fetch(replica, sql, [want.value, timeout_s])
        return self.applied(replica)


def _told(connection: Any, cursor: Any) -> Position | None:
    """The GTID in the OK packet of a statement; None if it tells none."""
    if not hasattr(connection, "dbfleet_tracks"):
        return None
    cursor = getattr(cursor, "cursor", cursor)  # Django's own wraps the driver's
    result = getattr(cursor, "_result", None)
    if result is None or not result.message:
        return None  # a result with rows has no OK packet
    if not result.server_status & _STATE_CHANGED:
        return None
    try:
        value = _tracked(result.message).get(b"last_gtid")
    except (IndexError, ValueError):
        return None
    return Position(value.decode()) if value else None


def _tracked(message: bytes) -> dict[bytes, bytes]:
    """The system variables in the session state of an OK packet.

    MariaDB Knowledge Base, "OK_Packet": info, then the state's parts, each with its
    type and its length; a variable is its name and its value.
    """
    _, at = _text(message, 0)
    state, _ = _text(message, at)
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(state):
        kind = state[at]
        part, at = _text(state, at + 1)
        if kind == 0:
            name, middle = _text(part, 0)
            found[name], _ = _text(part, middle)
    return found


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    """A length-encoded text and where it ends; raises IndexError, ValueError."""
    size, at = data[at], at + 1
    if size >= 0xFB:
        width = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(size)
        if width is None:
            raise ValueError(size)
        size, at = int.from_bytes(data[at : at + width], "little"), at + width
    if at + size > len(data):
        raise IndexError(size)
    return data[at : at + size], at + size


def _read(rows: Sequence[tuple[Any, ...]]) -> Position | None:
    text = str(rows[0][0] or "").replace("\n", "")
    return Position(text) if text else None


@lru_cache(maxsize=1024)
def _ranges(text: str) -> tuple[_Range, ...]:
    """Intervals of each source; on MariaDB a sequence covers all before it."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        if ":" not in part:
            domain, server, number = _split(part)
            found.append((domain, server, 0, number))
            continue
        source, *intervals = part.split(":")
        for interval in intervals:
            first, _, last = interval.partition("-")
            found.append((source, "", int(first), int(last or first)))
    return tuple(found)


def _split(gtid: str) -> tuple[str, str, int]:
    domain, server, number = gtid.strip().split("-")
    return domain, server, int(number)


def _compare(have: _Range, want: _Range) -> Verdict:
    """Sequences of a domain go on when another server is promoted, so one that another
    server wrote is there only if the history of the one that writes now has it."""
    domain, server, first, last = want
    if have[0] != domain or not (have[2] <= first and last <= have[3]):
        return Verdict.BEHIND
    if have[1] == server:
        return Verdict.COVERED
    known = _histories.get((domain, have[1]), {}).get((domain, server))
    if known is None:
        return Verdict.UNKNOWN
    return Verdict.COVERED if known >= last else Verdict.LOST
