"""Compilers that ask the fleet where their statement goes.

Subclasses of the vendor's compilers that wrap a few methods and copy none: SQL,
converters and results stay Django's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from django.db.models.expressions import Col
from django.db.models.sql.compiler import (
    SQLAggregateCompiler,
    SQLDeleteCompiler,
    SQLInsertCompiler,
    SQLUpdateCompiler,
)

from dbfleet.planner.blocks import Shape, groups_by_key
from dbfleet.planner.merging import Sql

#: attribute -> id of an object -> value
Settled = dict[str, dict[int, Any]]


@lru_cache(maxsize=256)
def fleet_compiler(vendor_compiler: type, *, is_sharded: bool) -> type:
    """The fleet's subclass of a vendor's compiler, made once."""
    mixin: type = ReadMixin if is_sharded else ClusterReadMixin
    if is_sharded and issubclass(vendor_compiler, SQLAggregateCompiler):
        mixin = AggregateReadMixin
    for base, candidate in (
        (SQLInsertCompiler, InsertMixin),
        (SQLUpdateCompiler, UpdateMixin),
        (SQLDeleteCompiler, DeleteMixin),
    ):
        if issubclass(vendor_compiler, base):
            mixin = candidate
    body = {
        "__module__": vendor_compiler.__module__,
        "__qualname__": vendor_compiler.__qualname__,
        "vendor_compiler": vendor_compiler,
    }
    return type(vendor_compiler.__name__, (mixin, vendor_compiler), body)


class CompilerMixin:
    """What every compiler of a fleet does: tell the recorder what it looks at."""

    connection: Any
    query: Any
    having: Any
    vendor_compiler: type
    #: what was found out about a SELECT while its route was looked for
    shape: Shape | None = None
    #: SQL of columns that a merge needs besides, for the SQL that shards are sent
    appended: tuple[Sql, ...] = ()
    #: the shards' groups are put in order later, and those that HAVING leaves chosen
    is_partial = False
    #: columns that shards need not compute
    blank: frozenset[int] = frozenset()
    #: what they group by besides
    split: Sql | None = None
    _grouped: tuple[Any, ...] = ()

    def get_from_clause(self) -> Any:
        found = super().get_from_clause()  # type: ignore[misc]
        self.connection.routing.record(self)
        return found

    def pre_sql_setup(self, *args: Any, **kwargs: Any) -> Any:
        found = super().pre_sql_setup(*args, **kwargs)  # type: ignore[misc]
        if self.connection.routing.is_planning and found is not None:
            self.shape = self._shape(*found)
        if not self.appended and not self.is_partial:
            return found
        extra, ordering, grouping = found
        hidden = [(None, sql, None) for sql in self.appended]
        if not self.is_partial:
            return [*extra, *hidden], ordering, grouping
        self._choose([*extra, *hidden])
        return [], [], grouping if self.split is None else [*grouping, self.split]

    def _choose(self, more: list[Any]) -> None:
        """Select these as well, of all groups, and NULL for what nobody needs: GROUP BY
        may name a column by its place."""
        compiler: Any = self
        compiler.having = None
        compiler.select = [
            (expression, ("NULL", ()) if at in self.blank else sql, alias)
            for at, (expression, sql, alias) in enumerate([*compiler.select, *more])
        ]

    def _shape(self, extra: Any, ordering: Any, grouping: Any) -> Shape:
        compiler: Any = self
        is_grouped = bool(grouping)
        if is_grouped and compiler._meta_ordering:
            ordering = ()  # as Django has it
        return Shape(
            (*compiler.select, *extra),
            tuple(ordering),
            self._grouped if is_grouped else (),
            compiler.having is not None,
        )

    def collapse_group_by(self, expressions: Any, having: Any) -> Any:
        routing, engine = self.connection.routing, self.connection.engine
        if (
            routing.spells_groups
            and not groups_by_key(self.query)
            and engine.infers_group_by(self.connection)
            and not engine.keeps_keys
        ):
            # Inline rows have no primary key that a server could infer from.
            found = [*expressions, *_implied(expressions, self.having)]
        else:
            found = super().collapse_group_by(expressions, having)  # type: ignore[misc]
        # What a primary key stands for is grouped by as well.
        self._grouped = tuple(expressions)
        return found

    def as_sql(self, *args: Any, **kwargs: Any) -> Any:
        ready = self.__dict__.pop("_ready", None)
        if ready is not None:
            return ready
        return super().as_sql(*args, **kwargs)  # type: ignore[misc]


def _implied(grouped: Any, having: Any) -> list[Any]:
    """Columns that HAVING names and a grouped primary key implies.

    Django groups by what a lookup compares, such as a year; the lookup's own SQL may
    compare the column.
    """
    if having is None:
        return []
    keys = {
        one.alias for one in grouped if isinstance(one, Col) and one.target.primary_key
    }
    named = (part for leaf in having.leaves() for part in _parts(leaf))
    columns = (part for part in named if isinstance(part, Col) and part.alias in keys)
    return [one for one in dict.fromkeys(columns) if one not in grouped]


def _parts(leaf: Any) -> Iterator[Any]:
    """The expressions of a condition; none of hand-written SQL."""
    return leaf.flatten() if hasattr(leaf, "flatten") else iter(())


class AggregateMixin:
    """SELECT of aggregates over a subquery."""

    connection: Any
    query: Any
    shape: Shape | None
    appended: tuple[Sql, ...]

    def as_sql(self, *args: Any, **kwargs: Any) -> Any:
        found = super().as_sql(*args, **kwargs)  # type: ignore[misc]
        if self.connection.routing.is_planning:
            self.shape = Shape(tuple(self._chosen()))
        if not self.appended:
            return found
        sql, params = found
        own = [compiled for _, compiled, _ in self._chosen()]
        head = "SELECT " + ", ".join(text for text, _ in own)
        more = ", ".join(text for text, _ in self.appended)
        count = sum(len(values) for _, values in own)
        added = [value for _, values in self.appended for value in values]
        params = (*params[:count], *added, *params[count:])
        return f"{head}, {more}{sql[len(head) :]}", params

    def _chosen(self) -> Iterator[Any]:
        compiler: Any = self
        for alias, annotation in self.query.annotation_select.items():
            sql, params = compiler.compile(annotation)
            yield annotation, annotation.select_format(self, sql, params), alias


class ReadMixin(CompilerMixin):
    """SELECT, aggregates included."""

    def execute_sql(self, *args: Any, **kwargs: Any) -> Any:
        return self.connection.routing.read(
            self,
            super().execute_sql,  # type: ignore[misc]
            *args,
            **kwargs,
        )


class AggregateReadMixin(AggregateMixin, ReadMixin):
    """SELECT of aggregates over a subquery, on shards."""


class ClusterReadMixin:
    """SELECT of an alias without shards: nothing but its server is to be found."""

    connection: Any

    def execute_sql(self, *args: Any, **kwargs: Any) -> Any:
        routing = self.connection.routing
        routing.aim(self)
        try:
            return super().execute_sql(*args, **kwargs)  # type: ignore[misc]
        finally:
            routing.target = None


class InsertMixin(CompilerMixin):
    """INSERT; values that decide a shard are fixed before its SQL is made."""

    def hold(self, settled: Settled) -> None:
        """Take these values instead of what ``pre_save`` would give; {} ends that."""
        self.__dict__.pop("pre_save_val", None)
        if settled:  # otherwise not even a call is added for each value of each row
            given: Any = super().pre_save_val  # type: ignore[misc]

            def pre_save_val(field: Any, obj: Any) -> Any:
                known = settled.get(field.attname)
                if known is not None and id(obj) in known:
                    return known[id(obj)]
                return given(field, obj)

            self.__dict__["pre_save_val"] = pre_save_val

    def execute_sql(self, returning_fields: Any = None) -> Any:
        return self.connection.routing.writes.insert(
            self,
            super().execute_sql,  # type: ignore[misc]
            returning_fields,
        )


class WriteMixin(CompilerMixin):
    """UPDATE and DELETE; ``run_plain`` executes without asking for a route."""

    def execute_sql(self, result_type: Any = None, *args: Any, **kwargs: Any) -> Any:
        return self.connection.routing.writes.write(self, result_type, self.run_plain)

    def run_plain(self, result_type: Any) -> Any:
        return super().execute_sql(result_type)  # type: ignore[misc]


class UpdateMixin(WriteMixin):
    """UPDATE, with RETURNING since Django 6.0."""

    def execute_returning_sql(self, returning_fields: Any) -> Any:
        return self.connection.routing.writes.update_returning(
            self,
            returning_fields,
            super().execute_returning_sql,  # type: ignore[misc]
        )


class DeleteMixin(WriteMixin):
    """DELETE."""
