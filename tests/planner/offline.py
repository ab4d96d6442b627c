"""A fleet of three shards that does not exist: plans without a connection.

Guards one invariant: every node's file lies in a directory that cannot be, so a test
that would connect fails. :func:`answer_of` carries a plan out on rows of an ordinary
in-memory database, of which it shows the statement only what the plan fetches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.db import connection as memory
from django.db import connections
from django.db.models import QuerySet
from django.db.utils import ConnectionHandler
from django.test import override_settings

from dbfleet import Sharded, databases
from dbfleet.planner.plan import plan_read
from dbfleet.planner.route import HOME, Filter, Fragment, Route, Rung
from dbfleet.planner.uses import Facts
from dbfleet.sharding.ledger import AnyMap, DeclaredMap, ShardMap

SHARDS = ("a", "b", "c")
APP = "tests.planner.store.apps.PlannerStoreConfig"
NOWHERE = "/nowhere/there/is"

SQLITE = {"ENGINE": "django.db.backends.sqlite3"}
POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "HOST": NOWHERE}
MARIADB = {"ENGINE": "django.db.backends.mysql"}


@contextmanager
def fleet(
    node: dict[str, str] = SQLITE,
    declared_map: Any = None,
    names: tuple[str, ...] = SHARDS,
) -> Iterator[Fleet]:
    """An alias of three shards, all of them like ``node``, and the store's models."""
    alias = f"offline_{node['ENGINE'].rsplit('.', 1)[1]}_{len(names)}"

    def declared(name: str) -> dict[str, str]:
        return {**node, "NAME": f"{NOWHERE}/{name}"}

    shards = {shard: declared(shard) for shard in names}
    entries = databases(
        default=declared("default"),
        **{alias: Sharded(home=declared("home"), shards=shards, map=declared_map)},
    )
    with override_settings(
        INSTALLED_APPS=["django.contrib.contenttypes", "dbfleet", APP]
    ):
        # A union asks for its alias by name.
        connections[alias] = ConnectionHandler(entries)[alias]
        try:
            yield Fleet(connections[alias])
        finally:
            del connections[alias]


class Fleet:
    """Plans of an offline alias."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        self.topology = wrapper.topology
        # A lock needs a transaction, for which Django would connect.
        wrapper.get_autocommit = lambda: False
        names = tuple(self.topology.shards)
        slots, count = self.topology.slots, len(names)
        bounds = [slots * n // count for n in range(count + 1)]
        self._map: AnyMap = ShardMap(
            [(bounds[n], bounds[n + 1] - 1, name) for n, name in enumerate(names)],
            slots,
        )
        self.shards_in: Any = None
        if self.topology.map is not None:
            self._map = DeclaredMap(self.topology.map, 1)
            self.shards_in = self._map.between

    def shard_of(self, fields: tuple[Any, ...], values: tuple[Any, ...]) -> str:
        shard = self.find_shard(fields, values)
        assert shard is not None, values
        return shard

    def find_shards(
        self, fields: tuple[Any, ...], given: list[tuple[Any, ...]]
    ) -> list[str | None]:
        return [self.find_shard(fields, values) for values in given]

    def find_shard(
        self, fields: tuple[Any, ...], values: tuple[Any, ...]
    ) -> str | None:
        return self._map.place(fields, values, self.wrapper)

    def shard(self, model: Any, *key: Any) -> str:
        """The shard of a model's rows with this key."""
        return self.shard_of(self.table(model).key_fields, key)

    def table(self, model: Any) -> Any:
        return self.wrapper.routing.tables.of(model._meta)

    def statement(self, queryset: Any) -> Any:
        """A queryset as the planner is given it."""
        query = queryset.query.clone()
        compiler = query.get_compiler(connection=self.wrapper)
        found = self.wrapper.routing.compiled(compiler)
        assert self.wrapper.connection is None, "planning has connected"
        return found

    def plan(self, queryset: Any, *, in_transaction: bool = False) -> Route:
        """The route of a queryset; raises EmptyResultSet where there is none."""
        return self.route_of(self.statement(queryset), in_transaction=in_transaction)

    def route_of(
        self,
        statement: Any,
        *,
        in_transaction: bool = False,
        only_gather: bool = False,
        only_scatter: bool = False,
    ) -> Route:
        facts = Facts(
            self.topology,
            self.wrapper.engine,
            self.wrapper.routing.tables,
            self.shard_of,
            in_transaction,
            only_gather,
            find_shards=self.find_shards,
            shards_in=self.shards_in,
            only_scatter=only_scatter,
        )
        return plan_read(facts, statement)

    def fragment(self, queryset: Any, model: Any) -> Fragment:
        """What a gather would fetch of one model's table."""
        route = self.route_of(self.statement(queryset), only_gather=True)
        assert route.rung is Rung.GATHER, route
        name = model._meta.db_table
        [found] = [part for part in route.fragments if part.table == name]
        return found


# -- rows -------------------------------------------------------------------------


def models() -> list[Any]:
    """The store's models, parents before their children."""
    return list(apps.get_app_config("planner_store").get_models())


@contextmanager
def stored(fleet: Fleet, rows: Iterable[Any]) -> Iterator[None]:
    """Rows in the in-memory database, each with the shard that it would be on."""
    with memory.schema_editor() as editor:
        for model in models():
            editor.create_model(model)
    places = {table_name(model): _places(model) for model in models()}
    try:
        with memory.cursor() as cursor:
            for table in places.values():
                cursor.execute(f"CREATE TABLE {table} (place INTEGER, shard TEXT)")
        for row in rows:
            row.save(using="default", force_insert=True)
        for model in models():
            _note_places(fleet, model, places[table_name(model)])
        yield
    finally:
        with memory.cursor() as cursor:
            for table in places.values():
                cursor.execute(f"DROP TABLE {table}")
        with memory.schema_editor() as editor:
            for model in reversed(models()):
                editor.delete_model(model)


def table_name(model: Any) -> str:
    return str(model._meta.db_table)


def _places(model: Any) -> str:
    return f"{table_name(model)}_places"


def _note_places(fleet: Fleet, model: Any, places: str) -> None:
    if not fleet.table(model).is_sharded:
        return
    key = fleet.table(model).layout.key
    path = [*(hop.field for hop in key.path)]
    names = ["__".join([*path, field]) for field in key.fields]
    fields = fleet.table(model).key_fields
    for hop in key.path:
        fields = fleet.table(apps.get_model(hop.model)).key_fields
    rows = QuerySet(model, using="default").extra(
        select={"place": f"{table_name(model)}.rowid"}
    )
    with memory.cursor() as cursor:
        for place, *values in rows.values_list("place", *names):
            shard = fleet.shard_of(fields, tuple(values))
            cursor.execute(f"INSERT INTO {places} VALUES (%s, %s)", [place, shard])


def answer_of(
    statement: Any, route: Route | None = None, order: Iterable[str] = ()
) -> list[tuple[Any, ...]]:
    """The rows of a statement; with a route, of only what that route looks at, and
    with an order, of what is left once those tables were fetched in turn, each by its
    reductions."""
    with memory.cursor() as cursor:
        hidden = _hide(cursor, route) if route is not None else []
        try:
            if route is not None:
                _reduce(cursor, route, order)
            cursor.execute(*statement.outer_sql)
            return sorted(cursor.fetchall(), key=repr)
        finally:
            for table in hidden:
                cursor.execute(f'DROP TABLE temp."{table}"')


def _hide(cursor: Any, route: Route) -> list[str]:
    """Cover each table by a temporary one with the rows that the route fetches."""
    if route.rung is Rung.GATHER:
        parts = [
            (part.table, part.columns, {c: part.filter_at(c) for c in part.clusters})
            for part in route.fragments
        ]
    else:
        everything = dict.fromkeys(route.clusters, Filter("", ()))
        parts = [(table_name(model), (), everything) for model in models()]
    for table, columns, filters in parts:
        # No columns are every column, as for SELECT *.
        selected = ", ".join(f'"{column}"' for column in columns) or "*"
        is_there = f'"{table}".rowid IN (SELECT place FROM {table}_places WHERE shard'
        unplaced = f"NOT EXISTS (SELECT 1 FROM {table}_places)"
        found, params = [], []
        for cluster, (where, values) in filters.items():
            found.append(f"(({is_there} = %s) OR {unplaced}) AND ({where or '1'}))")
            params += [cluster, *values]
        cursor.execute(
            f'CREATE TEMP TABLE "{table}" AS SELECT {selected} FROM main."{table}" '
            f"WHERE {' OR '.join(found)}",
            params,
        )
    return [part[0] for part in parts]


def _reduce(cursor: Any, route: Route, order: Iterable[str]) -> None:
    """Delete what each table's reductions leave behind, by every usable link."""
    reductions = {one.table: one for one in route.reductions}
    fetched: set[str] = set()
    for table in order:
        places = [
            [link for link in links if link.from_table in fetched]
            for links in (reductions[table].places if table in reductions else ())
        ]
        fetched.add(table)
        if not places or not all(places):
            continue
        wanted = " OR ".join(
            "("
            + " AND ".join(
                f'"{link.column}" IN '
                f'(SELECT "{link.from_column}" FROM temp."{link.from_table}")'
                for link in links
            )
            + ")"
            for links in places
        )
        cursor.execute(f'DELETE FROM temp."{table}" WHERE ({wanted}) IS NOT TRUE')


__all__ = ["HOME", "SHARDS", "Fleet", "answer_of", "fleet", "stored"]
