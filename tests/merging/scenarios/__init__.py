"""What happens inside a fleet's project: each function is one test of the fleet.

A module is run by one process (:func:`run`); every function whose name begins with
``check_`` starts on the rows of :func:`fill`, which ``default`` has on three shards and
``plain`` in one database.
"""

from __future__ import annotations

import ast
import contextlib
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.sharding.scenarios import refused, same

__all__ = ["refused", "same"]

CHECK_TIMEOUT_S = 30
#: the kind of fleet at hand
kind = ""
NAMES = (
    None, "a", "A", "b", "B", "z", "Z", "\u00e9a", "ea", "eb", "Eb", "\u00c9b", "a b",
    "ab", "a-b", "_", "10", "9", "\u00df", "ss", "\u00f6", "o", "\u00d8", "a ", "a  ",
)  # fmt: skip
#: some are equal to one server and not to another
DOCUMENTS: tuple[Any, ...] = (
    {}, {"a": 1}, {"a": 1.0}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, [1, 2], [2, 1],
    "a", 1,
)  # fmt: skip


def names(module: str) -> list[str]:
    """The checks of a module, found without importing it."""
    path = Path(__file__).with_name(f"{module}.py")
    tree = ast.parse(path.read_text())
    found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in found if name.startswith("check_")]


def run(module: str, fleet: str) -> dict[str, str | None]:
    """Run every check of a module; name -> its traceback, None if it passed."""
    global kind
    kind = fleet
    loaded = import_module(f"{__name__}.{module}")
    empty()
    fill()
    wanted = [name for name in names(module) if runs_on(fleet, name)]
    return {name: _failure(getattr(loaded, name)) for name in wanted}


def runs_on(fleet: str, check: str) -> bool:
    """Whether a kind of fleet has a check: one server of MariaDB is one process."""
    return fleet == "postgresql" or "stopped" not in check


def _failure(check: Callable[[], None]) -> str | None:
    from django.db import connection

    def stop(*_: object) -> None:
        raise TimeoutError(f"no end in {CHECK_TIMEOUT_S} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(CHECK_TIMEOUT_S)
    try:
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


# -- rows ---------------------------------------------------------------------------


def empty() -> None:
    """Delete every row of the fleet and of the plain database."""
    from tests.merging.app import models

    for alias in ("default", "plain"):
        every: tuple[Any, ...] = (
            models.Item,
            models.Note,
            models.Owner.tags.through,
            models.Owner,
            models.Tag,
            models.Parcel,
        )
        for model in every:
            model.objects.using(alias).all()._raw_delete(alias)


def fill() -> None:
    """The same rows twice: half of the items belong to one owner, some owners have
    none; values come more than once, NULL is among them."""
    from tests.merging.app.models import Item, Note, Owner, Parcel, Tag

    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    # SQLite's sums end at 64 bits.
    most = 2**50 if kind == "sqlite" else 2**60
    noon = datetime(2024, 2, 29, 12, tzinfo=UTC)
    tags = [Tag(id=n, word=f"w{n}") for n in range(1, 7)]
    owners = [Owner(id=n, name=chance.choice(NAMES)) for n in range(1, 25)]
    edges = [
        Owner.tags.through(id=10 * n + tag, owner_id=n, tag_id=tag)
        for n in range(1, 25)
        for tag in chance.sample(range(1, 7), n % 4)
    ]

    def or_null(make: Callable[[], Any]) -> Any:
        return None if chance.random() < 0.15 else make()

    items = [
        Item(
            id=n,
            owner_id=1 if chance.random() < 0.5 else chance.randrange(1, 20),
            name=NAMES[n % len(NAMES)],
            score=or_null(lambda: chance.choice([-3, 0, 1, 2, 5, 40])),
            big=or_null(lambda: chance.randrange(-most, most)),
            ratio=or_null(lambda: chance.choice([-0.0, 0.0, 0.5, -1.25, 3.0])),
            price=or_null(lambda: Decimal(chance.randrange(-999, 9999)) / 8),
            flag=or_null(lambda: chance.random() < 0.5),
            sold=or_null(lambda: noon + timedelta(hours=chance.randrange(40))),
        )
        for n in range(1, 201)
    ]
    for one in items:
        one.price = None if one.price is None else round(one.price, 3)
    notes = [
        Note(
            id=n,
            owner_id=chance.randrange(1, 25),
            score=or_null(lambda: chance.randrange(5)),
            data=or_null(lambda: chance.choice(DOCUMENTS)),
        )
        for n in range(1, 41)
    ]
    parcels = [Parcel(id=n, region=n, label=f"p{n % 7}") for n in range(1, 31)]
    for alias in ("default", "plain"):
        for rows in (tags, owners, edges, items, notes, parcels):
            model: Any = type(rows[0])
            model.objects.using(alias).bulk_create(rows)


# -- the fleet beside one database --------------------------------------------------

Query = Callable[[Any], Any]


def of(model: Any) -> Iterator[tuple[str, Any]]:
    """The model's rows on the fleet, then in the plain database."""
    for alias in ("default", "plain"):
        yield alias, model.objects.using(alias)


def agree(
    model: Any, query: Query, *, rung: str | None = None, is_total: bool = True
) -> Any:
    """``query`` of the rows of the fleet gives what it gives of one database.

    ``rung`` is where the fleet has to answer it; without ``is_total`` the query leaves
    the order of some rows open.
    """
    found = {}
    for alias, rows in of(model):
        asked = query(rows)
        if hasattr(asked, "explain_route"):
            if alias == "default" and rung is not None:
                route = asked.explain_route()
                if str(route.rung) != rung:
                    raise AssertionError(f"not {rung}:\n{route}")
            asked = list(asked)
        if isinstance(asked, list) and not is_total:
            asked = sorted(asked, key=repr)
        found[alias] = asked
    same(found["default"], found["plain"])
    return found["plain"]


def close_to(found: Any, expected: Any) -> None:
    """Binary fractions may differ where their sum was made in another order."""
    if found is None or expected is None:
        same(found, expected)
    elif abs(float(found) - float(expected)) > 1e-9 * max(1.0, abs(float(expected))):
        raise AssertionError(f"{found!r} is not near {expected!r}")
