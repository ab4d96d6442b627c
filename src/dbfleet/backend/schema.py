"""Schema editor: DDL reaches every node, without constraints a shard cannot hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

# Every wrapper names its editor, only migrations use one: what an editor needs is
# imported where it is used.
if TYPE_CHECKING:
    from dbfleet.sharding.ddl import Journal
    from dbfleet.sharding.distributed import Distribution
    from dbfleet.sharding.reclaim import Reclaim

#: methods whose first argument is the model they change
_MODEL_METHODS = (
    "create_model",
    "delete_model",
    "add_field",
    "remove_field",
    "alter_field",
    "alter_unique_together",
    "alter_index_together",
    "alter_db_table",
    "add_constraint",
    "remove_constraint",
    "add_index",
    "remove_index",
    "table_sql",
)


@lru_cache(maxsize=32)
def schema_editor_class(vendor_class: type) -> type:
    """The vendor's schema editor as a fleet's."""
    body = {
        name: _relaxing(name) for name in _MODEL_METHODS if hasattr(vendor_class, name)
    }
    body["__module__"] = vendor_class.__module__  # type: ignore[assignment]
    return type("DatabaseSchemaEditor", (FleetSchemaEditor, vendor_class), body)


def _relaxing(name: str) -> Callable[..., Any]:
    def method(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        fields = [arg for arg in args if hasattr(arg, "remote_field")]
        before, self.is_changing = self.is_changing, True
        action = getattr(super(type(self), self), name)
        try:
            if name == "table_sql":
                with relaxed(self.connection, model, fields):
                    return action(model, *args, **kwargs)
            if not before:
                self.note_change(name, model, args)
            with self.distributing(name, model, fields, args) as given:
                if given is not None:
                    with relaxed(self.connection, model, fields):
                        action(model, *given, **kwargs)
        finally:
            self.is_changing = before

    method.__name__ = name
    return method


@contextlib.contextmanager
def relaxed(connection: Any, model: Any, fields: list[Any]) -> Iterator[None]:
    """Switch off ``db_constraint`` of foreign keys that no node can hold.

    On the fields of the rendered model, while its DDL is written: models,
    migrations and their state stay as they are.
    """
    from dbfleet.relations.constraints import is_holdable

    topology = connection.topology
    changed = []
    if topology is not None:
        opts = model._meta
        related = [rel.field for rel in opts.related_objects if rel.field is not None]
        for field in {*opts.local_fields, *related, *fields}:
            is_constrained = getattr(field, "db_constraint", False)
            if is_constrained and not is_holdable(topology, field):
                field.db_constraint = False
                changed.append(field)
    try:
        yield
    finally:
        for field in changed:
            field.db_constraint = True


class FleetSchemaEditor:
    """Sends each statement to every node."""

    connection: Any
    collect_sql: bool
    #: inside a change of a model, whose statements are about a table of every node
    is_changing = False
    _journal: Journal | None = None
    _reclaim: Reclaim | None = None
    _distribution: Distribution | None = None

    @contextlib.contextmanager
    def distributing(
        self, operation: str, model: Any, fields: list[Any], args: Any
    ) -> Iterator[Any]:
        """What a distributed engine cannot hold is left out inside; its table is laid
        out afterwards. Gives the arguments of the operation, None for none at all."""
        topology = self.connection.topology
        if topology is None or topology.distributed_by is None:
            yield args
            return
        from dbfleet.sharding import distributed

        if self._distribution is None:
            self._distribution = distributed.Distribution(self)
        named = self._distribution.named_check(operation, model, args)
        with named, distributed.left_out(topology, model, fields):
            yield distributed.given(topology, operation, model._meta, args)
        self._distribution.follow(operation, model)

    def note_change(self, operation: str, model: Any, args: Any) -> None:
        """Claims of the model may have to follow."""
        topology = self.connection.topology
        if topology is None or not topology.has_layouts or self.collect_sql:
            return
        if self._reclaim is None:
            from dbfleet.sharding.reclaim import Reclaim

            self._reclaim = Reclaim(self.connection)
        self._reclaim.note(operation, model, args)

    def execute(self, sql: Any, params: Any = ()) -> Any:
        from dbfleet.planner.route import HOME
        from dbfleet.planner.statements import classify

        routing = self.connection.routing
        if routing is None or self.collect_sql:
            return super().execute(sql, params)  # type: ignore[misc]
        self.connection.catalogue.clear()
        topology = self.connection.topology
        if not topology.has_layouts:
            with routing.on(HOME, is_write=True):
                return super().execute(sql, params)  # type: ignore[misc]
        text = str(sql)
        is_ddl = classify(text, self.connection.vendor).kind == "ddl"
        if not (self.is_changing or is_ddl):
            # RunSQL: the raw cursor sends rows where they belong.
            return super().execute(sql, params)  # type: ignore[misc]
        if not topology.is_sharded:
            routing.touch_home()
            with routing.on_home():
                return super().execute(sql, params)  # type: ignore[misc]
        if self.connection.transaction.is_open:
            with routing.on_every_node():
                return super().execute(sql, params)  # type: ignore[misc]
        if self._journal is None:
            from dbfleet.sharding.ddl import Journal

            self._journal = Journal(self.connection)
        given = f"{text} {list(params)}" if params else text
        return self._journal.run(given, partial(self._execute_on, sql, params))

    def _execute_on(self, sql: Any, params: Any, cluster: str) -> None:
        is_first = cluster == next(iter(self.connection.topology.shards))
        routing = self.connection.routing
        with routing.on(cluster, is_write=True, is_logged=is_first):
            super().execute(sql, params)  # type: ignore[misc]

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        is_complete = False
        try:
            self.is_changing = True  # what was deferred is about models
            if kind is None and self._reclaim is not None:
                try:
                    self._reclaim.finish()
                except BaseException as late:
                    # The editor's transaction has to see it, to roll back.
                    super().__exit__(type(late), late, late.__traceback__)  # type: ignore[misc]
                    raise
            super().__exit__(kind, error, traceback)  # type: ignore[misc]
            is_complete = kind is None
        finally:
            self.is_changing = False
            journal, self._journal = self._journal, None
            if journal is not None:
                journal.end(is_complete=is_complete)
