"""Writes of a table that a distributed engine spreads, through its coordinator.

The ways of an alias with shards of ours, where home is the one cluster that holds
every row. Two things differ: rows cannot be locked by a SELECT that may reach several
workers, and no UPDATE may name the column that rows are spread by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models.sql import Query
from django.db.models.sql.constants import ROW_COUNT
from django.db.models.sql.subqueries import UpdateQuery

from dbfleet.engines import citus
from dbfleet.errors import RouteRefused
from dbfleet.planner.route import HOME
from dbfleet.sharding import keys
from dbfleet.sharding.inserts import Inserter
from dbfleet.sharding.keyed import KeyedWriter, Step
from dbfleet.sharding.writer import Writer

#: values of the shard key whose rows one SELECT may lock
MAX_LOCKED_KEYS = 100


class _Coordinated(Writer):
    """Rows are locked on the coordinator."""

    def locking(self, pks: Sequence[Sequence[Any]] | None) -> str:
        node = self.routing.node(HOME, is_write=True)
        citus.lock_rows(self.facts.engine, node, self.table.name, pks)
        return ""


class CoordinatedInserter(_Coordinated, Inserter):
    """Inserts objects into one table."""


class CoordinatedWriter(_Coordinated, KeyedWriter):
    """Writes rows of one table by their primary keys."""

    #: the key value that each step's rows have, by the step's ``shard``, where an
    #: UPDATE writes the key
    _stored: dict[str | None, Any] | None = None

    def update(
        self,
        values: list[Any],
        original: Query,
        order_by: Any,
        *,
        computes: bool,
        returning: Sequence[Any] = (),
    ) -> tuple[int, list[Any]]:
        """As the base's; rows whose key changes are deleted and inserted again."""
        written = {field.column for field, _, _ in values}
        self._stored = {} if self.routing.moves_rows(self.table, written) else None
        return super().update(
            values, original, order_by, computes=computes, returning=returning
        )

    def lock(self, query: Query, clause: str) -> list[Any]:
        """Lock the rows that ``query`` finds, one value of the shard key after another;
        returns the primary keys of those that are locked.

        One round trip to find them, one for each value, which are sorted. A row that
        does not match any more, once its lock was waited for, is among them.
        """
        plain = query.clone()
        plain.clear_limits()
        plain.select_for_update = False
        count = len(self.table.pk_fields)
        found: dict[Any, list[Any]] = {}
        for row in self.pick(plain):
            found.setdefault(row[count], []).append(tuple(row[:count]))
        if len(found) > MAX_LOCKED_KEYS:
            raise RouteRefused(
                "E410",
                f"a query of {self.table.label} on {self.wrapper.alias!r} would lock "
                f"rows of {len(found)} values of its shard key, each by a statement of "
                f"its own, and {MAX_LOCKED_KEYS} is the limit: filter by the shard key",
            )
        [key] = self.table.key_fields
        quote = self.wrapper.ops.quote_name
        columns = ", ".join(quote(column) for column in self.table.pk_columns)
        node = self.routing.node(HOME, is_write=True)
        locked: list[Any] = []
        for value in sorted(found):
            where, params = self.by_pk(found[value])
            sql = (
                f"SELECT {columns} FROM {quote(self.table.name)} "
                f"WHERE ({where}) AND {quote(key.column)} = %s {clause}"
            )
            params.append(key.get_db_prep_save(value, connection=self.wrapper))
            locked += self.facts.engine.fetch(node, sql, params)
        return self.pk_values(locked)

    def is_picked(self, field: Any) -> bool:
        return super().is_picked(field) or field in self.table.key_fields

    def _shard_of(self, row: Sequence[Any]) -> str | None:
        if self._stored is None or not self.table.key_fields:
            return HOME
        value = row[len(self.table.pk_fields)]
        name = repr(value)
        self._stored[name] = value
        return name

    def _clusters(self, shard: str | None) -> tuple[str, ...]:
        return (HOME,)

    def _update(self, cluster: str, step: Step, order_by: Any, *, moves: bool) -> int:
        if self._stored is None:
            return super()._update(cluster, step, order_by, moves=False)
        [key] = self.table.key_fields
        old = self._stored[step.shard]
        new = next(self._plain(key, v) for f, _, v in step.values if f == key)
        others = [given for given in step.values if given[0] != key]
        count = self._write_others(step, others, old)
        if new != keys.canonical(key, old, self.wrapper):
            self._move_all(step, old, new)
        return count

    def _plain(self, key: Any, value: Any) -> Any:
        if hasattr(value, "prepare_database_save"):
            value = value.prepare_database_save(key)
        self.facts.shard_of((key,), (value,))  # refuses NULL
        return keys.canonical(key, value, self.wrapper)

    def _write_others(self, step: Step, others: list[Any], old: Any) -> int:
        """The other columns, of rows that are still where they were."""
        [key] = self.table.key_fields
        if not others:
            return len(step.pks)
        update = UpdateQuery(self.table.opts.model)
        update.add_update_fields(others)
        self._filter(update, step)
        update.add_filter(key.attname, old)
        compiler: Any = update.get_compiler(self.wrapper.alias, self.wrapper)
        with self.routing.on(HOME, is_write=True):
            return int(compiler.run_plain(ROW_COUNT) or 0)

    def _move_all(self, step: Step, old: Any, new: Any) -> None:
        [key] = self.table.key_fields
        node = self.routing.node(HOME, is_write=True)
        stored = [key.get_db_prep_save(v, connection=self.wrapper) for v in (old, new)]
        where, params = self.by_pk(self._new_pks(step))
        quote = self.wrapper.ops.quote_name
        where = f"({where}) AND {quote(key.column)} = %s"
        citus.move_rows(
            self.facts.engine,  # type: ignore[arg-type]
            node,
            self.table.name,
            where,
            [*params, stored[0]],
            (key.column, stored[1]),
        )

    def mover(self, written: set[str]) -> None:
        """Nothing is left to move: each step moved its own."""
