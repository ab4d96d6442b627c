"""What every write to a sharded table needs: rules, conditions, clusters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dbfleet.planner.route import HOME
from dbfleet.planner.tables import Table
from dbfleet.planner.uses import Facts
from dbfleet.sharding.claims import Claims


class Writer:
    """Writes of one table through one alias wrapper."""

    def __init__(self, routing: Any, table: Table) -> None:
        self.routing, self.table = routing, table
        self.wrapper = routing.wrapper
        self.facts: Facts = routing.facts()
        self.rules = routing.claim_rules(table)
        self.transaction = self.wrapper.transaction

    def claims(self, rules: Sequence[Any] | None = None) -> Claims:
        chosen = self.rules if rules is None else rules
        return Claims(self.facts, self.table, chosen, self.wrapper)

    def fixed_clusters(self) -> tuple[str, ...]:
        """Where all rows of the table go; empty if each row has its own shard."""
        if self.table.is_reference:
            return tuple(dict.fromkeys((HOME, *self.facts.shards)))
        return () if self.table.is_sharded else (HOME,)

    def locking(self, pks: Sequence[Sequence[Any]] | None) -> str:
        """What makes a SELECT lock the rows with these keys, or those it finds.

        Of two writers of a row, the later one finds what the other claimed.
        """
        if not self.wrapper.features.has_select_for_update:
            return ""
        return f" {self.wrapper.ops.for_update_sql()}"

    # -- conditions -------------------------------------------------------------------

    def pks_of(self, objs: Iterable[Any]) -> list[tuple[Any, ...]]:
        fields = self.table.pk_fields
        return [tuple(getattr(obj, f.attname) for f in fields) for obj in objs]

    def pk_values(self, pks: list[Any]) -> list[Any]:
        return [pk[0] if len(pk) == 1 else tuple(pk) for pk in pks]

    def by_pk(self, pks: Iterable[Sequence[Any]]) -> tuple[str, list[Any]]:
        return self.by_values(list(self.table.pk_fields), list(pks))

    def by_values(
        self, fields: Sequence[Any], rows: Sequence[Sequence[Any]]
    ) -> tuple[str, list[Any]]:
        """``WHERE`` text that finds rows by values of some columns.

        Values are sent as a lookup sends them: what may not be stored, such as an
        automatic key of 0 on MySQL, may be looked for.
        """
        quote = self.wrapper.ops.quote_name
        prep = [
            [
                field.get_db_prep_value(
                    field.get_prep_value(value), self.wrapper, prepared=True
                )
                for field, value in zip(fields, row, strict=True)
            ]
            for row in rows
        ]
        if len(fields) == 1:
            values = [value for [value] in prep]
            column = quote(fields[0].column)
            if all(type(value) is int for value in values):
                # Thousands of numbers are read much faster than so many parameters.
                return f"{column} IN ({', '.join(map(str, values))})", []
            return f"{column} IN ({', '.join(['%s'] * len(values))})", values
        one = "(" + " AND ".join(f"{quote(f.column)} = %s" for f in fields) + ")"
        return " OR ".join([one] * len(prep)), [v for r in prep for v in r]
