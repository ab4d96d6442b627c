"""A forked process uses nothing of its parent's, and ends nothing of its parent's."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from dbfleet.testing.rig.waiting import wait_until
from tests.isolation.fleet import Fleet
from tests.isolation.sessions import DEADLINE_S, sessions

#: default and a replica, sales' home, a and b, and the run-time database
NODES = 6

#: what the children of these tests do: report by a pipe, and end as they are told
FORK = """
import json, os, signal, sys, threading, warnings

warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: a fork with threads

def use():
    Note.objects.count()
    Note.objects.create(text="used")
    Note.objects.using(RUN_TIME).create(text="used")
    Order.objects.bulk_create(Order(text="used") for _ in range(8))
    return pids()

def in_child(work, end=os._exit):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(answer).encode())
        os.close(write)
        end(0)
    os.close(write)
    with open(read) as report:
        answer = json.loads(report.read() or '"killed"')
    assert os.waitpid(child, 0)[1] in (0, signal.SIGALRM)
    return answer
"""


@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
def test_child_opens_its_own(fleet: Callable[..., Fleet], end: str) -> None:
    """Also one that ends as an interpreter does, freeing what it inherited."""
    first, children, last = fleet(django="CONN_MAX_AGE=None").run(
        FORK
        + f"""
first = use()
children = [in_child(use, {end}) for _ in range(2)]
# The parent's sessions are still its own, and work.
last = use()
assert all(one.connection.info.status == 0 for one in connections.all(True))
result = first, children, last
"""
    )
    assert len(first) >= NODES
    assert first.items() <= last.items()
    for child in children:
        assert isinstance(child, dict), child
        assert len(child) >= NODES
        assert not set(child.values()) & set(last.values())
    assert not set(children[0].values()) & set(children[1].values())


def test_threads_of_the_parent_keep_their_connections(
    fleet: Callable[..., Fleet],
) -> None:
    """The child frees the objects of threads that it does not have."""
    during, after = fleet(django="CONN_MAX_AGE=None").run(
        FORK
        + """
opened, forked = threading.Event(), threading.Event()
found = []

def work():
    for seen, used in touch("open across a fork"):
        found.append(used)
        opened.set()
        forked.wait(20)
        Note.objects.create(text="open across a fork")
        Order.objects.bulk_create(Order(text="open") for _ in range(8))
        found.append(pids())

def collect():
    import gc
    gc.collect()
    return use()

thread = threading.Thread(target=work)
thread.start()
assert opened.wait(20)
for end in (os._exit, sys.exit):
    child = in_child(collect, end)
    assert isinstance(child, dict), child
    assert not set(child.values()) & set(found[0].values()), child
forked.set()
thread.join()
result = found
"""
    )
    assert len(during) >= NODES
    assert during == after


def test_fork_inside_a_transaction(fleet: Callable[..., Fleet]) -> None:
    child, errors, notes, orders = fleet().run(
        FORK
        + """
def inside():
    errors = []
    for write in (
        lambda: Note.objects.create(text="by the child"),
        lambda: Order.objects.create(text="by the child"),
        lambda: Order.objects.count(),
    ):
        try:
            write()
        except Exception as error:
            errors.append(type(error).__name__)
    return errors

def after():
    return [Note.objects.filter(text="by the parent").count(), use() is not None]

read, write = os.pipe()
with transaction.atomic(), transaction.atomic("sales"):
    Note.objects.create(text="by the parent")
    Order.objects.bulk_create(Order(text="by the parent") for _ in range(8))
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        errors = inside()
if child == 0:
    # Out of its parent's block the child works, on connections of its own.
    os.write(write, json.dumps([errors, use() is not None]).encode())
    os._exit(0)
os.close(write)
with open(read) as report:
    errors, works = json.loads(report.read())
os.waitpid(child, 0)
result = (
    works,
    errors,
    Note.objects.filter(text="by the parent").count(),
    Order.objects.filter(text="by the parent").count(),
)
assert not Note.objects.filter(text="by the child").exists()
assert not Order.objects.filter(text="by the child").exists()
"""
    )
    assert child is True
    assert len(errors) == 3, errors
    assert {"TransactionManagementError", "ProgrammingError"} >= set(errors)
    assert (notes, orders) == (1, 8)


def test_ids_and_maps_after_a_fork(fleet: Callable[..., Fleet]) -> None:
    """A lease of ids belongs to one process."""
    ids = fleet().run(
        FORK
        + """
def insert():
    return [Order.objects.create(text="id").pk for _ in range(5)]

ids = insert()
for _ in range(3):
    ids += in_child(insert)
ids += insert()
assert Order.objects.filter(text="id").count() == len(ids)
result = ids
"""
    )
    assert len(ids) == 25
    assert len(set(ids)) == 25


def test_locks_held_by_a_thread_of_the_parent(fleet: Callable[..., Fleet]) -> None:
    answer = fleet().run(
        FORK
        + """
from dbfleet import health
from dbfleet.runtime import names
from dbfleet.sharding import ids
from dbfleet.topology import loading

held, done = threading.Event(), threading.Event()

def hold():
    with health.breaker._lock, names._lock, ids._lock, loading._completing:
        held.set()
        done.wait(20)

def needs_all():
    health.breaker.failed("default/replica1")
    Note.objects.using(RUN_TIME + "&connect_timeout=9").count()
    Order.objects.create(text="lock")
    return "no deadlock"

thread = threading.Thread(target=hold)
thread.start()
assert held.wait(20)
result = in_child(needs_all)
done.set()
thread.join()
"""
    )
    assert answer == "no deadlock"


def test_child_does_not_keep_sessions_of_a_dead_parent(
    fleet: Callable[..., Fleet],
) -> None:
    """A parent that was killed leaves its children; its transactions must not stay."""
    built = fleet()
    built.project.write(
        "parent.py",
        """
        import django, os, signal, time
        django.setup()
        from probe import *

        for seen, used in touch("open in a dead parent"):
            if os.fork() == 0:
                signal.alarm(60)
                print("child", os.getpid(), flush=True)
                time.sleep(60)
            os.wait()
        """,
    )
    parent = built.project.start("parent.py")
    log = built.project.root / "process-1.log"
    wait_until(
        lambda: "child" in log.read_text(), timeout_s=DEADLINE_S, what="the fork"
    )
    assert len(sessions(built.postgres, built.name)) == NODES - 1
    parent.send_signal(signal.SIGKILL)
    parent.wait(DEADLINE_S)
    try:
        built.wait_for_sessions(0)
        built.wait_for_runtime_sessions(0)
    finally:
        os.kill(int(re.findall(r"child (\d+)", log.read_text())[0]), signal.SIGKILL)


def test_sqlite_in_memory_is_inherited(fleet: Callable[..., Fleet]) -> None:
    """Its data lives in the connection, so the child keeps its copy."""
    assert fleet().run(
        FORK
        + """
memory = "sqlite://:memory:"
with connections[memory].cursor() as cursor:
    cursor.execute("CREATE TABLE one (n integer)")
    cursor.execute("INSERT INTO one VALUES (7)")

def read():
    with connections[memory].cursor() as cursor:
        cursor.execute("SELECT n FROM one")
        return cursor.fetchall()

result = in_child(read), read()
"""
    ) == [[[7]], [[7]]]


def test_sqlite_file_is_not_closed_in_the_child(fleet: Callable[..., Fleet]) -> None:
    """To close it would roll back what the parent has begun."""
    during, after, count = fleet().run(
        FORK
        + """
file = f"sqlite:///{settings.BASE_DIR}/file.db"
journal = settings.BASE_DIR / "file.db-journal"

def execute(sql):
    with connections[file].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()

def read():
    connections[file].close()
    return execute("SELECT count(*) FROM one")

execute("CREATE TABLE one (n integer)")
with transaction.atomic(file):
    execute("INSERT INTO one VALUES (7)")
    during = journal.exists()
    child = os.fork()
    if child == 0:
        import gc
        gc.collect()  # what nobody holds is closed
        os._exit(0)
    os.waitpid(child, 0)
    after = journal.exists()
result = during, after, in_child(read)
"""
    )
    assert (during, after) == (True, True)
    assert count == [[1]]


def test_pool_of_the_parent_stays_with_the_parent(fleet: Callable[..., Fleet]) -> None:
    options = '{"pool": {"min_size": 1, "max_size": 2, "timeout": 5}}'
    first, before, child, last = fleet(options=options).run(
        FORK
        + """
first = use()
before = [pid for _, pid in server_sessions()]  # those that wait in a pool, too
child = in_child(use)
result = first, before, child, use()
for wrapper in connections.all():
    for one in (wrapper, *wrapper.nodes.opened()):
        one.close_pool()
"""
    )
    assert isinstance(child, dict), child
    assert not set(child.values()) & {*before, *last.values()}
    assert first.items() <= last.items()


def test_preloaded_workers_share_nothing(fleet: Callable[..., Fleet]) -> None:
    """gunicorn --preload, with queries while the application is imported."""
    built = fleet(django="CONN_MAX_AGE=None")
    built.project.write(
        "urls.py",
        """
        import os, time
        from django.http import JsonResponse
        from django.urls import path
        from probe import *

        for seen, used in touch("open while preloading"):
            pass
        PRELOADED = os.getpid(), pids()

        def work(request):
            for seen, used in touch("open in a worker"):
                time.sleep(0.2)  # so that the other worker takes the next request
                return JsonResponse(
                    {"worker": os.getpid(), "seen": seen, "pids": used,
                     "preloaded": PRELOADED})

        urlpatterns = [path("work", work)]
        """,
    )
    # Resolving the views is what imports them; the worker's first request otherwise.
    with (built.project.root / "wsgi.py").open("a") as wsgi:
        wsgi.write("from django.urls import get_resolver\n")
        wsgi.write("get_resolver().url_patterns\n")
    server = built.serve(
        *("gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:0"),
        "wsgi:application",
    )
    by_worker: dict[int, dict[str, int]] = {}

    def is_seen() -> bool:
        with ThreadPoolExecutor(4) as pool:
            for answer in pool.map(server.get, ["/work"] * 4):
                assert answer["seen"] == [0, 0, 0]
                by_worker[answer["worker"]] = answer["pids"]
                preloaded.update(answer["preloaded"][1])
                masters.add(answer["preloaded"][0])
        return len(by_worker) == 2

    preloaded: dict[str, int] = {}
    masters: set[int] = set()
    wait_until(is_seen, timeout_s=DEADLINE_S * 2, what="both workers answered")
    assert len(masters) == 1
    assert not masters & set(by_worker)
    assert len(preloaded) >= NODES - 1  # the run-time one too, or it was closed
    pids = [pid for used in (preloaded, *by_worker.values()) for pid in used.values()]
    assert len(set(pids)) == len(pids)
    alive = {pid for _, pid in sessions(built.postgres, built.name)}
    aliases = {pid for name, pid in preloaded.items() if "runtime" not in name}
    assert aliases <= alive  # the workers ended no session of the master
