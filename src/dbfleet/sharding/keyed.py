"""UPDATE and DELETE by key, where a shard cannot decide from its own rows.

Rows are picked by a SELECT first, with the new values where those need other tables
or move the row. Then: claims are let go, rows written shard by shard, rows whose key
changed carried to their new shard, claims taken again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.core.exceptions import FieldError
from django.db.models import ExpressionWrapper, QuerySet, Subquery, deletion
from django.db.models.expressions import Col
from django.db.models.sql import Query
from django.db.models.sql.constants import ROW_COUNT
from django.db.models.sql.subqueries import DeleteQuery, UpdateQuery
from django.db.models.sql.where import AND

from dbfleet.errors import RouteRefused
from dbfleet.planner.pushdown import conjuncts, is_local_to
from dbfleet.planner.repeatable import parts_of
from dbfleet.relations.constraints import is_holdable
from dbfleet.sharding import branches
from dbfleet.sharding.claims import Claim
from dbfleet.sharding.moves import Mover
from dbfleet.sharding.writer import Writer

#: Django 6.1 and later let the database act on a delete
DatabaseOnDelete: Any = getattr(deletion, "DatabaseOnDelete", ())

#: keys in one WHERE ... IN
BATCH = 1000


@dataclass(slots=True)
class Step:
    """Rows of one shard that get the same new values."""

    shard: str | None
    pks: list[tuple[Any, ...]]
    values: list[Any]


class KeyedWriter(Writer):
    """Writes rows of one table by their primary keys."""

    _conditions: Sequence[Any] = ()
    #: the database would see the old values of a row while it assigns new ones
    _reads_old = False

    def pick(self, query: Query, extra: Iterable[tuple[str, Any]] = ()) -> list[Any]:
        """The rows that ``query`` selects: (pk parts, key parts, *extra values)."""
        select = query.chain(klass=Query)
        select.select_related = False
        select.clear_ordering(force=True)
        select.clear_select_clause()
        select.default_cols = False
        names = [field.name for field in self.table.pk_fields]
        names += [field.name for field in self.table.key_fields]
        for name, expression in extra:
            select.add_annotation(expression, name)
        select.add_fields(names)
        compiler = select.get_compiler(self.wrapper.alias, self.wrapper)
        with self.routing.unlogged():
            return list(compiler.results_iter(tuple_expected=True))

    def _own_conditions(self, query: Query) -> list[Any]:
        """What the query asks of the row alone, which others may change meanwhile."""
        if query.base_table != self.table.name:
            return []
        found = conjuncts(query.where)
        return [node for node in found if is_local_to(node, self.table.name)]

    def _filter(self, write: Query, step: Step) -> None:
        """The rows of a step, if they are still what the pick has seen."""
        found: Any = self.pk_values(step.pks)
        if self._reads_old:
            found = QuerySet(self.table.opts.model).filter(pk__in=found).values("pk")
        write.add_filter("pk__in", found)  # type: ignore[arg-type]
        for condition in self._conditions:
            write.where.add(condition, AND)

    # -- UPDATE -----------------------------------------------------------------

    def update(
        self,
        values: list[Any],
        original: Query,
        order_by: Any,
        *,
        computes: bool,
        returning: Sequence[Any] = (),
    ) -> tuple[int, list[Any]]:
        """Write ``values`` to the rows of ``original``.

        Returns how many rows there were and, raw, their columns ``returning``.

        ``computes``: values that need other tables are computed with the pick; the
        others by the row's own shard, which knows their type.
        """
        names = [f"dbfleet_value_{at}" for at in range(len(values))]
        # Claims are found again by the new primary key, so it has to be known.
        extra = [
            (name, _typed(value, field, original))
            for name, (field, _, value) in zip(names, values, strict=True)
            if hasattr(value, "resolve_expression")
            and (self.is_picked(field) or (computes and _needs_tables(value, original)))
        ]
        self._keep_turns(values, original, {name for name, _ in extra}, names)
        with self.transaction.statement():
            rows = None if extra else self._listed(original)
            if rows is None:
                rows = self.pick(original, extra)
                self._conditions = self._own_conditions(original)
            steps = list(self._steps(rows, values, names, [name for name, _ in extra]))
            self._narrow(steps)
            count = self._write(steps, values, order_by)
            return count, self.read_back(steps, returning)

    def _keep_turns(
        self, values: list[Any], original: Query, picked: set[str], names: list[str]
    ) -> None:
        """Have assignments see of each other what the database would show them.

        Raises RouteRefused (E415) where that is new values, and they are computed from
        old ones.
        """
        if not self.facts.engine.assigns_in_turn:
            return
        late = _late(values)
        if not any(late):
            return
        nested, is_looked_up = list(_nested(original)), False
        if self.wrapper.features.update_can_self_select:
            # MariaDB reads all rows first where a subquery is of the same table, as
            # Django's is for a query over several; else a subquery changes nothing.
            own = self.table.name
            is_looked_up = original.count_active_tables() > 1
            if is_looked_up or any(own in tables for tables in nested):
                self._reads_old = len(self.table.pk_fields) == 1
                if self._reads_old:
                    return
            else:
                nested = []
        for (field, _, _), name, reads in zip(values, names, late, strict=True):
            # What MySQL makes of a subquery is its optimizer's choice.
            if reads and (name in picked or nested or is_looked_up):
                raise RouteRefused(
                    "E415",
                    f"update() of {self.table.label} on alias {self.wrapper.alias!r} "
                    f"computes {field.name} from a column that it assigns before, "
                    "which this database may read with its new value; on shards it "
                    "is computed first. Nothing was written: make it two updates in "
                    "one transaction, or spell the new value out",
                )

    def _listed(self, query: Query) -> list[Any] | None:
        """As :meth:`pick`, without a round trip, where the filters list primary keys
        that are the shard keys; there may be no such rows."""
        table = self.table
        if not table.is_sharded or table.key_fields != table.pk_fields:
            return None
        if self.routing.pinned_shard() is not None:
            return None
        if not all(map(self.facts.is_exact, table.pk_fields)):
            return None
        found = branches.listed(query, table)
        return None if found is None else [(value, value) for value in found]

    def _narrow(self, steps: Sequence[Step]) -> None:
        """Leave the branches of ``bulk_update`` to the shards of their rows."""
        if len(steps) < 2 or len(self.table.pk_fields) > 1:
            return
        every = {pk for step in steps for (pk,) in step.pks}
        for step in steps:
            elsewhere = every.difference(pk for (pk,) in step.pks)
            step.values = branches.narrowed(
                step.values, self.table.pk_fields[0], elsewhere
            )

    def is_picked(self, field: Any) -> bool:
        """Whether an expression for this column is computed before rows are written."""
        # A reference table is to have the same value on every node.
        return field in self.table.pk_fields or self.table.is_reference

    def read_back(
        self, steps: list[Step], fields: Sequence[Any], clusters: Sequence[str] = ()
    ) -> list[Any]:
        """Columns of rows that were written, raw; ``clusters`` have them all."""
        if not fields:
            return []
        quote = self.wrapper.ops.quote_name
        columns = ", ".join(quote(field.column) for field in fields)
        clusters = clusters or self.fixed_clusters()[:1] or self.facts.shards
        rows: list[Any] = []
        for step in steps:
            where, params = self.by_pk(self._new_pks(step))
            sql = f"SELECT {columns} FROM {quote(self.table.name)} WHERE {where}"
            for cluster in clusters:
                node = self.routing.node(cluster, is_write=False)
                rows += self.facts.engine.fetch(node, sql, params)
        return rows

    def _steps(
        self, rows: list[Any], values: list[Any], names: list[str], computed: list[str]
    ) -> Iterator[Step]:
        pk_count = len(self.table.pk_fields)
        start = pk_count + len(self.table.key_fields)  # annotations follow the fields
        groups: dict[Any, Step] = {}
        for row in rows:
            new = tuple(row[start : start + len(computed)])
            shard = self._shard_of(row)
            try:
                step = groups.get((shard, new))
            except TypeError:  # an unhashable value, such as JSON
                step, key = None, object()
            else:
                key = (shard, new)
            if step is None:
                found = dict(zip(computed, new, strict=True))
                final = [
                    (field, model, found.get(name, value))
                    for name, (field, model, value) in zip(names, values, strict=True)
                ]
                step = groups[key] = Step(shard, [], final)
            step.pks.append(tuple(row[:pk_count]))
        # Rows are locked shard by shard, in the order that every statement keeps.
        for step in sorted(groups.values(), key=lambda step: step.shard or ""):
            # A filter on joined tables may have found a row several times.
            pks = list(dict.fromkeys(step.pks))
            for at in range(0, len(pks), BATCH):
                yield Step(step.shard, pks[at : at + BATCH], step.values)

    def _shard_of(self, row: Sequence[Any]) -> str | None:
        fields = self.table.key_fields
        if not self.table.is_sharded or not fields:
            return None
        start = len(self.table.pk_fields)
        return self.facts.shard_of(fields, tuple(row[start : start + len(fields)]))

    def _clusters(self, shard: str | None) -> tuple[str, ...]:
        if shard is not None:
            return (shard,)
        return self.fixed_clusters() or self.facts.shards

    def _write(self, steps: list[Step], values: list[Any], order_by: Any) -> int:
        written = {field.column for field, _, _ in values}
        rules = [rule for rule in self.rules if rule.columns & written]
        moves = self.routing.moves_rows(self.table, written)
        if moves or written & set(self.table.pk_columns):
            # Every claim names its row by the primary key, and the shard it is on.
            rules = list(self.rules)
        before = self._claims_in(steps, rules, locks=True)
        mover = self.mover(written)
        places = [(step, c) for step in steps for c in self._clusters(step.shard)]
        if mover is not None:
            for step, cluster in places:
                mover.look(cluster, step.pks)
        count = 0
        for step in steps:
            counts = [
                self._update(c, step, order_by, moves=moves)
                for c in self._clusters(step.shard)
            ]
            count += max(counts) if self.table.is_reference else sum(counts)
        if mover is None:
            after = self._claims_in(steps, rules, is_written=True)
            self.claims(rules).change(before, after)
            return count
        for step, cluster in places:
            mover.move(cluster, self._new_pks(step))
        self.claims(rules).change(before, mover.claims_now(rules))
        mover.change_claims()
        return count

    def mover(self, written: set[str]) -> Mover | None:
        """What carries rows to other shards, if writing these columns may do that."""
        return (
            Mover(self, written)
            if self.routing.moves_rows(self.table, written)
            else None
        )

    def _update(self, cluster: str, step: Step, order_by: Any, *, moves: bool) -> int:
        update: Any = UpdateQuery(self.table.opts.model)
        update.values = list(step.values)  # resolved, as the statement had them
        self._filter(update, step)
        update.order_by = order_by  # MySQL checks unique keys row by row
        compiler = update.get_compiler(self.wrapper.alias, self.wrapper)
        node = self.routing.node(cluster, is_write=True)
        # A row that moves refers to rows of its new shard, where the copy is checked.
        checks = self.facts.engine.unchecked(node) if moves else nullcontext()
        with checks, self.routing.on(cluster, is_write=True):
            return int(compiler.run_plain(ROW_COUNT) or 0)

    def _new_pks(self, step: Step) -> list[tuple[Any, ...]]:
        changed = {field.column: value for field, _, value in step.values}
        return [
            tuple(
                changed.get(field.column, old)
                for field, old in zip(self.table.pk_fields, pk, strict=True)
            )
            for pk in step.pks
        ]

    # -- claims -------------------------------------------------------------------

    def _claims_in(
        self,
        steps: Iterable[Step],
        rules: Sequence[Any],
        *,
        locks: bool = False,
        is_written: bool = False,
    ) -> list[Claim]:
        """What the rows of the steps claim; one round trip for each cluster of each."""
        found: list[Claim] = []
        for step in steps if rules else ():
            pks = self._new_pks(step) if is_written else step.pks
            where, params = self.by_pk(pks)
            if locks:
                where += self.locking(pks)
            for cluster in self._clusters(step.shard):
                node = self.routing.node(cluster, is_write=True)
                found += self.claims(rules).of_rows(node, where, params, cluster)
        return found

    # -- DELETE -------------------------------------------------------------------

    def delete(self, original: Query) -> int:
        """Delete the rows of ``original``, letting go of what they claim."""
        with self.transaction.statement():
            steps = list(self._steps(self.pick(original), [], [], []))
            if not self.referrers:  # their rows may be of this table, and change
                self._conditions = self._own_conditions(original)
            for step in steps if self.referrers else ():
                self._act_on_referrers(step.pks)
            before = self._claims_in(steps, self.rules, locks=True)
            count = sum(map(self._delete, steps))
            is_complete = count == sum(len(step.pks) for step in steps)
            # Rows may stay after all, and so do their claims.
            after = [] if is_complete else self._claims_in(steps, self.rules)
            self.claims().change(before, after)
            return count

    @cached_property
    def referrers(self) -> list[Any]:
        """Foreign keys whose ON DELETE no database of the fleet can carry out."""
        return [
            relation.field
            for relation in self.table.opts.related_objects
            if isinstance(relation.on_delete, DatabaseOnDelete)
            and self._has_table(relation.field.model._meta)
            and not is_holdable(self.facts.topology, relation.field)
        ]

    def _has_table(self, opts: Any) -> bool:
        """Whether this vendor has the table; a model may require a feature."""
        return bool(not opts.managed or opts.can_migrate(self.wrapper))

    def _act_on_referrers(self, pks: list[tuple[Any, ...]]) -> None:
        """What ON DELETE would do, without signals, as a database does."""
        for field in self.referrers:
            rows: Any = QuerySet(field.model, using=self.wrapper.alias).filter(
                **{f"{field.name}__pk__in": self.pk_values(pks)}
            )
            match field.remote_field.on_delete.operation:
                case "CASCADE":
                    rows._raw_delete(self.wrapper.alias)
                case "SET NULL":
                    rows.update(**{field.name: None})
                case _:
                    rows.update(**{field.name: field.db_default})

    def _delete(self, step: Step) -> int:
        counts = []
        for cluster in self._clusters(step.shard):
            delete = DeleteQuery(self.table.opts.model)
            delete.get_initial_alias()
            self._filter(delete, step)
            compiler = delete.get_compiler(self.wrapper.alias, self.wrapper)
            with self.routing.on(cluster, is_write=True):
                counts.append(int(compiler.run_plain(ROW_COUNT) or 0))
        return max(counts) if self.table.is_reference else sum(counts)


def _late(values: list[Any]) -> list[bool]:
    """Of each new value, whether it reads a column that was assigned before it."""
    assigned: set[str] = set()
    found = []
    for field, _, value in values:
        columns = {p.target.column for p in parts_of(value) if isinstance(p, Col)}
        found.append(not assigned.isdisjoint(columns))
        assigned.add(field.column)
    return found


def _nested(query: Query) -> Iterator[set[str]]:
    """The tables of each query within the conditions of another one."""
    pending: list[Any] = [query.where]
    while pending:
        node = pending.pop()
        if isinstance(node, Query):
            used = (alias for alias, count in node.alias_refcount.items() if count)
            yield {node.alias_map[alias].table_name for alias in used}
            pending.append(node.where)
        elif hasattr(node, "get_source_expressions"):
            pending += node.get_source_expressions()


def _needs_tables(value: Any, query: Query) -> bool:
    parts = value.resolve_expression(query.clone()).flatten()
    return any(isinstance(part, (Subquery, Query)) for part in parts)


def _typed(value: Any, field: Any, query: Query) -> Any:
    """An assigned expression as a selected one, which must know its own type."""
    try:
        _ = value.resolve_expression(query.clone()).output_field
    except FieldError:
        return ExpressionWrapper(value, output_field=field)
    return value
