"""The processes of a run: threads, asyncio tasks, and workers that go on with sessions.

Guards one invariant: a client does one thing at a time, whichever thread or task does
it, so what its session was promised is always known.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.replicas.project import configure
from tests.faults.replicas.recorder import Recorder, Shared, watch_nodes
from tests.faults.replicas.servers import CLIENTS

#: operations of one session: mostly few, as of a request
SHORT, LONG = (3, 12), (40, 120)


class Job(NamedTuple):
    """What a process is started with."""

    kind: str
    engine: str
    urls: Mapping[str, str]
    #: the servers' own addresses, past the proxies
    directs: Sequence[str]
    seed: str
    operations: int
    shared: Shared
    mail: Any
    path: Path
    bug: str | None
    stops: bool


class Result(NamedTuple):
    """What a process saw."""

    violations: list[str]
    outcomes: Mapping[tuple[str, str], int]
    errors: Mapping[str, int]
    lines: Mapping[str, list[int]]


def run(job: Job, answers: Any) -> None:
    """A process, from its start to its end; the result goes to ``answers``."""
    configure(job.engine, job.urls)
    # It tells of connections that were lost, which is what they are here for.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    if job.bug:
        from tests.faults.replicas.bugs import BUGS
        from tests.faults.replicas.promotion_bugs import PROMOTION_BUGS

        (BUGS | PROMOTION_BUGS)[job.bug].apply()
    recorder = Recorder(job.shared, job.path, stops=job.stops)
    watch_nodes()
    from tests.faults.replicas.operations import Told
    from tests.faults.replicas.truth import Truth

    told, truth = Told(), Truth(job.engine, job.directs, job.shared.leader)
    is_over = threading.Event()
    watcher = threading.Thread(target=recorder.watch, args=(is_over,), daemon=True)
    watcher.start()
    crew = Crew(job, recorder, told, truth.counter)
    try:
        crew.run()
    except BaseException as error:  # noqa: BLE001 - told with the result
        crew.problems.append(f"process {job.kind} died of {error!r}")
    is_over.set()
    watcher.join()
    recorder.close()
    violations = [*crew.problems, *recorder.violations]
    answers.put(Result(violations, recorder.outcomes, recorder.errors, told.lines))


class Crew:
    """The clients of one process."""

    def __init__(
        self,
        job: Job,
        recorder: Recorder,
        told: Any,
        truth: Callable[[int], int | None],
    ) -> None:
        from tests.faults.replicas.operations import Client

        self.job, self.recorder = job, recorder
        kinds = list(CLIENTS)
        first = sum(CLIENTS[kind] for kind in kinds[: kinds.index(job.kind)])
        self.clients = [
            Client(number, job.seed, recorder, told, truth)
            for number in range(first, first + CLIENTS[job.kind])
        ]
        self.problems: list[str] = []

    @property
    def is_over(self) -> bool:
        shared = self.job.shared
        return bool(shared.is_over[0]) or sum(shared.operations) >= self.job.operations

    def run(self) -> None:
        if self.job.kind == "tasks":
            asyncio.run(self._tasks())
            return
        threads = [
            threading.Thread(target=self._thread, args=(client,), name=str(client))
            for client in self.clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # -- threads and workers --------------------------------------------------------

    def _thread(self, client: Any) -> None:
        from django.db import connections

        try:
            # A second thread, for what a session does in another one.
            with ThreadPoolExecutor(1) as helper:
                while not self.is_over:
                    self._session(client, helper)
                helper.submit(connections.close_all).result()
        except BaseException as error:
            self.problems.append(died(client, error))
            self.job.shared.is_over[0] = 1
            raise
        finally:
            connections.close_all()

    def _session(self, client: Any, helper: ThreadPoolExecutor) -> None:
        from django.db import close_old_connections

        from tests.faults.replicas import handover, operations

        close_old_connections()
        client.begin()
        with operations.FLEET.session():
            is_worker = self.job.kind == "jobs"
            if is_worker or client.chance.random() < 0.1:
                if client.chance.random() < 0.3:
                    # The token comes to a session that has seen something itself.
                    act(client, client.chance.choice(("write", "read")))
                handover.take(client, self.job.mail)
            for _ in range(length(client.chance)):
                if self.is_over:
                    return
                self._step(client, helper)
            if client.chance.random() < (0.5 if is_worker else 0.2):
                act(client, client.chance.choice(LAST))
                handover.post(client, self.job.mail)

    def _step(self, client: Any, helper: ThreadPoolExecutor) -> None:
        kind = client.chance.choices(list(STEPS), list(STEPS.values()))[0]
        if kind == "think":
            time.sleep(client.chance.uniform(*THINKS_S))
        elif kind == "elsewhere":
            context = contextvars.copy_context()
            helper.submit(context.run, self._elsewhere, client).result()
        elif kind == "together":
            context = contextvars.copy_context()
            how = client.chance.choice(TOGETHER)
            written = helper.submit(context.run, self._write_elsewhere, client, how)
            for _ in range(3):
                client.glance()
            written.result()
            act(client, "read_own")
        elif kind == "nested":
            with client.nested():
                act(client, "write")
                act(client, "read")
        else:
            act(client, kind)

    def _elsewhere(self, client: Any) -> None:
        """In another thread, with connections of its own."""
        from django.db import close_old_connections

        close_old_connections()
        act(client, client.chance.choice(("write", "read", "append")))
        act(client, "read")

    def _write_elsewhere(self, client: Any, how: str) -> None:
        from django.db import close_old_connections

        close_old_connections()
        client.write(how)

    # -- tasks ----------------------------------------------------------------------

    async def _tasks(self) -> None:
        from asgiref.sync import sync_to_async
        from django.db import connections

        try:
            async with asyncio.TaskGroup() as group:
                for client in self.clients:
                    group.create_task(self._task(client))
        finally:
            await sync_to_async(connections.close_all)()

    async def _task(self, client: Any) -> None:
        try:
            while not self.is_over:
                await self._async_session(client)
        except BaseException as error:
            self.problems.append(died(client, error))
            self.job.shared.is_over[0] = 1
            raise

    async def _async_session(self, client: Any) -> None:
        from asgiref.sync import sync_to_async
        from django.db import close_old_connections

        from tests.faults.replicas import handover, operations

        await sync_to_async(close_old_connections)()
        client.begin()
        with operations.FLEET.session():
            if client.chance.random() < 0.1:
                handover.take(client, self.job.mail)
            for _ in range(length(client.chance)):
                if self.is_over:
                    return
                await self._async_step(client)
            if client.chance.random() < 0.2:
                await sync_to_async(act)(client, client.chance.choice(LAST))
                handover.post(client, self.job.mail)

    async def _async_step(self, client: Any) -> None:
        from asgiref.sync import sync_to_async

        from tests.faults.replicas import asynchronous

        kind = client.chance.choices(list(STEPS), list(STEPS.values()))[0]
        if kind == "think":
            await asyncio.sleep(client.chance.uniform(*THINKS_S))
        elif kind == "elsewhere":
            await asyncio.to_thread(self._elsewhere, client)
        elif kind == "together":
            how = client.chance.choice(TOGETHER)
            await asyncio.gather(
                asyncio.to_thread(self._write_elsewhere, client, how),
                *(sync_to_async(client.glance)() for _ in range(3)),
            )
            await sync_to_async(act)(client, "read_own")
        elif kind == "nested":
            with client.nested():
                await asynchronous.write(client)
                await asynchronous.read(client)
        elif kind in ("read", "write") and client.chance.random() < 0.5:
            ways = {
                "read": (asynchronous.read, asynchronous.read_all),
                "write": (asynchronous.write, asynchronous.write_in_child),
            }
            await client.chance.choice(ways[kind])(client)
        else:
            await sync_to_async(act)(client, kind)
        if client.has_failed:
            await sync_to_async(mend)(client)


#: what a session does next, by weight
STEPS = {
    "read": 50,
    "read_line": 8,
    "write": 18,
    "append": 6,
    "transact": 4,
    "strong": 3,
    "bounded": 3,
    "eventual": 3,
    "elsewhere": 3,
    "together": 2,
    "nested": 2,
    "think": 0.15,
}
#: how a session writes while another thread of it reads
TOGETHER = ("autocommit", "raw", "executemany", "atomic")
#: how long a session does nothing, now and then: long enough for a server to restart
THINKS_S = (0.3, 1.5)


#: what a session does last before it is handed over
LAST = ("read", "write", "strong", "transact", "append")


def act(client: Any, kind: str) -> None:
    """One operation of a client."""
    if kind in ("strong", "bounded", "eventual"):
        client.read_at(kind)
    else:
        getattr(client, kind)()
    mend(client)


def mend(client: Any) -> None:
    """Close what is lost, as the end of a request does; its session goes on."""
    from django.db import close_old_connections

    if client.has_failed:
        client.has_failed = False
        close_old_connections()


def died(client: Any, error: BaseException) -> str:
    """A client that could not go on: an error that is none of the database's."""
    where = "".join(traceback.format_tb(error.__traceback__)[-6:])
    return f"client {client.number} died of {error!r}:\n{where}"


def length(chance: random.Random) -> int:
    """How many steps a session takes."""
    return chance.randint(*(SHORT if chance.random() < 0.97 else LONG))
