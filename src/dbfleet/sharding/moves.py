"""Rows whose shard key changes move to their new shard, with the rows that live there.

A row takes along the rows whose place it decides: those that reach their shard key
through a foreign key to it, and theirs. All of it is part of one transaction over both
shards, which begins when the row is locked where it was. Invariant: before its commit
every one of these rows is on the old shard, after it every one is on the new one, and
home's claims name the shard that a row is on.

What keeps new rows from being added to the old shard meanwhile is the foreign key
itself: the server locks the row that is referred to, or refuses when it is gone. So a
row that is referred to without a constraint does not move.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import ForeignKey
from django.db.utils import IntegrityError

from dbfleet import conf
from dbfleet.errors import InvalidShardKey, MoveRefused, NullShardKey
from dbfleet.placement import alias_for
from dbfleet.planner.tables import Table
from dbfleet.relations.constraints import is_holdable
from dbfleet.sharding.claims import Claim
from dbfleet.sharding.writer import Writer

#: keys in one WHERE ... IN
BATCH = 1000

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one table that move together; keys as the server gave them."""

    writer: Writer
    pks: list[Row]


class Mover:
    """Carries the rows of one UPDATE of ``writer``'s table to their shards."""

    def __init__(self, writer: Writer, written: set[str]) -> None:
        self.writer, self.table = writer, writer.table
        self.routing, self.wrapper = writer.routing, writer.wrapper
        self.engine, self.facts = writer.facts.engine, writer.facts
        self._quote = self.wrapper.ops.quote_name
        self._limit = conf.settings().gather_for(self.facts.topology).max_rows
        self._left = self._limit
        #: foreign keys to columns that the UPDATE writes, and what they referred to
        self._referring = [
            field for field in self._foreign_keys() if _target(field).column in written
        ]
        #: the table's own foreign keys that the UPDATE writes
        self._written_keys = [
            field
            for field in self.table.opts.local_concrete_fields
            if isinstance(field, ForeignKey)
            and field.column in written
            and getattr(field, "db_constraint", True)
            and is_holdable(self.facts.topology, field)
        ]
        self._referred: dict[tuple[str, Any], set[Any]] = {}
        #: shard -> rows of the table that are there now
        self.places: dict[str, list[Row]] = {}
        self._claims: dict[str, tuple[Writer, list[Claim], list[Claim]]] = {}

    # -- rows that refer to what changes --------------------------------------------

    def _foreign_keys(self) -> Iterator[Any]:
        """Foreign keys to the table that its shards' own databases hold."""
        for relation in self.table.opts.get_fields(include_hidden=True):
            field = getattr(relation, "field", None)
            if not relation.auto_created or not isinstance(field, ForeignKey):
                continue
            if _target(field).model._meta.db_table != self.table.name:
                continue
            if is_holdable(self.facts.topology, field) and self._is_here(
                field.model._meta
            ):
                yield field

    def _is_here(self, opts: Any) -> bool:
        """Whether the alias has the table; a model may require a vendor's feature."""
        there = alias_for(opts.app_label, opts.model_name)
        if isinstance(there, str) and there != self.facts.alias:
            return False
        return bool(not opts.managed or opts.can_migrate(self.wrapper))

    def look(self, cluster: str, pks: Sequence[Row]) -> None:
        """Remember what others may refer rows by, which are about to be written."""
        for field in self._referring:
            column = self._quote(_target(field).column)
            where, params = self.writer.by_pk(pks)
            found = self._fetch(cluster, self.table, column, where, params)
            known = self._referred.setdefault((cluster, field), set())
            known |= {value for (value,) in found}

    def _refuse_referred(self, cluster: str) -> None:
        """Some servers do not check it, since the new parent is on another shard."""
        for field in self._referring:
            values = sorted(self._referred.get((cluster, field), ()), key=str)
            child, column = field.model._meta.db_table, self._quote(field.column)
            for batch in _batches([(value,) for value in values]):
                where, params = self._where([field.column], batch)
                target = self._quote(_target(field).column)
                where += (
                    f" AND NOT EXISTS (SELECT 1 FROM {self._quote(self.table.name)} p "
                    f"WHERE p.{target} = {self._quote(child)}.{column}) LIMIT 1"
                )
                node = self.routing.node(cluster, is_write=True)
                sql = f"SELECT {column} FROM {self._quote(child)} WHERE {where}"
                if self.engine.fetch(node, sql, params):
                    raise MoveRefused(
                        "E411",
                        f"{self.table.label}.{_target(field).name} of a row would "
                        f"change, and rows of {field.model._meta.label} refer to it by "
                        f"{field.name}; nothing was written: insert a new row, let "
                        "them refer to it, and delete the old one",
                    )

    # -- the move -------------------------------------------------------------------

    def move(self, cluster: str, pks: Sequence[Row]) -> None:
        """Carry those of the rows on ``cluster`` that belong elsewhere now.

        Two round trips for the rows, and one read where a parent decides; for each new
        shard three for each table of what moves, and two for its claims. Raises
        MoveRefused E411, E412, UncoveredShardKey.
        """
        self._refuse_referred(cluster)
        for target, rows in self._targets(cluster, pks).items():
            self.places.setdefault(target, []).extend(rows)
            if target != cluster:
                self._carry(cluster, target, rows)
            elif self.engine.checks_at_once:
                self._check_unchecked(cluster, rows)

    def _check_unchecked(self, cluster: str, pks: list[Row]) -> None:
        """The foreign keys that were written unchecked, of rows that nobody copies."""
        for field in self._written_keys:
            parent = _target(field)
            table = self._quote(self.table.name)
            column = f"{table}.{self._quote(field.column)}"
            for batch in _batches(pks):
                where, params = self._where(self.table.pk_columns, batch)
                where += (
                    f" AND {column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM "
                    f"{self._quote(parent.model._meta.db_table)} p "
                    f"WHERE p.{self._quote(parent.column)} = {column}) LIMIT 1"
                )
                if found := self._fetch(cluster, self.table, column, where, params):
                    raise IntegrityError(
                        f"{self.table.label}.{field.name} would refer to "
                        f"{found[0][0]!r}, which {parent.model._meta.label} does not "
                        "have (foreign key constraint)"
                    )

    def _targets(self, cluster: str, pks: Sequence[Row]) -> dict[str, list[Row]]:
        """Shard -> primary keys of rows that belong there."""
        table = self.table
        hop = table.key_path[0] if table.key_path else None
        fields = list(table.key_fields)
        if hop is not None:
            fields = [table.opts.get_field(hop.field)]
        names = ", ".join(self._quote(f.column) for f in [*table.pk_fields, *fields])
        where, params = self.writer.by_pk(pks)
        where += self.writer.locking(pks)  # against rows that would refer to it
        rows = self._fetch(cluster, table, names, where, params)
        count = len(table.pk_fields)
        keys = [tuple(row[count:]) for row in rows]
        if hop is None:
            places = [self.facts.shard_of(tuple(fields), key) for key in keys]
        else:
            places = self._parents(fields[0], hop, [key[0] for key in keys])
        found: dict[str, list[Row]] = {}
        for row, place in zip(rows, places, strict=True):
            found.setdefault(place, []).append(row[:count])
        return found

    def _parents(self, field: Any, hop: Any, given: Sequence[Any]) -> list[str]:
        """Where the parents are; the row's own shard was not asked to check them."""
        label = f"{self.table.label} lives with its {field.name}"
        if None in given:
            raise NullShardKey(
                "E401", f"{label}, which would be NULL; nothing was written"
            )
        values = [_target(field).to_python(value) for value in given]
        found = self.routing.locate(hop, set(values))
        if missing := set(values) - found.keys():
            raise InvalidShardKey(
                "E404",
                f"{label}, and {hop.table} has no row {min(map(repr, missing))}; "
                "nothing was written: save the parent first",
            )
        return [found[value] for value in values]

    def _carry(self, source: str, target: str, pks: list[Row]) -> None:
        family = [_Part(self.writer, pks)]
        self._count(pks, self.table)
        family += self._below(source, self.table, pks, {self.table.name})
        for part in family:  # a row after what it refers to
            self._note_claims(part, source, is_moved=False)
            self._copy(part, source, target)
        for part in reversed(family):
            self._delete(part, source)
        for part in family:
            self._note_claims(part, target, is_moved=True)

    def _below(
        self, cluster: str, table: Table, pks: Sequence[Row], above: set[str]
    ) -> Iterator[_Part]:
        """The rows that live with some rows of ``table``, locked; parents first."""
        for child in self.facts.tables.all(table.opts.apps).values():
            hop = child.key_path[0] if child.key_path else None
            if hop is None or hop.table != table.name or not self._is_here(child.opts):
                continue
            self._check_guarded(table, child, hop, above)
            writer = Writer(self.routing, child)
            found: list[Row] = []
            for values in _batches(self._values(cluster, table, hop, pks)):
                where, params = self._where([hop.column], values)
                where += f" LIMIT {self._left + 1}{writer.locking(None)}"
                names = ", ".join(map(self._quote, child.pk_columns))
                rows = self._fetch(cluster, child, names, where, params)
                self._count(rows, child)
                found += rows
            if found:
                yield _Part(writer, found)
                yield from self._below(cluster, child, found, above | {child.name})

    def _check_guarded(
        self, table: Table, child: Table, hop: Any, above: set[str]
    ) -> None:
        field = child.opts.get_field(hop.field)
        is_checked = self.wrapper.features.supports_foreign_keys and field.db_constraint
        if is_checked and child.name not in above:
            return
        raise MoveRefused(
            "E411",
            f"a row of {table.label} would change its shard, and {child.label} lives "
            f"with it by {field.name}, which no foreign key of the database checks: a "
            "row could be added to the old shard meanwhile. Nothing was written: "
            f"insert a new row, let the rows of {child.label} refer to it, and delete "
            "the old one",
        )

    def _values(
        self, cluster: str, table: Table, hop: Any, pks: Sequence[Row]
    ) -> list[Row]:
        """What children refer to rows of ``table`` by."""
        if table.pk_columns == (hop.target_column,):
            return list(pks)
        found: list[Row] = []
        for batch in _batches(pks):
            where, params = self._where(table.pk_columns, batch)
            column = self._quote(hop.target_column)
            found += self._fetch(cluster, table, column, where, params)
        return [row for row in found if row[0] is not None]

    def _count(self, rows: Sequence[Row], table: Table) -> None:
        self._left -= len(rows)
        if self._left < 0:
            raise MoveRefused(
                "E412",
                f"rows of {self.table.label} on {self.facts.alias!r} would change "
                f"their shard, and with what lives with them they are more than "
                f"{self._limit}, of which the last are of {table.label}; nothing was "
                "written: write fewer rows at once, or raise GATHER['MAX_ROWS']",
            )

    def _copy(self, part: _Part, source: str, target: str) -> None:
        table = part.writer.table
        here = self.routing.node(source, is_write=True)
        there = self.routing.node(target, is_write=True)
        for batch in _batches(part.pks):
            where, params = self._where(table.pk_columns, batch)
            self.engine.copy_rows(here, there, table.name, where, params)

    def _delete(self, part: _Part, cluster: str) -> None:
        table = part.writer.table
        node = self.routing.node(cluster, is_write=True)
        for batch in _batches(part.pks):
            where, params = self._where(table.pk_columns, batch)
            sql = f"DELETE FROM {self._quote(table.name)} WHERE {where}"
            self.engine.run(node, sql, params).close()

    # -- claims ---------------------------------------------------------------------

    def _note_claims(self, part: _Part, cluster: str, *, is_moved: bool) -> None:
        """What rows claim before and after they moved; the UPDATE's own rows are its
        business."""
        writer = part.writer
        if writer is self.writer or not writer.rules:
            return
        _, before, after = self._claims.setdefault(writer.table.name, (writer, [], []))
        claims = after if is_moved else before
        claims.extend(self._claimed(writer, cluster, part.pks))

    def _claimed(
        self, writer: Writer, cluster: str, pks: Sequence[Row], rules: Any = None
    ) -> Iterator[Claim]:
        node = self.routing.node(cluster, is_write=True)
        for batch in _batches(pks):
            where, params = self._where(writer.table.pk_columns, batch)
            yield from writer.claims(rules).of_rows(node, where, params, cluster)

    def claims_now(self, rules: Sequence[Any]) -> list[Claim]:
        """What the UPDATE's own rows claim, where they are now."""
        if not rules:
            return []
        return [
            claim
            for cluster, pks in self.places.items()
            for claim in self._claimed(self.writer, cluster, pks, rules)
        ]

    def change_claims(self) -> None:
        """Make home's claims of the rows that went along name their new shard."""
        for name in sorted(self._claims):
            writer, before, after = self._claims[name]
            writer.claims().change(before, after)

    # -- SQL ------------------------------------------------------------------------

    def _fetch(
        self,
        cluster: str,
        table: Table,
        columns: str,
        where: str,
        params: Sequence[Any],
    ) -> list[Row]:
        node = self.routing.node(cluster, is_write=True)
        sql = f"SELECT {columns} FROM {self._quote(table.name)} WHERE {where}"
        return list(self.engine.fetch(node, sql, params))

    def _where(
        self, columns: Sequence[str], rows: Sequence[Row]
    ) -> tuple[str, list[Any]]:
        """Finds rows by values that the server gave, which need no conversion."""
        params = [value for row in rows for value in row]
        if len(columns) == 1:
            marks = ", ".join(["%s"] * len(rows))
            return f"{self._quote(columns[0])} IN ({marks})", params
        one = " AND ".join(f"{self._quote(column)} = %s" for column in columns)
        return "(" + " OR ".join([f"({one})"] * len(rows)) + ")", params


def _target(field: Any) -> Any:
    """The column that a foreign key refers to."""
    return field.target_field


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    found = list(rows)
    for start in range(0, len(found), BATCH):
        yield found[start : start + BATCH]
