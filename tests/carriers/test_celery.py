"""A Celery task goes on from the session that published it: a real worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.carriers.conftest import Site

pytest.importorskip("celery")

APP = """
import logging
import warnings

warnings.simplefilter("ignore")  # Celery's own
from celery import Celery
from celery.contrib.testing.worker import start_worker
from dbfleet.carriers import celery as carrier

app = Celery("site", broker="memory://", backend="cache+memory://")
app.conf.update(task_always_eager=False, worker_hijack_root_logger=False)
carrier.install()
carrier.install()


@app.task(name="read")
def read():
    return texts()


@app.task(name="write")
def write(text):
    Note.objects.create(text=text)
    return read.delay().id


@app.task(name="state")
def state():
    found = sessions.peek()
    level = sessions.chosen_level()
    declared = found is not None and found.owner is None
    return [declared, dbfleet.token(), level and level.name]


@app.task(name="soil")
def soil(fails):
    Note.objects.create(text="soiled")
    dbfleet.consistency("eventual").__enter__()
    if fails:
        raise ValueError


@app.task(name="again", bind=True, max_retries=1)
def again(self):
    if not self.request.retries:
        Note.objects.create(text="first try")
        raise self.retry(countdown=0)
    return texts()


worker = start_worker(app, perform_ping_check=False, pool="solo", shutdown_timeout=20)
worker.__enter__()


class Said(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


said = Said()
logging.getLogger("dbfleet.carriers").addHandler(said)
logging.getLogger("dbfleet.carriers").setLevel("WARNING")  # Celery's worker is quieter


def published(task, *args):
    return task.delay(*args).get(timeout=20)
"""


@pytest.fixture(scope="module")
def working(started: Site) -> Iterator[Site]:
    started.one.run(APP)
    yield started
    started.one.run("worker.__exit__(None, None, None)")


@pytest.fixture
def site(working: Site, fleet: Site) -> Site:
    return fleet


def test_a_task_sees_what_its_publisher_wrote(site: Site) -> None:
    site.pause()
    found = site.one.run(
        """
        def publish():
            Note.objects.create(text="new")
            return published(read)

        result = alone(publish), alone(published, read)
        """
    )
    assert found == [["new"], []]


def test_a_task_that_a_task_published_sees_what_that_one_wrote(site: Site) -> None:
    site.pause()
    found = site.one.run(
        """
        from celery.result import AsyncResult

        def chained():
            return published(read)

        inner = alone(published, write, "by a task")
        result = AsyncResult(inner, app=app).get(timeout=20)
        """
    )
    assert found == ["by a task"]


def test_a_retry_goes_on_from_the_first_try(site: Site) -> None:
    site.pause()
    assert site.one.ask("alone(published, again)") == ["first try"]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_task_reaches_the_next(site: Site, fails: bool) -> None:
    found = site.one.run(
        f"""
        try:
            alone(published, soil, {fails})
        except ValueError:
            pass
        result = alone(published, state)
        """
    )
    assert found == [True, "", None]


def test_an_eager_task_is_part_of_its_callers_session(site: Site) -> None:
    site.pause()
    found = site.one.run(
        """
        def eager():
            Note.objects.create(text="before")
            seen = read.apply().get()
            soil.apply(args=[False])
            with dbfleet.consistency("session"):
                return seen, texts()

        result = alone(eager)
        """
    )
    assert found == [["before"], ["before", "soiled"]]


def test_publishing_inside_a_transaction_is_warned_of(site: Site) -> None:
    found = site.one.run(
        """
        said.lines.clear()
        seen = []

        def publish():
            with events.subscribed(seen.append), transaction.atomic():
                Note.objects.create(text="new")
                early = read.delay()
                transaction.on_commit(lambda: seen.append(read.delay()))
            early.get(timeout=20)
            return seen[-1].get(timeout=20)

        result = alone(publish), [e.name for e in seen[:-1]].count(
            "published_in_transaction"), said.lines
        """
    )
    assert found[0] == ["new"]
    assert found[1] == 1
    (line,) = found[2]
    assert "read" in line
    assert "delay_on_commit()" in line
