"""What a session's reads cost once it has written; run by the workers.

``get_after_writes``: each tenth call writes and is not timed; when the replicas have
what it wrote, nine reads are. ``get_proved``: each read carries its proof in its own
message, which in practice the first read after a write does. ``decide`` and ``account``
time what dbfleet does in Python for each read and each write, no query among it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import django.db
from django.db import connections

READS = 9
LOOPS = 2_000
CATCH_UP_TIMEOUT_S = 10.0


def get_after_writes(count: int) -> float:
    """Seconds for ``count`` reads, nine after each write of the same session."""
    from tests.bench.shop.models import Customer
    from tests.bench.worker import CUSTOMERS, timed

    is_plain = "replica1" in connections.settings
    reader = Customer.objects.using("replica1" if is_plain else "default")
    writer = Customer.objects.using("default")
    elapsed = 0.0
    for number in range(-(-count // READS)):
        keys = random.sample(range(1, CUSTOMERS + 1), READS)
        name = f"{time.monotonic()}-{number}"
        writer.filter(pk=keys[0]).update(city=name)
        _wait_for(keys[0], name)
        elapsed += timed(lambda keys=keys: [reader.get(pk=key) for key in keys])  # type: ignore[misc]
    return elapsed * count / (READS * -(-count // READS))


def _wait_for(key: int, city: str) -> None:
    """Both replicas have a row; asked past what is measured."""
    for wrapper in _replicas():
        deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
        sql = "SELECT city FROM shop_customer WHERE id = %s"
        while time.monotonic() < deadline:
            with wrapper.cursor() as cursor:
                cursor.execute(sql, [key])
                if cursor.fetchone() == (city,):
                    break
        else:
            raise TimeoutError(f"customer {key} does not arrive")


_others: list[Any] = []


def _replicas() -> list[Any]:
    """Connections of their own to both replicas."""
    if not _others:
        entries = connections.settings
        nodes = entries["default"].get("NODES", entries)
        names = [name for name in nodes if "replica" in name]
        backend = django.db.utils.load_backend("django.db.backends.postgresql")
        defaults = connections.settings["default"]
        for name in names:
            settings = {**defaults, **nodes[name]}
            _others.append(backend.DatabaseWrapper(settings, f"watch-{name}"))
    return _others


def get_proved(count: int) -> float:
    """Seconds for ``count`` calls of ``get(pk)``, each proved by its own message."""
    from tests.bench.shop.models import Customer
    from tests.bench.worker import CUSTOMERS, timed

    keys = random.sample(range(1, CUSTOMERS + 1), count)
    manager = Customer.objects
    if "NODES" not in connections.settings["default"]:
        return timed(lambda: [manager.get(pk=key) for key in keys])
    from dbfleet.sessions import applied

    state = _written(manager)

    def run() -> None:
        for key in keys:
            applied.forget(state.node)
            manager.get(pk=key)

    return timed(run)


def _written(manager: Any) -> Any:
    """The state of a session that has written and then read from a replica."""
    from dbfleet import sessions

    session = sessions.current()
    state = session.of("default/home")
    if not state.floors:
        manager.filter(pk=1).update(city="here")
        _wait_for(1, "here")
        manager.get(pk=1)
    assert state.floors
    assert state.node
    return state


def decide(_: int) -> float:
    """Seconds for the decisions of one read: level, policy, session, replica, proof."""
    from tests.bench.shop.models import Customer

    routing: Any = connections["default"].routing  # type: ignore[attr-defined]
    query = Customer.objects.all().query
    replicas = routing.wrapper.nodes.replicas
    _written(Customer.objects)

    def run() -> None:
        assert routing.reads_replicas()
        assert replicas.usual(routing.place("home", query)) is not None

    return _each(run)


def account(_: int) -> float:
    """Seconds for what a session notes: a commit's position, and a replica's proof."""
    from dbfleet.engines import Position
    from dbfleet.engines.wal import _position
    from dbfleet.sessions import applied
    from tests.bench.shop.models import Customer

    state = _written(Customer.objects)
    wrapper: Any = connections["default"]
    nodes = wrapper.nodes
    nodes.primary("home")
    (floor,) = state.floors
    have = Position(floor.value, floor.timeline)
    choice = nodes.replicas.choices(
        wrapper.routing.place("home", None), None, False
    ).__next__()
    text = f"{floor.value >> 32:X}/{floor.value & 0xFFFFFFFF:X}"

    def run() -> None:
        nodes.saw("home", _position(wrapper, (text,)))
        applied.forget(state.node)
        assert nodes.replicas.is_proved("home", choice._replace(wants=(floor,)), have)

    return _each(run)


def _each(action: Callable[[], None]) -> float:
    from tests.bench.worker import timed

    def run() -> None:
        for _ in range(LOOPS):
            action()

    return timed(run) / LOOPS
