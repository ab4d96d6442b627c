"""Raise home's counters of leased ids above every row that the shards have.

For a home that was restored from a backup: its counters are as old as the backup, and
would give ids a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core.management.base import CommandParser
from django.db import router

from dbfleet import conf
from dbfleet.management import aliases
from dbfleet.sharding import ids
from dbfleet.sharding.ledger import control

HELP = "raise counters of ids above all rows, after home was restored"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--database", default="default", help="a sharded alias")


def run(stdout: Any, *, database: str, **options: Any) -> None:
    """One line for each table with leased ids; raises CommandError for an alias that
    is not sharded. Round trips: one for each shard and table, up to four to home."""
    wrapper = aliases.sharded(database, "leases no ids")
    for table, field in _leased(wrapper):
        highest = _highest(wrapper, table, field.column)
        following = _following(wrapper, table.name, field.column)
        if following > highest:
            stdout.write(f"{table.name}: {highest} is the highest, {following} follows")
            continue
        _raise(wrapper, table.name, field.column, highest)
        stdout.write(
            f"{table.name}: {highest} is the highest and {following} would have "
            f"followed: raised to {highest + 1}"
        )
    ids.forget(wrapper)


def _leased(wrapper: Any) -> Iterator[tuple[Any, Any]]:
    """The tables of an alias whose automatic keys are leased."""
    settings = conf.settings()
    for model in apps.get_models(include_auto_created=True):
        opts: Any = model._meta
        if opts.proxy or not opts.managed or opts.auto_field is None:
            continue
        if not router.allow_migrate_model(wrapper.alias, model):
            continue
        table = wrapper.routing.table_of(opts)
        is_leased = settings.ids_for(opts.app_label, opts.model_name) == conf.LEASED
        if is_leased and (table.is_sharded or table.is_reference):
            yield table, opts.auto_field


def _highest(wrapper: Any, table: Any, column: str) -> int:
    quote = wrapper.ops.quote_name
    sql = f"SELECT MAX({quote(column)}) FROM {quote(table.name)}"
    nodes = [wrapper.nodes.primary(shard) for shard in wrapper.topology.shards]
    return max(int(wrapper.engine.fetch(node, sql)[0][0] or 0) for node in nodes)


def _following(wrapper: Any, table: str, column: str) -> int:
    """The id that home would give next; it is used up by the question."""
    leased = wrapper.engine.lease_ids(
        wrapper, lambda: control(wrapper), table, column, 1
    )
    return int(next(iter(leased)))


def _raise(wrapper: Any, table: str, column: str, highest: int) -> None:
    """Above what is there; where the counter follows by itself, it is told."""
    engine = wrapper.engine
    engine.ensure_ids_above(wrapper, lambda: control(wrapper), table, column, highest)
    for sql in engine.reset_ids_sql(table, column, highest):
        engine.run(wrapper, sql).close()
