"""Gathers: inline or by temporary tables, inside and outside transactions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from unittest import mock

from django.db import connection, transaction
from django.db.models import Count, F, Max, OuterRef, Q, Subquery, Sum
from django.db.models.functions import Lower, TruncHour
from django.test import override_settings

from dbfleet.errors import GatherLimitExceeded
from dbfleet.executor import reducing
from dbfleet.observe import events
from dbfleet.planner.forced import gathering
from tests.sharding.scenarios import engine, on_node, refused, same
from tests.sharding.shop.models import (
    Country,
    Customer,
    Parcel,
    Reading,
    Setting,
    Tag,
    Visit,
)

#: no other rung is taken: what can be merged is gathered as well
SCOPE = gathering
#: rows up to which PostgreSQL gets them inline, in the statement itself
INLINE_ROWS = (1, 10, 1000)


@contextlib.contextmanager
def _limits(**limits: int) -> Iterator[None]:
    with override_settings(DBFLEET={"GATHER": limits}):
        yield


@contextlib.contextmanager
def _small(rows: int) -> Iterator[list[Any]]:
    """Tables are small up to so many rows of a shard; the events of the gathers."""
    seen: list[Any] = []

    def note(event: Any) -> None:
        if event.name == "gathered":
            seen.append(event.fields)

    with mock.patch.object(reducing, "PROBE_ROWS", rows), events.subscribed(note):
        yield seen


def _ways() -> Iterator[Any]:
    for rows in INLINE_ROWS:
        for atomic in (False, True):
            scope = transaction.atomic() if atomic else contextlib.nullcontext()
            with _limits(INLINE_ROWS=rows), scope:
                yield rows, atomic


def check_rows_are_the_same_however_they_were_gathered() -> None:
    noon = datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)
    Parcel.objects.bulk_create(
        Parcel(
            region=n,
            code=None if n % 3 == 0 else f"{n}\t'\"\\\n\u00fc%s",
            weight=n % 4,
            data={"n": n, "deep": [None, 1.5, {"\u00e9": True}]},
            blob=bytes(range(n, n + 40)),
            price=None if n % 2 else Decimal("12345.678"),
            sent=noon.replace(hour=n),
        )
        for n in range(20)
    )
    one_by_one = {}
    for n in range(20):  # each from its own shard
        one_by_one[n] = _plain(Parcel.objects.get(region=n))
    for _ in _ways():
        found = {p.region: _plain(p) for p in Parcel.objects.all()}
        same(found, one_by_one)
        same(
            list(
                Parcel.objects.filter(weight=1)
                .order_by("-region")
                .values_list("region")
            ),
            [(17,), (13,), (9,), (5,), (1,)],
        )
        hours = Parcel.objects.annotate(hour=TruncHour("sent")).values("hour")
        same(hours.annotate(n=Count("*")).count(), 20)
        same(
            Parcel.objects.aggregate(s=Sum("price"), m=Max(Lower("code")))["s"],
            Decimal("123456.780"),
        )
        same(Parcel.objects.filter(code__contains="\\\n\u00fc%s").count(), 13)


def _plain(parcel: Parcel) -> tuple[Any, ...]:
    values = (getattr(parcel, field.attname) for field in parcel._meta.fields)
    return tuple(bytes(v) if isinstance(v, memoryview) else v for v in values)


def check_joins_of_gathered_tables() -> None:
    customers = [Customer.objects.create(email=str(n), balance=n) for n in range(12)]
    Visit.objects.bulk_create(
        Visit(customer=one, guard=customers[0]) for one in customers for _ in range(2)
    )
    Setting.objects.create(name="x", number=3)
    for _ in _ways():
        same(Visit.objects.filter(guard__balance=0, customer__balance__gt=9).count(), 4)
        busy = Customer.objects.annotate(n=Count("visits"), g=Count("guarded"))
        same(sorted(busy.values_list("n", "g"))[-1], (48, 48))
        numbers = Setting.objects.values("number")
        same(Customer.objects.filter(balance__in=numbers).get().email, "3")
        pairs = Visit.objects.filter(Q(customer__balance=1) | Q(customer=F("guard")))
        same(pairs.count(), 4)


def check_each_shard_is_asked_for_its_own_keys() -> None:
    customers = [Customer.objects.create(email=str(n), balance=n) for n in range(20)]
    Visit.objects.bulk_create(Visit(customer=one, guard=one) for one in customers)
    wanted = [one.pk for one in customers[:15]]
    for _ in _ways():
        found = Customer.objects.filter(pk__in=[*wanted, None, 10**6])
        same(sorted(found.values_list("balance", flat=True)), list(range(15)))
        visits = Visit.objects.filter(customer__pk__in=wanted, guard__in=wanted[5:])
        same(visits.filter(customer__balance__lt=8).count(), 3)
        nested = Customer.objects.filter(pk__in=found.values("pk"), balance__gt=0)
        same(nested.count(), 14)


def check_small_tables_of_home_tell_what_shards_send() -> None:
    countries = [Country.objects.create(code=c, name=c) for c in ("de", "fr", "it")]
    customers = [
        Customer(email=str(n), balance=n, country=countries[n % 3]) for n in range(30)
    ]
    Customer.objects.bulk_create(customers)
    for number in (3, 4, 99):
        Setting.objects.create(name=f"is {number}", number=number)
    own = Customer.objects.filter(balance=OuterRef("number")).values("email")
    of_settings = Setting.objects.annotate(one=Subquery(own[:1])).order_by("number")
    told = [(3, "3"), (4, "4"), (99, None)]
    for _ in _ways():
        with _small(3) as seen:
            numbers = Setting.objects.values("number")
            found = Customer.objects.filter(balance__in=numbers)
            same(sorted(found.values_list("balance", flat=True)), [3, 4])
            same(Customer.objects.filter(country__name="fr").count(), 10)
            same(Country.objects.filter(code="it").get().customer_set.count(), 10)
            same(list(of_settings.values_list("number", "one")), told)
            busy = Country.objects.filter(code__gt="de").annotate(n=Count("customer"))
            same(sorted(busy.values_list("code", "n")), [("fr", 10), ("it", 10)])
            reduced = [one["reduced"] for one in seen]
            same(reduced.count(("shop_customer",)), 4)


def check_a_row_that_home_gets_meanwhile_does_not_tear_the_answer() -> None:
    """What home has by now is not what the shards were asked for."""
    Customer.objects.bulk_create(Customer(email=str(n), balance=n) for n in range(30))
    Setting.objects.create(name="is 3", number=3)
    own = Customer.objects.filter(balance=OuterRef("number")).values("email")
    found = Setting.objects.annotate(one=Subquery(own[:1])).order_by("number")
    read = reducing.Reducer._read
    late: list[Any] = []

    def write_before(self: Any, wanted: Any) -> None:
        if not late:
            sql = "INSERT INTO shop_setting (name, number) VALUES ('is 7', 7)"
            on_node("home", sql)
            late.append(True)
        read(self, wanted)

    with _small(3), mock.patch.object(reducing.Reducer, "_read", write_before):
        same(list(found.values_list("number", "one")), [(3, "3")])
    same(late, [True])
    with _small(3):
        same(list(found.values_list("number", "one")), [(3, "3"), (7, "7")])


def check_a_gather_leaves_nothing_behind() -> None:
    Reading.objects.bulk_create(Reading(sensor=n, number=n) for n in range(30))
    for _ in _ways():
        same(Reading.objects.count(), 30)
        same(_left_behind(), 0)
    with _limits(INLINE_ROWS=1, MAX_ROWS=10), refused(GatherLimitExceeded):
        Reading.objects.count()
    same(_left_behind(), 0)
    same(on_node("home", "SELECT COUNT(*) FROM shop_reading"), [(0,)])


def _left_behind() -> int:
    """Tables of a gather that home, or what stands for it, still has."""
    node = connection
    sql = "SELECT COUNT(*) FROM pg_class WHERE relpersistence = 't'"
    if engine() == "sqlite":
        node, sql = connection.scratch(), "SELECT COUNT(*) FROM sqlite_master"
    elif engine() == "mysql":
        sql = "SELECT COUNT(*) FROM shop_reading"  # the real one is empty
    return int(connection.engine.fetch(node, sql)[0][0])


def check_over_the_limit_nothing_happens_and_work_goes_on() -> None:
    Reading.objects.bulk_create(Reading(sensor=n, number=n) for n in range(30))
    Tag.objects.bulk_create(Tag(word="x" * 20) for _ in range(30))
    for inline in INLINE_ROWS:
        with _limits(MAX_ROWS=20, INLINE_ROWS=min(inline, 20)), transaction.atomic():
            Setting.objects.create(name=f"before {inline}")
            for found in (Reading.objects.all(), Reading.objects.filter(value=0)):
                what = ("shop.Reading", "20 rows", "dbfleet.E501", "sensor")
                with refused(GatherLimitExceeded, *what):
                    len(found)
            same(Reading.objects.filter(number__lt=20).count(), 20)
            same(Reading.objects.filter(sensor=3).count(), 1)
            Setting.objects.create(name=f"after {inline}")
    same(Setting.objects.count(), 6)
    for inline in INLINE_ROWS:
        refusal = refused(GatherLimitExceeded, "shop.Tag", "400 bytes", "dbfleet.E502")
        with _limits(MAX_BYTES=400, INLINE_ROWS=inline), refusal:
            len(Tag.objects.all())


def check_a_transaction_that_gathered_commits_over_all_nodes() -> None:
    Reading.objects.bulk_create(Reading(sensor=n, number=n) for n in range(30))
    for _ in _ways():
        with transaction.atomic():
            before = Reading.objects.aggregate(s=Sum("value"))["s"]
            Reading.objects.update(value=F("value") + 1)
            Setting.objects.update_or_create(name="x", defaults={"number": before})
            same(Reading.objects.aggregate(s=Sum("value"))["s"], before + 30)
    same(Reading.objects.aggregate(s=Sum("value"))["s"], 30 * 2 * len(INLINE_ROWS))
