"""Citus: a PostgreSQL coordinator that spreads tables over its workers itself.

What it refuses it refuses as ``feature_not_supported``, while it plans: nothing of the
statement has run by then.
Sources: Citus documentation, "Citus Utility Functions" and "SQL Support and
Workarounds"; tried with Citus 13.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from dbfleet.engines.gather_postgresql import quote_literal, quote_name
from dbfleet.engines.gathering import FragmentSpec
from dbfleet.engines.postgresql import PostgreSQLEngine

#: rows that a statement locks one by one; more lock their whole table
MAX_ROW_LOCKS = 64

#: DDL after DDL in one transaction would otherwise be refused: the first may have run
#: on several connections to a worker
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"

_REFUSED = "0A000"  # feature_not_supported
#: the one refusal without that code; the setting of this name would allow it
_REPARTITION = "the query contains a join that requires repartitioning"


def is_refusal(error: BaseException) -> bool:
    """Whether Citus (or PostgreSQL) cannot carry a statement out as it is."""
    for one in (error, error.__cause__):
        if _REFUSED in (getattr(one, "sqlstate", None), getattr(one, "pgcode", None)):
            return True
    return str(error).startswith(_REPARTITION)


def distribute_sql(table: str, column: str, parent: str | None) -> str:
    """Spread a table by a column; equal values lie with those of ``parent``, and
    without one with those of every table whose column has the same type."""
    with_whom = quote_name(parent) if parent is not None else "default"
    return (
        f"SELECT create_distributed_table({quote_literal(quote_name(table))}, "
        f"{quote_literal(column)}, colocate_with => {quote_literal(with_whom)})"
    )


def reference_sql(table: str) -> str:
    """Keep a copy of a table on every worker."""
    return f"SELECT create_reference_table({quote_literal(quote_name(table))})"


def local_sql(table: str) -> str:
    """Have Citus know a local table that refers to a reference table.

    It would by itself, and take that back with the last such foreign key, which fails
    for a table with an identity column.
    """
    return (
        f"SELECT citus_add_local_table_to_metadata({quote_literal(quote_name(table))})"
    )


def is_known(engine: Any, node: Any, table: str) -> bool:
    """Whether Citus has been told of a table; one round trip."""
    sql = "SELECT 1 FROM pg_dist_partition WHERE logicalrelid = to_regclass(%s)"
    return bool(engine.fetch(node, sql, [quote_name(table)]))


def is_installed(engine: Any, node: Any) -> bool:
    """Whether the database has the extension; one round trip."""
    sql = "SELECT 1 FROM pg_proc WHERE proname = 'create_distributed_table'"
    return bool(engine.fetch(node, sql))


def describe(engine: Any, node: Any) -> str | None:
    """The extension's version and its workers, None without it; two round trips."""
    found = engine.fetch(
        node, "SELECT extversion FROM pg_extension WHERE extname = 'citus'"
    )
    if not found:
        return None
    workers = engine.fetch(
        node, "SELECT count(*) FROM pg_dist_node WHERE isactive AND groupid <> 0"
    )[0][0]
    return f"citus {found[0][0]} with {workers} workers"


def lock_rows(
    engine: Any, node: Any, table: str, pks: Sequence[Sequence[Any]] | None
) -> None:
    """Let one transaction at a time write these rows' claims; two round trips.

    ``SELECT ... FOR UPDATE`` is refused where rows may lie on several workers. These
    are locks of the coordinator, held until its transaction has ended on every worker.
    ``None`` and many rows lock all rows of the table.
    """
    whole = _number(table)
    if pks is None or len(pks) > MAX_ROW_LOCKS:
        engine.fetch(node, "SELECT pg_advisory_xact_lock(%s)", [whole])
        return
    engine.fetch(node, "SELECT pg_advisory_xact_lock_shared(%s)", [whole])
    rows = sorted({_number(table, *map(str, pk)) for pk in pks})
    marks = ", ".join(["%s"] * len(rows))
    engine.fetch(
        node,
        "SELECT pg_advisory_xact_lock(one) FROM "
        f"unnest(ARRAY[{marks}]::bigint[]) AS one",
        rows,
    )


def _number(*parts: str) -> int:
    state = hashlib.blake2b("\0".join(parts).encode(), digest_size=8)
    return int.from_bytes(state.digest(), "big", signed=True)


def move_rows(
    engine: PostgreSQLEngine,
    node: Any,
    table: str,
    where: str,
    params: Sequence[Any],
    changed: tuple[str, Any],
) -> int:
    """Give the rows that ``where`` finds another value of the distribution column.

    Citus changes it in no row: they are read as the server's own text, deleted and
    inserted again, three round trips in the caller's transaction.
    """
    columns = engine.table_columns(node, table)
    spec = FragmentSpec(table, columns, where, tuple(params))
    rows = engine.fetch(node, engine.fragment_sql(spec, limit=None), params)
    if rows:
        name = quote_name(table)
        engine.run(node, f"DELETE FROM {name} WHERE {where}", params).close()
        engine.insert_texts(node, table, columns, rows, dict([changed]))
    return len(rows)
