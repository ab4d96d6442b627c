"""Tables of an alias that a distributed engine spreads: what DDL says of them.

Invariant: a table is laid out as its model says from the statement that creates it on,
or, where its shard key comes with a later operation, from that one on. Constraints that
the engine refuses, since they do not contain the shard key, are left out of the DDL and
kept by claims, as over shards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from django.db.models import F, UniqueConstraint

from dbfleet.engines import citus
from dbfleet.errors import ConfigurationError, NodeMismatch
from dbfleet.placement import Local, Reference, Sharded, layout
from dbfleet.placement.keys import column_misfit
from dbfleet.placement.layouts import ShardKey
from dbfleet.planner.route import HOME
from dbfleet.relations.constraints import is_holdable

#: operations after which a table may be laid out
_FOLLOWED = frozenset({"create_model", "add_field", "alter_field"})


def key_of(topology: Any, opts: Any) -> ShardKey | None:
    """The key that rows of a model's table are spread by; None if they are not, or
    not yet. Raises ConfigurationError E112."""
    found = layout(topology, opts)
    if not isinstance(found, Sharded) or found.key is None:
        return None
    problem = column_misfit(found.key)
    if problem is not None:
        raise ConfigurationError(
            "E112",
            f"{opts.label} on alias {topology.alias!r}, distributed by "
            f"{topology.distributed_by}: {problem}",
        )
    return found.key


class Distribution:
    """Lays out the tables that one schema editor makes."""

    def __init__(self, editor: Any) -> None:
        self.editor, self.wrapper = editor, editor.connection
        self.topology, self.engine = self.wrapper.topology, self.wrapper.engine
        # A foreign key is a statement of its own: inside ADD COLUMN it is refused.
        editor.sql_create_column_inline_fk = None
        if not editor.collect_sql:
            self._check_installed()
            if self.wrapper.in_atomic_block:
                self.engine.run(self._home(), citus.SEQUENTIAL).close()

    def _home(self) -> Any:
        return self.wrapper.routing.node(HOME, is_write=False)

    def _check_installed(self) -> None:
        node = self._home()
        if not citus.is_installed(self.engine, node):
            raise NodeMismatch(
                "E210",
                f"{self.topology.home.primary} is declared DISTRIBUTED_BY "
                f"{self.topology.distributed_by} and lacks the extension: run CREATE "
                "EXTENSION citus in its database and in that of every worker (in "
                "template1 for test databases)",
            )

    @contextlib.contextmanager
    def named_check(self, operation: str, model: Any, args: Any) -> Iterator[None]:
        """Inside, the check of a column that is added has a name: workers need one."""
        field = args[0] if operation == "add_field" else None
        if field is None or not field.db_parameters(self.wrapper).get("check"):
            yield
            return
        names = (model._meta.db_table, [field.column])
        name = self.editor._create_index_name(*names, suffix="_check")
        quoted = self.editor.quote_name(name).replace("%", "%%")
        before = self.editor.sql_check_constraint
        self.editor.sql_check_constraint = f"CONSTRAINT {quoted} {before}"
        try:
            yield
        finally:
            self.editor.sql_check_constraint = before

    def follow(self, operation: str, model: Any) -> None:
        """A model's table was changed; up to two round trips if it is laid out now."""
        if operation not in _FOLLOWED or not model._meta.managed:
            return
        opts = model._meta
        sql = self._sql(opts)
        if sql is None or (operation != "create_model" and self._is_done(opts)):
            return
        self.editor.execute(sql, None)

    def _is_done(self, opts: Any) -> bool:
        if self.editor.collect_sql:
            return True
        return citus.is_known(self.engine, self._home(), opts.db_table)

    def _sql(self, opts: Any) -> str | None:
        match layout(self.topology, opts):
            case Reference():
                return citus.reference_sql(opts.db_table)
            case Local():
                refers = any(map(self._is_to_reference, opts.local_fields))
                return citus.local_sql(opts.db_table) if refers else None
        key = key_of(self.topology, opts)
        if key is None:
            return None
        [name] = key.fields
        parent = self._parent(opts.get_field(name))
        return citus.distribute_sql(opts.db_table, key.columns[0], parent)

    def _is_to_reference(self, field: Any) -> bool:
        """Whether a field is a foreign key that is checked, to a reference table."""
        if not (field.is_relation and getattr(field, "db_constraint", False)):
            return False
        target = field.remote_field.model
        if isinstance(target, str) or not is_holdable(self.topology, field):
            return False
        return isinstance(layout(self.topology, target._meta), Reference)

    def _parent(self, field: Any) -> str | None:
        """The table whose key the key column refers to: equal values lie together."""
        if not field.is_relation or isinstance(field.remote_field.model, str):
            return None
        opts = field.remote_field.model._meta
        if opts.db_table == field.model._meta.db_table:
            return None
        found = layout(self.topology, opts)
        columns = tuple(target.column for _, target in field.related_fields)
        if isinstance(found, Sharded) and found.key and found.key.columns == columns:
            return str(opts.db_table)
        return None


# -- constraints that are left out ---------------------------------------------------


@contextlib.contextmanager
def left_out(topology: Any, model: Any, fields: Iterable[Any]) -> Iterator[None]:
    """Take from a rendered model what is unique without the key, while its DDL is
    written. What was unique is indexed still."""
    opts = model._meta
    if not isinstance(layout(topology, opts), Sharded):
        yield
        return
    key = key_of(topology, opts)
    changed = []
    before = opts.constraints, opts.unique_together
    for field in {*opts.local_fields, *fields}:
        if _is_of(opts, field) and field.unique and not _holds(key, {field.column}):
            changed.append((field, field.primary_key, field._unique, field.db_index))
            field.primary_key, field._unique, field.db_index = False, False, True
            vars(field)["unique"] = False  # kept since it was asked for above
    opts.constraints = [c for c in before[0] if not is_left_out(topology, opts, c)]
    opts.unique_together = kept_together(topology, opts, before[1])
    try:
        yield
    finally:
        opts.constraints, opts.unique_together = before
        for field, primary_key, unique, db_index in changed:
            field.primary_key, field._unique = primary_key, unique
            field.db_index = db_index
            vars(field).pop("unique", None)


def given(topology: Any, operation: str, opts: Any, args: Any) -> Any:
    """The arguments of an operation without what is left out; None: nothing to do."""
    if not isinstance(layout(topology, opts), Sharded):
        return args
    if operation in {"add_constraint", "remove_constraint"}:
        return None if is_left_out(topology, opts, args[0]) else args
    if operation == "alter_unique_together":
        return [kept_together(topology, opts, together) for together in args]
    return args


def kept_together(topology: Any, opts: Any, together: Iterable[Any]) -> list[Any]:
    """The sets of ``unique_together`` that contain the key."""
    key = key_of(topology, opts)
    return [names for names in together if _holds(key, _columns(opts, names))]


def is_left_out(topology: Any, opts: Any, constraint: Any) -> bool:
    """Whether a constraint is one that the engine refuses and claims keep."""
    if not isinstance(constraint, UniqueConstraint):
        return False
    if not isinstance(layout(topology, opts), Sharded):
        return False
    names = [*constraint.fields]
    for expression in constraint.expressions:
        if not isinstance(expression, F):
            return True  # an index on an expression is refused in any case
        names.append(expression.deconstruct()[1][0])
    return not _holds(key_of(topology, opts), _columns(opts, names))


def _is_of(opts: Any, field: Any) -> bool:
    model = getattr(field, "model", None)
    return model is None or model._meta.db_table == opts.db_table


def _columns(opts: Any, names: Iterable[str]) -> set[str]:
    return {opts.get_field(name).column for name in names}


def _holds(key: ShardKey | None, columns: set[str]) -> bool:
    return key is not None and set(key.columns) <= columns
