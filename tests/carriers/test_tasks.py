"""A task of ``django.tasks`` goes on from the session that enqueued it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.carriers.conftest import Site

#: a backend with a worker of its own, as projects have: it knows nothing of tokens
BACKENDS = """
import queue
import threading

from django.tasks.backends.base import BaseTaskBackend
from django.tasks.backends.immediate import ImmediateBackend
from django.tasks.base import TaskResult, TaskResultStatus
from django.utils.crypto import get_random_string
from django.utils.module_loading import import_string

from dbfleet.carriers.tasks import TokenMixin


class Threaded(BaseTaskBackend):
    supports_async_task = True
    jobs = queue.Queue()
    done = {}

    def enqueue(self, task, args, kwargs):
        self.validate_task(task)
        result = TaskResult(
            task=task, id=get_random_string(32), status=TaskResultStatus.READY,
            enqueued_at=None, started_at=None, last_attempted_at=None,
            finished_at=None, args=args, kwargs=kwargs, backend=self.alias,
            errors=[], worker_ids=[])
        self.done[result.id] = queue.Queue()
        self.jobs.put((result.id, task.module_path, result.args, result.kwargs))
        return result


def work():
    from django.db import connections

    while True:
        job = Threaded.jobs.get()
        if job is None:
            connections.close_all()
            return
        number, path, args, kwargs = job
        try:
            answer = import_string(path).call(*args, **kwargs)
        except BaseException as error:
            answer = repr(error)
        Threaded.done[number].put(answer)


class Carried(TokenMixin, Threaded):
    pass


class Immediate(TokenMixin, ImmediateBackend):
    pass
"""

TASKS = """
from django.tasks import task
from django.db import connections

from app.models import Note
import dbfleet
from dbfleet import sessions


@task(backend="carried")
def read():
    return sorted(Note.objects.values_list("text", flat=True))


@task(backend="carried")
async def aread():
    return sorted([note.text async for note in Note.objects.all()])


@task(backend="carried")
def write(text, *, twice=False):
    Note.objects.create(text=text)
    return dbfleet.token()


@task(backend="carried")
def state():
    found = sessions.peek()
    return [found is not None and found.owner is None, dbfleet.token()]


@task(backend="immediate")
def at_once(text):
    Note.objects.create(text=text)
    return sorted(Note.objects.values_list("text", flat=True))
"""

PRELUDE = """
from django.test import override_settings

names = {
    "default": "django.tasks.backends.immediate.ImmediateBackend",
    "carried": "backends.Carried",
    "immediate": "backends.Immediate",
}
tasked = override_settings(TASKS={k: {"BACKEND": v} for k, v in names.items()})
tasked.enable()
import backends
import jobs
worker = threading.Thread(target=backends.work)
worker.start()


def enqueued(task, *args, **kwargs):
    result = task.enqueue(*args, **kwargs)
    return backends.Threaded.done[result.id].get(timeout=20)
"""


@pytest.fixture(scope="module")
def working(started: Site) -> Iterator[Site]:
    started.project.write("backends.py", BACKENDS)
    started.project.write("jobs.py", TASKS)
    started.one.run(PRELUDE)
    yield started
    started.one.run("backends.Threaded.jobs.put(None); worker.join(20)")
    started.one.run("tasked.disable()")


@pytest.fixture
def site(working: Site, fleet: Site) -> Site:
    return fleet


@pytest.mark.parametrize("task", ["read", "aread"])
def test_a_task_sees_what_was_written_before(site: Site, task: str) -> None:
    site.pause()
    found = site.one.run(
        f"""
        def enqueue():
            Note.objects.create(text="new")
            return enqueued(jobs.{task})

        result = alone(enqueue), alone(enqueued, jobs.{task})
        """
    )
    assert found == [["new"], []]


def test_it_is_enqueued_asynchronously_as_well(site: Site) -> None:
    site.pause()
    found = site.one.run(
        """
        async def enqueue():
            await Note.objects.acreate(text="new")
            found = await jobs.read.aenqueue()
            return backends.Threaded.done[found.id].get(timeout=20)

        result = alone(asyncio.run, enqueue())
        """
    )
    assert found == ["new"]


def test_a_task_has_a_session_of_its_own(site: Site) -> None:
    found = site.one.run(
        """
        token = alone(enqueued, jobs.write, "new")
        result = token != "", alone(enqueued, jobs.state)
        """
    )
    assert found == [True, [True, ""]]


def test_a_task_that_runs_at_once_is_part_of_its_callers_session(site: Site) -> None:
    site.pause()
    found = site.one.run(
        """
        def enqueue():
            seen = jobs.at_once.enqueue("by the task").return_value
            return seen, texts()

        async def aenqueue():
            with dbfleet.session():
                found = await jobs.at_once.aenqueue("also")
                from asgiref.sync import sync_to_async
                return found.return_value, await sync_to_async(texts)()

        result = alone(enqueue), alone(asyncio.run, aenqueue())
        """
    )
    assert found[0] == [["by the task"]] * 2
    assert found[1] == [["also", "by the task"]] * 2


def test_calling_a_task_is_calling_a_function(site: Site) -> None:
    site.pause()
    found = site.one.run(
        """
        def call():
            jobs.write.call("new", twice=True)
            return texts()

        result = alone(call)
        """
    )
    assert found == ["new"]


def test_tasks_survive_pickling(site: Site) -> None:
    found = site.one.run(
        """
        import pickle
        again = pickle.loads(pickle.dumps(jobs.read))
        result = type(again) is type(jobs.read), again == jobs.read
        """
    )
    assert found == [True, True]
