"""Shard key -> bytes -> slot -> shard.

The encoding is fixed for ever (vectors in ``tests/sharding/test_keys.py``): rows are
found again by it. Values that the database calls equal must encode alike, so a
value is first brought to its field's own Python type.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from django.db.models import IntegerField

from dbfleet.errors import InvalidShardKey, NullShardKey, UncoveredShardKey
from dbfleet.topology import Topology
from dbfleet.topology.maps import DirectoryMap

_UTC = datetime.UTC
#: types of which equal values are one key
_PLAIN = frozenset({int, str, uuid.UUID})


def target_of(field: Any) -> Any:
    """Follow foreign keys to the field whose values are stored."""
    while field.remote_field:
        field = field.target_field
    return field


def encode(value: Any) -> bytes:  # noqa: PLR0911 - one line for each type
    """The fixed byte form of one key value; raises TypeError for other types."""
    if isinstance(value, int):  # bool included: True is 1 in every database
        return b"i%d" % value
    if isinstance(value, str):
        return b"s" + value.encode()
    if isinstance(value, uuid.UUID):
        return b"u" + value.bytes
    if isinstance(value, decimal.Decimal):
        whole = value == value.to_integral_value()
        return b"d" + str(int(value) if whole else value.normalize()).encode()
    if isinstance(value, float):
        return b"f" + repr(value + 0.0).encode()
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(_UTC).replace(tzinfo=None)
        return b"t" + str(value.isoformat()).encode()
    if isinstance(value, (datetime.date, datetime.time)):
        return b"t" + value.isoformat().encode()
    if isinstance(value, datetime.timedelta):
        return b"l%d" % (value // datetime.timedelta(microseconds=1))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b"b" + bytes(value)
    raise TypeError(type(value).__name__)


def canonical(field: Any, value: Any, connection: Any) -> Any:
    """``value`` as the type that ``field`` stores."""
    stored = target_of(field)
    if type(value) is int and isinstance(stored, IntegerField):
        return value  # the usual key, without the ceremony
    try:
        # Prepared first: a field may store another value than it was given.
        python = stored.to_python(stored.get_prep_value(value))
        if isinstance(python, decimal.Decimal):
            python = _rounded(stored, python, connection)
        encode(python)
    except TypeError:
        # A custom type: what is sent to the database is what is hashed.
        python = stored.get_db_prep_save(value, connection=connection)
    return python


def _rounded(field: Any, value: decimal.Decimal, connection: Any) -> decimal.Decimal:
    """A decimal with the digits of its column, as the row will be read again.

    Servers round when they store; SQLite keeps every digit and Django rounds to even
    when it reads.
    """
    places = getattr(field, "decimal_places", None)
    if places is None or not value.is_finite():
        return value
    is_file = connection.vendor == "sqlite"
    rounding = decimal.ROUND_HALF_EVEN if is_file else decimal.ROUND_HALF_UP
    try:
        return value.quantize(decimal.Decimal(1).scaleb(-places), rounding)
    except decimal.InvalidOperation:
        return value  # more digits than any row has


def slot_of(
    fields: Sequence[Any], values: Sequence[Any], slots: int, connection: Any
) -> int:
    """The slot of a key, 0 <= slot < ``slots``.

    Raises NullShardKey for a part that is None, InvalidShardKey for a value that
    its field cannot hold.
    """
    value = values[0]
    if (
        len(values) == 1
        and type(value) is int
        and isinstance(target_of(fields[0]), IntegerField)
    ):
        part = b"i%d" % value  # the usual key, as below
        found = hashlib.blake2b(len(part).to_bytes(4, "big") + part, digest_size=8)
        return int.from_bytes(found.digest(), "big") % slots
    digest = hashlib.blake2b(digest_size=8)
    for field, value in zip(fields, values, strict=True):
        if value is None:
            raise _null(field)
        try:
            part = encode(canonical(field, value, connection))
        except Exception as error:
            raise _invalid(field, value, error) from error
        digest.update(len(part).to_bytes(4, "big") + part)
    return int.from_bytes(digest.digest(), "big") % slots


def each_once(
    place: Callable[[list[tuple[Any, ...]]], list[str]],
    columns: Sequence[Sequence[Any]],
) -> list[str]:
    """``place`` of all keys; of those that are surely the same, it is given one."""
    if len(columns) > 1:
        return place(list(zip(*columns, strict=True)))
    given: list[tuple[Any, ...]] = []
    first: dict[Any, int] = {}
    where: list[int] = []
    for value in columns[0]:
        # Values of other types may be equal here and two keys, such as 1 and True.
        is_plain = type(value) in _PLAIN
        at = first.get(value) if is_plain else None
        if at is None:
            at = len(given)
            given.append((value,))
            if is_plain:
                first[value] = at
        where.append(at)
    found = place(given)
    return [found[at] for at in where]


def value_of(field: Any, value: Any, connection: Any) -> Any:
    """The value of a key as a declared map compares it; raises as :func:`slot_of`."""
    if value is None:
        raise _null(field)
    try:
        return canonical(field, value, connection)
    except Exception as error:
        raise _invalid(field, value, error) from error


def uncovered(
    topology: Topology, fields: Sequence[Any], values: Sequence[Any]
) -> UncoveredShardKey:
    """The error for a key that the alias's declared map has no shard for."""
    names = ", ".join(field.name for field in fields)
    label = fields[0].model._meta.label
    alias, found = topology.alias, topology.map
    if len(fields) > 1:
        problem = (
            f"has {len(fields)} columns ({names}), and MAP places keys of one: "
            "give the model a shard key of one column"
        )
    elif isinstance(found, DirectoryMap) and found.takes(values[0]):
        problem = (
            f"is {names}={values[0]!r}, which the directory of {alias!r} has no shard "
            f"for, and its NEW is None: place it first, by manage.py fleet place "
            f"{alias} {values[0]} SHARD or dbfleet.place()"
        )
    elif found is not None and found.key_type is not None:
        problem = (
            f"is {names}={values[0]!r}, which MAP {found.kind} of {alias!r} does not "
            f"cover; its keys are of the type {found.key_type.__name__}. Store the row "
            "under a key that it covers, or keep the model on another alias"
        )
    else:
        problem = f"is {names}={values[0]!r}, for which {alias!r} has no shard"
    return UncoveredShardKey(
        "E409", f"the shard key of {label} {problem}. Nothing was written"
    )


def _null(field: Any) -> NullShardKey:
    return NullShardKey(
        "E401",
        f"{field.model._meta.label}.{field.name} is the shard key and is "
        "NULL; a row needs a shard key to be stored: give it a value",
    )


def _invalid(field: Any, value: Any, error: Exception) -> InvalidShardKey:
    return InvalidShardKey(
        "E404",
        f"{value!r} is no shard key for "
        f"{field.model._meta.label}.{field.name}: {error}",
    )
