"""The vendor's operations, handing out compilers that know the fleet."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any


@lru_cache(maxsize=32)
def operations_class(vendor_class: type) -> type:
    """The vendor's operations as a fleet's."""
    return type("DatabaseOperations", (FleetOperations, vendor_class), {})


class FleetOperations:
    """The vendor's operations with the fleet's compilers and flush."""

    connection: Any

    @cached_property
    def _compilers(self) -> dict[str, type]:
        return {}

    def compiler(self, compiler_name: str) -> type:
        found = self._compilers.get(compiler_name)
        if found is None:
            found = super().compiler(compiler_name)  # type: ignore[misc]
            routing = self.connection.routing
            if routing is not None:
                # Operations are made with the wrapper, compilers with a statement.
                from dbfleet.backend.compiler import fleet_compiler

                found = fleet_compiler(found, is_sharded=routing.is_sharded)
            self._compilers[compiler_name] = found
        return found

    def last_executed_query(self, cursor: Any, sql: str, params: Any) -> Any:
        from dbfleet.executor.cursors import RowsCursor  # only logs ask for the text

        self.connection.ensure_connection()  # some vendors quote with its help
        if isinstance(getattr(cursor, "inner", cursor), RowsCursor):
            return self.connection.engine.render(self.connection, sql, params)
        return super().last_executed_query(cursor, sql, params)  # type: ignore[misc]

    def sequence_reset_sql(self, style: Any, model_list: Any) -> list[str]:
        """As the vendor's, with the highest id of all shards written out, so that
        the SQL means the same where it sees home alone."""
        from dbfleet.sharding import ids  # only commands reset and flush

        routing = self.connection.routing
        if routing is None or not self.connection.topology.has_layouts:
            return super().sequence_reset_sql(style, model_list)  # type: ignore[misc, no-any-return]
        statements: list[str] = []
        for model in model_list:
            table, field = routing.table_of(model._meta), model._meta.auto_field
            if not table.is_sharded or field is None:
                statements += super().sequence_reset_sql(style, [model])  # type: ignore[misc]
                continue
            highest = routing.highest(table, field)
            statements += self.connection.engine.reset_ids_sql(
                table.name, field.column, highest
            )
        ids.forget(self.connection)
        return statements

    def execute_sql_flush(self, sql_list: list[str]) -> None:
        from dbfleet.sharding import ids  # only commands reset and flush

        routing = self.connection.routing
        if routing is None or not self.connection.topology.has_layouts:
            super().execute_sql_flush(sql_list)  # type: ignore[misc]
            return
        is_ddl = any(sql.startswith("TRUNCATE") for sql in sql_list)
        with routing.on_every_node():
            if is_ddl and not self.connection.features.can_rollback_ddl:
                # It ends a transaction, which a node cannot do alone.
                with self.connection.cursor() as cursor:
                    for sql in sql_list:
                        cursor.execute(sql)
            else:
                super().execute_sql_flush(sql_list)  # type: ignore[misc]
        routing.forget_flushed(sql_list)
        ids.forget(self.connection)
