"""Slots of keys: fixed for ever, alike for values that a database calls equal."""

from __future__ import annotations

import datetime
import uuid
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection, models
from hypothesis import given, settings
from hypothesis import strategies as st

from dbfleet.errors import InvalidShardKey, NullShardKey
from dbfleet.sharding import keys

SLOTS = 5040
UTC = datetime.UTC

FIELDS: dict[str, models.Field[Any, Any]] = {
    "integer": models.IntegerField(),
    "big": models.BigIntegerField(),
    "auto": models.BigAutoField(primary_key=True),
    "boolean": models.BooleanField(),
    "char": models.CharField(max_length=50),
    "text": models.TextField(),
    "slug": models.SlugField(),
    "email": models.EmailField(),
    "address": models.GenericIPAddressField(),
    "uuid": models.UUIDField(),
    "decimal": models.DecimalField(max_digits=8, decimal_places=2),
    "float": models.FloatField(),
    "date": models.DateField(),
    "datetime": models.DateTimeField(),
    "time": models.TimeField(),
    "duration": models.DurationField(),
    "binary": models.BinaryField(),
}
for _name, _field in FIELDS.items():
    _field.set_attributes_from_name(_name)

# Rows are found again by these numbers. A change of one of them loses the rows of
# every fleet there is: no change is right.
VECTORS: list[tuple[str, Any, bytes, int]] = [
    ("integer", 0, b"i0", 1132),
    ("integer", 1, b"i1", 1450),
    ("integer", -7, b"i-7", 2352),
    ("integer", 2147483647, b"i2147483647", 1873),
    ("big", -9223372036854775808, b"i-9223372036854775808", 3560),
    ("auto", 42, b"i42", 862),
    ("boolean", True, b"i1", 1450),
    ("boolean", False, b"i0", 1132),
    ("char", "", b"s", 2820),
    ("char", "red", b"sred", 3899),
    ("char", "5", b"s5", 3022),
    (
        "char",
        "na\xefve \u96ea \U0001f41f",
        b"sna\xc3\xafve \xe9\x9b\xaa \xf0\x9f\x90\x9f",
        75,
    ),
    ("text", "a" * 1000, b"s" + b"a" * 1000, 2557),
    ("slug", "a-b", b"sa-b", 2908),
    ("email", "a@b.example", b"sa@b.example", 4327),
    ("address", "2001:db8::1", b"s2001:db8::1", 1993),
    ("uuid", uuid.UUID(int=1), b"u" + b"\0" * 15 + b"\1", 1641),
    ("uuid", uuid.UUID("12345678" * 4), b"u" + b"\x124Vx" * 4, 28),
    ("decimal", Decimal("1.00"), b"d1", 1026),
    ("decimal", Decimal("-12.50"), b"d-12.5", 1083),
    ("decimal", Decimal("0.01"), b"d0.01", 1931),
    ("float", 1.5, b"f1.5", 799),
    ("float", 0.0, b"f0.0", 2217),
    ("float", -1e300, b"f-1e+300", 3909),
    ("date", datetime.date(2024, 2, 29), b"t2024-02-29", 1208),
    (
        "datetime",
        datetime.datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
        b"t2024-02-29T12:30:00",
        4588,
    ),
    (
        "datetime",
        datetime.datetime(2024, 2, 29, 12, 30, 0, 1, tzinfo=UTC),
        b"t2024-02-29T12:30:00.000001",
        89,
    ),
    ("time", datetime.time(23, 59, 59, 999999), b"t23:59:59.999999", 3138),
    ("duration", datetime.timedelta(days=1, microseconds=-1), b"l86399999999", 1944),
    ("duration", datetime.timedelta(seconds=-1), b"l-1000000", 863),
    ("binary", b"\x00\xff", b"b\x00\xff", 2587),
]


def slot(kind: str, value: Any, slots: int = SLOTS) -> int:
    return keys.slot_of((FIELDS[kind],), (value,), slots, connection)


def stored(kind: str, value: Any) -> bytes:
    return keys.encode(keys.canonical(FIELDS[kind], value, connection))


@pytest.mark.parametrize(
    ("kind", "value", "form", "number"), VECTORS, ids=lambda one: str(one)[:20]
)
def test_the_slot_of_a_key_never_changes(
    kind: str, value: Any, form: bytes, number: int
) -> None:
    assert stored(kind, value) == form
    assert slot(kind, value) == number


def test_every_kind_of_key_has_a_vector() -> None:
    assert {kind for kind, *_ in VECTORS} == set(FIELDS)


def test_the_slot_of_a_composite_key_never_changes() -> None:
    fields = (FIELDS["integer"], FIELDS["char"])
    found = [
        keys.slot_of(fields, values, SLOTS, connection)
        for values in [(1, "2"), (12, ""), ("1", 2)]
    ]
    assert found == [2116, 480, 2116]


OSLO = datetime.timezone(datetime.timedelta(hours=1))
NOON = datetime.datetime(2024, 2, 29, 12, tzinfo=UTC)

EQUAL: dict[str, list[Any]] = {
    "integer": [5, "5", " 5 ", 5.0, Decimal(5), True + 4],
    "auto": [1, "1", True],
    "boolean": [True, 1, "True", "t", "1"],
    "char": ["5", 5],
    "uuid": [
        uuid.UUID(int=10),
        "00000000-0000-0000-0000-00000000000A",
        "0000000000000000000000000000000a",
        10,
    ],
    "decimal": [Decimal("1.0"), Decimal("1.00"), "1", 1, 1.0, Decimal("0.01E+2")],
    "float": [0.0, -0.0, "0", 0, Decimal(0)],
    "date": [datetime.date(2024, 2, 29), "2024-02-29", NOON],
    "datetime": [
        NOON,
        datetime.datetime(2024, 2, 29, 13, tzinfo=OSLO),
        "2024-02-29T12:00:00Z",
        "2024-02-29 13:00:00+01:00",
    ],
    "time": [datetime.time(12), "12:00", "12:00:00.000000"],
    "duration": [datetime.timedelta(days=1), "1 00:00:00", "24:00:00", "P1D"],
    "binary": [b"ab", bytearray(b"ab"), memoryview(b"ab")],
    "address": ["2001:db8::1", "2001:0DB8:0:0:0:0:0:1"],
}


@pytest.mark.parametrize("kind", EQUAL)
def test_spellings_of_one_value_share_a_slot(kind: str) -> None:
    forms = {stored(kind, value) for value in EQUAL[kind]}
    assert len(forms) == 1, forms
    assert len({slot(kind, value, 2**60) for value in EQUAL[kind]}) == 1


def test_what_the_column_does_not_keep_does_not_count() -> None:
    """The value is hashed that the row will be read with."""
    assert stored("decimal", Decimal("1.005")) == stored("decimal", Decimal("1.00"))
    assert stored("decimal", Decimal("1.0051")) == stored("decimal", Decimal("1.01"))
    whole = Decimal("123456789012345678901234567890")
    assert stored("decimal", whole) == b"d123456789012345678901234567890"


class LowerCharField(models.CharField):  # type: ignore[type-arg]
    """Stores lower case whatever it is given."""

    def get_prep_value(self, value: Any) -> Any:
        return super().get_prep_value(value).lower()


class Money:
    """A value that only its field can read."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


class MoneyField(models.IntegerField):  # type: ignore[type-arg]
    """Stores the cents."""

    def get_prep_value(self, value: Any) -> Any:
        return value.cents if isinstance(value, Money) else value

    def to_python(self, value: Any) -> Any:
        return value if isinstance(value, Money) else Money(int(value))


def test_a_field_of_a_project_is_hashed_as_it_is_stored() -> None:
    for field, one, other in (
        (LowerCharField(max_length=9), "RED", "red"),
        (MoneyField(), Money(5), 5),
    ):
        field.set_attributes_from_name("own")
        found = [
            keys.slot_of((field,), (value,), 2**60, connection)
            for value in (one, other)
        ]
        assert found[0] == found[1], field


def test_a_foreign_key_has_the_slot_of_what_it_refers_to() -> None:
    from django.contrib.auth.models import Group, Permission

    refers = Permission._meta.get_field("content_type")
    target = refers.target_field
    assert keys.target_of(refers) is target
    assert keys.slot_of((refers,), ("7",), SLOTS, connection) == slot("auto", 7)
    assert keys.slot_of((Group._meta.pk,), (7,), SLOTS, connection) == slot("auto", 7)


@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [("integer", "five", "'five'"), ("uuid", "5", "'5'"), ("date", "now", "'now'")],
)
def test_a_value_that_its_field_cannot_hold_is_refused(
    kind: str, value: Any, named: str
) -> None:
    from django.contrib.auth.models import Group

    field = type(FIELDS[kind])()
    field.set_attributes_from_name("key")
    field.model = Group
    with pytest.raises(
        InvalidShardKey, match=rf"{named} is no shard key for auth.Group"
    ):
        keys.slot_of((field,), (value,), SLOTS, connection)
    with pytest.raises(
        NullShardKey, match=r"auth.Group.key is the shard key and is NULL"
    ):
        keys.slot_of((field,), (None,), SLOTS, connection)


# -- properties -----------------------------------------------------------------------

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "big": st.integers(-(2**63), 2**63 - 1),
    "char": st.text(),
    "uuid": st.uuids(),
    "decimal": st.decimals(-999999, 999999, places=2),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "date": st.dates(),
    "datetime": st.datetimes(timezones=st.sampled_from([UTC, OSLO])),
    "time": st.times(),
    "duration": st.timedeltas(),
    "binary": st.binary(),
}


@pytest.mark.parametrize("kind", VALUES)
def test_forms_are_equal_exactly_where_values_are(kind: str) -> None:
    if kind == "datetime":
        edge = datetime.timedelta(days=2)  # another zone's first day has no UTC
        values = VALUES[kind].filter(
            lambda v: edge < v - datetime.datetime.min.replace(tzinfo=UTC)
        )
    else:
        values = VALUES[kind]

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(one=values, other=st.one_of(values, st.none()))
    def check(one: Any, other: Any) -> None:
        other = one if other is None else other
        assert (stored(kind, one) == stored(kind, other)) == (one == other)
        assert 0 <= slot(kind, one) < SLOTS

    check()


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(parts=st.tuples(st.text(), st.text()), others=st.tuples(st.text(), st.text()))
def test_parts_of_a_key_do_not_run_together(
    parts: tuple[str, str], others: tuple[str, str]
) -> None:
    fields = (FIELDS["char"], FIELDS["char"])
    whole = "".join(parts)
    split = [(whole[:at], whole[at:]) for at in range(len(whole) + 1)]
    found = {
        pair: keys.slot_of(fields, pair, 2**60, connection)
        for pair in [*split, parts, others]
    }
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("kind", ["big", "uuid", "char"])
def test_keys_in_a_row_spread_evenly(kind: str) -> None:
    made: dict[str, Callable[[int], Any]] = {
        "big": int,
        "uuid": lambda n: uuid.UUID(int=n),
        "char": "user-{}".format,
    }
    counts = Counter(slot(kind, made[kind](n)) * 7 // SLOTS for n in range(14_000))
    assert min(counts.values()) > 1_800, counts
    assert max(counts.values()) < 2_200, counts
