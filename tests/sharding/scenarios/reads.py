"""Reads: gathered and pinned ones, raw SQL, locks, cursors, routes."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import MultipleObjectsReturned
from django.db import DatabaseError, connection, transaction
from django.db.models import (
    Avg,
    Count,
    Exists,
    F,
    Max,
    OuterRef,
    Prefetch,
    Q,
    Sum,
    Window,
)
from django.db.models.functions import Lag, Now, Rank

import dbfleet
from dbfleet.errors import RouteRefused
from tests.sharding.scenarios import (
    SHARDS,
    apart,
    created,
    elsewhere,
    engine,
    places,
    refused,
    same,
    shard_of,
)
from tests.sharding.shop.models import (
    Country,
    Customer,
    Order,
    Parcel,
    Reading,
    Setting,
    Tag,
    Visit,
)


def _parcels(count: int = 12) -> list[Parcel]:
    return created(
        Parcel(region=n, weight=n % 4, code=f"c{n:02}") for n in range(count)
    )


def _statements() -> Any:
    """How many statements a block sends, as Django counts them."""
    from django.test.utils import CaptureQueriesContext

    return CaptureQueriesContext(connection)


# -- what one database would answer -------------------------------------------------


def check_rows_are_found_counted_and_ordered() -> None:
    made = _parcels()
    objects = Parcel.objects
    same(objects.count(), 12)
    same(objects.filter(weight=1).exists(), True)
    same(objects.filter(weight=9).exists(), False)
    same([p.region for p in objects.order_by("-weight", "region")[:4]], [3, 7, 11, 2])
    same([p.region for p in objects.order_by("region")[4:7]], [4, 5, 6])
    same(objects.order_by("code").last().region, 11)
    same(objects.earliest("region").region, 0)
    same(objects.in_bulk([made[3].pk, made[8].pk, -1]).keys(), {made[3].pk, made[8].pk})
    same(len(objects.in_bulk()), 12)
    same(set(objects.in_bulk(["c01", "c05"], field_name="code")), {"c01", "c05"})
    same(
        list(objects.values_list("weight", flat=True).distinct().order_by("weight")),
        [0, 1, 2, 3],
    )
    same(objects.none().count(), 0)
    with refused(MultipleObjectsReturned):
        objects.get(weight=1)
    with refused(Parcel.DoesNotExist):
        objects.get(weight=9)


def check_aggregates_groups_and_windows() -> None:
    _parcels()
    found = Parcel.objects.aggregate(
        n=Count("*"),
        s=Sum("region"),
        a=Avg("weight"),
        m=Max("code"),
        heavy=Count("pk", filter=Q(weight__gte=2)),
    )
    same(
        {**found, "a": float(found["a"])},
        {"n": 12, "s": 66, "a": 1.5, "m": "c11", "heavy": 6},
    )
    groups = Parcel.objects.values("weight").annotate(n=Count("*"), s=Sum("region"))
    same(
        list(groups.filter(s__gt=12).order_by("-s").values_list("weight", "n", "s")),
        [(3, 3, 21), (2, 3, 18), (1, 3, 15)],
    )
    ranked = Parcel.objects.annotate(
        place=Window(Rank(), partition_by="weight", order_by="-region"),
        before=Window(Lag("region"), order_by="region"),
    )
    same(
        list(ranked.filter(place=1).order_by("weight").values_list("region", "before")),
        [(8, 7), (9, 8), (10, 9), (11, 10)],
    )


def check_set_operations_and_subqueries() -> None:
    made = _parcels()
    light, even = (
        Parcel.objects.filter(weight=0),
        Parcel.objects.filter(weight__in=[0, 2]),
    )
    same(light.union(even).count(), 6)
    same(light.union(light, all=True).count(), 6)
    if engine() != "mysql" or connection.features.supports_select_intersection:
        same(light.intersection(even).count(), 3)
        same(even.difference(light).count(), 3)
    for parcel in made[:5]:
        Setting.objects.create(name=parcel.code, number=parcel.region)
    known = Setting.objects.filter(number__gt=1).values("number")
    same(Parcel.objects.filter(region__in=known).count(), 3)
    heavier = Parcel.objects.filter(region__gt=OuterRef("region"), weight=3)
    same(Parcel.objects.filter(Exists(heavier), weight=3).count(), 2)
    same(Parcel.objects.exclude(Exists(heavier)).count(), 1)
    same(Setting.objects.filter(number__in=Parcel.objects.values("weight")).count(), 4)


def check_relations_over_shards() -> None:
    customers = [Customer.objects.create(email=str(n), balance=n) for n in range(6)]
    for one in customers:
        for number in range(2):
            order = Order.objects.create(customer=one, number=number)
            order.lines.create(quantity=one.balance)
            Visit.objects.create(customer=one, order=order, guard=customers[0])
    joined = Visit.objects.select_related("customer", "order__customer", "guard")
    with _statements() as sent:
        for visit in joined:
            same(visit.order.customer, visit.customer)
            same(visit.guard, customers[0])
    same(len(sent), 1)
    fetched = Customer.objects.prefetch_related(
        Prefetch("orders", Order.objects.order_by("-number")), "orders__lines", "visits"
    )
    with _statements() as sent:
        for one in fetched:
            same([order.number for order in one.orders.all()], [1, 0])
            same(
                [line.quantity for o in one.orders.all() for line in o.lines.all()],
                [one.balance] * 2,
            )
            same(len(one.visits.all()), 2)
    same(len(sent), 4)
    same(Customer.objects.filter(orders__lines__quantity__gt=3).distinct().count(), 2)
    busy = Customer.objects.annotate(n=Sum("orders__lines__quantity")).filter(n__gte=6)
    same(sorted(busy.values_list("n", flat=True)), [6, 8, 10])
    lonely = Customer.objects.create(email="lonely")
    same(list(Customer.objects.filter(visits__isnull=True)), [lonely])
    same(
        Visit.objects.filter(
            guard__balance=0, customer__balance=F("order__lines__quantity")
        ).count(),
        12,
    )


def check_iterators() -> None:
    _parcels(30)
    everything = Parcel.objects.order_by("region")
    pinned = Reading.objects.filter(sensor=3).order_by("number")
    Reading.objects.bulk_create(Reading(sensor=3, number=n) for n in range(30))
    for atomic in (False, True):
        with transaction.atomic() if atomic else _nothing():
            gathered = everything.iterator(chunk_size=7)
            found = []
            for at, (parcel, reading) in enumerate(
                zip(gathered, pinned.iterator(chunk_size=7), strict=True)
            ):
                found.append((parcel.region, reading.number))
                if at == 10:  # other statements meanwhile
                    same(Parcel.objects.count(), 30)
                    same(Reading.objects.filter(sensor=3).count(), 30)
            same(found, [(n, n) for n in range(30)])
    with transaction.atomic():
        left_open = everything.iterator(chunk_size=2)
        next(left_open)
        Parcel.objects.filter(region=0).update(weight=100)
    same(Parcel.objects.get(region=0).weight, 100)


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def check_explain_shows_the_servers_plan() -> None:
    _parcels()
    for found in (Parcel.objects.filter(weight=1), Parcel.objects.filter(region=1)):
        same(isinstance(found.explain(), str) and len(found.explain()) > 5, True)


def check_a_read_of_reference_rows_is_on_the_shard_at_hand() -> None:
    country = Country.objects.create(code="no")
    customer = Customer.objects.create(email="x", country=country)
    found = Customer.objects.filter(pk=customer.pk, country__code="no")
    same(found.explain_route().clusters, (shard_of(Customer, customer.pk),))
    same(found.select_related("country").get().country, country)
    same(Country.objects.explain_route().clusters, ("home",))
    for shard in SHARDS:
        with dbfleet.on_shard("default", shard):
            same(Country.objects.get().code, "no")


# -- routes -------------------------------------------------------------------------


def check_a_route_says_what_happens_and_why() -> None:
    made = _parcels()
    pinned = Parcel.objects.filter(region=3)
    route = pinned.explain_route()
    shard = shard_of(Parcel, 3)
    same((str(route.rung), route.clusters), ("one node", (shard,)))
    same(route.nodes, (f"default/{shard}/primary",))
    same("shop.Parcel (region)" in route.reason, True)
    merged = Parcel.objects.filter(weight=1).explain_route()
    same((str(merged.rung), merged.clusters), ("stream merge", SHARDS))
    same(merged.nodes, tuple(f"default/{name}/primary" for name in SHARDS))
    counted = Parcel.objects.values("weight").annotate(n=Count("pk")).explain_route()
    same((str(counted.rung), counted.clusters), ("partial aggregate", SHARDS))
    gathered = Parcel.objects.filter(weight=1).annotate(at=Now()).explain_route()
    same((str(gathered.rung), gathered.clusters), ("gather", SHARDS))
    same("Now has to be computed in one place" in gathered.reason, True)
    same(gathered.nodes, tuple(f"default/{name}/primary" for name in SHARDS))
    same("weight" in gathered.fragments[0].where, True)
    same(Setting.objects.explain_route().nodes, ("default/home/primary",))
    nothing = Parcel.objects.filter(pk__in=[]).explain_route()
    same((nothing.clusters, "no database" in nothing.reason), ((), True))
    with _statements() as sent:
        Parcel.objects.filter(weight=1).explain_route()
    same(len(sent), 0)
    same(len(made), 12)


def check_a_block_may_be_limited_to_one_shard() -> None:
    _parcels()
    Setting.objects.create(name="home's")
    placed = {region: shard_of(Parcel, region) for region in range(12)}
    for shard in SHARDS:
        mine = [region for region, place in placed.items() if place == shard]
        with dbfleet.on_shard("default", shard):
            same(sorted(Parcel.objects.values_list("region", flat=True)), mine)
            same(Parcel.objects.aggregate(s=Sum("region"))["s"], sum(mine))
            same(Setting.objects.count(), 1)
            with connection.cursor() as cursor:
                cursor.execute("SELECT COUNT(*) FROM shop_parcel")
                same(cursor.fetchone()[0], len(mine))
            same(Parcel.objects.update(weight=50), len(mine))
            same(Parcel.objects.explain_route().clusters, (shard,))
        same(Parcel.objects.filter(weight=50).count(), len(mine))
        Parcel.objects.update(weight=0)
    with dbfleet.on_shard("default", "a"):
        made = Parcel.objects.create(
            region=next(r for r, s in placed.items() if s == "b")
        )
    same(places(Parcel)[made.pk], ("b",))
    with refused(RouteRefused, "'z'", "dbfleet.E404"), dbfleet.on_shard("default", "z"):
        Parcel.objects.count()


# -- locks --------------------------------------------------------------------------


def check_rows_are_locked_on_their_shards() -> None:
    if engine() == "sqlite":
        with transaction.atomic():  # it has no row locks, and Django ignores them
            same(len(Parcel.objects.select_for_update()), 0)
        return
    _parcels()

    def free(queryset: Any) -> list[int]:
        def skipping() -> list[int]:
            with transaction.atomic():
                return sorted(
                    p.region for p in queryset.select_for_update(skip_locked=True)
                )

        return list(elsewhere(skipping))

    def waits(queryset: Any) -> bool:
        def locking() -> int:
            with transaction.atomic():
                return len(queryset.select_for_update(nowait=True))

        found = elsewhere(locking)
        if isinstance(found, Exception) and not isinstance(found, DatabaseError):
            raise found
        return isinstance(found, DatabaseError)

    everything = list(range(12))
    for locked in (
        Parcel.objects.filter(region=3),  # one shard
        Parcel.objects.filter(region__in=[3, 4, 5]),  # some
        Parcel.objects.filter(weight=3),  # gathered from all
    ):
        with transaction.atomic():
            mine = sorted(p.region for p in locked.select_for_update())
            same(free(Parcel.objects.all()), [r for r in everything if r not in mine])
            same(waits(locked), True)
            same(waits(Parcel.objects.filter(region=mine[0])), True)
            if engine() == "postgresql":  # MariaDB meets locked rows as it scans
                same(waits(Parcel.objects.exclude(region__in=mine)), False)
        same(free(Parcel.objects.all()), everything)
    with transaction.atomic():
        with refused(ZeroDivisionError), transaction.atomic():
            same(len(Parcel.objects.select_for_update()), 12)
            raise ZeroDivisionError
        same(free(Parcel.objects.all()), everything)
    with refused(transaction.TransactionManagementError):
        list(Parcel.objects.select_for_update())


# -- raw SQL ------------------------------------------------------------------------


def _rows(sql: str, params: Any = None) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def check_raw_reads() -> None:
    _parcels()
    Setting.objects.create(name="two", number=2)
    same(_rows("SELECT COUNT(*) FROM shop_parcel"), [(12,)])
    same(_rows("SELECT region FROM shop_parcel WHERE region = %s", [7]), [(7,)])
    same(
        _rows(
            "SELECT weight, COUNT(*), SUM(region) FROM shop_parcel GROUP BY weight "
            "HAVING SUM(region) > %s ORDER BY weight",
            [12],
        ),
        [(1, 3, 15), (2, 3, 18), (3, 3, 21)],
    )
    same(
        _rows(
            "WITH heavy AS (SELECT * FROM shop_parcel WHERE weight > 1), "
            "light AS (SELECT * FROM shop_parcel WHERE weight < 1) "
            "SELECT (SELECT COUNT(*) FROM heavy), COUNT(*) FROM light"
        ),
        [(6, 3)],
    )
    same(
        _rows(
            "SELECT s.name, p.code FROM shop_setting s JOIN shop_parcel p "
            "ON p.region = s.number"
        ),
        [("two", "c02")],
    )
    same(
        _rows(
            "SELECT MAX(a.region) FROM shop_parcel a, shop_parcel b "
            "WHERE a.region < b.region"
        ),
        [(10,)],
    )
    same(_rows("SELECT name FROM shop_setting"), [("two",)])
    explained = "EXPLAIN QUERY PLAN" if engine() == "sqlite" else "EXPLAIN"
    same(
        len(_rows(f"{explained} SELECT * FROM shop_parcel WHERE weight = 1")) > 0, True
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT region FROM shop_parcel ORDER BY region")
        same(
            (cursor.fetchone(), cursor.fetchmany(2)[-1], len(cursor.fetchall())),
            ((0,), (2,), 9),
        )
        cursor.execute("SELECT region, code FROM shop_parcel ORDER BY region")
        same([column[0] for column in cursor.description], ["region", "code"])
        same(next(iter(cursor)), (0, "c00"))
    found = Parcel.objects.raw("SELECT * FROM shop_parcel WHERE weight = %s", [1])
    same(sorted(p.code for p in found), ["c01", "c05", "c09"])
    found = Parcel.objects.raw("SELECT id, region FROM shop_parcel ORDER BY region")
    same(found[2].code, "c02")  # a deferred column


def check_raw_reads_by_schema_are_not_homes_empty_table() -> None:
    """A name with its schema passes by a table that a gather puts in its place."""
    _parcels()
    schema = {"postgresql": "public", "sqlite": "main"}.get(engine())
    schema = schema or connection.settings_dict["NAME"]
    for sql in (
        f"SELECT COUNT(*) FROM {schema}.shop_parcel",
        f"SELECT p.region FROM {schema}.shop_parcel p, shop_tag",
        f"SELECT (SELECT MAX(region) FROM {schema}.shop_parcel)",
        f"DELETE FROM {schema}.shop_parcel",
        f"UPDATE {schema}.shop_parcel SET weight = 5",
    ):
        with refused(RouteRefused, "shop", "dbfleet.E402"):
            _rows(sql)
    exists = f"EXISTS (SELECT 1 FROM {schema}.shop_parcel)"
    with refused(RouteRefused, "shop.Parcel", "dbfleet.E402"):
        Setting.objects.extra(where=[exists]).count()
    same((Parcel.objects.count(), Parcel.objects.filter(weight=5).count()), (12, 0))


def check_raw_writes_that_each_row_decides() -> None:
    Reading.objects.bulk_create(Reading(sensor=n, number=n) for n in range(12))
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE shop_reading SET value = number * 2 WHERE number > %s", [5]
        )
        same(cursor.rowcount, 6)
        cursor.execute("DELETE FROM shop_reading WHERE number < 2")
        same(cursor.rowcount, 2)
        cursor.executemany(
            "UPDATE shop_reading SET value = %s WHERE number = %s", [(70, 7), (80, 8)]
        )
        cursor.execute("INSERT INTO shop_setting (name, number) VALUES ('raw', 3)")
        same(cursor.rowcount, 1)
    found = Reading.objects.order_by("number").values_list("value", flat=True)
    same(list(found), [0, 0, 0, 0, 12, 70, 80, 18, 20, 22])
    same(Setting.objects.get().name, "raw")
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM shop_reading")
            same((cursor.rowcount, Reading.objects.count()), (10, 0))
        transaction.set_rollback(True)
    same(Reading.objects.count(), 10)


def check_raw_writes_that_no_text_can_place() -> None:
    _parcels(6)
    Tag.objects.create(word="x")
    Order.objects.create(customer=Customer.objects.create(email="x"), number=1)
    Reading.objects.create(sensor=1, number=1)
    counted = "(SELECT MAX(region) FROM shop_parcel)"
    copied = "SELECT code, region FROM shop_parcel"
    listed = "(SELECT number FROM shop_setting)"
    for sql, why in {
        "INSERT INTO shop_tag (id, word) VALUES (1000, 'raw')": "INSERT",
        f"INSERT INTO shop_setting (name, number) {copied}": "INSERT",
        "UPDATE shop_reading SET sensor = 2": "shard key",
        "UPDATE shop_parcel SET code = 'x'": "unique constraints",
        "DELETE FROM shop_customer": "unique constraints",
        f"UPDATE shop_reading SET value = {counted}": "split",
        f"DELETE FROM shop_reading WHERE number IN {listed}": "split",
        "UPDATE shop_reading SET value = 3; DELETE FROM shop_reading": "split",
        "SELECT * FROM shop_parcel FOR UPDATE": "use select_for_update()",
    }.items():
        if engine() == "sqlite" and "FOR UPDATE" in sql:
            continue
        with refused(RouteRefused, why, "dbfleet.E402"):
            _rows(sql)
    same((Tag.objects.count(), Setting.objects.count()), (1, 0))
    same((Reading.objects.get().sensor, Reading.objects.get().value), (1, 0))
    same((Parcel.objects.count(), Customer.objects.count()), (6, 1))


def check_a_raw_limit_is_not_multiplied() -> None:
    """A shard would delete that many rows of its own."""
    if engine() != "mysql":
        return
    Reading.objects.bulk_create(Reading(sensor=n, number=n) for n in range(12))
    for sql in (
        "DELETE FROM shop_reading ORDER BY number LIMIT 2",
        "UPDATE shop_reading SET value = 1 LIMIT 1",
    ):
        with refused(RouteRefused, "dbfleet.E402"):
            _rows(sql)
    same((Reading.objects.count(), Reading.objects.filter(value=1).count()), (12, 0))


def check_raw_sql_that_returns_what_it_writes() -> None:
    if engine() == "mysql":
        return
    Reading.objects.bulk_create(Reading(sensor=n, number=n) for n in range(6))
    found = _rows("DELETE FROM shop_reading WHERE number > 3 RETURNING number")
    same((sorted(found), Reading.objects.count()), ([(4,), (5,)], 4))


def check_a_transaction_by_hand_is_refused() -> None:
    """It would begin at home alone, and undo nothing of a shard."""
    for sql in ("BEGIN", "SAVEPOINT mine", "ROLLBACK", "COMMIT"):
        with refused(RouteRefused, "atomic()", "dbfleet.E402"):
            _rows(sql)
    with transaction.atomic():
        Tag.objects.create(word="x")
        with refused(RouteRefused, "dbfleet.E402"):
            _rows("ROLLBACK")
    same(Tag.objects.count(), 1)
    if engine() == "postgresql":
        with refused(RouteRefused, "SET", "dbfleet.E402"):
            _rows("SELECT set_config('app.tenant', '7', false)")


def check_a_transaction_is_isolated_on_every_node() -> None:
    if engine() != "postgresql":
        return
    here, there = apart(Parcel)
    shown = "SHOW transaction_isolation"
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        same(Parcel.objects.filter(region__in=[here, there]).count(), 0)
        for region in (here, there):
            node = connection.nodes.primary(shard_of(Parcel, region))
            same(connection.engine.fetch(node, shown)[0][0], "repeatable read")
        same(_rows(shown)[0][0], "repeatable read")
        with refused(DatabaseError, "before any query"), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        transaction.set_rollback(True)
    with transaction.atomic():
        same(Parcel.objects.count(), 0)
        node = connection.nodes.primary(shard_of(Parcel, here))
        same(connection.engine.fetch(node, shown)[0][0], "read committed")


def check_settings_of_the_session_reach_every_node() -> None:
    if engine() == "sqlite":
        return
    name = "statement_timeout" if engine() == "postgresql" else "lock_wait_timeout"
    here, there = apart(Parcel)
    with connection.cursor() as cursor:
        cursor.execute(f"SET {name} = 12345")
    shown = (
        "SELECT current_setting('statement_timeout')"
        if engine() == "postgresql"
        else "SELECT @@lock_wait_timeout"
    )
    for region in (here, there):
        node = connection.nodes.primary(shard_of(Parcel, region))
        found = connection.engine.fetch(node, shown)[0][0]
        same(str(found), "12345ms" if engine() == "postgresql" else "12345")
