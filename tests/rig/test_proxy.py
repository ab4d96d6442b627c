"""The fault proxy: each mode by what a client and a server see of it."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from dbfleet.testing.rig import (
    FaultProxy,
    PostgresCluster,
    Rig,
    RigError,
    wait_until,
)

TIMEOUT_S = 10.0
SILENCE_S = 0.2


class EchoServer(socketserver.ThreadingTCPServer):
    """Answers each message with the same in capitals; remembers what it got."""

    daemon_threads = True
    received = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, EchoServer)
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(65_536):
                self.server.received += data
                self.request.sendall(data.upper())


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as started:
        thread = threading.Thread(target=started.serve_forever, args=(0.01,))
        thread.start()
        yield started
        started.shutdown()
        thread.join(TIMEOUT_S)


@pytest.fixture
def proxy(server: EchoServer) -> Iterator[FaultProxy]:
    host, port = server.server_address[:2]
    started = FaultProxy(str(host), int(port))
    yield started
    started.stop()


@contextlib.contextmanager
def connect(proxy: FaultProxy) -> Iterator[socket.socket]:
    with socket.create_connection((proxy.host, proxy.port), TIMEOUT_S) as client:
        yield client


def ask(client: socket.socket, message: bytes) -> bytes:
    """Send ``message`` and read an answer of its length."""
    client.sendall(message)
    return read(client, len(message))


def read(client: socket.socket, count: int) -> bytes:
    answer = b""
    while len(answer) < count and (data := client.recv(count - len(answer))):
        answer += data
    return answer


def is_silent(client: socket.socket) -> bool:
    """Tell whether nothing arrives for a while, not even an end."""
    client.settimeout(SILENCE_S)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(TIMEOUT_S)
    return False


def test_forward_changes_nothing(proxy: FaultProxy) -> None:
    message = os.urandom(3_000_000).lower()
    with connect(proxy) as client:
        sending = threading.Thread(target=client.sendall, args=(message,))
        sending.start()
        assert read(client, len(message)) == message.upper()
        sending.join(TIMEOUT_S)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_counts(proxy: FaultProxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        ask(one, b"a")
        ask(one, b"bc")
        ask(other, b"d")
    assert proxy.counts.connections == 2
    assert proxy.counts.round_trips == 3
    assert proxy.counts.bytes_to_server == 4
    assert proxy.counts.bytes_to_client == 4
    proxy.reset_counts()
    assert proxy.counts.round_trips == 0


def test_messages_sent_together_are_one_round_trip(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.delay(0.1)
        client.sendall(b"a")
        client.sendall(b"b")
        assert read(client, 2) == b"AB"
    assert proxy.counts.round_trips == 1


def test_refuse_and_return(proxy: FaultProxy) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"A"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError), connect(proxy):
            pass
        assert ask(old, b"b") == b"B"
        proxy.forward()
        with connect(proxy) as new:
            assert ask(new, b"c") == b"C"


def test_deaf_takes_connections_and_never_answers(
    proxy: FaultProxy, server: EchoServer
) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"A"
        proxy.deaf()
        with connect(proxy) as new:
            new.sendall(b"x")
            assert is_silent(new)
            assert b"x" not in server.received
            assert ask(old, b"b") == b"B"
            proxy.forward()
            assert read(new, 1) == b"X"


def test_deaf_after_refuse_listens_again(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.deaf()
    with connect(proxy) as client:
        assert is_silent(client)


def test_delay_is_in_each_direction_and_ends(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.delay(0.15)
        began = time.monotonic()
        assert ask(client, b"a") == b"A"
        assert time.monotonic() - began >= 0.3
        proxy.forward()
        began = time.monotonic()
        assert ask(client, b"b") == b"B"
        assert time.monotonic() - began < 0.15


def test_delay_does_not_add_up_over_chunks(proxy: FaultProxy) -> None:
    message = b"a" * 2_000_000
    with connect(proxy) as client:
        proxy.delay(0.2)
        sending = threading.Thread(target=client.sendall, args=(message,))
        began = time.monotonic()
        sending.start()
        assert read(client, len(message)) == message.upper()
        # Some 30 chunks each way: one after the other would take 12 s.
        assert 0.4 <= time.monotonic() - began < 4
        sending.join(TIMEOUT_S)


def test_cut_resets_every_open_connection_once(proxy: FaultProxy) -> None:
    with connect(proxy) as one, connect(proxy) as other:
        ask(one, b"a")
        ask(other, b"a")
        proxy.cut()
        for client in (one, other):
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        with connect(proxy) as new:
            assert ask(new, b"b") == b"B"


def test_cut_of_a_connection_that_just_came_leaves_nothing_open(
    proxy: FaultProxy,
) -> None:
    for _ in range(20):
        with connect(proxy) as client:
            proxy.cut()
            with contextlib.suppress(ConnectionError):
                # Not taken yet at the cut, or cut: never half-way in between.
                assert ask(client, b"a") == b"A"


def test_lost_answer(proxy: FaultProxy, server: EchoServer) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        assert ask(client, b"a") == b"A"
        proxy.cut_after(0)
        client.sendall(b"commit")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert server.received == b"acommit"
        assert ask(other, b"b") == b"B"


def test_lost_answer_to_a_statement(proxy: FaultProxy, server: EchoServer) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        proxy.cut_answer_to("COMMIT")
        assert ask(client, b"12345UPDATE") == b"12345UPDATE"
        client.sendall(b"12345COMMIT")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert server.received.endswith(b"COMMIT")
        assert ask(other, b"12345COMMIT") == b"12345COMMIT", "only once"


def test_lost_request(proxy: FaultProxy, server: EchoServer) -> None:
    with connect(proxy) as client:
        assert ask(client, b"a") == b"A"
        proxy.cut_after(0, "to_server")
        client.sendall(b"commit")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert server.received == b"a"


def test_cut_in_the_middle_of_an_answer(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        proxy.cut_after(5)
        assert ask(client, b"abc") == b"ABC"
        client.sendall(b"defg")
        assert read(client, 2) == b"DE"
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.counts.bytes_to_client == 5


def test_forward_calls_a_cut_off(proxy: FaultProxy) -> None:
    proxy.cut_after(0)
    proxy.forward()
    with connect(proxy) as client:
        assert ask(client, b"a") == b"A"


def test_black_hole_holds_back_and_forward_delivers(
    proxy: FaultProxy, server: EchoServer
) -> None:
    with connect(proxy) as old:
        assert ask(old, b"a") == b"A"
        proxy.black_hole()
        old.sendall(b"b")
        with connect(proxy) as new:
            new.sendall(b"c")
            assert is_silent(old)
            assert is_silent(new)
            assert server.received == b"a"
            proxy.forward()
            assert read(old, 1) == b"B"
            assert read(new, 1) == b"C"


def test_death_of_the_server_is_hidden_by_a_black_hole(
    own_postgres: PostgresCluster, rig: Rig
) -> None:
    proxy, url = rig.proxy(own_postgres.url("shop"))
    with psycopg.connect(url) as connection:
        proxy.black_hole()
        own_postgres.primary.kill()
        with socket.socket(fileno=os.dup(connection.fileno())) as ours:
            assert is_silent(ours)
            proxy.forward()
            ours.setblocking(True)
            ours.settimeout(TIMEOUT_S)
            with contextlib.suppress(ConnectionResetError):
                assert ours.recv(1) == b""
    own_postgres.primary.start()


def test_server_that_does_not_run_resets_the_client() -> None:
    with contextlib.closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy = FaultProxy(*nobody.getsockname())
        with connect(proxy) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        proxy.stop()


def test_stopped_proxy_refuses_and_says_so(proxy: FaultProxy) -> None:
    with connect(proxy) as client:
        ask(client, b"a")
        proxy.stop()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError), connect(proxy):
        pass
    with pytest.raises(RigError, match="is stopped"):
        proxy.forward()
    proxy.stop()


# From Python 3.12 on, a fork beside threads warns.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_holds_no_socket_of_the_proxy(proxy: FaultProxy) -> None:
    ours, childs = socket.socketpair()
    with ours, childs, connect(proxy) as client:
        ask(client, b"a")
        child = os.fork()
        if child == 0:
            childs.send(b"running")
            # Ends when the parent has looked, or is gone.
            ours.close()
            childs.recv(1)
            os._exit(0)
        assert ours.recv(7) == b"running"
        try:
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError), connect(proxy):
                pass
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        finally:
            ours.send(b"!")
            assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgres://u:p%40w@127.0.0.1:{port}/db?sslmode=disable", "127.0.0.1", None),
        ("postgres://127.0.0.1/db", "127.0.0.1", 5432),
        ("mysql://u@127.0.0.1/db", "127.0.0.1", 3306),
    ],
)
def test_url_keeps_all_but_the_address(
    rig: Rig, server: EchoServer, url: str, host: str, port: int | None
) -> None:
    url = url.format(port=server.server_address[1])
    proxy, rewritten = rig.proxy(url)
    assert proxy.target == (host, port or server.server_address[1])
    before, _, after = url.partition("127.0.0.1")
    assert rewritten.startswith(f"{before}127.0.0.1:{proxy.port}/db")
    assert rewritten.endswith(after[after.index("/") :])


def test_url_without_a_server_is_refused(rig: Rig) -> None:
    with pytest.raises(RigError, match="a sqlite URL names no server"):
        rig.proxy("sqlite:////some/file")


def test_statement_is_one_round_trip(own_postgres: PostgresCluster, rig: Rig) -> None:
    proxy, url = rig.proxy(own_postgres.url("shop"))
    with psycopg.connect(url, autocommit=True) as connection:
        proxy.reset_counts()
        connection.execute("SELECT 1")
        assert proxy.counts.round_trips == 1
        connection.execute("SELECT 1; SELECT 2")
        assert proxy.counts.round_trips == 2


def test_commit_whose_answer_is_lost_has_happened(
    own_postgres: PostgresCluster, rig: Rig
) -> None:
    primary = own_postgres.primary
    primary.execute("CREATE TABLE lost (id int)", dbname="shop")
    proxy, url = rig.proxy(own_postgres.url("shop"))
    with contextlib.closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO lost VALUES (1)")
        proxy.cut_after(0)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("COMMIT")
    wait_until(
        lambda: primary.execute("SELECT id FROM lost", dbname="shop") == [(1,)],
        timeout_s=TIMEOUT_S,
        what="the row is there",
    )
