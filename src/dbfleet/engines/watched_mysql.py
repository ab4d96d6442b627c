"""Waiting for a MySQL or MariaDB server that may be gone: PyMySQL, and a probe.

PyMySQL reads its socket through a buffered file; a raw file under the buffer polls the
socket first. mysqlclient waits inside a C library that nobody can interrupt: there the
driver's own ``read_timeout`` is all there is.
"""

from __future__ import annotations

import contextlib
import io
import select
import time
from typing import Any
from weakref import ref

#: how long the socket is polled before ``watch`` is asked
TICK_S = 0.1
#: the errors of a client: nothing came from the server (MySQL manual, "Client Error
#: Message Reference")
_CLIENT_CODES = range(2000, 3000)


def is_pymysql(node: Any) -> bool:
    """Whether a node's driver is PyMySQL, under its own name or mysqlclient's."""
    return str(node.Database.__name__) == "pymysql"


def adopt(node: Any, watch: Any, read_timeout_s: float | None) -> None:
    """Watch a connection that is open. ``read_timeout_s`` is the project's own, in
    place of the one that bounded connecting."""
    connection = node.connection
    if hasattr(connection, "dbfleet_watched"):
        return
    connection.dbfleet_watched = True
    connection._read_timeout = connection._current_timeout = read_timeout_s
    connection._sock.settimeout(read_timeout_s)
    watched = _Watched(connection._rfile.detach(), connection._sock, watch, ref(node))
    connection._rfile = io.BufferedReader(watched)


class _Watched(io.RawIOBase):
    """A socket's file that asks ``watch`` while nothing comes."""

    def __init__(self, raw: Any, sock: Any, watch: Any, node: Any) -> None:
        self._raw, self._sock = raw, sock
        self._watch, self._node = watch, node
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int | None:
        # What TLS has decrypted already is not in the socket any more.
        pending = getattr(self._sock, "pending", None)
        is_here = pending is not None and pending()
        if not is_here and not self._poll.poll(TICK_S * 1000):
            self._wait()
        found: int | None = self._raw.readinto(into)
        return found

    def _wait(self) -> None:
        wait = self._watch.begin(TICK_S)
        limit_s = self._sock.gettimeout()
        ends_at = None if limit_s is None else time.monotonic() + limit_s - TICK_S
        while True:
            if wait.is_over(self._answers):
                raise TimeoutError(wait.reason())
            if self._poll.poll(TICK_S * 1000):
                return
            if ends_at is not None and time.monotonic() >= ends_at:
                raise TimeoutError("timed out")

    def _answers(self, timeout_s: float) -> bool | None:
        node = self._node()
        return None if node is None else answers(node, timeout_s)

    def close(self) -> None:
        self._raw.close()
        super().close()


def answers(node: Any, timeout_s: float) -> bool | None:
    """Whether the server lets somebody in, or says why not, within ``timeout_s`` for
    each step; a whole connection, since the server blocks hosts that leave theirs
    unfinished (``max_connect_errors``)."""
    limits = dict.fromkeys(("connect_timeout", "read_timeout"), timeout_s)
    try:
        connection = node.Database.connect(**{**node.get_connection_params(), **limits})
    except node.Database.OperationalError as error:
        return bool(error.args) and error.args[0] not in _CLIENT_CODES
    except node.Database.Error:
        return True
    with contextlib.suppress(Exception):
        connection.close()
    return True
