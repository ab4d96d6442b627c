"""Which tables an alias knows and where each one's rows live.

Built from models; a table without a model is home's own. Pure: no I/O.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from dbfleet import lexer
from dbfleet.errors import RouteRefused
from dbfleet.placement import Hop, Local, Reference, Sharded, layout
from dbfleet.topology import Topology


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a model on a sharded alias."""

    name: str
    opts: Any
    layout: Local | Reference | Sharded
    #: of every model that shares the table, such as an unmanaged one
    columns: tuple[str, ...]

    @property
    def label(self) -> str:
        return str(self.opts.label)

    @cached_property
    def is_sharded(self) -> bool:
        return isinstance(self.layout, Sharded)

    @cached_property
    def is_reference(self) -> bool:
        return isinstance(self.layout, Reference)

    @cached_property
    def key_path(self) -> tuple[Hop, ...]:
        """Foreign keys to follow before the key's own fields are reached."""
        key = self.layout.key if isinstance(self.layout, Sharded) else None
        return key.path if key is not None else ()

    @cached_property
    def key_fields(self) -> tuple[Any, ...]:
        """The fields of this table that are its shard key; empty with a path."""
        key = self.layout.key if isinstance(self.layout, Sharded) else None
        if key is None or key.path:
            return ()
        return tuple(self.opts.get_field(name) for name in key.fields)

    @cached_property
    def key_columns(self) -> tuple[str, ...]:
        return tuple(f.column for f in self.key_fields)

    @cached_property
    def pins(self) -> dict[tuple[str, bool, int | None], Any]:
        """Routes to one shard, made once: (shard, in a transaction) -> route."""
        return {}

    @cached_property
    def pin_reason(self) -> str:
        """Why one shard is enough, in words."""
        key = ", ".join(self.key_columns) or "its parent"
        return f"the filters fix the shard key of {self.label} ({key})"

    @property
    def pk_fields(self) -> tuple[Any, ...]:
        return tuple(self.opts.pk_fields)

    @cached_property
    def pk_columns(self) -> tuple[str, ...]:
        return tuple(f.column for f in self.pk_fields)


@dataclass(frozen=True, slots=True)
class _Known:
    """The tables of one registry, when it had ``count`` models."""

    count: int
    tables: dict[str, Table]
    #: by lower-cased name, as the lexer gives names
    folded: dict[str, list[Table]]
    #: what ``named_in`` found for a text; bounded like the lexer's own cache
    named: dict[str, list[tuple[Table, int]]]


class Tables:
    """The tables of one alias, by name, over any app registry.

    Historical models bring a registry of their own, so the tables of a registry
    are kept with it and made anew when it has grown.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._known: weakref.WeakKeyDictionary[Any, _Known] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, opts: Any) -> Table:
        known = self._known.get(opts.apps)
        if known is not None:
            table = known.tables.get(opts.db_table)
            if table is not None and table.opts is opts:
                return table
        return self._table(opts)

    def _table(self, opts: Any) -> Table:
        columns = tuple(f.column for f in opts.local_concrete_fields)
        return Table(opts.db_table, opts, layout(self.topology, opts), columns)

    def all(self, registry: Any) -> dict[str, Table]:
        """Every table of a registry by name; a model class added later is seen."""
        return self._of(registry).tables

    def named_in(self, sql: str, vendor: str, registry: Any) -> list[tuple[Table, int]]:
        """The tables that a text may use, and how often; too many, never too few.

        Raises RouteRefused for a name with its schema: that is always home's own
        table, past whatever stands for it in a gather.
        """
        known = self._of(registry)
        found = known.named.get(sql)
        if found is None:
            found = self._named_in(sql, vendor, known.folded)
            if len(known.named) >= lexer.CACHED_TEXTS:
                known.named.clear()
            if len(sql) <= lexer.CACHED_TEXT_CHARS:
                known.named[sql] = found
        return found

    def _named_in(
        self, sql: str, vendor: str, folded: dict[str, list[Table]]
    ) -> list[tuple[Table, int]]:
        found: list[tuple[Table, int]] = []
        for name in lexer.names(sql, vendor) & folded.keys():
            for table in folded[name]:
                if lexer.is_qualified(sql, vendor, table.name):
                    self._refuse_schema(table)
                times = lexer.table_occurrences(sql, vendor, table.name)
                if times:
                    found.append((table, times))
        return found

    def _refuse_schema(self, table: Table) -> None:
        if table.is_sharded or table.is_reference:
            raise RouteRefused(
                "E402",
                f"a statement on sharded alias {self.topology.alias!r} names "
                f"{table.name}, the table of {table.label}, with its schema; it was "
                "not sent: leave the schema out",
            )

    def _of(self, registry: Any) -> _Known:
        count = sum(map(len, registry.all_models.values()))
        known = self._known.get(registry)
        if known is not None and known.count == count:
            return known
        tables: dict[str, Table] = {}
        for models in registry.all_models.values():
            for model in models.values():
                opts = model._meta
                if opts.proxy or opts.abstract or opts.swapped:
                    continue
                table = self._table(opts)
                other = tables.get(table.name)
                if other is not None:
                    table = _shared(other, table)
                tables[table.name] = table
        folded: dict[str, list[Table]] = {}
        for table in tables.values():
            folded.setdefault(table.name.lower(), []).append(table)
        known = self._known[registry] = _Known(count, tables, folded, {})
        return known


def _shared(one: Table, other: Table) -> Table:
    """A table of two models: the managed one decides, the columns are of both."""
    first, second = (other, one) if other.opts.managed else (one, other)
    more = tuple(c for c in second.columns if c not in first.columns)
    return replace(first, columns=(*first.columns, *more))
