"""Positions of MariaDB and MySQL: sets of global transaction ids.

Sources: MariaDB Knowledge Base, "Global Transaction ID", "MASTER_GTID_WAIT"; MySQL
manual, "GTID Format and Storage", "WAIT_FOR_EXECUTED_GTID_SET", "Server System
Variables" (``session_track_gtids``).

MariaDB: ``domain-server-sequence`` for each domain. MySQL: ``uuid:1-5:7`` for each
source. Both are kept as text, which is what their servers compare as well; a session
demands one position for each domain and server, or for each source.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from django.db.utils import InterfaceError, OperationalError
from django.utils.regex_helper import _lazy_re_compile

from dbfleet.engines import uuidsets
from dbfleet.engines.base import Engine
from dbfleet.engines.gathering import GatheredRows
from dbfleet.engines.positions import Position, Verdict

#: capability and status bits of the protocol (MariaDB Knowledge Base, "Connection")
_SESSION_TRACK = 1 << 23
_STATE_CHANGED = 1 << 14

#: kinds of session state: MySQL manual, "Protocol::SESSION_TRACK_GTIDS", MariaDB
#: Knowledge Base, "OK_Packet"
_VARIABLES, _GTIDS = 0, 3

#: what servers write, and nothing else: it goes into their own functions
_MARIADB = _lazy_re_compile(r"\d+-\d+-\d+(?:,\d+-\d+-\d+)*")
#: (domain, server, sequence) of MariaDB
_Gtid = tuple[str, str, int]
#: a timeout of 0 means for ever there
_LEAST_WAIT_S = 0.001
#: from what proves least to what proves most
_RANK = (Verdict.LOST, Verdict.UNKNOWN, Verdict.BEHIND, Verdict.COVERED)
#: (domain, server that writes it) -> the last sequence of each server before it
_histories: dict[tuple[str, str], dict[tuple[str, str], int]] = {}
#: source -> what others wrote and was seen while a primary had what that source wrote
_seen: dict[str, uuidsets.Sets] = {}


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
        if ":" in want.value:
            return _compare_sets(uuidsets.parse(have.value), want)
        has, worst = _gtids(have.value), Verdict.COVERED
        for one in _gtids(want.value):
            found = [_compare(other, one) for other in has]
            verdict = max(found, key=_RANK.index, default=Verdict.BEHIND)
            worst = min(worst, verdict, key=_RANK.index)
        return worst

    def is_older(self, have: Position, wants: Iterable[Position]) -> bool:
        wants = tuple(wants)
        if any(":" in one.value for one in wants):
            return _is_older_set(uuidsets.parse(have.value), wants)
        demanded: dict[tuple[str, str], int] = {}
        for domain, server, number in (g for w in wants for g in _gtids(w.value)):
            place = domain, server
            demanded[place] = max(number, demanded.get(place, 0))
        return all(
            number <= demanded.get((domain, server), -1)
            for domain, server, number in _gtids(have.value)
        )

    def learn_history(self, primary: Any, have: Position) -> None:
        if not primary.mysql_is_mariadb:
            return  # of a set only the primary can say what it lacks: judge() asks
        text = str(self.fetch(primary, "SELECT @@global.gtid_binlog_state")[0][0] or "")
        last = {(d, s): n for d, s, n in _gtids(text)}
        for domain, server, _ in _gtids(have.value):
            _histories[domain, server] = last

    def judge(self, primary: Any, have: Position, want: Position) -> Verdict:
        if primary.mysql_is_mariadb:
            return super().judge(primary, have, want)
        sql = "SELECT @@global.gtid_executed, @@global.read_only"
        try:
            [(text, is_read_only)] = self.fetch(primary, sql)
        except (OperationalError, InterfaceError):
            return Verdict.BEHIND  # nobody can say; whoever is asked next finds out
        executed, has = uuidsets.parse(_joined(text)), uuidsets.parse(have.value)
        missing = uuidsets.minus(uuidsets.parse(want.value), has)
        if uuidsets.minus(missing, executed) and not is_read_only:
            return Verdict.LOST
        for source in map(uuidsets.source_of, missing):
            _seen[source] = uuidsets.union([_seen.get(source, {}), executed, has])
        return Verdict.BEHIND

    def merge(
        self, floors: tuple[Position, ...], more: Iterable[Position]
    ) -> tuple[Position, ...]:
        kept = list(floors)
        more = tuple(more)
        if any(":" in one.value for one in (*floors, *more)):
            return _merged([*floors, *more])
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
        if not getattr(primary.connection, "client_flag", 0) & _SESSION_TRACK:
            return
        if primary.mysql_is_mariadb:
            sql = "SET SESSION session_track_system_variables = 'last_gtid'"
        else:
            sql = "SET SESSION session_track_gtids = OWN_GTID"
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
        if not _MARIADB.fullmatch(value) and not uuidsets.is_set(value):
            raise ValueError(text)
        return Position(value)

    def wait(
        self, replica: Any, wants: Sequence[Position], timeout_s: float
    ) -> Position | None:
        if not replica.mysql_is_mariadb:
            sets = ",".join(want.value for want in wants)
            sql = "SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s)"
            self.fetch(replica, sql, [sets, max(timeout_s, _LEAST_WAIT_S)])
            return self.applied(replica)
        ends_at = time.monotonic() + timeout_s
        for want in wants:
            left_s = max(0.0, ends_at - time.monotonic())
            sql = "SELECT MASTER_GTID_WAIT(%s, %s)"
            self.fetch(replica, sql, [want.value, left_s])
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
        value = next(_tracked(result.message), b"")
    except (IndexError, ValueError):
        return None
    return Position(_joined(value.decode())) if value else None


def _tracked(message: bytes) -> Iterator[bytes]:
    """The GTIDs in the session state of an OK packet.

    MariaDB Knowledge Base, "OK_Packet": info, then the state's parts, each with its
    type and its length; a variable is its name and its value. MySQL's part of GTIDs
    is the number of their encoding, 0 for text, and the text.
    """
    _, at = _text(message, 0)
    state, _ = _text(message, at)
    at = 0
    while at < len(state):
        kind = state[at]
        part, at = _text(state, at + 1)
        if kind == _VARIABLES:
            name, middle = _text(part, 0)
            if name == b"last_gtid":
                yield _text(part, middle)[0]
        elif kind == _GTIDS and part[0] == 0:
            yield _text(part, 1)[0]


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
    text = _joined(rows[0][0])
    return Position(text) if text else None


def _joined(text: str | None) -> str:
    """A set in one line; MySQL writes one for each source."""
    return (text or "").replace("\n", "").replace(" ", "")


@lru_cache(maxsize=1024)
def _gtids(text: str) -> tuple[_Gtid, ...]:
    """The GTIDs of MariaDB; each covers all of its domain before it."""
    found = []
    for gtid in filter(None, text.split(",")):
        domain, server, number = gtid.strip().split("-")
        found.append((domain, server, int(number)))
    return tuple(found)


def _compare(have: _Gtid, want: _Gtid) -> Verdict:
    """Sequences of a domain go on when another server is promoted, so one that another
    server wrote is there only if the history of the one that writes now has it."""
    domain, server, number = want
    if have[0] != domain or number > have[2]:
        return Verdict.BEHIND
    if have[1] == server:
        return Verdict.COVERED
    known = _histories.get((domain, have[1]), {}).get((domain, server))
    if known is None:
        return Verdict.UNKNOWN
    return Verdict.COVERED if known >= number else Verdict.LOST


def _compare_sets(has: uuidsets.Sets, want: Position) -> Verdict:
    """A set that lacks something may get it yet, unless another server was promoted:
    then there is something of that one's in it, which nobody has seen so far."""
    missing = uuidsets.minus(uuidsets.parse(want.value), has)
    if not missing:
        return Verdict.COVERED
    sources = {uuidsets.source_of(name) for name in missing}
    others = {n: i for n, i in has.items() if uuidsets.source_of(n) not in sources}
    known = uuidsets.union(_seen.get(source, {}) for source in sources)
    return Verdict.UNKNOWN if uuidsets.minus(others, known) else Verdict.BEHIND


def _is_older_set(has: uuidsets.Sets, wants: Iterable[Position]) -> bool:
    """Transactions of one source are applied in the order of their numbers; of other
    sources a set may have what was seen to be part of what these wrote upon."""
    demanded = uuidsets.union(uuidsets.parse(one.value) for one in wants)
    known = uuidsets.union(_seen.get(uuidsets.source_of(name), {}) for name in demanded)
    others = {name: found for name, found in has.items() if name not in demanded}
    return not uuidsets.minus(others, known) and all(
        found[-1][1] <= demanded[name][-1][1]
        for name, found in has.items()
        if name in demanded
    )


def _merged(positions: Iterable[Position]) -> tuple[Position, ...]:
    """One position for each source, so that one which is lost can be dropped alone."""
    found = uuidsets.union(uuidsets.parse(one.value) for one in positions)
    by_source: dict[str, dict[str, uuidsets.Intervals]] = {}
    for name, intervals in found.items():
        by_source.setdefault(uuidsets.source_of(name), {})[name] = intervals
    return tuple(Position(uuidsets.dump(one)) for _, one in sorted(by_source.items()))
