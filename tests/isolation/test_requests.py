"""Requests share nothing, and leave nothing to the next one: real servers."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.isolation.fleet import Fleet, Server
from tests.isolation.sessions import DEADLINE_S
from tests.isolation.views import URLS

#: default and a replica, sales' home, a and b, and the run-time database
NODES = 6
CLEAN: dict[str, Any] = {
    "floors": [],
    "level": None,
    "shard": None,
    "runtime": [],
    "in_atomic": [],
    "manual": [],
    "enlisted": [],
}

GUNICORN = ("gunicorn", "--bind", "127.0.0.1:0", "wsgi:application", "--threads")
UVICORN = ("uvicorn", "--port", "0", "asgi:application")
# Connections stay open between requests, so what one leaves the next one would find.
KEPT = {"django": "CONN_MAX_AGE=None"}


@pytest.fixture
def site(fleet: Callable[..., Fleet]) -> Callable[..., Fleet]:
    """The fleet's project with its views."""

    def build(**options: str) -> Fleet:
        built = fleet(**options)
        built.project.write("urls.py", URLS)
        with (built.project.root / "settings.py").open("a") as settings:
            settings.write(f"RUN_TIME_NAME = {built.runtime_name!r}\n")
        return built

    return build


def in_parallel(server: Server, paths: list[str]) -> list[Any]:
    with ThreadPoolExecutor(len(paths)) as pool:
        return list(pool.map(server.get, paths))


@pytest.mark.parametrize(
    ("command", "view"),
    [((*GUNICORN, "4"), "work"), (UVICORN, "work"), (UVICORN, "awork")],
    ids=["wsgi", "asgi", "asgi-async"],
)
def test_concurrent_requests_share_nothing(
    site: Callable[..., Fleet], command: tuple[str, ...], view: str
) -> None:
    built = site(**KEPT)
    server = built.serve(*command)
    for wave in range(2):
        answers = in_parallel(server, [f"/{view}/{wave}{n}" for n in range(4)])
        for answer in answers:
            assert answer["before"] == CLEAN
            assert answer["seen"] == [0, 0, 0]
            assert len(answer["pids"]) >= NODES, answer  # a later wave: two replicas
        pids = [pid for answer in answers for pid in answer["pids"].values()]
        assert len(set(pids)) == len(pids), answers
    built.wait_for_runtime_sessions(0)


def test_wsgi_request_leaves_nothing_to_the_next(site: Callable[..., Fleet]) -> None:
    built = site(**KEPT)
    server = built.serve(*GUNICORN, "1")
    first = server.get("/status")
    for path in ("/soil", "/soil?raise"):
        if "raise" in path:
            with pytest.raises(AssertionError, match="500"):
                server.get(path)
        else:
            assert server.get(path)["thread"] == first["thread"]
        built.wait_for_runtime_sessions(0)
        after = server.get("/status")
        assert after["state"] == CLEAN
        assert after["orders"] == 0
        # A leak could have travelled: the same thread, the same connection.
        assert after["thread"] == first["thread"]
        assert after["pids"]["default"] == server.get("/status")["pids"]["default"]


def test_asgi_request_leaves_nothing_to_the_next(site: Callable[..., Fleet]) -> None:
    built = site(**KEPT)
    server = built.serve(*UVICORN)
    for path in ("/soil", "/asoil"):
        server.get(path)
        built.wait_for_runtime_sessions(0)
        assert server.get("/status")["state"] == CLEAN
        assert server.get("/astatus") == {
            "task": CLEAN,
            "state": CLEAN,
            "kept": CLEAN,
        }
    # Each request's thread has ended, and its connections with it.
    built.wait_for_sessions(0)


IN_ONE_TASK = """
import asyncio, json

async def get(path):
    parts = []
    messages = asyncio.Queue()
    await messages.put({"type": "http.request", "body": b""})

    async def send(message):
        parts.append(message.get("body", b""))

    scope = {
        "type": "http", "method": "GET", "path": path, "headers": [],
        "query_string": b"", "http_version": "1.1", "server": ("test", 80),
    }
    await application(scope, messages.get, send)
    return json.loads(b"".join(parts))
"""


@pytest.mark.parametrize("setup", ["", "import django; django.setup()"])
def test_asgi_requests_of_one_task_are_sessions_apart(
    site: Callable[..., Fleet], setup: str
) -> None:
    """A server may begin a request in a context that somebody used."""
    answers = site(**KEPT).run(
        IN_ONE_TASK
        + f"""
{setup}
from django.core.asgi import get_asgi_application

application = get_asgi_application()

async def main():
    await get("/status")
    sessions._level.set(dbfleet.bounded(1))  # by the server's own code
    answers = [await get("/astatus")]
    for path in ("/asoil", "/soil"):
        await get(path)
        answers.append(await get("/astatus"))
    return answers

result = asyncio.run(main())
"""
    )
    assert answers == [{"task": CLEAN, "state": CLEAN, "kept": CLEAN}] * 3


def test_asgi_request_that_is_cancelled_leaves_nothing(
    site: Callable[..., Fleet],
) -> None:
    """A server that stops cancels; Django sends no signal then."""
    answer = site(**KEPT).run(
        IN_ONE_TASK
        + """
from django.core.asgi import get_asgi_application

application = get_asgi_application()

async def main():
    await get("/astatus")
    from urls import hanging

    request = asyncio.create_task(get("/ahang"))
    while not hanging.is_set():
        await asyncio.sleep(0.01)
    assert server_sessions(settings.RUN_TIME_NAME)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    deadline = asyncio.get_running_loop().time() + 10
    while server_sessions(settings.RUN_TIME_NAME):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
    return await get("/astatus")

result = asyncio.run(main())
"""
    )
    assert answer == {"task": CLEAN, "state": CLEAN, "kept": CLEAN}


@pytest.mark.parametrize(
    ("command", "view", "length"),
    # Under ASGI Django reads a synchronous iterator to its end before it sends.
    [
        ((*GUNICORN, "2"), "stream", 100_000),
        (UVICORN, "stream", 20),
        (UVICORN, "astream", 100_000),
    ],
    ids=["wsgi", "asgi", "asgi-async"],
)
def test_streamed_response_keeps_its_databases_to_its_end(
    site: Callable[..., Fleet], command: tuple[str, ...], view: str, length: int
) -> None:
    built = site()
    server = built.serve(*command)
    with urllib.request.urlopen(f"{server.address}/{view}/3", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    assert lines == ["0 1 0", "1 1 0", "2 1 0"]
    built.wait_for_runtime_sessions(0)
    # A client that goes away ends its request.
    host, _, port = server.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as client:
        client.sendall(f"GET /{view}/{length} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    built.wait_for_runtime_sessions(0)
    built.wait_for_sessions(0)


def test_request_of_the_test_client_belongs_to_its_test(
    site: Callable[..., Fleet],
) -> None:
    found = site(**KEPT).run(
        """
        from django.test import Client
        from django.test.utils import setup_test_environment

        setup_test_environment()
        Note.objects.create(text="by the test")
        with transaction.atomic(RUN_TIME):
            Note.objects.using(RUN_TIME).create(text="by the test")
            mine = pids()
            answer = Client().get("/status").json()
            list(Client().get("/stream/2").streaming_content)
            assert connections[RUN_TIME].in_atomic_block
            assert mine.items() <= pids().items(), (pids(), mine)
        result = answer["state"]["floors"], state()["floors"], (
            Note.objects.using(RUN_TIME).count())
        """
    )
    assert found == [["default/home"], ["default/home"], 1]


def test_wsgi_thread_after_a_request(site: Callable[..., Fleet]) -> None:
    """Clean at once, and also if a server loses a request and calls no close()."""
    ended, lost = site(**KEPT).run(
        """
        import json
        from io import BytesIO
        from django.core.wsgi import get_wsgi_application

        application = get_wsgi_application()

        def get(path):
            environ = {
                "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "test",
                "SERVER_PORT": "80", "wsgi.input": BytesIO(), "wsgi.url_scheme": "http",
            }
            return application(environ, lambda *args: None)

        get("/soil").close()
        ended = state()
        get("/soil")  # neither read nor closed
        answer = get("/status")
        result = ended, json.loads(answer.content)["state"]
        answer.close()
        """
    )
    assert ended == CLEAN
    assert lost == CLEAN
