"""Declared shard maps: ``ListMap``, ``RangeMap``, ``DirectoryMap``, not hash slots.

Guards three invariants: a map is one function of the key's value for every sharded
table of its alias, since rows that are joined by equal keys have to meet on one shard;
a key that it does not cover has no shard, rather than a guessed one; and it is checked
before anything is opened. Pure: no I/O.
"""

from __future__ import annotations

import bisect
import datetime
import hashlib
import itertools
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from dbfleet.topology.mistakes import Mistakes, unknown_name

#: types of keys that a map may name; a map has keys of one of them
_LISTED = (int, str, datetime.date, uuid.UUID)
_ORDERED = (int, str, datetime.date)
#: what a dict that stands for a map is called in an entry
LIST, RANGE, DIRECTORY = "LIST", "RANGE", "DIRECTORY"
#: where a directory places a key that it does not have: by the key's hash
HASH = "hash"
#: what types are called in a dict that stands for a directory
_NAMED = {kind.__name__.lower(): kind for kind in _LISTED}


class _Map:
    """What every kind shares: the text that home keeps, equality, immutability."""

    kind: str
    #: the shards that the map names
    shards: frozenset[str]
    #: the one type of its keys; None while a mistake leaves it open
    key_type: type | None
    _entries: tuple[tuple[Any, ...], ...]

    def fingerprint(self) -> str:
        """Text that differs for maps that place any key differently."""
        kind = self.key_type.__name__ if self.key_type else ""
        spelled = json.dumps([kind, *([*map(_spelled, e)] for e in self._entries)])
        digest = hashlib.blake2b(spelled.encode(), digest_size=16).hexdigest()
        return f"{self.kind.lower()} {digest}"

    def takes(self, value: Any) -> bool:
        """Whether a value is of the type of the map's keys."""
        is_time = isinstance(value, datetime.datetime)  # a date to Python
        return isinstance(value, self.key_type or ()) and not is_time

    def mistakes_in(
        self, where: str, shards: Iterable[str], mistakes: Mistakes
    ) -> None:
        """Report every mistake of the map, given the names of the alias's shards."""
        if not self._entries:
            mistakes.add("E004", where, f"MAP {self.kind} is empty: it places no row")
        known = [name for name in shards if isinstance(name, str)]
        named = {repr(shard): shard for *_, shard in self._entries}
        for _, shard in sorted(named.items()):
            if shard not in known:
                unknown = unknown_name(shard, known)
                mistakes.add("E004", where, f"MAP places keys on {unknown}")

    def _one_type(self, where: str, keys: Iterable[Any], mistakes: Mistakes) -> bool:
        allowed = _LISTED if self.kind == LIST else _ORDERED
        kinds: dict[type, Any] = {}
        for key in keys:
            kind = _type_of(key, allowed)
            if kind is None:
                names = ", ".join(one.__name__ for one in allowed)
                mistakes.add(
                    "E004",
                    where,
                    f"MAP {self.kind} has the key {key!r}; keys are of one of the "
                    f"types {names}",
                )
                return False
            kinds.setdefault(kind, key)
        if len(kinds) > 1:
            listed = " and ".join(map(repr, kinds.values()))
            mistakes.add(
                "E004",
                where,
                f"MAP {self.kind} has keys of several types, such as {listed}: a shard "
                "key has one type",
            )
        return len(kinds) < 2

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Map:
        return self  # immutable; Django copies settings deeply

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._entries)} entries)"


class ListMap(_Map):
    """Each key is named with its shard: ``ListMap({"no": "a", "se": "a", "dk": "b"})``.

    Keys are whole numbers, texts, dates or UUIDs. A row with another key is refused.
    """

    kind = LIST

    def __init__(self, shards: Mapping[Any, str]) -> None:
        self._shards = dict(shards) if isinstance(shards, Mapping) else None
        found = self._shards or {}
        self._entries = tuple(
            sorted(found.items(), key=lambda e: (repr(e[0]), repr(e)))
        )
        self.shards = frozenset(
            name for name in found.values() if isinstance(name, str)
        )
        self.key_type = _first_type((key for key in found), _LISTED)

    def place(self, value: Any) -> str | None:
        """The shard of a key; None where the map does not name it."""
        assert self._shards is not None
        return self._shards.get(value) if self.takes(value) else None

    def between(
        self, low: Any, high: Any, excluded: frozenset[Any]
    ) -> frozenset[str] | None:
        """The shards of keys from ``low`` to ``high``; None if that cannot be told."""
        if not all(bound is None or self.takes(bound) for bound in (low, high)):
            return None
        return frozenset(
            shard
            for key, shard in self._entries
            if (low is None or key >= low)
            and (high is None or key <= high)
            and key not in excluded
        )

    def mistakes_in(
        self, where: str, shards: Iterable[str], mistakes: Mistakes
    ) -> None:
        if self._shards is None:
            mistakes.add("E004", where, "MAP LIST must be a dict of key to shard")
            return
        super().mistakes_in(where, shards, mistakes)
        self._one_type(where, self._shards, mistakes)

    def __reduce__(self) -> tuple[type[ListMap], tuple[Any]]:
        return type(self), (self._shards,)


class RangeMap(_Map):
    """Ranges of keys: ``RangeMap([(None, 1000, "a"), (1000, None, "b")])``.

    Each is (first key, first key that is not in it any more, shard); None is no bound.
    Keys are whole numbers, dates or texts, ordered by their characters' codes. Ranges
    follow each other without a gap; below the first and above the last one, unless they
    are open, a row is refused.
    """

    kind = RANGE

    def __init__(self, ranges: Iterable[tuple[Any, Any, str]]) -> None:
        self._given = _rows(ranges)
        rows = [row for row in self._given or () if len(row) == 3]
        self.shards = frozenset(row[2] for row in rows if isinstance(row[2], str))
        self.key_type = _first_type(_bounds(rows), _ORDERED)
        try:
            self._entries = _joined(rows)
        except TypeError:  # bounds of several types, which is told as a mistake
            self._entries = tuple(rows)
        self._lows = [row[0] for row in self._entries if row[0] is not None]
        #: entries before the first one of ``_lows``
        self._open = len(self._entries) - len(self._lows)

    def place(self, value: Any) -> str | None:
        """The shard of a key; None where no range covers it."""
        if not self.takes(value):
            return None
        at = bisect.bisect_right(self._lows, value) + self._open - 1
        if at < 0:
            return None
        _, end, shard = self._entries[at]
        return str(shard) if end is None or value < end else None

    def between(
        self, low: Any, high: Any, excluded: frozenset[Any]
    ) -> frozenset[str] | None:
        """The shards of keys from ``low`` to ``high``; None if that cannot be told."""
        if not all(bound is None or self.takes(bound) for bound in (low, high)):
            return None
        return frozenset(
            shard
            for first, end, shard in self._entries
            if (low is None or end is None or low < end)
            and (high is None or first is None or first <= high)
        )

    def mistakes_in(
        self, where: str, shards: Iterable[str], mistakes: Mistakes
    ) -> None:
        if self._given is None or any(len(row) != 3 for row in self._given):
            mistakes.add(
                "E004",
                where,
                "MAP RANGE must be a list of (first key, end, shard)",
            )
            return
        super().mistakes_in(where, shards, mistakes)
        if self._one_type(where, _bounds(self._given), mistakes):
            self._check_order(where, mistakes)

    def _check_order(self, where: str, mistakes: Mistakes) -> None:
        for low, end, shard in self._given or ():
            if low is not None and end is not None and low >= end:
                mistakes.add(
                    "E004",
                    where,
                    f"MAP RANGE ({low!r}, {end!r}, {shard!r}) is empty: its end is the "
                    "first key that is not in it",
                )
                return
        rows = sorted(self._given or (), key=_from_low)
        for (low, end, shard), (start, stop, other) in itertools.pairwise(rows):
            if end is None or start is None or start < end:
                problem = "overlap"
            elif start > end:
                problem = "leave a gap"
            else:
                continue
            mistakes.add(
                "E004",
                where,
                f"MAP RANGE ({low!r}, {end!r}, {shard!r}) and ({start!r}, {stop!r}, "
                f"{other!r}) {problem}: each range begins where the one before ends",
            )
        if rows and not _bounds(rows):
            mistakes.add(
                "E004", where, "MAP RANGE has no bound, so its keys have no type"
            )

    def __reduce__(self) -> tuple[type[RangeMap], tuple[Any]]:
        return type(self), (self._given,)


class DirectoryMap(_Map):
    """Each key has a row in home that names its shard: ``DirectoryMap(int)``.

    ``keys`` is the type of the keys: ``int``, ``str``, ``datetime.date`` or
    ``uuid.UUID``. ``new`` says where a key goes that has no row yet when a row of it is
    first written: ``"hash"``, over all shards by its hash; a shard's name; or None,
    nowhere, so that it has to be placed before (:func:`dbfleet.place`). A key that was
    placed stays; shards may be added at any time. Home is asked for a key once in a
    process, one round trip, and given a new one, a connection and three round trips.
    """

    kind = DIRECTORY
    shards: frozenset[str] = frozenset()

    def __init__(self, keys: type | str, new: str | None = HASH) -> None:
        named = keys.lower() if isinstance(keys, str) else keys
        self._given, self.new = (keys, new), new
        self.key_type = (
            _NAMED.get(named)
            if isinstance(named, str)
            else next((kind for kind in _LISTED if kind is named), None)
        )
        self._entries = ()

    def mistakes_in(
        self, where: str, shards: Iterable[str], mistakes: Mistakes
    ) -> None:
        if self.key_type is None:
            names = ", ".join(_NAMED)
            mistakes.add(
                "E004",
                where,
                f"MAP DIRECTORY has KEYS {self._given[0]!r}; it is one of {names}",
            )
        known = [name for name in shards if isinstance(name, str)]
        if self.new == HASH and HASH in known:
            mistakes.add(
                "E005", where, "MAP DIRECTORY: a shard is called 'hash', which NEW is"
            )
        if self.new is not None and self.new not in {HASH, *known}:
            unknown = unknown_name(self.new, [HASH, *known])
            mistakes.add("E004", where, f"MAP DIRECTORY places new keys on {unknown}")

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self._key() == other._key()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.key_type, self.new

    def __repr__(self) -> str:
        name = self.key_type.__name__ if self.key_type else self._given[0]
        return f"DirectoryMap({name}, new={self.new!r})"

    def __reduce__(self) -> tuple[type[DirectoryMap], tuple[Any, ...]]:
        return type(self), self._given


#: maps that say by themselves where a key is
FixedMap = ListMap | RangeMap
ShardMap = FixedMap | DirectoryMap


def read_map(where: str, given: object, mistakes: Mistakes) -> ShardMap | None:
    """``MAP`` of an entry: a map, or a dict of its kind to what it is made of."""
    if isinstance(given, ShardMap):
        return given
    kinds: dict[str, Any] = {LIST: ListMap, RANGE: RangeMap, DIRECTORY: _directory}
    if not isinstance(given, Mapping) or len(given) != 1:
        mistakes.add(
            "E004",
            where,
            "MAP must be a ListMap, a RangeMap, a DirectoryMap, or a dict such as "
            "{'LIST': {…}}, {'RANGE': […]} or {'DIRECTORY': {'KEYS': 'int'}}",
        )
        return None
    [(kind, made_of)] = given.items()
    if kind not in kinds:
        mistakes.add("E006", where, f"MAP {unknown_name(kind, kinds)}")
        return None
    if kind == DIRECTORY and not (
        isinstance(made_of, Mapping) and {"KEYS"} <= {*made_of} <= {"KEYS", "NEW"}
    ):
        mistakes.add(
            "E004",
            where,
            "MAP DIRECTORY must be a dict with KEYS, the type of its keys, and NEW",
        )
        return None
    found: ShardMap = kinds[kind](made_of)
    return found


def _directory(given: Mapping[str, Any]) -> DirectoryMap:
    return DirectoryMap(given["KEYS"], given.get("NEW", HASH))


def _bounds(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [key for row in rows for key in row[:2] if key is not None]


def _rows(given: Any) -> tuple[tuple[Any, ...], ...] | None:
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        return None
    rows = list(given)
    if any(isinstance(row, str) or not isinstance(row, Iterable) for row in rows):
        return None
    return tuple(tuple(row) for row in rows)


def _from_low(row: tuple[Any, ...]) -> tuple[bool, Any]:
    return (False, 0) if row[0] is None else (True, row[0])


def _joined(rows: list[tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
    """Ranges in order; neighbours of one shard are one range."""
    found: list[tuple[Any, ...]] = []
    for low, end, shard in sorted(rows, key=_from_low):
        if found and found[-1][2] == shard and low is not None and found[-1][1] == low:
            found[-1] = (found[-1][0], end, shard)
        else:
            found.append((low, end, shard))
    return tuple(found)


def _type_of(key: Any, allowed: tuple[type, ...]) -> type | None:
    if isinstance(key, bool | datetime.datetime):
        return None
    return next((kind for kind in allowed if isinstance(key, kind)), None)


def _first_type(keys: Iterable[Any], allowed: tuple[type, ...]) -> type | None:
    return next((_type_of(key, allowed) for key in keys), None)


def _spelled(part: Any) -> Any:
    return part if part is None or isinstance(part, int) else str(part)
