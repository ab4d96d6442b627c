"""Clients in a process of a project: threads that send requests and note each of them.

Reads one JSON object from each line of its input, answers with one. A request is what
it is under Django: old connections are closed before and after it, and with dbfleet it
is a session. Imports nothing of dbfleet in a plain project. Times are those of the
monotonic clock, which all processes of the machine share.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import django
from django.conf import settings

from tests.bench import worker

READS = 3
#: of a user's statements
WRITE_SHARE = 0.1
STATEMENTS = 5
#: between two requests of a user
THINK_S = (0.2, 0.6)

#: events that are kept
NOTED = frozenset(
    {"node_failed", "replica_ejected", "replica_returned", "leader_found"}
)

is_stopping = threading.Event()
#: what, start, seconds or None, error or None; a row is completed when its request ends
requests: list[list[Any]] = []
heard: list[tuple[float, str, str]] = []
served: Counter[str] = Counter()
_sent = threading.local()
_listening = contextlib.ExitStack()


def listen() -> None:
    """Note the events of dbfleet, and the node that each read was sent to last."""
    from dbfleet.observe import events

    def note(event: Any) -> None:
        node = event.fields.get("node", "")
        if event.name in NOTED:
            heard.append((time.monotonic(), event.name, node))
        elif event.name == "sent" and not event.fields["is_write"]:
            _sent.node = node

    _listening.enter_context(events.subscribed(note))


def session() -> Any:
    if "dbfleet" not in settings.INSTALLED_APPS:
        return contextlib.nullcontext()
    import dbfleet

    return dbfleet.session()


def request(action: Callable[[], Any], in_session: Callable[[], Any] = session) -> None:
    """One request, whatever becomes of it."""
    from django.db import close_old_connections

    start = time.monotonic()
    row = [action.__name__, start, None, None]
    requests.append(row)
    try:
        with in_session():
            close_old_connections()
            action()
            close_old_connections()
    except Exception as error:  # noqa: BLE001 - what a client sees is what counts
        row[3] = f"{type(error).__name__}: {error}"[:200]
    row[2] = time.monotonic() - start


def read() -> None:
    from tests.bench.shop.models import Customer

    for _ in range(READS):
        Customer.objects.get(pk=random.randrange(1, worker.CUSTOMERS + 1))


def write() -> None:
    from tests.bench.shop.models import Customer

    key = random.randrange(1, worker.CUSTOMERS + 1)
    assert Customer.objects.filter(pk=key).update(credit=random.randrange(1000)) == 1
    heard.append((time.monotonic(), "written", ""))


def in_a_loop(
    action: Callable[[], Any], think_s: float, *, is_lasting: bool = False
) -> None:
    """A client that sends a request as soon as it was answered and has thought; in a
    new session each time, or in one that lasts."""
    if is_lasting:
        with session():
            while not is_stopping.is_set():
                request(action, contextlib.nullcontext)
                time.sleep(think_s * random.uniform(0.5, 1.5))
    while not is_stopping.is_set():
        request(action)
        time.sleep(think_s * random.uniform(0.5, 1.5))


# -- users ---------------------------------------------------------------------------


class User:
    """Somebody with a row of their own; ``carried`` is what their browser keeps."""

    def __init__(self, key: int) -> None:
        self.key, self.carried = key, None

    def visit(self) -> None:
        """Statements as they come; a read may follow a write at once."""
        from tests.bench.shop.models import Customer

        resume(self)
        for _ in range(STATEMENTS):
            mine = Customer.objects.filter(pk=self.key)
            if random.random() < WRITE_SHARE:
                assert mine.update(credit=random.randrange(1000)) == 1
            else:
                mine.get()
                if getattr(_sent, "node", None):
                    served[_sent.node] += 1
        self.carried = token()


def resume(user: User) -> None:
    """Go on where the user's last request ended, as the middleware does."""
    if "dbfleet" in settings.INSTALLED_APPS:
        import dbfleet

        if user.carried:
            dbfleet.resume(user.carried)
    else:
        import bench_routers  # type: ignore[import-not-found]

        bench_routers.state.pinned_until = user.carried or 0.0


def token() -> Any:
    if "dbfleet" in settings.INSTALLED_APPS:
        import dbfleet

        return dbfleet.token()
    import bench_routers

    return bench_routers.state.pinned_until


class Site:
    """Users whose requests are served by fewer threads, each when it is due."""

    def __init__(self, count: int) -> None:
        now = time.monotonic()
        self._lock = threading.Lock()
        self._due = [
            (now + random.uniform(0, THINK_S[1]), number, User(number))
            for number in range(1, count + 1)
        ]
        heapq.heapify(self._due)

    def serve(self) -> None:
        while not is_stopping.is_set():
            with self._lock:
                due, number, user = heapq.heappop(self._due)
            time.sleep(max(0.0, due - time.monotonic()))
            request(user.visit)
            next_s = time.monotonic() + random.uniform(*THINK_S)
            with self._lock:
                heapq.heappush(self._due, (next_s, number, user))


# -- what is asked -------------------------------------------------------------------


def start(given: dict[str, Any]) -> list[threading.Thread]:
    """Begin the clients that are asked for."""
    if "users" in given:
        site = Site(given["users"])
        loops = [site.serve] * given["threads"]
    else:
        options = {"think_s": given["think_s"], "is_lasting": given.get("lasting")}
        loops = [partial(in_a_loop, read, **options)] * given.get("readers", 0)
        loops += [partial(in_a_loop, write, **options)] * given.get("writers", 0)
    threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    return threads


def stop(threads: list[threading.Thread], patience_s: float) -> dict[str, Any]:
    is_stopping.set()
    ends_at = time.monotonic() + patience_s
    for thread in threads:
        thread.join(max(0.0, ends_at - time.monotonic()))
    if "dbfleet" not in settings.INSTALLED_APPS:
        import bench_routers

        served.update(bench_routers.served)
    return {"requests": list(requests), "events": heard, "served": served}


def main() -> None:
    django.setup()
    threads: list[threading.Thread] = []
    if "dbfleet" in settings.INSTALLED_APPS:
        listen()
    for line in sys.stdin:
        given = json.loads(line)
        answer: Any = None
        if "fill" in given:
            worker.load()
        elif "forget" in given:  # what was served while connections were opened
            served.clear()
            if "dbfleet" not in settings.INSTALLED_APPS:
                import bench_routers

                bench_routers.served.clear()
        elif "stop" in given:
            answer = stop(threads, given["patience_s"])
        else:
            threads += start(given)
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
