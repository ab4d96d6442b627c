"""A TCP proxy that breaks connections in chosen ways.

Guards two invariants: a change of mode is in force when the call that made it
returns, and what a mode does not name passes unchanged and in order.

A *round trip* is counted each time a client sends after the server spoke (or for
the first time), so statements sent together count once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from dbfleet.testing.rig import ports
from dbfleet.testing.rig.errors import RigError

Direction = Literal["to_server", "to_client"]
DIRECTIONS: tuple[Direction, ...] = ("to_server", "to_client")
Queue = asyncio.Queue[tuple[float, bytes] | None]

CALL_TIMEOUT_S = 10.0
CHUNK_BYTES = 65_536
BACKLOG = 128
#: Chunks that may wait in one direction of one connection.
QUEUED_CHUNKS = 64
#: What stands before a statement's text: its kind and length, or length, number, kind.
HEADER_BYTES = 5
DEFAULT_PORTS = {"postgres": 5432, "postgresql": 5432, "mysql": 3306, "mariadb": 3306}
#: Closing a socket with this option resets the connection.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass
class ProxyCounts:
    """What passed through a proxy since it started or was last reset."""

    connections: int = 0
    round_trips: int = 0
    bytes_to_server: int = 0
    bytes_to_client: int = 0


class _CutHere(Exception):
    """The byte budget of ``cut_after`` is used up."""


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket
    last: Direction = "to_client"
    has_ended: bool = False
    #: the next answer is to be lost
    loses_answer: bool = False

    def close(self) -> None:
        """Close both ends; a connection that has not ended by itself is reset."""
        for end in (self.client, self.server):
            if not self.has_ended:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            end.close()


class FaultProxy:
    """A proxy on ``host:port`` before ``target_host:target_port``.

    Starts in mode *forward*. Its methods may be called from any thread; each
    raises ``RigError`` once the proxy is stopped, except ``stop()``.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.target = (target_host, target_port)
        self.host = ports.HOST
        self.port = ports.free_port()
        self.counts = ProxyCounts()
        self._delay_s = 0.0
        self._cut_direction: Direction | None = None
        self._cut_bytes_left = 0
        self._cut_request: bytes | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._listener: socket.socket | None = None
        self._owner = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True
        )
        self._thread.start()
        _proxies.add(self)
        self.forward()

    def __repr__(self) -> str:
        return f"<FaultProxy port {self.port} before {self.target[0]}:{self.target[1]}>"

    def forward(self) -> None:
        """Let everything pass, also what was held back; ends every other mode."""

        async def change() -> None:
            self._delay_s = 0.0
            self._cut_direction = self._cut_request = None
            self._flowing.set()
            self._listen()
            self._accept()

        self._do(change)

    def refuse(self) -> None:
        """Refuse new connections, as if no server ran; open ones go on."""

        async def change() -> None:
            self._stop_accepting()
            self._stop_listening()

        self._do(change)

    def deaf(self) -> None:
        """Take new connections and never answer them; open ones go on."""

        async def change() -> None:
            self._listen()
            self._stop_accepting()

        self._do(change)

    def delay(self, seconds: float) -> None:
        """Hold back what arrives from now on, in each direction, for ``seconds``."""

        async def change() -> None:
            self._delay_s = seconds

        self._do(change)

    def cut_after(self, count: int, direction: Direction = "to_client") -> None:
        """Let ``count`` more bytes pass in ``direction``; reset at the next one.

        Happens once, to the connection that the byte belongs to. ``cut_after(0)``
        lets the next request reach the server and loses the answer;
        ``cut_after(0, "to_server")`` loses the request.
        """

        async def change() -> None:
            self._cut_direction = direction
            self._cut_bytes_left = count

        self._do(change)

    def cut_answer_to(self, statement: str) -> None:
        """Let the next statement that begins so reach the server; lose the answer.

        Happens once. Seen are statements that are sent as text: both protocols put it
        after five bytes of a message, which has to arrive as one.
        """

        async def change() -> None:
            self._cut_request = statement.encode()

        self._do(change)

    def cut(self) -> None:
        """Reset every open connection now; new ones are taken as before."""

        async def change() -> None:
            tasks = list(self._connections)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._do(change)

    def black_hole(self) -> None:
        """Pass nothing in either direction; connections, also new ones, stay open."""

        async def change() -> None:
            self._flowing.clear()

        self._do(change)

    def reset_counts(self) -> None:
        """Set every count to zero."""

        async def change() -> None:
            self.counts = ProxyCounts()

        self._do(change)

    def stop(self) -> None:
        """Reset every connection and stop listening; may be called again."""
        if self._loop.is_closed() or os.getpid() != self._owner:
            return
        self.refuse()
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()
        ports.give_back(self.port)

    def _do(self, change: Callable[[], Awaitable[None]]) -> None:
        if self._loop.is_closed() or os.getpid() != self._owner:
            raise RigError(f"the proxy on port {self.port} is stopped in this process")

        async def run() -> None:
            await change()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(CALL_TIMEOUT_S)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((self.host, self.port))
            self._listener.listen(BACKLOG)
            self._listener.setblocking(False)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        self._loop.add_reader(self._listener, self._take_connection)

    def _stop_accepting(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)

    def _take_connection(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        connection = _Connection(client, socket.socket())
        self.counts.connections += 1
        task = self._loop.create_task(self._serve(connection))
        self._connections[task] = connection
        # Here, not in the task: one that is cancelled may never have begun.
        task.add_done_callback(lambda task: self._connections.pop(task).close())

    async def _serve(self, connection: _Connection) -> None:
        try:
            for end in (connection.client, connection.server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(connection.server, self.target)
            async with asyncio.TaskGroup() as group:
                for direction in DIRECTIONS:
                    queue: Queue = asyncio.Queue(QUEUED_CHUNKS)
                    group.create_task(self._read(connection, direction, queue))
                    group.create_task(self._write(connection, direction, queue))
            connection.has_ended = True
        except* (OSError, _CutHere):
            pass

    async def _read(
        self, connection: _Connection, direction: Direction, queue: Queue
    ) -> None:
        to_server = direction == "to_server"
        source = connection.client if to_server else connection.server
        try:
            while chunk := await self._loop.sock_recv(source, CHUNK_BYTES):
                if to_server and connection.last == "to_client":
                    self.counts.round_trips += 1
                connection.last = direction
                await queue.put((self._loop.time() + self._delay_s, chunk))
        except OSError:
            # Not even a reset comes through a black hole.
            await self._flowing.wait()
            raise
        await queue.put(None)

    async def _write(
        self, connection: _Connection, direction: Direction, queue: Queue
    ) -> None:
        to_server = direction == "to_server"
        sink = connection.server if to_server else connection.client
        while item := await queue.get():
            due, chunk = item
            if (wait_s := due - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            await self._flowing.wait()
            passing = self._within_budget(connection, chunk, direction)
            if to_server:
                self.counts.bytes_to_server += len(passing)
            else:
                self.counts.bytes_to_client += len(passing)
            await self._loop.sock_sendall(sink, passing)
            if len(passing) < len(chunk):
                raise _CutHere
        await self._flowing.wait()
        sink.shutdown(socket.SHUT_WR)

    def _within_budget(
        self, connection: _Connection, chunk: bytes, direction: Direction
    ) -> bytes:
        """Return the part of ``chunk`` that may pass, and pay for it."""
        if direction == "to_client" and connection.loses_answer:
            return b""
        wanted = self._cut_request if direction == "to_server" else None
        if wanted is not None and chunk.startswith(wanted, HEADER_BYTES):
            connection.loses_answer, self._cut_request = True, None
        if self._cut_direction != direction:
            return chunk
        passing = chunk[: self._cut_bytes_left]
        self._cut_bytes_left -= len(passing)
        if len(passing) < len(chunk):
            self._cut_direction = None
        return passing

    def _forget_in_child(self) -> None:
        """Close a forked child's copies, which would keep the sockets open."""
        if self._listener is not None:
            self._listener.close()
        for connection in self._connections.values():
            connection.client.close()
            connection.server.close()


def target_of(url: str) -> tuple[str, int]:
    """Return the host and port of a database URL; raise ``RigError`` without one."""
    parts = urlsplit(url)
    port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    if not parts.hostname or port is None:
        raise RigError(f"a {parts.scheme or 'bare'} URL names no server to proxy")
    return parts.hostname, port


def rewrite_url(url: str, proxy: FaultProxy) -> str:
    """Return ``url`` with the address of ``proxy`` in place of its own."""
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(
        parts._replace(netloc=f"{credentials}{at}{proxy.host}:{proxy.port}")
    )


def _forget_proxies() -> None:
    for proxy in list(_proxies):
        proxy._forget_in_child()


_proxies: weakref.WeakSet[FaultProxy] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_proxies)
