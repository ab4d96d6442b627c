"""Questions about rows of all shards: what is unique, where they are, how high their
ids go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.apps import apps
from django.db.models import QuerySet

from dbfleet import conf, sessions
from dbfleet.placement.lookups import lookup_fields
from dbfleet.planner.tables import Table, Tables
from dbfleet.sharding import ids, ledger
from dbfleet.sharding.claims import rules_of


class ShardRows:
    """The part of an alias's routing that reads rows of shards for its own ends."""

    wrapper: Any
    topology: Any
    tables: Tables
    node: Any
    keeper: Any
    shard_of: Any
    table_of: Any
    unlogged: Any
    facts: Any
    _rules: dict[Any, Any]
    #: model -> the fields that it is looked up by, and the settings that say so
    _lookups: dict[Any, tuple[Any, ...]]
    _lookups_of: Any = None

    def rules_of(self, table: Table, make: Callable[..., Any]) -> Any:
        """A table's claims rules, made once for each model class."""
        key = table.opts
        if key not in self._rules:
            self._rules[key] = make(self.facts(), table, self.wrapper)
        return self._rules[key]

    def claim_rules(self, table: Table) -> Any:
        """The constraints of a table that are kept by claims."""
        return self.rules_of(table, rules_of)

    def lookup_fields(self, table: Table) -> tuple[Any, ...]:
        """The declared lookups of a table; found once for each set of settings."""
        settings = conf.settings()
        if settings is not self._lookups_of:
            self._lookups_of, self._lookups = settings, {}
        found = self._lookups.get(table.opts)
        if found is None:
            fields = lookup_fields(table.opts) if table.is_sharded else ()
            found = self._lookups[table.opts] = fields
        return found

    def highest(self, table: Table, field: Any) -> int | None:
        """The highest value of a column over all shards; one round trip for each."""
        quote = self.wrapper.ops.quote_name
        sql = f"SELECT max({quote(field.column)}) FROM {quote(table.name)}"
        engine = self.wrapper.engine
        nodes = [self.node(shard, is_write=False) for shard in self.topology.holders]
        found = [engine.fetch(node, sql)[0][0] for node in nodes]
        return max((value for value in found if value is not None), default=None)

    def moves_rows(self, table: Table, columns: set[str]) -> bool:
        """Whether writing these columns may change a row's shard."""
        if table.key_path:
            return table.key_path[0].column in columns
        return bool(columns & set(table.key_columns))

    def locate(self, hop: Any, values: Iterable[Any]) -> dict[Any, str]:
        """The shards of the rows of a parent table that a foreign key refers to.

        No round trip where the key is what is referred to; otherwise one read of the
        primaries for each table on the way. Values without a row are left out.
        """
        model = apps.get_model(hop.model)
        table = self.table_of(model._meta)
        fields = table.key_fields
        if fields and [f.column for f in fields] == [hop.target_column]:
            return {value: self.shard_of(fields, (value,)) for value in values}
        target = next(
            f for f in table.opts.local_concrete_fields if f.column == hop.target_column
        )
        upper = table.key_path[0] if table.key_path else None
        wanted = fields if upper is None else (table.opts.get_field(upper.field),)
        rows: Any = QuerySet(model, using=self.wrapper.alias).filter(
            **{f"{target.attname}__in": list(values)}
        )
        names = [target.attname, *(field.attname for field in wanted)]
        with self.unlogged(), sessions.consistency("strong"):
            found = list(rows.values_list(*names))
        if upper is None:
            return {row[0]: self.shard_of(fields, tuple(row[1:])) for row in found}
        above = self.locate(upper, {row[1] for row in found})
        return {row[0]: above[row[1]] for row in found if row[1] in above}

    # -- flush ------------------------------------------------------------------

    def forget_flushed(self, sql_list: list[str]) -> None:
        """Claims and counters of tables whose rows are gone."""
        is_reset = any(map(self.wrapper.engine.restarts_ids, sql_list))
        for table in self._tables_in(*sql_list):
            for keeper in ledger.keepers(self.wrapper):
                self.wrapper.engine.run(
                    self.keeper(keeper, is_write=True),
                    "DELETE FROM dbfleet_unique WHERE table_name = %s",
                    [table.name],
                ).close()
            if is_reset:
                ids.restart(self.wrapper, table.name)
        ids.forget(self.wrapper)

    def restart_ids(self, sql: str) -> None:
        """Counters of tables whose vendor's own counters were set back: the next id
        is above every row, as it would be there."""
        for table in self._tables_in(sql):
            if table.is_sharded and table.opts.auto_field is not None:
                quote = self.wrapper.ops.quote_name
                column = quote(table.opts.auto_field.column)
                question = f"SELECT MAX({column}) FROM {quote(table.name)}"
                highest = [
                    self.wrapper.engine.fetch(node, question)[0][0] or 0
                    for node in (
                        self.node(s, is_write=False) for s in self.topology.holders
                    )
                ]
                ids.restart(self.wrapper, table.name, max(highest))
        ids.forget(self.wrapper)

    def _tables_in(self, *sql_list: str) -> list[Table]:
        vendor = self.wrapper.vendor
        found = {
            table.name: table
            for sql in sql_list
            for table, _ in self.tables.named_in(sql, vendor, apps)
        }
        return [found[name] for name in sorted(found)]
