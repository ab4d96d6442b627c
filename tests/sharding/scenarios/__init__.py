"""What happens inside a fleet's project: each function is one test of the fleet.

A module is run by one process (:func:`run`); every function whose name begins with
``check_`` starts on empty tables. ``default`` is an alias of three shards.
"""

from __future__ import annotations

import ast
import contextlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

SHARDS = ("a", "b", "c")
NODES = ("home", *SHARDS)
CHECK_TIMEOUT_S = 25
THREAD_TIMEOUT_S = 20


def names(module: str) -> list[str]:
    """The checks of a module, found without importing it."""
    path = Path(__file__).with_name(f"{module}.py")
    tree = ast.parse(path.read_text())
    found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in found if name.startswith("check_")]


def run(module: str) -> dict[str, str | None]:
    """Run every check of a module; name -> its traceback, None if it passed.

    A module may have a ``SCOPE``, in which its checks run.
    """
    loaded = import_module(f"{__name__}.{module}")
    with getattr(loaded, "SCOPE", contextlib.nullcontext)():
        found = {name: _failure(getattr(loaded, name)) for name in names(module)}
    while _eyes:
        _eyes.popitem()[1].close()
    return found


def _failure(check: Callable[[], None]) -> str | None:
    from django.db import connection

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end in {CHECK_TIMEOUT_S} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(CHECK_TIMEOUT_S)
    try:
        empty()
        check()
    except BaseException:  # noqa: BLE001 - whatever it is, it is the check's result
        return traceback.format_exc()
    finally:
        signal.alarm(0)
        with contextlib.suppress(Exception):
            while connection.in_atomic_block:
                connection.in_atomic_block = False
        connection.close()
    return None


# -- eyes: the nodes themselves, past the alias -------------------------------------


def engine() -> str:
    from django.db import connection

    return str(connection.vendor)


def on_node(
    cluster: str, sql: str, params: Iterable[Any] = ()
) -> list[tuple[Any, ...]]:
    """Ask one node on a connection that the alias knows nothing of."""
    with _eye(cluster).cursor() as cursor:
        cursor.execute(sql, list(params))
        return list(cursor.fetchall()) if cursor.description else []


_eyes: dict[str, Any] = {}


def _eye(cluster: str) -> Any:
    from django.db import connection

    if cluster not in _eyes:
        name = connection.nodes.clusters[cluster].primary
        settings = connection.settings_dict["NODES"][name]
        _eyes[cluster] = connection.nodes._class(settings, f"eye/{name}")
    return _eyes[cluster]


def places(model: Any, column: str = "id") -> dict[Any, tuple[str, ...]]:
    """Value of a column -> the nodes that hold its row."""
    found: dict[Any, tuple[str, ...]] = {}
    for cluster in NODES:
        sql = f"SELECT {column} FROM {model._meta.db_table}"
        for (value,) in on_node(cluster, sql):
            found[value] = (*found.get(value, ()), cluster)
    return found


def claims() -> int:
    """How many unique values are held."""
    return sum(row[0] for row in on_keepers("SELECT COUNT(*) FROM dbfleet_unique"))


def keepers() -> tuple[str, ...]:
    """The clusters that keep claims."""
    from django.db import connection

    from dbfleet.sharding import ledger

    return ledger.keepers(connection)


def keeper(claim: str) -> str:
    """The cluster that keeps a claim."""
    from dbfleet.sharding.keepers import keeper_of

    return keeper_of(claim, keepers())


def on_keepers(sql: str, params: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
    """Ask each of them; all rows."""
    return [row for one in keepers() for row in on_node(one, sql, params)]


def shard_of(model: Any, *key: Any) -> str:
    """The shard of a model's rows with this key."""
    from django.db import connection

    routing = connection.routing
    fields = routing.table_of(model._meta).key_fields
    return str(routing.shard_of(fields, key))


def apart(model: Any, count: int = 2) -> list[int]:
    """Keys of that many different shards; at most three."""
    found: dict[str, int] = {}
    for key in range(1, 1000):
        found.setdefault(shard_of(model, key), key)
        if len(found) == count:
            break
    return list(found.values())


def empty() -> None:
    """Delete every row of every node, and what dbfleet knows of them."""
    from django.apps import apps
    from django.db import connection

    from dbfleet import sessions
    from dbfleet.sharding import ids

    sessions.forget()
    connection.routing.shard_of((apps.get_model("shop.Tag")._meta.pk,), (1,))
    models = list(apps.get_app_config("shop").get_models(include_auto_created=True))
    tables = [model._meta.db_table for model in reversed(models)]
    for cluster in NODES:
        node = _eye(cluster)
        with node.constraint_checks_disabled(), node.cursor() as cursor:
            own = ["dbfleet_unique", "dbfleet_left"] if cluster in keepers() else []
            for table in [*tables, *own]:
                cursor.execute(f"DELETE FROM {table}")
    ids.forget(connection)


# -- hands --------------------------------------------------------------------------


def same(found: Any, expected: Any) -> None:
    """Fail, showing both, unless they are equal."""
    if found != expected:
        raise AssertionError(f"found    {found!r}\nexpected {expected!r}")


def created(rows: Iterable[Any]) -> list[Any]:
    """All rows of a table, stored by ``bulk_create``, with their keys: MySQL has none
    of RETURNING, so there Django leaves them at None."""
    made = list(rows)
    objects = type(made[0]).objects
    stored = objects.bulk_create(made)
    if any(one.pk is None for one in stored):
        stored = list(objects.order_by("pk"))
    return list(stored)


@contextlib.contextmanager
def refused(error: type[BaseException], *texts: str) -> Iterator[list[BaseException]]:
    """The block raises this error, whose message has these texts."""
    caught: list[BaseException] = []
    try:
        yield caught
    except error as found:
        missing = [text for text in texts if text not in str(found)]
        if missing:
            raise AssertionError(f"{missing} not in: {found}") from found
        caught.append(found)
        return
    raise AssertionError(f"{error.__name__} was not raised")


def in_threads(work: Callable[[int], Any], count: int = 2) -> list[Any]:
    """What ``work(n)`` gave in each thread, all started together; errors included."""
    from django.db import connections

    results: list[Any] = [None] * count
    together = threading.Barrier(count)

    def one(n: int) -> None:
        try:
            together.wait(THREAD_TIMEOUT_S)
            results[n] = work(n)
        except Exception as error:  # noqa: BLE001 - the caller looks at it
            results[n] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=one, args=[n]) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(THREAD_TIMEOUT_S)
        if thread.is_alive():
            raise AssertionError("a thread does not end")
    return results


def elsewhere(work: Callable[[], Any]) -> Any:
    """What another thread, with connections of its own, gets; its error as a value."""
    return in_threads(lambda n: work(), 1)[0]
