"""Waiting for a server that may be gone: psycopg's connections, and a probe.

psycopg does its I/O in generators that it resumes with nothing whenever no answer came
for 0.1 s; a generator around them hears that. Sources: psycopg 3 documentation,
"Connection.wait()"; PostgreSQL manual, "Message Flow" (SSL session encryption): the
first message of a connection may be SSLRequest, which every server, and every pooler,
answers with one byte; ``ProcessStartupPacket`` passes over who leaves after it.
"""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import time
from collections.abc import Callable, Generator
from functools import lru_cache, partial
from typing import Any

Steps = Generator[Any, Any, Any]

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
#: errors of this process, not of the server
_OWN_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Driver:
    """psycopg, but for ``connect``: its connections are watched from the start, and
    as long as they live if it ``keeps`` to it."""

    def __init__(self, driver: Any, watch: Any, *, keeps: bool) -> None:
        self._driver, self._watch, self._keeps = driver, watch, keeps
        kind = watched_class(driver.Connection)
        self._kind = type(kind.__name__, (kind,), {"dbfleet_watch": watch})

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        connection = self._kind.connect(*args, **kwargs)  # type: ignore[attr-defined]
        # One class for all: what is known of a class is asked once.
        if self._keeps:
            adopt(connection, self._watch)
        else:
            connection.__class__ = self._driver.Connection
        return connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


def adopt(connection: Any, watch: Any) -> None:
    """Watch a connection that is open."""
    connection.dbfleet_watch = watch
    kind: Any = type(connection)
    connection.__class__ = getattr(kind, "dbfleet_kind", None) or watched_class(kind)


@lru_cache(maxsize=16)
def watched_class(kind: Any) -> Any:
    """The watched subclass of a class of connections, made once."""

    def wait(self: Any, steps: Steps, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return inherited(self, _heard(steps, self), *args, **kwargs)
        return inherited(self, _heard(steps, self))

    def connect_gen(cls: Any, *args: Any, **kwargs: Any) -> Steps:
        steps = getattr(super(watched, cls), _CONNECT)(*args, **kwargs)
        conninfo = args[0] if args else kwargs.get("conninfo", "")
        return _heard_connecting(steps, cls.dbfleet_watch, conninfo)

    inherited = kind.wait
    body = {"__module__": kind.__module__, "wait": wait, "dbfleet_watch": None}
    watched = type(kind.__name__, (kind,), body)
    watched.dbfleet_kind = watched  # type: ignore[attr-defined]
    if hasattr(kind, _CONNECT):  # else only ``connect_timeout`` bounds connecting
        setattr(watched, _CONNECT, classmethod(connect_gen))
    return watched


#: how long psycopg waits before it resumes a generator with nothing
_LATE_S = 0.1
#: no name of psycopg's documented interface
_CONNECT = "_connect_gen"


def is_watched(connection: Any) -> bool:
    """Whether an open connection is watched."""
    return getattr(connection, "dbfleet_watch", None) is not None


def _heard(steps: Steps, connection: Any) -> Steps:
    """The driver's generator; hears when nothing came."""
    resume, ready, wait = steps.send, None, None
    try:
        while True:
            ready = yield resume(ready)
            if not ready:
                wait = wait or connection.dbfleet_watch.begin(_LATE_S)
                server = connection.pgconn
                if wait.is_over(partial(_answers, server, server.socket)):
                    server.finish()  # sends what it can and waits for nothing
                    raise _error(wait)
            elif wait is not None:
                wait = None
    except StopIteration as end:
        return end.value


def _heard_connecting(steps: Steps, watch: Any, conninfo: str) -> Steps:
    """The same while connecting; there the socket may change."""
    resume, ready, wait = steps.send, None, None
    try:
        while True:
            state = resume(ready)
            ready = yield state
            if not ready:
                wait = wait or watch.begin(_LATE_S)
                if wait.is_over(partial(_answers_at, conninfo, state[0])):
                    steps.close()
                    raise _error(wait)
            elif wait is not None:
                wait = None
    except StopIteration as end:
        return end.value


def _error(wait: Any) -> Exception:
    from psycopg import OperationalError

    return OperationalError(wait.reason())


# -- the probe ----------------------------------------------------------------------


def _answers(server: Any, own: int, timeout_s: float) -> bool | None:
    host = (server.hostaddr or server.host or b"").decode()
    return probe(host, server.port.decode(), timeout_s, own)


def _answers_at(conninfo: str, own: int, timeout_s: float) -> bool | None:
    from psycopg.conninfo import conninfo_to_dict

    found = conninfo_to_dict(conninfo)
    host = str(found.get("hostaddr") or found.get("host") or "")
    return probe(host, str(found.get("port") or 5432), timeout_s, own)


def probe(host: str, port: str, timeout_s: float, own: int = -1) -> bool | None:
    """Whether a server answers a new connection within ``timeout_s``; one round trip.

    None if that cannot be told, or something came on the socket ``own`` meanwhile.
    """
    if not host:
        return None
    ends_at = time.monotonic() + timeout_s
    try:
        family, address = _address(host, port)
        with socket.socket(family, socket.SOCK_STREAM) as other:
            other.setblocking(False)
            found = other.connect_ex(address)
            if found not in (0, errno.EINPROGRESS, errno.EAGAIN, errno.EWOULDBLOCK):
                return None if found in _OWN_ERRORS else False
            return _exchange(other, own, lambda: ends_at - time.monotonic())
    except OSError as error:
        return None if error.errno in _OWN_ERRORS else False


def _address(host: str, port: str) -> tuple[int, Any]:
    if host.startswith(("/", "@")):
        path = f"{host}/.s.PGSQL.{port}"
        return socket.AF_UNIX, "\0" + path[1:] if host[0] == "@" else path
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    return found[0], found[4]


def _exchange(
    other: socket.socket, own: int, left_s: Callable[[], float]
) -> bool | None:
    with selectors.DefaultSelector() as selector:
        selector.register(other, selectors.EVENT_WRITE)
        if own >= 0:
            selector.register(own, selectors.EVENT_READ)
        is_sent = False
        while True:
            ready = selector.select(max(0.0, left_s()))
            if any(key.fd == own for key, _ in ready):
                return None
            if not ready:
                return False
            if is_sent:
                return bool(other.recv(1))
            other.send(_SSL_REQUEST)
            selector.modify(other, selectors.EVENT_READ)
            is_sent = True
