"""A directory in home: each key has a row that names its shard.

Guards one invariant: the shard of a key never changes once it has one, and it has one
before a row of it is stored. So what a process has read of it stays true, and a key
without a row has no rows. The row is committed by itself, before anything of the
caller's transaction; on SQLite, where there is one writer, as part of it.
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.db import connections
from django.db.utils import Error

from dbfleet.errors import ConfigurationError, PlacementRefused
from dbfleet.planner.ranges import Span
from dbfleet.planner.route import HOME
from dbfleet.sharding import keys, ledger
from dbfleet.topology import maps

#: keys of a process that are kept; it begins anew when there are more
MAX_KNOWN = 100_000
#: keys in one statement
BATCH = 1000

_CREATED = "INSERT INTO dbfleet_directory (digest, key_text, shard) VALUES "


class Directory:
    """Key -> shard, as home has it. Shared by the threads of a process."""

    def __init__(self, declared: maps.DirectoryMap, epoch: int) -> None:
        self.epoch, self._declared = epoch, declared
        self._known: dict[Any, str] = {}

    def place(
        self, fields: Sequence[Any], values: Sequence[Any], connection: Any
    ) -> str | None:
        """The shard of a key, None where it has none; one round trip to home for a key
        that the process has not seen with one."""
        return self.place_all(fields, [values], connection)[0]

    def place_all(
        self, fields: Sequence[Any], given: Sequence[Any], connection: Any
    ) -> list[str | None]:
        """The shards of many keys, in order; one round trip for each 1000 of them that
        the process has not seen with one."""
        wanted = [self._key(fields, values, connection) for values in given]
        found = self._found(wanted, connection)
        return [found.get(key) for key in wanted]

    def assign_all(
        self, fields: Sequence[Any], given: Sequence[Any], connection: Any
    ) -> list[str | None]:
        """The same; keys without a shard are given one if they may have one."""
        wanted = [self._key(fields, values, connection) for values in given]
        found = self._found(wanted, connection)
        missing = {key: None for key in wanted if key is not None and key not in found}
        if missing and self._declared.new is not None:
            placed = {key: self._new(key, connection) for key in missing}
            found |= self._add(placed, connection)
        return [found.get(key) for key in wanted]

    def assign(
        self, fields: Sequence[Any], values: Sequence[Any], connection: Any
    ) -> str | None:
        """The shard of a key, which is given one if it has none and may have one."""
        return self.assign_all(fields, [values], connection)[0]

    def put(self, key: Any, shard: str, connection: Any) -> str:
        """Place a key; returns the shard that it has now, which may be another."""
        there = self._read([key], connection)
        return (there or self._add({key: shard}, connection))[key]

    def put_all(self, placed: Mapping[Any, str], connection: Any) -> None:
        """Place keys that have no shard yet."""
        self._add(placed, connection)

    def find(self, found: Sequence[Any], connection: Any) -> dict[Any, str]:
        """What home says of keys; one round trip for each 1000 of them."""
        return self._read(found, connection)

    def counts(self, connection: Any) -> dict[str, int]:
        """How many keys each shard has; one round trip, which reads them all."""
        node = connection.routing.node(HOME, is_write=False)
        sql = "SELECT shard, COUNT(*) FROM dbfleet_directory GROUP BY shard"
        return {shard: int(n) for shard, n in connection.engine.fetch(node, sql)}

    def between(self, field: Any, values: Span) -> frozenset[str] | None:
        return None  # home is not asked for ranges of keys

    def takes(self, value: Any) -> bool:
        """Whether a value is of the type of the directory's keys."""
        return self._declared.takes(value)

    # -- home -----------------------------------------------------------------------

    def _key(
        self, fields: Sequence[Any], values: Sequence[Any], connection: Any
    ) -> Any:
        found = [
            keys.value_of(field, value, connection)
            for field, value in zip(fields, values, strict=True)
        ]
        is_one = len(found) == 1 and self._declared.takes(found[0])
        # True is 1 to Python and to every database.
        return found[0] if is_one else None

    def _found(self, wanted: Sequence[Any], connection: Any) -> dict[Any, str]:
        known = self._known  # another thread may begin anew
        found = {key: known[key] for key in wanted if key in known}
        unknown = {key: None for key in wanted if key is not None and key not in found}
        return found | (self._read([*unknown], connection) if unknown else {})

    def _new(self, key: Any, connection: Any) -> str:
        shards = tuple(connection.topology.shards)
        if self._declared.new != maps.HASH:
            return str(self._declared.new)
        digest = hashlib.blake2b(keys.encode(key), digest_size=8).digest()
        return str(shards[int.from_bytes(digest, "big") % len(shards)])

    def _read(self, wanted: Sequence[Any], connection: Any) -> dict[Any, str]:
        node = connection.routing.node(HOME, is_write=False)
        return self._kept(self._fetch(wanted, connection, node), connection)

    def _add(self, new: Mapping[Any, str], connection: Any) -> dict[Any, str]:
        """Give keys their shards; those that another process placed keep theirs."""
        with ledger.control(connection) as node:
            for batch in _batches(new):
                rows = [(_digest(key), str(key)[:190], new[key]) for key in batch]
                marks = ", ".join(["(%s, %s, %s)"] * len(rows))
                sent = [value for row in rows for value in row]
                try:
                    connection.engine.run(node, _CREATED + marks, sent).close()
                except Error:
                    if len(rows) > 1:
                        self._add_each(node, rows, connection)
            found = self._fetch(list(new), connection, node)
        if missing := new.keys() - found.keys():
            raise ConfigurationError(
                "E403",
                f"alias {connection.alias!r}: the key {min(map(repr, missing))} could "
                "not be added to the directory in home (dbfleet_directory); may its "
                "role insert there?",
            )
        return self._kept(found, connection)

    def _add_each(
        self, node: Any, rows: Sequence[tuple[Any, ...]], connection: Any
    ) -> None:
        for row in rows:
            try:
                connection.engine.run(node, _CREATED + "(%s, %s, %s)", row).close()
            except Error:
                continue  # another process was first; what is there is read again

    def _fetch(
        self, wanted: Sequence[Any], connection: Any, node: Any
    ) -> dict[Any, str]:
        found: dict[Any, str] = {}
        for batch in _batches(wanted):
            digests = {_digest(key): key for key in batch}
            marks = ", ".join(["%s"] * len(digests))
            rows = connection.engine.fetch(
                node,
                "SELECT digest, shard FROM dbfleet_directory "
                f"WHERE digest IN ({marks})",
                list(digests),
            )
            found.update((digests[digest], shard) for digest, shard in rows)
        return found

    def _kept(self, found: dict[Any, str], connection: Any) -> dict[Any, str]:
        unknown = sorted({*found.values()} - {*connection.topology.shards})
        if unknown:
            raise ConfigurationError(
                "E403",
                f"alias {connection.alias!r}: the directory places keys on "
                f"{', '.join(unknown)}, which SHARDS does not declare: declare them "
                "again, their rows are there",
            )
        # What a transaction on SQLite has added goes with it.
        if connection.engine.gathers_at_home or not connection.in_atomic_block:
            if len(self._known) + len(found) > MAX_KNOWN:
                self._known = {}
            self._known.update(found)
        return found


def _digest(key: Any) -> str:
    return hashlib.blake2b(keys.encode(key), digest_size=16).hexdigest()


def _batches(found: Iterable[Any]) -> Iterator[list[Any]]:
    listed = list(found)
    for at in range(0, len(listed), BATCH):
        yield listed[at : at + BATCH]


def directory_of(alias: str) -> tuple[Any, Directory]:
    """The wrapper of an alias and its directory; raises PlacementRefused without."""
    wrapper: Any = connections[alias]
    topology = getattr(wrapper, "topology", None)
    if topology is None or not isinstance(topology.map, maps.DirectoryMap):
        raise PlacementRefused(
            "E413",
            f"alias {alias!r} has no directory to place keys in: declare it with "
            "map=DirectoryMap(…), before it has rows",
        )
    found = ledger.shard_map(wrapper)
    assert isinstance(found, Directory)
    return wrapper, found


def place(alias: str, key: Any, shard: str) -> None:
    """Say on which shard the rows of a key are, before they are stored.

    For an alias with a :class:`~dbfleet.DirectoryMap`, when a tenant signs up, say.
    Committed at once, whatever transaction is open (on SQLite: with it); said again it
    does nothing. A connection to home and four round trips.

    Raises PlacementRefused (E413) where the key is of another type or has another shard
    already, whose rows would not be found any more, and where the alias has no
    directory or no such shard.
    """
    wrapper, directory = directory_of(alias)
    if shard not in wrapper.topology.shards:
        known = ", ".join(wrapper.topology.shards)
        raise PlacementRefused(
            "E413", f"alias {alias!r} has no shard {shard!r}; it has {known}"
        )
    if not directory.takes(key):
        kind = wrapper.topology.map.key_type.__name__
        raise PlacementRefused(
            "E413",
            f"{key!r} is no key of the directory of {alias!r}, whose keys are of the "
            f"type {kind}; nothing was placed",
        )
    now = directory.put(key, shard, wrapper)
    if now != shard:
        raise PlacementRefused(
            "E413",
            f"key {key!r} of alias {alias!r} is on shard {now!r}, and stays there: its "
            f"rows would not be found on {shard!r}",
        )


#: how a key that was typed is read
PARSERS: dict[type, Callable[[str], Any]] = {
    int: int,
    str: str,
    datetime.date: datetime.date.fromisoformat,
    uuid.UUID: uuid.UUID,
}
