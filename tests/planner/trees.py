"""Random filters, pruned and judged against every row of a small world.

``python -m tests.planner.trees --count 1000000 [--seed N] [--map list]``

A tree is a random Q (AND, OR, XOR, NOT, to depth 4, lookups on the shard key, on other
columns, NULL or not), built into a WHERE by Django. The world of a model holds one row
for every combination of its columns' values. Which rows the WHERE is true for is found
by an evaluator of SQL's three values over bit masks, a bit for each row; every 250th
answer is compared with SQLite's own of the compiled WHERE. XOR is judged both as Django
counts it for most servers and as MariaDB and MySQL do it, where NULL makes it NULL.

*Unsound*: a row for which the WHERE is true lies on a shard that pruning left out.
*Minimal*: pruning names the very shards that hold such rows. The worlds reach far
beyond the values in filters, so that a filter open to one side has rows on every
shard.
"""

from __future__ import annotations

import argparse
import functools
import operator
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db.models import Q
from django.db.models.expressions import Col
from django.db.models.sql import Query
from django.db.models.sql.where import AND, OR, NothingNode, WhereNode

from dbfleet import ListMap, RangeMap
from dbfleet.planner.pruning import clusters_of, possible_values
from dbfleet.planner.uses import Facts
from tests.planner import offline

DEPTH = 4
COMPARED = 250
#: a WHERE's builder is made anew after so many trees: its joins' counters grow
BUILT = 500

SMALL = tuple(range(10))
KEYS = tuple(range(-25, 35))
SENSORS = tuple(range(5))
NUMBERS = tuple(range(-20, 25))
WORDS = ("red", "Red", "blue", "", "green")
SLUGS = tuple(f"{letter}{n}" for letter in "abcdefgh" for n in range(10))
SOME_SLUGS = SLUGS[::11]


@dataclass(frozen=True)
class Path:
    """A column: how filters name it, the values of filters, those of the world."""

    name: str
    column: str
    asked: tuple[Any, ...]
    world: tuple[Any, ...]
    lookups: tuple[str, ...]


NUMERIC = ("exact", "exact", "in", "in", "range", "isnull", "lt", "lte", "gt", "gte")
RELATED = tuple(name for name in NUMERIC if name != "range")
TEXT = ("exact", "exact", "in", "isnull", "lt", "gte", "contains")

KEY_PATHS: dict[str, tuple[Path, ...]] = {
    "Customer": (Path("pk", "id", SMALL, KEYS, NUMERIC),),
    "Order": (Path("customer", "customer_id", SMALL, KEYS, RELATED),),
    "Page": (Path("slug", "slug", SOME_SLUGS, SLUGS, (*TEXT[:3] * 3, *TEXT[3:])),),
    "Reading": (
        Path("sensor", "sensor", SENSORS, NUMBERS, NUMERIC),
        Path("number", "number", SENSORS, NUMBERS, NUMERIC),
    ),
}
OTHER_PATHS: dict[str, tuple[Path, ...]] = {
    "Customer": (
        Path("age", "age", (0, 1, 2, 3), (None, *range(-2, 7)), NUMERIC),
        Path("name", "name", WORDS[:3], WORDS, TEXT),
    ),
    "Order": (
        Path("status", "status", WORDS[:3], (None, *WORDS), TEXT),
        Path("total", "total", (0, 1, 2), tuple(range(-2, 6)), NUMERIC),
    ),
    "Page": (Path("title", "title", WORDS[:3], WORDS, TEXT),),
    "Reading": (Path("value", "value", (0, 1), (None, -1, 0, 1, 2), NUMERIC),),
}


# -- trees ----------------------------------------------------------------------------


def _lookup(chance: random.Random, path: Path) -> tuple[str, Any]:
    name = chance.choice(path.lookups)
    one = functools.partial(chance.choice, path.asked)
    if name == "in":
        value: Any = [one() for _ in range(chance.randint(1, 4))]
        if chance.random() < 0.05:
            value.append(None)
    elif name == "range":
        value = (
            (one(), one()) if chance.random() < 0.2 else tuple(sorted((one(), one())))
        )
    elif name == "isnull":
        value = chance.random() < 0.5
    elif name == "contains":
        value = chance.choice(("e", "re", "b", ""))
    else:
        value = one()
    return f"{path.name}__{name}", value


def _leaf(chance: random.Random, model: str) -> Q:
    if model == "Reading" and chance.random() < 0.3:
        pairs = [
            (chance.choice(SENSORS), chance.choice(SENSORS))
            for _ in range(chance.randint(1, 4))
        ]
        if chance.random() < 0.5:
            return Q(pk__in=pairs)
        return Q(pk=pairs[0])
    paths = KEY_PATHS[model] if chance.random() < 0.6 else OTHER_PATHS[model]
    return Q(_lookup(chance, chance.choice(paths)))


def tree(chance: random.Random, model: str, depth: int = DEPTH) -> Q:
    """A random Q over a model's columns."""
    if depth == 0 or chance.random() < 0.35:
        found = _leaf(chance, model)
    else:
        children = [tree(chance, model, depth - 1) for _ in range(2)]
        if chance.random() < 0.15:
            children.append(tree(chance, model, depth - 1))
        connect = chance.choices(
            (operator.and_, operator.or_, operator.xor), (5, 4, 1)
        )[0]
        found = functools.reduce(connect, children)
    return ~found if chance.random() < 0.2 else found


# -- the world ------------------------------------------------------------------------


@dataclass
class World:
    """Every row of one model that there can be, as bits."""

    name: str
    model: Any
    table: Any
    rows: list[tuple[Any, ...]]
    #: column -> value -> its rows
    having: dict[str, dict[Any, int]]
    #: shard -> its rows
    shards: dict[str, int]
    everything: int
    _query: Any = None
    _built: int = 0
    #: the last WHERE judged has an XOR
    has_xor: bool = False
    _leaves: dict[Any, tuple[int, int]] = field(default_factory=dict)

    def where(self, q: Q) -> Any:
        """What Django makes of a filter."""
        if self._built % BUILT == 0:
            self._query = Query(self.model)
            self._query.get_initial_alias()
        self._built += 1
        return self._query.build_where(q)

    @property
    def query(self) -> Any:
        return self._query

    # -- three values: rows for which it is true, rows for which it is NULL ----------

    def judge(self, node: Any, *, is_native: bool) -> tuple[int, int]:
        """(true, NULL) rows of a WHERE; ``is_native``: XOR as an operator."""
        if not isinstance(node, WhereNode):
            return self._leaf(node)
        parts = [self.judge(child, is_native=is_native) for child in node.children]
        if node.connector == AND:
            found = functools.reduce(self._and, parts)
        elif node.connector == OR:
            opposite = functools.reduce(self._and, map(self._not, parts))
            found = self._not(opposite)
        else:
            self.has_xor = True
            found = self._xor(parts, is_native)
        return self._not(found) if node.negated else found

    def _not(self, one: tuple[int, int]) -> tuple[int, int]:
        true, null = one
        return self.everything & ~(true | null), null

    @staticmethod
    def _and(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
        true = one[0] & other[0]
        return true, (one[0] | one[1]) & (other[0] | other[1]) & ~true

    @staticmethod
    def _xor(parts: list[tuple[int, int]], is_native: bool) -> tuple[int, int]:
        odd = functools.reduce(operator.xor, (true for true, _ in parts))
        null = functools.reduce(operator.or_, (null for _, null in parts))
        return (odd & ~null, null) if is_native else (odd, 0)

    def _leaf(self, lookup: Any) -> tuple[int, int]:
        if isinstance(lookup, NothingNode):
            return 0, 0
        columns = [lookup.lhs] if isinstance(lookup.lhs, Col) else list(lookup.lhs)
        names = tuple(column.target.column for column in columns)
        rhs = lookup.rhs
        asked = (
            names,
            lookup.lookup_name,
            tuple(rhs) if isinstance(rhs, list) else rhs,
        )
        found = self._leaves.get(asked)
        if found is None:
            found = self._leaves[asked] = self._find(names, lookup.lookup_name, rhs)
        return found

    def _find(self, names: tuple[str, ...], lookup: str, rhs: Any) -> tuple[int, int]:
        if len(names) > 1:
            rows = rhs if lookup == "in" else [rhs]
            equal = [
                functools.reduce(
                    operator.and_,
                    (self.having[n].get(v, 0) for n, v in zip(names, row, strict=True)),
                )
                for row in rows
            ]
            return functools.reduce(operator.or_, equal, 0), 0
        values = self.having[names[0]]
        null = values.get(None, 0)
        if lookup == "isnull":
            return (null if rhs else self.everything & ~null), 0
        is_met = _TESTS[lookup]
        true = 0
        for value, rows in values.items():
            if value is not None and is_met(value, rhs):
                true |= rows
        if lookup == "in" and all(part is None for part in rhs):
            null = 0  # nothing is asked
        return true, null

    def shards_of(self, rows: int) -> frozenset[str]:
        return frozenset(name for name, its in self.shards.items() if rows & its)


_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "exact": operator.eq,
    "in": lambda value, rhs: value in rhs,
    "range": lambda value, rhs: rhs[0] <= value <= rhs[1],
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "contains": lambda value, rhs: rhs.lower() in value.lower(),  # as SQLite has it
}


def world(fleet: offline.Fleet, name: str) -> World:
    """The world of one of the store's models: rows with a key that has a shard."""
    from tests.planner.store import models

    model = getattr(models, name)
    paths = (*KEY_PATHS[name], *OTHER_PATHS[name])
    every = product(*(path.world for path in paths))
    having: dict[str, dict[Any, int]] = {path.column: {} for path in paths}
    shards = dict.fromkeys(offline.SHARDS, 0)
    keys = len(KEY_PATHS[name])
    rows = [row for row in every if _shard(fleet, model, row[:keys])]
    bits: dict[tuple[str, Any], list[int]] = {}
    for at, row in enumerate(rows):
        for path, value in zip(paths, row, strict=True):
            bits.setdefault((path.column, value), []).append(at)
        bits.setdefault(("", _shard(fleet, model, row[:keys])), []).append(at)
    for (column, value), places in bits.items():
        mask = bytearray(len(rows) // 8 + 1)
        for place in places:
            mask[place >> 3] |= 1 << (place & 7)
        number = int.from_bytes(mask, "little")
        if column:
            having[column][value] = number
        else:
            shards[value] = number
    table = fleet.table(model)
    return World(name, model, table, rows, having, shards, (1 << len(rows)) - 1)


@functools.cache
def _shard(fleet: offline.Fleet, model: Any, key: tuple[Any, ...]) -> str | None:
    return fleet.find_shard(fleet.table(model).key_fields, key)


# -- the oracle -----------------------------------------------------------------------


@contextmanager
def stored(found: World) -> Iterator[None]:
    """A table of the in-memory database with the world's rows, row by row."""
    memory = offline.memory
    paths = (*KEY_PATHS[found.name], *OTHER_PATHS[found.name])
    opts = found.model._meta
    kinds = {f.column: f.db_type(memory) for f in opts.local_concrete_fields}
    columns = ", ".join(f'"{p.column}" {kinds[p.column]}' for p in paths)
    marks = ", ".join(["%s"] * len(paths))
    with memory.cursor() as cursor:
        cursor.execute(f'CREATE TABLE "{opts.db_table}" ({columns})')
        try:
            cursor.execute("SAVEPOINT rows")
            cursor.executemany(
                f'INSERT INTO "{opts.db_table}" VALUES ({marks})', found.rows
            )
            cursor.execute("RELEASE rows")
            yield
        finally:
            cursor.execute(f'DROP TABLE "{opts.db_table}"')


def rows_of_sqlite(found: World, where: Any) -> int:
    """The rows that SQLite finds for a WHERE."""
    table = found.model._meta.db_table
    compiler = found.query.get_compiler(connection=offline.memory)
    try:
        sql, params = compiler.compile(where)
    except EmptyResultSet:
        return 0
    except FullResultSet:
        return found.everything
    with offline.memory.cursor() as cursor:
        cursor.execute(f'SELECT rowid - 1 FROM "{table}" WHERE {sql}', params)
        return sum(1 << place for (place,) in cursor.fetchall())


# -- the run --------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a run has seen."""

    run: int = 0
    unsound: int = 0
    minimal: int = 0
    #: model -> [run, minimal, with rows on fewer than all shards, minimal of those]
    by_model: dict[str, list[int]] = field(default_factory=dict)
    compared: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def minimal_percent(self) -> float:
        return 100 * self.minimal / max(self.run, 1)

    def __str__(self) -> str:
        return (
            f"trees: {self.run} run, {self.unsound} unsound, "
            f"{self.minimal_percent:.1f} % minimal"
        )


class Run:
    """Trees over the worlds of an offline fleet; the same for the same seed."""

    def __init__(
        self, fleet: offline.Fleet, seed: int, models: Iterable[str] = KEY_PATHS
    ) -> None:
        self.chance = random.Random(seed)
        self.worlds = [world(fleet, name) for name in models]
        self.shards_in = fleet.shards_in
        facts = Facts(
            fleet.topology,
            fleet.wrapper.engine,
            fleet.wrapper.routing.tables,
            fleet.shard_of,
            in_transaction=False,
        )
        self.is_exact = facts.is_exact
        self.shard_of = functools.lru_cache(maxsize=None)(fleet.find_shard)
        self.outcome = Outcome()

    def one(self, *, is_compared: bool) -> None:
        """Build, prune and judge one tree."""
        found = self.worlds[self.outcome.run % len(self.worlds)]
        q = tree(self.chance, found.name)
        where = found.where(q)
        found.has_xor = False
        true, _ = found.judge(where, is_native=False)
        native = found.judge(where, is_native=True)[0] if found.has_xor else true
        if is_compared:
            self._compare(found, q, where, true)
        values = possible_values(where, self.is_exact)
        alias = found.query.base_table
        clusters = clusters_of(found.table, alias, values, self._places, self.shards_in)
        asked = frozenset(found.shards) if clusters is None else clusters
        self._note(found, q, asked, found.shards_of(true), found.shards_of(native))

    def _places(self, fields: Any, given: list[Any]) -> list[str | None]:
        return [self.shard_of(fields, key) for key in given]

    def _compare(self, found: World, q: Q, where: Any, true: int) -> None:
        self.outcome.compared += 1
        if rows_of_sqlite(found, where) != true:
            raise AssertionError(f"SQLite finds other rows of {found.name} for {q}")

    def _note(
        self,
        found: World,
        q: Q,
        asked: frozenset[str],
        needed: frozenset[str],
        native: frozenset[str],
    ) -> None:
        outcome = self.outcome
        counts = outcome.by_model.setdefault(found.name, [0, 0, 0, 0])
        outcome.run += 1
        counts[0] += 1
        if not (needed | native) <= asked:
            outcome.unsound += 1
            outcome.examples.append(
                f"UNSOUND {found.name}: {q}\n  asked {sorted(asked)}, rows are on "
                f"{sorted(needed)} (XOR as an operator: {sorted(native)})"
            )
        elif asked == needed:
            outcome.minimal += 1
            counts[1] += 1
        elif len(outcome.examples) < 20:
            outcome.examples.append(
                f"not minimal {found.name}: {q}\n  asked {sorted(asked)}, rows are on "
                f"{sorted(needed)}"
            )
        if len(needed) < len(found.shards):
            counts[2] += 1
            counts[3] += asked == needed


#: name -> (declared map, the models that it can place); hash slots place all
MAPS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "slots": (None, tuple(KEY_PATHS)),
    "list": (ListMap({n: "abc"[n % 3] for n in KEYS[::2]}), ("Customer", "Order")),
    "range": (
        RangeMap([(None, 3, "a"), (3, 6, "b"), (6, 20, "c"), (20, 30, "a")]),
        ("Customer", "Order"),
    ),
    "list of texts": (
        ListMap({slug: "abc"[at % 3] for at, slug in enumerate(SLUGS[::3])}),
        ("Page",),
    ),
    "range of texts": (
        RangeMap([("a1", "c3", "a"), ("c3", "f", "b"), ("f", None, "c")]),
        ("Page",),
    ),
}


def run(
    count: int,
    seed: int,
    tell: Callable[[Outcome], None] | None = None,
    kind: str = "slots",
) -> Outcome:
    """Judge ``count`` trees; the table of every world exists meanwhile."""
    declared, models = MAPS[kind]
    with ExitStack() as stack:
        fleet = stack.enter_context(offline.fleet(declared_map=declared))
        found = Run(fleet, seed, models)
        for each in found.worlds:
            stack.enter_context(stored(each))
        for number in range(count):
            found.one(is_compared=number % COMPARED < len(found.worlds))
            if tell is not None and number % 50_000 == 49_999:
                tell(found.outcome)
        return found.outcome


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--map", default="slots", choices=MAPS)
    parser.add_argument("--examples", action="store_true", help="what is not minimal")
    options = parser.parse_args(None if arguments is None else list(arguments))
    print(f"seed: {options.seed}", flush=True)
    began = time.monotonic()
    outcome = run(
        options.count, options.seed, lambda o: print(o, flush=True), options.map
    )
    for example in outcome.examples:
        if options.examples or example.startswith("UNSOUND"):
            print(example)
    for name, (count, minimal, fewer, sharp) in outcome.by_model.items():
        print(
            f"{name}: {100 * minimal / count:.1f} % minimal; "
            f"{100 * fewer / count:.1f} % have rows on fewer than all shards, "
            f"{100 * sharp / max(fewer, 1):.1f} % of those are minimal"
        )
    took = time.monotonic() - began
    print(f"{outcome.compared} compared with SQLite, {outcome.run / took:.0f} trees/s")
    print(outcome)
    return 1 if outcome.unsound or outcome.minimal_percent < 95 else 0


if __name__ == "__main__":
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    sys.exit(main())
