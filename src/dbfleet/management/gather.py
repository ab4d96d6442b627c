"""Makes, removes or looks at the foreign tables by which home reads shards.

PostgreSQL with ``postgres_fdw``. They are made anew from the tables that there are:
once, and again after migrations and when a shard's address or password changed. Until
then gathers fetch rows as before. Home's catalogue holds the shards' password.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.apps import apps
from django.core.management.base import CommandError

from dbfleet import conf
from dbfleet.engines.foreign_postgresql import ForeignRefused
from dbfleet.errors import ForeignTablesRefused
from dbfleet.executor import costs
from dbfleet.executor.foreign import link_of
from dbfleet.management import aliases
from dbfleet.planner.route import HOME

HELP = "make or remove the foreign tables by which home reads shards"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--database", default="default", help="a sharded alias")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--install", action="store_true", help="make foreign tables, or make them anew"
    )
    group.add_argument("--remove", action="store_true", help="drop them all")


def run(
    stdout: Any, *, database: str, install: bool, remove: bool, **options: Any
) -> None:
    """One line for each shard. Raises CommandError where tables cannot be used, or for
    aliases that have none; ForeignTablesRefused E508 where nothing could be made."""
    wrapper = _wrapper(database)
    routing, engine = wrapper.routing, wrapper.engine
    home = routing.node(HOME, is_write=install or remove)
    tables = sorted(t.name for t in routing.tables.all(apps).values() if t.is_sharded)
    costs.forget(database)
    try:
        if remove:
            for name in engine.foreign.remove(home):
                stdout.write(f"{name}: removed")
            return
        links = [link_of(routing, shard) for shard in wrapper.topology.shards]
        if install:
            shards = {
                link.shard: routing.node(link.shard, is_write=False) for link in links
            }
            deadline_s = conf.settings().fanout.deadline_s
            made = engine.foreign.install(home, shards, links, tables, deadline_s)
            for link in links:
                stdout.write(
                    f"{link.shard}: {len(made)} foreign tables, read from "
                    f"{link.host}:{link.port}"
                )
            return
    except ForeignRefused as refused:
        raise ForeignTablesRefused(
            "E508",
            f"foreign tables of alias {database!r}: {refused}; nothing was changed",
        ) from None
    _show(stdout, home, engine, links, tables)


def _show(stdout: Any, home: Any, engine: Any, links: Any, tables: list[str]) -> None:
    known = [table for table in tables if engine.table_columns(home, table)]
    faults = 0
    for link in links:
        fault = engine.foreign.fault(home, [link], known)
        faults += fault is not None
        stdout.write(f"{link.shard}: {fault or 'gathers may read its foreign tables'}")
    if faults:
        raise CommandError("gathers fetch rows; make foreign tables with --install")


def _wrapper(database: str) -> Any:
    wrapper = aliases.sharded(database, "gathers nothing")
    if not wrapper.engine.has_foreign_tables:
        raise CommandError(
            f"the shards of {database!r} are no PostgreSQL: gathers fetch rows"
        )
    return wrapper
