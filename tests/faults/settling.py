"""Settles an interrupted commit as an operator would: by the text of its error."""

from __future__ import annotations

import re
from typing import Any, Protocol


class Nodes(Protocol):
    """The databases of a fleet, asked past the alias under test."""

    @property
    def engine(self) -> str: ...

    def rows(self, node: str, sql: str) -> list[tuple[Any, ...]]: ...

    def prepared(self) -> dict[str, list[str]]: ...


_STATEMENT = re.compile(
    r"on default/(\w+)/primary: "
    r"((?:XA )?(COMMIT|ROLLBACK)(?: PREPARED)? '(dbfleet_\w+)')"
)
_CONDITION = re.compile(r"dbfleet_decision WHERE gid = '(dbfleet_\w+)'")

#: what a node says that does not hold the transaction (any more)
_UNKNOWN = ("does not exist", "Unknown XID")


def settle(fleet: Nodes, text: str) -> list[str]:
    """Run the SQL that an error gives; return the nodes it was run on."""
    statements = _STATEMENT.findall(text)
    condition = _CONDITION.search(text)
    if condition is not None:
        wanted = "COMMIT" if is_decided(fleet, condition[1]) else "ROLLBACK"
        statements = [one for one in statements if one[2] == wanted]
    for node, sql, _, _ in statements:
        _run(fleet, node, sql)
    return [node for node, *_ in statements]


def settle_by_table(fleet: Nodes) -> None:
    """Settle what a dead process left, by the table of decisions alone."""
    prepared = [(node, gid) for node, held in fleet.prepared().items() for gid in held]
    # Claims first, as the pages say: their shards' numbers follow a c.
    for node, gid in sorted(prepared, key=lambda one: "_c" not in one[1]):
        verb = "COMMIT" if is_decided(fleet, gid.rsplit("_", 1)[0]) else "ROLLBACK"
        is_postgresql = fleet.engine == "postgresql"
        sql = f"{verb} PREPARED '{gid}'" if is_postgresql else f"XA {verb} '{gid}'"
        _run(fleet, node, sql)


def is_decided(fleet: Nodes, transaction: str) -> bool:
    """Whether a node that may decide holds the decision of a transaction."""
    sql = f"SELECT 1 FROM dbfleet_decision WHERE gid = '{transaction}'"
    deciders = getattr(fleet, "deciders", ("home",))
    return any(fleet.rows(node, sql) for node in deciders)


def _run(fleet: Nodes, node: str, sql: str) -> None:
    try:
        fleet.rows(node, sql)
    except Exception as error:
        if not any(text in str(error) for text in _UNKNOWN):
            raise
