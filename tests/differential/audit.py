"""What the databases behind an alias hold, looked at without asking the alias.

Finds what no query shows at once: a row on a wrong shard, copies of a reference table
that differ, claims that outlived their row, a transaction that nobody ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.db import connections

from tests.differential.contents import CLAIMS, Raw
from tests.differential.data import LABELS, model_of
from tests.differential.fleet import Fleet

#: child -> (its column, the parent it lives with, the parent's column)
COMPANIONS = {
    "Profile": ("customer_id", "Customer", "id"),
    "Order": ("customer_id", "Customer", "id"),
    "Line": ("order_id", "Order", "id"),
    "Shop": ("place_ptr_id", "Place", "id"),
    "Customer_favorites": ("customer_id", "Customer", "id"),
}

Held = dict[str, dict[str, list[dict[str, Any]]]]


def problems(alias: str, raw: dict[str, Raw]) -> list[str]:
    """What is wrong with the rows behind a sharded alias; empty if nothing is."""
    held = {
        name: {label: _rows(label, tables[label]) for label in LABELS}
        for name, tables in raw.items()
    }
    return [
        *_layout_problems(held),
        *_key_problems(alias, held),
        *_companion_problems(held),
        *_claim_problems(
            alias, [one for tables in raw.values() for one in tables.get(CLAIMS, ())]
        ),
    ]


def _wrapper(alias: str) -> Any:
    """A sharded alias's own wrapper, with what it knows of its nodes."""
    return connections[alias]


def _rows(label: str, raw: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    fields = model_of(label)._meta.local_concrete_fields
    names = [field.attname for field in fields]
    return [dict(zip(names, row, strict=True)) for row in raw]


def _layout_problems(held: Held) -> Iterator[str]:
    home = held["home"]
    shards = {name: rows for name, rows in held.items() if name != "home"}
    for label in LABELS:
        if label == "Country":
            for name, rows in shards.items():
                if Counter(map(repr, rows[label])) != Counter(map(repr, home[label])):
                    yield f"{label} of {name} differs from home's copy"
        elif label == "Setting":
            yield from (
                f"{label} has rows on {n}" for n, rows in shards.items() if rows[label]
            )
        else:
            if home[label]:
                yield f"{label} has rows in home"
            pk = model_of(label)._meta.pk.attname
            keys = Counter(
                str(row[pk]) for rows in shards.values() for row in rows[label]
            )
            yield from (
                f"{label} {key} is on {n} shards" for key, n in keys.items() if n > 1
            )


def _key_problems(alias: str, held: Held) -> Iterator[str]:
    """Rows that the fleet would not look for where they are."""
    from dbfleet.errors import FleetError

    routing = _wrapper(alias).routing
    for label in LABELS:
        table = routing.table_of(model_of(label)._meta)
        for name, rows in held.items():
            if name == "home" or not table.key_fields:
                continue
            for row in rows[label]:
                values = tuple(row[field.attname] for field in table.key_fields)
                try:
                    wanted = routing.shard_of(table.key_fields, values)
                except FleetError as error:
                    wanted = f"nowhere: {error}"
                if wanted != name:
                    yield f"{label} {values} is on {name}, belongs on {wanted}"


def _companion_problems(held: Held) -> Iterator[str]:
    for label, (column, parent, key) in COMPANIONS.items():
        for name, rows in held.items():
            known = {row[key] for row in rows[parent]}
            for row in rows[label]:
                if row[column] not in known:
                    yield f"{label} {row} is on {name} without its {parent}"


def _claim_problems(alias: str, raw: list[tuple[Any, ...]]) -> Iterator[str]:
    """Claims, wherever they are kept, against what the stored rows claim."""
    from dbfleet.sharding.claims import Claims

    wrapper = _wrapper(alias)
    routing = wrapper.routing
    expected: Counter[tuple[str, str, str]] = Counter()
    for label in LABELS:
        table = routing.table_of(model_of(label)._meta)
        rules = routing.claim_rules(table)
        if not rules:
            continue
        claims = Claims(routing.facts(), table, rules, wrapper)
        for shard in wrapper.topology.shards:
            node = wrapper.nodes.primary(shard)
            for claim in claims.of_rows(node, "1 = 1", ()):
                expected[table.name, claim.claim, claim.row_key] += 1
    found = Counter(tuple(row[:3]) for row in raw)
    own = {model_of(label)._meta.db_table for label in LABELS}
    found = Counter({row: n for row, n in found.items() if row[0] in own})
    for kind, rest in (
        ("lacks a claim", expected - found),
        ("has a claim of no row", found - expected),
    ):
        for table_name, number in sorted(
            Counter(t for t, _, _ in rest.elements()).items()
        ):
            yield f"{table_name} {kind}, {number} times"


def open_transactions(fleet: Fleet, alias: str) -> list[str]:
    """What an ended case left open, on home or on a shard."""
    wrapper = _wrapper(alias)
    found = []
    if wrapper.in_atomic_block or wrapper.transaction.enlisted:
        found.append(f"still in a transaction: {sorted(wrapper.transaction.enlisted)}")
    for node in (wrapper, *wrapper.nodes.opened()):
        if node.connection is not None and _is_in_transaction(node):
            found.append(f"a transaction is open on {node.alias}")
    if fleet.engine == "postgresql":
        with connections[f"{alias}_home"].cursor() as cursor:
            cursor.execute("SELECT gid FROM pg_prepared_xacts")
            found += [f"{gid} is still prepared" for (gid,) in cursor.fetchall()]
    return found


def _is_in_transaction(node: Any) -> bool:
    if node.vendor == "sqlite":
        return bool(node.connection.in_transaction)
    if node.vendor == "postgresql":
        return int(node.connection.info.transaction_status) != 0
    with node.connection.cursor() as cursor:
        if node.mysql_is_mariadb:
            cursor.execute("SELECT @@in_transaction")
            return bool(cursor.fetchone()[0])
        try:  # refused inside a transaction; the level is that of all of Django's
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        except node.Database.Error:
            return True
        return False
