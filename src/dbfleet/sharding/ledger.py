"""dbfleet's own tables in home: shard map, id counters, claims, decisions.

Created when an alias first needs them, by portable SQL; a fleet needs no migration
of ours and no entry in INSTALLED_APPS. Rows: one for each range of slots, one for
each table with leased ids, one for each worker number of time-ordered ids (1024 at
most), one for each unique value that no shard can check alone, one for each lookup
and for each of its values that a row gave up lately.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db.utils import Error

from dbfleet.errors import ConfigurationError, NodeMismatch
from dbfleet.executor import leaders

PREFIX = "dbfleet_"

#: Claims have no second index: to InnoDB a unique one is a reason to lock the claim
#: that happens to be next to it.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS dbfleet_shard ("
    "slot_from integer NOT NULL PRIMARY KEY, slot_to integer NOT NULL, "
    "shard varchar(63) NOT NULL, epoch integer NOT NULL)",
    "CREATE TABLE IF NOT EXISTS dbfleet_sequence ("
    "name varchar(190) NOT NULL PRIMARY KEY, next_value bigint NOT NULL)",
    "CREATE TABLE IF NOT EXISTS dbfleet_worker ("
    "number integer NOT NULL PRIMARY KEY, promised_ms bigint NOT NULL)",
    "CREATE TABLE IF NOT EXISTS dbfleet_unique ("
    "claim varchar(64) NOT NULL PRIMARY KEY, table_name varchar(190) NOT NULL, "
    "row_key varchar(64) NOT NULL, constraint_name varchar(190) NOT NULL, "
    "shard varchar(63) NOT NULL, gid varchar(64) NOT NULL)",
    "CREATE TABLE IF NOT EXISTS dbfleet_left ("
    "claim varchar(64) NOT NULL, shard varchar(63) NOT NULL, "
    "gid varchar(64) NOT NULL, left_at timestamp NOT NULL, "
    "PRIMARY KEY (claim, shard, gid))",
    "CREATE TABLE IF NOT EXISTS dbfleet_lookup ("
    "table_name varchar(190) NOT NULL, constraint_name varchar(190) NOT NULL, "
    "state varchar(63) NOT NULL, progress varchar(4000) NOT NULL, "
    "PRIMARY KEY (table_name, constraint_name))",
    "CREATE TABLE IF NOT EXISTS dbfleet_decision ("
    "gid varchar(64) NOT NULL PRIMARY KEY, participants varchar(4000) NOT NULL, "
    "decided_at timestamp NOT NULL)",
    "CREATE TABLE IF NOT EXISTS dbfleet_ddl ("
    "position integer NOT NULL PRIMARY KEY, digest varchar(64) NOT NULL, "
    "statement varchar(1000) NOT NULL, done varchar(4000) NOT NULL)",
)


@contextlib.contextmanager
def control(wrapper: Any) -> Iterator[Any]:
    """A connection to home outside the caller's transaction, closed at the end.

    SQLite has one writer at a time, so there the caller's own connection serves.
    """
    if not wrapper.engine.gathers_at_home:
        wrapper.ensure_connection()
        yield wrapper
        return
    node = wrapper.nodes.extra("control")
    node.leader = leaders.leader_of(wrapper.nodes.keys["home"])
    try:
        node.ensure_connection()
        yield node
    finally:
        node.close()


class ShardMap:
    """Slot -> shard, as home has it. Immutable."""

    def __init__(self, ranges: list[tuple[int, int, str]], slots: int) -> None:
        table: list[str] = [""] * slots
        for first, last, shard in ranges:
            table[first : last + 1] = [shard] * (last - first + 1)
        self._table = tuple(table)

    def shard_of(self, slot: int) -> str:
        return self._table[slot]

    @property
    def shards(self) -> frozenset[str]:
        return frozenset(self._table)


#: (alias, home's database) -> map; another database is another fleet
_maps: dict[tuple[str, str], ShardMap] = {}


def shard_map(wrapper: Any) -> ShardMap:
    """The alias's shard map; two round trips the first time in a process.

    Raises ConfigurationError where the map and the settings name other shards.
    """
    key = (wrapper.alias, str(wrapper.settings_dict["NAME"]))
    found = _maps.get(key)
    if found is None:
        with control(wrapper) as node:
            found = _load(wrapper, node)
        if wrapper.engine.gathers_at_home or not wrapper.in_atomic_block:
            _maps[key] = found
    return found


def slot_counts(engine: Any, home: Any) -> dict[str, int] | None:
    """How many slots each shard has, None where no map was made yet; one round trip."""
    sql = "SELECT slot_from, slot_to, shard FROM dbfleet_shard"
    counts: dict[str, int] = {}
    try:
        rows = engine.fetch(home, sql)
    except Error:
        return None
    for first, last, shard in rows:
        counts[shard] = counts.get(shard, 0) + last - first + 1
    return counts or None


def forget_alias(alias: str) -> None:
    """Read the maps of an alias again when they are next needed."""
    for key in [key for key in _maps if key[0] == alias]:
        del _maps[key]


def _load(wrapper: Any, node: Any) -> ShardMap:
    create_tables(wrapper.engine, node)
    topology = wrapper.topology
    sql = "SELECT slot_from, slot_to, shard FROM dbfleet_shard ORDER BY slot_from"
    ranges = wrapper.engine.fetch(node, sql)
    if not ranges:
        ranges = _even(tuple(topology.shards), topology.slots)
        for first, last, shard in ranges:
            with contextlib.suppress(Error):  # another process was first
                wrapper.engine.run(
                    node,
                    "INSERT INTO dbfleet_shard (slot_from, slot_to, shard, epoch) "
                    "VALUES (%s, %s, %s, 1)",
                    [first, last, shard],
                ).close()
        ranges = wrapper.engine.fetch(node, sql)
    _check(wrapper, ranges)
    return ShardMap(list(ranges), topology.slots)


def _check(wrapper: Any, ranges: list[tuple[Any, ...]]) -> None:
    topology = wrapper.topology
    problems = []
    unknown = sorted({r[2] for r in ranges} - set(topology.shards))
    if unknown:
        problems.append(
            f"the map places rows on {', '.join(unknown)}, which SHARDS does not "
            "declare: declare them again, their rows are there"
        )
    covered = sum(last - first + 1 for first, last, _ in ranges)
    if covered != topology.slots or (ranges and ranges[-1][1] != topology.slots - 1):
        problems.append(
            f"the map covers {covered} slots and SLOTS is {topology.slots}: SLOTS "
            "cannot change once rows are stored, set it back"
        )
    if problems:
        raise ConfigurationError(
            "E403", f"alias {wrapper.alias!r}: " + "; ".join(problems)
        )


def _even(shards: tuple[str, ...], slots: int) -> list[tuple[Any, ...]]:
    bounds = [slots * i // len(shards) for i in range(len(shards) + 1)]
    return [
        (bounds[i], bounds[i + 1] - 1, shard)
        for i, shard in enumerate(shards)
        if bounds[i] < bounds[i + 1]
    ]


def create_tables(engine: Any, node: Any) -> None:
    """Create what is missing; a round trip for each table.

    Of two processes at once one may get an error that means "it is there now"; an
    error that means anything else comes back with the first use of the table.
    """
    for sql in _TABLES:
        try:
            engine.run(node, sql).close()
        except NodeMismatch:
            raise
        except Error:
            continue
