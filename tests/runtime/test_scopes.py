"""When a run-time database is closed, and who may use it until then."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from dbfleet.testing.rig import PostgresCluster
from tests.isolation.sessions import sessions, wait_for_sessions
from tests.runtime.conftest import PASSWORD, migrate, with_password
from tests.support.project import Project

PRELUDE = """
import asyncio, gc, os, threading
from asgiref.sync import sync_to_async
from django.db import close_old_connections, connections, transaction
import dbfleet
from dbfleet import Cluster, Sharded
from dbfleet.runtime import safe_alias
from app.models import Author, Book

def pid(value):
    with connections[value].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]

def is_alive(value, other):
    with connections[value].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [other])
        return bool(cursor.fetchone()[0])

def until(condition):
    import time
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def url(shop: Project, postgres: PostgresCluster, database: Callable[[], str]) -> str:
    """The URL of a PostgreSQL database with the shop's tables."""
    url = with_password(postgres.url(database()))
    migrate(shop, repr(url))
    return url


@pytest.fixture
def run(
    request: pytest.FixtureRequest, shop: Project, url: str
) -> Callable[[str], Any]:
    """Run code that knows the database as ``url`` and another session as ``watch``."""
    named = f"{url}?application_name={request.node.name[:60]}"

    def run(code: str) -> Any:
        lines = f"{PRELUDE}\nurl, watch = {named!r}, {url!r}\n"
        return shop.run(lines + textwrap.dedent(code))

    return run


def test_scope_closes_what_was_opened_inside(run: Callable[[str], Any]) -> None:
    outer, inner, again, is_open = run(
        """
        with dbfleet.scope():
            outer = pid(url)
            with dbfleet.scope():
                inner = pid(Cluster(url))       # the same value, the same connection
                other = pid(f"{url}-other")
            again = pid(url)
            until(lambda: not is_alive(watch, other))
            assert is_alive(watch, outer)
        until(lambda: not is_alive(watch, outer))
        result = outer, inner, again, len(connections.all(initialized_only=True))
        """
    )
    assert outer == inner == again
    assert is_open == 2  # default, and watch outside any scope


def test_scope_rolls_back_what_was_not_committed(run: Callable[[str], Any]) -> None:
    count = run(
        """
        with dbfleet.scope():
            transaction.set_autocommit(False, using=url)
            Author.objects.using(url).create(name="lost")
        result = Author.objects.using(watch).filter(name="lost").count()
        """
    )
    assert count == 0


def test_without_a_scope_it_stays_open_until_told(run: Callable[[str], Any]) -> None:
    first, second, third, aliases = run(
        """
        first, second = pid(url), pid(url)
        aliases = list(connections)
        dbfleet.close_runtime()
        until(lambda: not is_alive(watch, first))
        third = pid(url)
        connections.close_all()
        until(lambda: not is_alive(watch, third))
        assert len(connections.all(initialized_only=True)) == 2  # default and watch
        result = first, second, third, aliases
        """
    )
    assert first == second != third
    assert aliases == ["default"]


def test_process_end_closes(
    run: Callable[[str], Any], postgres: PostgresCluster, request: pytest.FixtureRequest
) -> None:
    assert run("result = pid(url)") > 0
    wait_for_sessions(postgres, request.node.name[:60], 0)


def test_instance_outlives_its_scope(run: Callable[[str], Any]) -> None:
    before, after, is_open = run(
        """
        with dbfleet.scope():
            author = Author.objects.using(url).create(name="outlives")
            lazy = Author.objects.using(url).filter(name="outlives")
            before = pid(url)
        with dbfleet.scope():
            author.name = "outlived"
            author.save()
            assert not lazy.exists()
            after = pid(author._state.db)
            Author.objects.using(url).all().delete()
        result = before, after, is_alive(watch, after)
        """
    )
    assert before != after
    assert not is_open


def test_connection_kept_past_its_scope_is_refused(run: Callable[[str], Any]) -> None:
    errors = run(
        """
        errors = []
        with dbfleet.scope():
            kept = connections[url]
            kept.ensure_connection()
        for use in (kept.ensure_connection, kept.cursor):
            try:
                use()
            except dbfleet.errors.RuntimeDatabaseError as error:
                errors.append(str(error))
        result = errors
        """
    )
    assert len(errors) == 2
    assert all("closed when its scope ended" in error for error in errors)
    assert all("dbfleet.E107" in error for error in errors)


def test_thread_has_its_own_and_closes_it(run: Callable[[str], Any]) -> None:
    mine, theirs, again = run(
        """
        gc.disable()  # it is closed by the end of the thread, not by a collection
        mine, theirs = pid(url), []

        def work():
            theirs.append(pid(url))
            assert is_alive(watch, theirs[0])

        for _ in range(2):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        until(lambda: not any(is_alive(watch, one) for one in theirs))
        result = mine, theirs, pid(url)
        """
    )
    assert mine == again
    assert len({mine, *theirs}) == 3


def test_scope_of_a_context_closes_what_its_threads_opened(
    run: Callable[[str], Any],
) -> None:
    mine, theirs = run(
        """
        import contextvars
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            with dbfleet.scope():
                mine = pid(url)
                theirs = pool.submit(contextvars.copy_context().run, pid, url).result()
            until(lambda: not is_alive(watch, theirs))
            until(lambda: not is_alive(watch, mine))
        result = mine, theirs
        """
    )
    assert mine != theirs


def test_task_has_its_own_in_its_scope(run: Callable[[str], Any]) -> None:
    pids, after_cancel, left = run(
        """
        async def work(together):
            async with dbfleet.scope():
                first = await sync_to_async(pid)(url)
                await together.wait()
                author = await Author.objects.using(url).acreate(name=f"task {first}")
                assert await sync_to_async(pid)(url) == first
                await author.adelete()
            return first

        async def cancelled(opened):
            async with dbfleet.scope():
                opened.append(await sync_to_async(pid)(url))
                await asyncio.Event().wait()

        async def main():
            together = asyncio.Barrier(2)
            pids = await asyncio.gather(work(together), work(together))
            opened = []
            task = asyncio.create_task(cancelled(opened))
            while not opened:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return pids, opened[0]

        pids, opened = asyncio.run(main())
        until(lambda: not any(is_alive(watch, one) for one in [*pids, opened]))
        result = pids, opened, len(connections.all(initialized_only=True))
        """
    )
    assert len(set(pids)) == 2
    assert after_cancel not in pids
    assert left == 2  # default and watch


def test_cancelled_task_closes_its_scope(run: Callable[[str], Any]) -> None:
    """Also one that is cancelled while it waits to close."""
    assert run(
        """
        async def work(opened, end):
            async with dbfleet.scope():
                opened.append(await sync_to_async(pid)(url))
                await end.wait()

        async def main():
            opened, end, busy = [], asyncio.Event(), threading.Event()
            task = asyncio.create_task(work(opened, end))
            while not opened:
                await asyncio.sleep(0)
            # The thread that would close is busy, and the task is tired of waiting.
            blocker = asyncio.create_task(sync_to_async(busy.wait)(10))
            for _ in range(9):
                await asyncio.sleep(0)
                end.set()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            busy.set()
            await blocker
            await sync_to_async(until)(lambda: not is_alive(watch, opened[0]))
            return task.cancelled()

        result = asyncio.run(main())
        """
    )


def test_task_that_outlives_its_scope_uses_the_one_around(
    run: Callable[[str], Any],
) -> None:
    first, second = run(
        """
        async def later(ended):
            await ended.wait()
            return await sync_to_async(pid)(url)

        async def main():
            ended = asyncio.Event()
            async with dbfleet.scope():
                async with dbfleet.scope():
                    first = await sync_to_async(pid)(url)
                    task = asyncio.create_task(later(ended))
                ended.set()
                second = await task
                assert await sync_to_async(is_alive)(watch, second)
            await sync_to_async(until)(lambda: not is_alive(watch, second))
            return first, second

        result = asyncio.run(main())
        """
    )
    assert first != second


def test_copies_mean_the_same_database(run: Callable[[str], Any]) -> None:
    """Also where it is not open yet: in another thread, in another scope."""
    counts = run(
        """
        import copy
        from concurrent.futures import ThreadPoolExecutor

        with dbfleet.scope():
            author = Author.objects.using(url).create(name="copied")
            instance = copy.deepcopy(author)
            queryset = copy.deepcopy(Author.objects.using(url).filter(name="copied"))
        with ThreadPoolExecutor(1) as pool:
            count = pool.submit(queryset.count).result()
            pool.submit(copy.copy(author).refresh_from_db).result()
            pool.submit(instance.delete).result()
        result = count, queryset.count()
        """
    )
    assert counts == [1, 0]


def test_many_databases_in_one_event_loop(run: Callable[[str], Any]) -> None:
    """The thread of an event loop keeps nothing of what its tasks name."""
    left = run(
        """
        from dbfleet.runtime import MAX_OPEN

        async def names(number):
            there = f"{watch}?application_name=n{number}"
            return [a.name async for a in Author.objects.using(there).aiterator()]

        async def main():
            for number in range(MAX_OPEN + 8):
                assert await asyncio.create_task(names(number)) == []
                await sync_to_async(dbfleet.close_runtime)()
            return len(connections.all(initialized_only=True))

        result = asyncio.run(main())
        """
    )
    assert left == 0


def test_with_in_async_code_says_async_with(run: Callable[[str], Any]) -> None:
    message = run(
        """
        from django.core.exceptions import SynchronousOnlyOperation

        async def main():
            with dbfleet.scope():
                pass

        try:
            asyncio.run(main())
        except SynchronousOnlyOperation as error:
            result = str(error)
        """
    )
    assert message == "In async code write 'async with dbfleet.scope()'."


def test_lost_connection_is_replaced_like_any_other(run: Callable[[str], Any]) -> None:
    first, second, error = run(
        """
        from django.db import OperationalError

        first = pid(url)
        with connections[watch].cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [first])
        until(lambda: not is_alive(watch, first))
        try:
            pid(url)
        except OperationalError as lost:
            error = type(lost).__name__
        close_old_connections()  # what ends every request, and every task of a worker
        result = first, pid(url), error
        """
    )
    assert first != second
    assert error == "OperationalError"


def test_bound_of_open_databases(run: Callable[[str], Any]) -> None:
    error, limit = run(
        """
        from dbfleet.runtime import MAX_OPEN

        def open_all(count):
            for number in range(count):
                connections[f"{url}{number}"]

        with dbfleet.scope():
            open_all(MAX_OPEN)
        with dbfleet.scope():
            open_all(MAX_OPEN)
            try:
                connections[watch]
            except dbfleet.errors.RuntimeDatabaseError as refused:
                result = str(refused), MAX_OPEN
        connections[watch].ensure_connection()
        """
    )
    assert f"{limit} run-time databases are open in this thread" in error
    assert "with dbfleet.scope():" in error
    assert error.endswith("(dbfleet.E108)")


def test_names_and_what_is_kept_by_name_are_bounded(run: Callable[[str], Any]) -> None:
    known, kept, is_stable, still_works = run(
        """
        from django.contrib.contenttypes.models import ContentType
        from django.db.backends.base.base import RAN_DB_VERSION_CHECK
        from dbfleet.runtime import names

        first = safe_alias(url)
        with dbfleet.scope():
            author = Author.objects.using(url).create(name="first")
            ContentType.objects.db_manager(url).get_for_model(Author)
        assert first in RAN_DB_VERSION_CHECK and first in ContentType.objects._cache
        is_stable = safe_alias(url) is first is safe_alias(Cluster(url))
        for number in range(names.MAX_KNOWN):
            safe_alias(f"{url}{number}")
        kept = [first in RAN_DB_VERSION_CHECK, first in ContentType.objects._cache]
        with dbfleet.scope():
            author.refresh_from_db()
            author.delete()
        result = len(names._known), kept, is_stable, author.name
        """
    )
    assert (known, kept, is_stable) == (256, [False, False], True)
    assert still_works == "first"


def test_pickle_holds_no_secret_and_says_what_to_do(
    run: Callable[[str], Any],
) -> None:
    holder = run(
        """
        import base64, pickle

        author = Author.objects.using(url).create(name="pickled")
        queryset = Author.objects.using(url).filter(name="pickled")
        text = pickle.dumps([author, queryset, safe_alias(url)])
        here = pickle.loads(text)
        here[0].refresh_from_db()  # its database is still open
        assert list(here[1].all()) == [author]
        result = base64.b64encode(text).decode()
        """
    )
    assert PASSWORD.encode() not in base64.b64decode(holder)
    errors, name = run(
        f"""
        import base64, pickle

        author, queryset, alias = pickle.loads(base64.b64decode({holder!r}))
        assert type(alias) is str
        errors = []
        for use in (author.refresh_from_db, author.save, queryset.all().count):
            try:
                use()
            except dbfleet.errors.RuntimeDatabaseError as error:
                errors.append(str(error))
        author.name = "elsewhere"
        author.save(using=url)
        result = errors, queryset.using(url).model.objects.using(url).get().name
        Author.objects.using(url).all().delete()
        """
    )
    assert len(errors) == 3
    for error in errors:
        assert "'run:" in error
        assert "queryset.using(<URL or Cluster>), instance.save(using=...)" in error
        assert error.endswith("(dbfleet.E107)")
    assert name == "elsewhere"


BAD_VALUES = {
    "3": "was given as int; give an alias, a database URL, Cluster(...) or Sharded",
    "{'ENGINE': 'x', 'PASSWORD': 'PW'}": "was given as dict",
    "b'postgres://u:PW@h/db'": "was given as bytes",
    "'nosuch://u:PW@host/db'": "the URL nosuch://u:***@host/db cannot be read",
    "'postgres:/u:PW@host/db'": "'***' is neither an alias of DATABASES nor a database",
    "Cluster({'NAME': 'x', 'PASSWORD': 'PW'})": "has no ENGINE",
    "Cluster('postgres://u:PW@h/db', OPTIONS={'pool': True})": (
        "OPTIONS['pool'], which would keep connections open after the scope ends"
    ),
    "Cluster('postgres://u:PW@h/db', replicas=['mysql://u:PW@h/db'])": (
        "its nodes are of different engines"
    ),
}


def test_value_that_is_no_database(shop: Project) -> None:
    errors = shop.run(
        f"""
        import traceback
        from django.db import connections
        from dbfleet import Cluster
        from dbfleet.errors import RuntimeDatabaseError
        from app.models import Author

        result = {{}}
        for source in {[one.replace("PW", PASSWORD) for one in BAD_VALUES]!r}:
            value = eval(source)
            texts = []
            for use in (
                lambda: connections[value],
                lambda: Author.objects.using(value).count(),
                lambda: Author(name="x").save(using=value),
            ):
                try:
                    use()
                except RuntimeDatabaseError as error:
                    texts.append("".join(traceback.format_exception(error)))
            result[source.replace({PASSWORD!r}, "PW")] = texts
        try:
            connections["nosuch"]
        except Exception as error:
            result["unknown"] = [type(error).__name__, str(error)]
        """
    )
    assert errors.pop("unknown") == [
        "ConnectionDoesNotExist",
        "The connection 'nosuch' doesn't exist.",
    ]
    assert set(errors) == set(BAD_VALUES)
    for source, texts in errors.items():
        assert len(texts) == 3, source
        for text in texts:
            assert BAD_VALUES[source] in text
            assert text.rstrip().endswith("(dbfleet.E107)")
            assert PASSWORD not in text


def test_unreachable_database_names_no_password(shop: Project) -> None:
    text = shop.run(
        f"""
        import traceback
        from django.db import OperationalError
        from app.models import Author

        there = "postgres://u:{PASSWORD}@127.0.0.1:1/db"
        try:
            Author.objects.using(there).count()
        except OperationalError as error:
            result = "".join(traceback.format_exception(error))
        """
    )
    assert "127.0.0.1" in text
    assert PASSWORD not in text


def test_sessions_are_told_apart(
    run: Callable[[str], Any], postgres: PostgresCluster, request: pytest.FixtureRequest
) -> None:
    """The helper of these tests sees what is there."""
    name = request.node.name[:60]
    assert sessions(postgres, name) == set()
    run("connections[url].ensure_connection(); result = None")
    wait_for_sessions(postgres, name, 0)
