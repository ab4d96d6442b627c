"""Adds the keys that rows have and a directory lacks.

Safe beside writers: a key that is found on a shard has rows there, so its place is
certain, and adding it is what a writer of that key would have done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.apps import apps
from django.db import router

from dbfleet.planner.tables import Table
from dbfleet.sharding.directory import BATCH, directory_of


@dataclass
class Found:
    """What a repair saw: keys, by batches of rows, and what came of them."""

    keys: int = 0
    added: int = 0
    #: keys with rows on another shard than the directory says, in words
    torn: list[str] = field(default_factory=list)


class Repair:
    """Of the directory of one alias."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        _, self.directory = directory_of(wrapper.alias)

    def run(self) -> Found:
        """Three round trips or so for each 1000 rows of a table on a shard."""
        found = Found()
        for table in self._tables():
            for shard in self.wrapper.topology.shards:
                for keys in self._batches(table, shard):
                    self._compare(found, table, shard, keys)
        return found

    def _compare(self, found: Found, table: Table, shard: str, keys: list[Any]) -> None:
        there = self.directory.find(keys, self.wrapper)
        missing = {key: shard for key in keys if key not in there}
        if missing:
            self.directory.put_all(missing, self.wrapper)
        found.keys += len(keys)
        found.added += len(missing)
        found.torn += [
            f"{key} of {table.label} on {shard}, not {known}"
            for key, known in there.items()
            if known != shard
        ]

    def _tables(self) -> Iterator[Table]:
        for model in apps.get_models(include_auto_created=True):
            opts = model._meta
            if opts.proxy or not opts.managed:
                continue
            if not router.allow_migrate_model(self.wrapper.alias, model):
                continue
            table = self.wrapper.routing.table_of(opts)
            if table.is_sharded and len(table.key_fields) == 1:
                yield table

    def _batches(self, table: Table, shard: str) -> Iterator[list[Any]]:
        """Keys of the rows, in the order of their primary keys; as Python values.

        Not DISTINCT: to a collation that ignores case two keys may be one.
        """
        [key] = table.key_fields
        quote = self.wrapper.ops.quote_name
        pk = ", ".join(map(quote, table.pk_columns))
        marks = ", ".join(["%s"] * len(table.pk_columns))
        node = self.wrapper.routing.node(shard, is_write=False)
        last: list[Any] = []
        while True:
            where = f"WHERE ({pk}) > ({marks}) " if last else ""
            rows = self.wrapper.engine.fetch(
                node,
                f"SELECT {quote(key.column)}, {pk} FROM {quote(table.name)} {where}"
                f"ORDER BY {pk} LIMIT {BATCH}",
                last,
            )
            if not rows:
                return
            last = list(rows[-1][1:])
            yield list(self._keys_in(table, key, {row[0] for row in rows}))

    def _keys_in(self, table: Table, key: Any, stored: set[Any]) -> Iterator[Any]:
        column = key.get_col(table.name)
        converters = [
            *self.wrapper.ops.get_db_converters(column),
            *key.get_db_converters(self.wrapper),
        ]
        for value in stored:
            for convert in converters:
                value = convert(value, column, self.wrapper)
            if self.directory.takes(value):
                yield value
