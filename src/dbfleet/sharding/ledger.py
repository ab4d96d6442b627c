"""dbfleet's own tables in home: shard map, id counters, claims, decisions.

Created when an alias first needs them, by portable SQL; a fleet needs no migration
of ours and no entry in INSTALLED_APPS. Rows: one for each range of slots, one for
each key of a directory, one for each table with leased ids, one for each worker
number of time-ordered ids (1024 at most), one for each unique value that no shard can
check alone, one for each lookup and for each of its values that a row gave up lately.
Shards that keep claims have the same tables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from django.db.utils import Error

from dbfleet.errors import ConfigurationError, NodeMismatch
from dbfleet.executor import leaders
from dbfleet.planner.ranges import Span
from dbfleet.sharding import keepers as keepers_room
from dbfleet.sharding import keys
from dbfleet.topology import maps

PREFIX = "dbfleet_"

#: Claims have no second index: to InnoDB a unique one is a reason to lock the claim
#: that happens to be next to it.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS dbfleet_shard ("
    "slot_from integer NOT NULL PRIMARY KEY, slot_to integer NOT NULL, "
    "shard varchar(63) NOT NULL, epoch integer NOT NULL)",
    "CREATE TABLE IF NOT EXISTS dbfleet_directory ("
    "digest varchar(32) NOT NULL PRIMARY KEY, key_text varchar(190) NOT NULL, "
    "shard varchar(63) NOT NULL)",
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
    "CREATE TABLE IF NOT EXISTS dbfleet_keeper ("
    "number integer NOT NULL PRIMARY KEY, clusters varchar(4000) NOT NULL)",
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
def control(wrapper: Any, cluster: str = "home") -> Iterator[Any]:
    """A connection to home, or a shard's primary, outside the caller's transaction.

    The caller's own where it has none open, and on SQLite, which has one writer at a
    time; else another one, closed at the end.
    """
    if not wrapper.engine.gathers_at_home:
        wrapper.ensure_connection()
        yield wrapper
        return
    if not wrapper.transaction.is_open:
        yield wrapper.nodes.primary(cluster)
        return
    node = wrapper.nodes.extra("control", cluster)
    node.leader = leaders.leader_of(wrapper.nodes.keys[cluster])
    try:
        node.ensure_connection()
        yield node
    finally:
        node.close()


class _Computed:
    """A map that computes where a key is, whether it has rows or not."""

    def place(
        self, fields: Sequence[Any], values: Sequence[Any], connection: Any
    ) -> str | None:
        raise NotImplementedError

    def place_all(
        self, fields: Sequence[Any], given: Sequence[Any], connection: Any
    ) -> list[str | None]:
        return [self.place(fields, values, connection) for values in given]

    def assign(
        self, fields: Sequence[Any], values: Sequence[Any], connection: Any
    ) -> str | None:
        return self.place(fields, values, connection)

    assign_all = place_all


class ShardMap(_Computed):
    """Slot -> shard, as home has it. Immutable."""

    def __init__(
        self, ranges: list[tuple[int, int, str]], slots: int, epoch: int = 1
    ) -> None:
        self.epoch, self._slots = epoch, slots
        table: list[str] = [""] * slots
        for first, last, shard in ranges:
            table[first : last + 1] = [shard] * (last - first + 1)
        self._table = tuple(table)

    def shard_of(self, slot: int) -> str:
        return self._table[slot]

    def place(
        self, fields: Sequence[Any], values: Sequence[Any], connection: Any
    ) -> str | None:
        """The shard of a key; every key has one."""
        return self._table[keys.slot_of(fields, values, self._slots, connection)]

    def between(self, field: Any, values: Span) -> frozenset[str] | None:
        return None  # neighbours are not hashed to neighbours

    @property
    def shards(self) -> frozenset[str]:
        return frozenset(self._table)


class DeclaredMap(_Computed):
    """A map of listed keys or ranges, which home was found to agree with. Immutable."""

    def __init__(self, declared: maps.FixedMap, epoch: int) -> None:
        self.epoch, self._declared = epoch, declared

    def place(
        self, fields: Sequence[Any], values: Sequence[Any], connection: Any
    ) -> str | None:
        """The shard of a key; None where the map does not cover it."""
        found = [
            keys.value_of(field, value, connection)
            for field, value in zip(fields, values, strict=True)
        ]
        return self._declared.place(found[0]) if len(found) == 1 else None

    def between(self, field: Any, values: Span) -> frozenset[str] | None:
        """The shards of keys in a range that SQL compares as Python does; None: any."""
        return self._declared.between(values.low, values.high, values.excluded)

    @property
    def shards(self) -> frozenset[str]:
        return self._declared.shards


class AnyMap(Protocol):
    """What says where the rows of a key are."""

    @property
    def epoch(self) -> int: ...

    def place(
        self, fields: Sequence[Any], values: Sequence[Any], connection: Any
    ) -> str | None:
        """The shard of a key, None where no row can have it."""

    def assign(
        self, fields: Sequence[Any], values: Sequence[Any], connection: Any
    ) -> str | None:
        """The shard of a key that is about to be stored, None where it cannot be."""

    def place_all(
        self, fields: Sequence[Any], given: Sequence[Any], connection: Any
    ) -> list[str | None]:
        """The shards of many keys, in order; what takes asking is asked at once."""

    def assign_all(
        self, fields: Sequence[Any], given: Sequence[Any], connection: Any
    ) -> list[str | None]:
        """The same for keys that are about to be stored."""

    def between(self, field: Any, values: Span) -> frozenset[str] | None:
        """The shards of keys in a range that SQL compares as Python does; None: any."""


#: (alias, home's database) -> map; another database is another fleet
_maps: dict[tuple[str, str], AnyMap] = {}
#: the same -> the clusters that keep claims
_keepers: dict[tuple[str, str], keepers_room.Keepers] = {}


def known_epoch(wrapper: Any) -> int | None:
    """The epoch of the alias's shard map, None if it was not read yet; no I/O."""
    found = _maps.get((wrapper.alias, str(wrapper.settings_dict["NAME"])))
    return None if found is None else found.epoch


def shard_map(wrapper: Any) -> AnyMap:
    """The alias's shard map; two round trips the first time in a process.

    Raises ConfigurationError where the map and the settings name other shards.
    """
    key = (wrapper.alias, str(wrapper.settings_dict["NAME"]))
    found = _maps.get(key)
    if found is None:
        with control(wrapper) as node:
            found = _load(wrapper, node)
            create = partial(_create_on, wrapper)
            _keepers[key] = keepers_room.load(wrapper, node, create)
        if wrapper.engine.gathers_at_home or not wrapper.in_atomic_block:
            _maps[key] = found
    return found


def keepers(wrapper: Any) -> keepers_room.Keepers:
    """The clusters that keep the alias's claims; read with the shard map."""
    if not wrapper.topology.is_sharded:
        return ("home",)
    shard_map(wrapper)
    return _keepers[wrapper.alias, str(wrapper.settings_dict["NAME"])]


def _create_on(wrapper: Any, shards: Sequence[str]) -> None:
    for shard in shards:
        with control(wrapper, shard) as node:
            create_tables(wrapper.engine, node)


def slot_counts(engine: Any, home: Any) -> dict[str, int] | None:
    """How many slots each shard has, None where no map was made yet; one round trip."""
    sql = "SELECT slot_from, slot_to, shard FROM dbfleet_shard"
    counts: dict[str, int] = {}
    try:
        rows = engine.fetch(home, sql)
    except Error:
        return None
    for first, last, shard in rows:
        if last < first:
            continue  # a declared map, which has no slots
        counts[shard] = counts.get(shard, 0) + last - first + 1
    return counts or None


def forget_alias(alias: str) -> None:
    """Read the maps of an alias again when they are next needed."""
    for known in (_maps, _keepers):
        for key in [key for key in known if key[0] == alias]:
            del known[key]


_READ = "SELECT slot_from, slot_to, shard, epoch FROM dbfleet_shard ORDER BY slot_from"


def _load(wrapper: Any, node: Any) -> AnyMap:
    """What home has, made if it has nothing yet.

    A declared map is one row, at slot 0, with no slots: its primary key decides between
    processes that begin at once under different settings, hash slots included.
    """
    create_tables(wrapper.engine, node)
    topology = wrapper.topology
    declared = topology.map
    rows = wrapper.engine.fetch(node, _READ)
    wanted = (
        _even(tuple(topology.shards), topology.slots)
        if declared is None
        else [(0, -1, declared.fingerprint())]
    )
    # Some of the wanted rows: another process is about to add the others, or has died.
    if len(rows) < len(wanted) and all(tuple(row[:3]) in wanted for row in rows):
        _insert(wrapper.engine, node, wanted[:1])
        first = wrapper.engine.fetch(node, _READ)
        if first and tuple(first[0][:3]) == wanted[0]:  # else another map was first
            _insert(wrapper.engine, node, wanted[1:])
        rows = wrapper.engine.fetch(node, _READ)
    epoch = max((row[3] for row in rows), default=1)
    if declared is not None or any(last < first for first, last, *_ in rows):
        _check_declared(wrapper, rows)
        assert declared is not None
        if isinstance(declared, maps.DirectoryMap):
            from dbfleet.sharding.directory import Directory  # few fleets have one

            return Directory(declared, epoch)
        return DeclaredMap(declared, epoch)
    ranges = [tuple(row[:3]) for row in rows]
    _check(wrapper, ranges)
    return ShardMap(ranges, topology.slots, epoch)


def _insert(engine: Any, node: Any, rows: list[tuple[Any, ...]]) -> None:
    for first, last, shard in rows:
        with contextlib.suppress(Error):  # another process was first
            engine.run(
                node,
                "INSERT INTO dbfleet_shard (slot_from, slot_to, shard, epoch) "
                "VALUES (%s, %s, %s, 1)",
                [first, last, shard],
            ).close()


def _check_declared(wrapper: Any, rows: list[tuple[Any, ...]]) -> None:
    declared = wrapper.topology.map
    wanted = "hash slots" if declared is None else declared.fingerprint()
    found = [row[2] for row in rows if row[1] < row[0]]
    if found == [wanted] and len(rows) == 1:
        return
    recorded = found[0] if found else "hash slots"
    raise ConfigurationError(
        "E403",
        f"alias {wrapper.alias!r}: rows were placed by the map {recorded!r}, as home "
        f"recorded at its first use, and the settings declare {wanted!r}: a map cannot "
        "change once rows are stored, set it back, or load the rows into another alias "
        "that has the new map",
    )


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
