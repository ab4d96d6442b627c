"""INSERT on a sharded alias: ids, shards, conflicts, claims.

The SQL stays Django's: its own compiler runs once for each shard, over that shard's
objects. Several steps happen inside ``transaction.statement()``, wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from django.db.models import Field, Subquery
from django.db.models.constants import OnConflict
from django.db.models.expressions import DatabaseDefault
from django.db.utils import ProgrammingError

from dbfleet.conf import TIME, UUID7, settings
from dbfleet.errors import (
    ConfigurationError,
    InvalidShardKey,
    NullShardKey,
    RouteRefused,
)
from dbfleet.planner.route import HOME
from dbfleet.sharding import ids
from dbfleet.sharding.claims import Claim, Claims
from dbfleet.sharding.uuids import uuid7
from dbfleet.sharding.writer import Writer


class Inserter(Writer):
    """Inserts objects into one table."""

    _settled: dict[str, dict[int, Any]] | None = None
    _gave_uuids = False

    def insert(
        self,
        compiler: Any,
        execute: Callable[..., Any],
        returning: Any,
    ) -> Any:
        """Insert ``compiler.query.objs``; rows come back in their order."""
        restore = self._assign_ids(compiler.query)
        try:
            rows = self._insert(compiler, execute, returning)
            if self._gave_uuids and not (rows or returning):
                # Django counts a row for each, whose key the database had made.
                rows = [()] * len(compiler.query.objs)
            return rows
        finally:
            # What one database would tell is what RETURNING gave, and Django sets.
            restore()
            self._settled = None
            compiler.hold({})

    def _insert(
        self, compiler: Any, execute: Callable[..., Any], returning: Any
    ) -> Any:
        clusters = self.fixed_clusters()
        self._settle(compiler)
        if clusters == (HOME,):
            with self.routing.on(HOME, is_write=True):
                return execute(returning)
        if clusters:
            return self._insert_everywhere(clusters, execute, returning)
        query = compiler.query
        if query.on_conflict == OnConflict.UPDATE and self._needs_search(query):
            return self._upsert_each(compiler, execute, returning)
        if query.on_conflict == OnConflict.IGNORE and self._may_meet(query.objs):
            return self._insert_in_turn(compiler, execute, returning)
        if query.on_conflict == OnConflict.UPDATE and self._may_free(query):
            return self._insert_in_turn(compiler, execute, returning)
        groups = self._groups(query.objs)
        return self._insert_groups(compiler, groups, execute, returning)

    def _may_meet(self, objs: Sequence[Any]) -> bool:
        """Whether two of the objects may claim the same value.

        A shard that sees one of them alone could not know which came first. Text is
        compared loosely, as some collation might.
        """
        if len(objs) == 1 or not self.rules:
            return False
        for group in self._unique_groups():
            seen = set()
            for obj in objs:
                values = [self._value(obj, field) for field in group]
                if None in values:
                    continue
                text = tuple(str(value).casefold().strip() for value in values)
                if text in seen or not all(map(str.isascii, text)):
                    return True
                seen.add(text)
        return any(rule.is_computed for rule in self.rules)

    def _may_free(self, query: Any) -> bool:
        """Whether the update of one row may free a unique value that another object
        has: which of them comes first decides whether that one is refused."""
        columns = {field.column for field in query.update_fields}
        return len(query.objs) > 1 and any(
            rule.is_computed or rule.columns & columns for rule in self.rules
        )

    def _insert_in_turn(
        self, compiler: Any, execute: Callable[..., Any], returning: Any
    ) -> Any:
        """One object at a time, in their order: the first of equals stays."""
        query = compiler.query
        objs, rows = query.objs, []
        with self.transaction.statement():
            try:
                for at, obj in enumerate(objs):
                    query.objs = [obj]
                    groups = self._groups(query.objs)
                    quietly = self.routing.unlogged() if at else nullcontext()
                    with quietly:
                        rows += self._insert_groups(
                            compiler, groups, execute, returning
                        )
            finally:
                query.objs = objs
        return rows

    def _insert_everywhere(
        self, clusters: tuple[str, ...], execute: Callable[..., Any], returning: Any
    ) -> Any:
        results = []
        with self.transaction.statement():
            for at, cluster in enumerate(clusters):
                with self.routing.on(cluster, is_write=True, is_logged=at == 0):
                    results.append(execute(returning))
        return results[0]

    def _assign_ids(self, query: Any) -> Callable[[], None]:
        """Give objects without one their automatic id; undone if the insert fails."""
        opts = self.table.opts
        if not (self.table.is_sharded or self.table.is_reference):
            return lambda: None
        kind = settings().ids_for(opts.app_label, opts.model_name)
        field = opts.auto_field
        if field is None:
            if kind == UUID7:
                self._assign_uuids(query)
            return lambda: None
        if text := ids.misfit(kind, opts):
            raise ConfigurationError("E110", f"{self.table.label}: {text}")
        table, column = self.table.name, field.column
        if field in query.fields:
            if kind == TIME:
                return lambda: None  # no counter that has to follow
            values = [getattr(obj, field.attname) for obj in query.objs]
            explicit = [value for value in values if isinstance(value, int)]
            if explicit:
                ids.took(self.wrapper, table, column, max(explicit))
            return lambda: None
        count = len(query.objs)
        if kind == TIME:
            fresh = ids.take_timed(self.wrapper, count)
        else:
            fresh = ids.take(self.wrapper, table, column, count)
        for obj, value in zip(query.objs, fresh, strict=True):
            setattr(obj, field.attname, value)
        before = query.fields
        query.fields = [*before, field]

        def restore() -> None:
            query.fields = before
            for obj in query.objs:
                setattr(obj, field.attname, None)

        return restore

    def _assign_uuids(self, query: Any) -> None:
        """Give objects without a key a UUID, which stays as a default's would."""
        field = ids.uuid_field(self.table.opts)
        if field is None:
            return
        missing = [obj for obj in query.objs if getattr(obj, field.attname) is None]
        for obj in missing:
            setattr(obj, field.attname, uuid7())
        is_ignored = query.on_conflict == OnConflict.IGNORE
        self._gave_uuids = bool(missing) and not is_ignored

    def _settle(self, compiler: Any) -> None:
        """Fix the values that have to be known before the SQL is made.

        A shard key, and any value of a reference table, is what ``pre_save`` gives,
        once: it may be another one the next time. An expression with a subquery, or
        one of these values that is an expression, is computed first; one round trip
        or gather for each.
        """
        query, keys = compiler.query, self.table.key_fields
        if self.table.is_reference:
            keys = tuple(query.fields)  # every node has to store the same
        settled: dict[str, dict[int, Any]] = {}
        for field in {*query.fields, *keys}:
            is_key = field in keys
            name, changes = field.attname, is_key and not query.raw and _changes(field)
            kinds = {type(getattr(obj, name)) for obj in query.objs}
            if not changes and not any(map(_is_expression, kinds)):
                continue  # the usual field: what the object has is what is stored
            for obj in query.objs:
                value = getattr(obj, name)
                if changes:
                    value = field.pre_save(obj, add=True)
                elif not _is_expression(value):
                    continue
                if self._is_to_compute(value, is_key=is_key):
                    value = self._computed(compiler, value)
                elif not is_key:
                    continue
                settled.setdefault(name, {})[id(obj)] = value
        self._settled = settled
        compiler.hold(settled)

    def _is_to_compute(self, value: Any, *, is_key: bool) -> bool:
        if not _is_expression(value):
            return False
        return is_key or any(isinstance(part, Subquery) for part in value.flatten())

    def _computed(self, compiler: Any, value: Any) -> Any:
        if isinstance(value, DatabaseDefault):
            value = value.expression  # type: ignore[attr-defined]
        resolved = value.resolve_expression(
            compiler.query, allow_joins=False, for_save=True
        )
        return self.routing.computed(compiler, resolved)

    def _groups(self, objs: Sequence[Any]) -> dict[str, list[int]]:
        """Shard -> where in ``objs`` its rows are."""
        groups: dict[str, list[int]] = {}
        if self.table.key_path:
            parents = self._parents(objs)
            name = self.table.opts.get_field(self.table.key_path[0].field).attname
            shards = [parents[getattr(obj, name)] for obj in objs]
        else:
            fields = self._key_fields()
            columns = [self._values(objs, field) for field in fields]
            shards = self.routing.shards_of(fields, columns)
        for at, shard in enumerate(shards):
            groups.setdefault(shard, []).append(at)
        return groups

    def _key_fields(self) -> tuple[Any, ...]:
        fields = self.table.key_fields
        if not fields:
            raise RouteRefused(
                "E404",
                f"{self.table.label} has no shard key at this point of its history; "
                "rows can be written once the field exists",
            )
        return fields

    def _values(self, objs: Sequence[Any], field: Any) -> list[Any]:
        """What will be stored for a field, as far as it is known before the SQL."""
        name = field.attname
        known = (self._settled or {}).get(name)
        if known is None:
            return [getattr(obj, name) for obj in objs]
        return [known.get(id(obj), getattr(obj, name)) for obj in objs]

    def _value(self, obj: Any, field: Any) -> Any:
        return self._values([obj], field)[0]

    def _parents(self, objs: Sequence[Any]) -> dict[Any, str]:
        """Where the parent rows are that these objects live with."""
        hop = self.table.key_path[0]
        attname = self.table.opts.get_field(hop.field).attname
        values = {getattr(obj, attname) for obj in objs}
        if None in values:
            raise NullShardKey(
                "E401",
                f"{self.table.label} lives with its {hop.field}, which is NULL: set "
                f"{hop.field} before the row is saved",
            )
        found: dict[Any, str] = self.routing.locate(hop, values)
        if missing := values - found.keys():
            raise InvalidShardKey(
                "E404",
                f"{self.table.label} lives with its {hop.field}, and {hop.table} has "
                f"no row {min(map(repr, missing))}: save the parent first",
            )
        return found

    def _insert_groups(
        self,
        compiler: Any,
        groups: dict[str, list[int]],
        execute: Callable[..., Any],
        returning: Any,
    ) -> Any:
        if len(groups) == 1 and not self.rules:
            with self.routing.on(next(iter(groups)), is_write=True):
                return execute(returning)
        query = compiler.query
        objs = query.objs
        rows: dict[int, Any] = {}
        before: list[Claim] = []
        after: list[Claim] = []
        with self.transaction.statement():
            try:
                for n, shard in enumerate(sorted(groups)):
                    places = groups[shard]
                    query.objs = [objs[at] for at in places]
                    if query.on_conflict is not None:
                        before += self._claims_at(query, shard, locks=True)
                    with self.routing.on(shard, is_write=True, is_logged=n == 0):
                        got = execute(returning)
                    after += self._claims_at(query, shard)
                    rows.update(zip(places, got, strict=False))
            finally:
                query.objs = objs
            there = {s: [objs[at] for at in places] for s, places in groups.items()}
            self._claim(query, there, before, after)
        return [rows[at] for at in sorted(rows)]

    def _claims_at(self, query: Any, shard: str, *, locks: bool = False) -> list[Claim]:
        """What the rows of ``query.objs`` on a shard claim: those that were there
        already, of which an upsert may leave or change some, or all."""
        if not self.rules:
            return []
        if query.on_conflict == OnConflict.UPDATE:
            where, params = self._any_of_conflict(query)
            if locks:
                where = f"({where}){self.locking(None)}"
        else:
            where, params = self.by_pk(self.pks_of(query.objs))
        node = self.routing.node(shard, is_write=True)
        return self.claims().of_rows(node, where, params, shard)

    def _claim(
        self,
        query: Any,
        groups: dict[str, list[Any]],
        before: Sequence[Claim],
        after: Sequence[Claim],
    ) -> None:
        """The keepers' part, after every shard's."""
        claims = self.claims()
        if query.on_conflict != OnConflict.IGNORE:
            claims.change(before, after)
            return
        known = {(claim.shard, claim.row_key) for claim in before}
        found = [c for c in after if (c.shard, c.row_key) not in known]
        if not found:
            return
        lost = claims.hold_free(found)
        for shard in sorted({shard for shard, _ in lost}):
            keys = {row_key for there, row_key in lost if there == shard}
            self._remove_rows(shard, groups[shard], claims, keys)

    def _remove_rows(
        self, shard: str, objs: Sequence[Any], claims: Claims, lost: set[str]
    ) -> None:
        """Take back rows that conflict with a row of another shard."""
        node = self.routing.node(shard, is_write=True)
        name = self.wrapper.ops.quote_name(self.table.name)
        for pk in self.pks_of(objs):
            where, params = self.by_pk([pk])
            if {c.row_key for c in claims.of_rows(node, where, params)} & lost:
                self.facts.engine.run(
                    node, f"DELETE FROM {name} WHERE {where}", params
                ).close()

    def _any_of_conflict(self, query: Any) -> tuple[str, list[Any]]:
        fields = list(query.unique_fields) or list(self.table.pk_fields)
        return self.by_values(
            fields, [tuple(getattr(o, f.attname) for f in fields) for o in query.objs]
        )

    # -- conflicts that a shard cannot see ------------------------------------------

    def _needs_search(self, query: Any) -> bool:
        """Whether the row to update may be on another shard than the new row's."""
        if not self.table.key_fields:
            return True
        if not query.unique_fields and self.rules:
            return True  # any unique constraint may be the one in conflict
        fields = list(query.unique_fields) or list(self.table.pk_fields)
        columns = {field.column for field in fields}
        local = {f.column for f in self.table.key_fields} <= columns
        return not (local and all(map(self.facts.is_exact, self.table.key_fields)))

    def _upsert_each(
        self, compiler: Any, execute: Callable[..., Any], returning: Any
    ) -> Any:
        """Row by row: find by the unique fields over all shards, update or insert.

        A race with the same new values ends in IntegrityError, never in two rows.
        """
        query = compiler.query
        self._check_conflict_target(query)
        objs, rows = query.objs, []
        with self.transaction.statement():
            for obj in objs:
                found = self._find(query, obj)
                if found is None:
                    rows += self._insert_one(compiler, obj, execute, returning)
                else:
                    self._update_found(query, obj, found)
                    if returning:
                        rows.append(self._returned(found, returning))
        return rows

    def _check_conflict_target(self, query: Any) -> None:
        wanted = {field.column for field in query.unique_fields}
        groups = [{f.column for f in group} for group in self._unique_groups()]
        if wanted and wanted not in groups:
            raise ProgrammingError(
                "there is no unique or exclusion constraint matching the ON CONFLICT "
                f"specification ({', '.join(sorted(wanted))}) of {self.table.label}"
            )

    def _find(self, query: Any, obj: Any) -> Any:
        fields = list(query.unique_fields)
        groups = [fields] if fields else self._unique_groups()
        for group in groups:
            values = {f.attname: self._value(obj, f) for f in group}
            if None in values.values():
                continue
            rows = self._objects().filter(**values).values_list("pk", flat=True)[:1]
            for pk in rows:
                return pk
        return None

    def _unique_groups(self) -> list[list[Any]]:
        opts = self.table.opts
        groups = [[f] for f in opts.local_concrete_fields if f.unique]
        groups.append(list(opts.pk_fields))
        groups += [[opts.get_field(n) for n in names] for names in opts.unique_together]
        groups += [
            [opts.get_field(n) for n in c.fields] for c in opts.total_unique_constraints
        ]
        return groups

    def _objects(self) -> Any:
        from django.db.models import QuerySet

        return QuerySet(self.table.opts.model, using=self.wrapper.alias)

    def _insert_one(
        self, compiler: Any, obj: Any, execute: Callable[..., Any], returning: Any
    ) -> list[Any]:
        query = compiler.query
        before = query.objs, query.on_conflict, query.update_fields
        query.objs, query.on_conflict, query.update_fields = [obj], None, []
        try:
            groups = self._groups(query.objs)
            return list(self._insert_groups(compiler, groups, execute, returning))
        finally:
            query.objs, query.on_conflict, query.update_fields = before

    def _update_found(self, query: Any, obj: Any, pk: Any) -> None:
        values = {f.name: f.pre_save(obj, add=False) for f in query.update_fields}
        self._objects().filter(pk=pk).update(**values)

    def _returned(self, pk: Any, returning: Any) -> Any:
        names = [field.attname for field in returning]
        return self._objects().filter(pk=pk).values_list(*names).get()


def _is_expression(value: Any) -> bool:
    """Whether a value, or a type of values, is computed by the database."""
    return hasattr(value, "resolve_expression")


def _changes(field: Any) -> bool:
    """Whether a field may store another value than its object has, or set it then."""
    return type(field).pre_save is not Field.pre_save
