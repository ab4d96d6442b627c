"""Promotes a replica, with or without what the primary acknowledged last.

Guards one invariant: what is lost on purpose is known exactly, so that whatever else is
missing is a violation.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from dbfleet.engines import uuidsets
from dbfleet.testing.rig import wait_until
from tests.faults.replicas.recorder import Shared
from tests.faults.replicas.servers import DATABASE, Servers

#: how long the primary acknowledges what no replica receives
LOSES_S = 0.2
#: how long the old primary takes writes after the new one does: longer than it is left
#: alone for having failed
RETURNS_S = 2.0
CATCH_UP_TIMEOUT_S = 120.0
#: a server whose position stays the same for so long has nothing left to apply
IDLE_S = 1.0


class Promotions:
    """Moves the leader from server to server."""

    def __init__(self, servers: Servers, shared: Shared) -> None:
        self.servers, self._shared = servers, shared
        #: lines that were acknowledged and lost, on purpose
        self.lost: set[int] = set()

    def promote(self, names: list[str], *, is_lossy: bool) -> None:
        """Make one of ``names`` the leader; the old one comes back, then follows it."""
        servers, before = self.servers, self.servers.leader
        old = servers.by_name[before]
        if is_lossy:
            for server in servers.followers():
                server.stop_receiving()
            time.sleep(LOSES_S)
        servers.proxies[before].refuse()
        servers.proxies[before].cut()
        if is_lossy:
            for server in servers.followers():
                self._wait_for_received(server)
            self._shared.leader[1] += 1
        else:
            servers.wait_until_caught_up()
        old.kill()
        if servers.engine == "postgresql" and not is_lossy:
            # It writes to its log by itself: some may have got more than others.
            for server in servers.followers():
                self._wait_for_received(server)
        # As operators do: no other has anything that it lacks.
        name = max(names, key=lambda name: self._has(servers.by_name[name]))
        new = servers.by_name[name]
        new.promote()
        servers.leader = name
        if is_lossy:
            self._lose(new, old)
        self._shared.leader[0] = list(servers.by_name).index(name)
        self._shared.leader[1] += is_lossy
        for server in servers.followers():
            if server is not old:
                server.follow(new)
        self._come_back(before, old)

    def _wait_for_received(self, new: Any) -> None:
        """What arrived is applied: MariaDB would drop it at the promotion.

        A connection that is cut inside of a record leaves PostgreSQL with a beginning
        that it never applies, so a server where nothing moves any more is done too.
        """

        def is_idle() -> bool:
            if self.servers.engine == "postgresql":
                sql = "SELECT pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn()"
                if new.execute(sql)[0][0]:
                    return True
            before = self._has(new)
            time.sleep(IDLE_S)
            return before == self._has(new)

        wait_until(is_idle, timeout_s=CATCH_UP_TIMEOUT_S, what="all is applied")

    def _has(self, server: Any) -> int:
        """How far a follower is."""
        if self.servers.engine == "postgresql":
            sql = "SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')"
            return int(server.execute(sql)[0][0])
        is_mysql = self.servers.engine == "mysql"
        applied = "@@global.gtid_executed" if is_mysql else "@@gtid_slave_pos"
        (position,) = server.execute(f"SELECT {applied}")[0]
        if is_mysql:
            sets = uuidsets.parse(position.replace("\n", ""))
            return sum(b - a + 1 for found in sets.values() for a, b in found)
        return max(int(gtid.rpartition("-")[2]) for gtid in position.split(","))

    def _lose(self, new: Any, old: Any) -> None:
        """Note what the old primary has and the new one has not."""
        old.start()
        self.lost |= _lines(old) - _lines(new)
        rows = new.execute("SELECT id, counter FROM replicas_register", dbname=DATABASE)
        for register, counter in rows:
            self._shared.acknowledged[register] = counter

    def _come_back(self, name: str, old: Any) -> None:
        """The old primary takes writes again, and then is set up anew."""
        servers = self.servers
        old.start()
        servers.proxies[name].forward()
        time.sleep(RETURNS_S)
        servers.proxies[name].refuse()
        servers.proxies[name].cut()
        servers.rejoin(name)
        with contextlib.suppress(Exception):
            servers.wait_until_caught_up()
        servers.proxies[name].forward()


def _lines(server: Any) -> set[int]:
    rows = server.execute("SELECT operation FROM replicas_line", dbname=DATABASE)
    return {number for (number,) in rows}
