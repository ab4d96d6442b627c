"""What happens inside the project of these tests: each function is one test.

``default`` is distributed, ``plain`` is one PostgreSQL database with the same tables.
Each starts on empty tables. ``check_`` is for every coordinator, ``citus_`` asks for
what Citus itself refuses, ``stand_in_`` for what the stand-in is told to refuse.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


def names(*prefixes: str) -> list[str]:
    """The tests of these kinds, in their order."""
    return [name for name in globals() if name.startswith(prefixes)]


def run(*prefixes: str) -> dict[str, str | None]:
    """Run the tests of these kinds; name -> its traceback, None if it passed."""
    return {name: _failure(globals()[name]) for name in names(*prefixes)}


def _failure(check: Callable[[], None]) -> str | None:
    from django.core.management import call_command
    from django.db import connections

    try:
        for alias in ("default", "plain"):
            connections[alias].close()
            call_command("flush", interactive=False, database=alias, verbosity=0)
        check()
    except Exception:  # noqa: BLE001 - whatever it is, it is the check's result
        return traceback.format_exc()
    return None


# --- what the checks share -----------------------------------------------------------


def fill(alias: str) -> None:
    """The same rows on every alias."""
    from tests.distributed.depot.models import (
        Customer,
        Line,
        Order,
        Region,
        Setting,
        Tag,
    )

    Region.objects.using(alias).bulk_create(
        Region(id=i, name=f"r{i}") for i in range(1, 4)
    )
    Setting.objects.using(alias).create(name="limit", region_id=2)
    tags = Tag.objects.using(alias).bulk_create(Tag(name=f"t{i}") for i in range(4))
    Customer.objects.using(alias).bulk_create(
        Customer(id=i, name=f"c{i % 5}", email=f"{i}@x", region_id=i % 3 + 1)
        for i in range(1, 13)
    )
    orders = Order.objects.using(alias).bulk_create(
        Order(
            id=i,
            customer_id=i % 12 + 1,
            number=i,
            code=f"o{i}",
            amount=i * 7 % 11,
            note=f"Note {i}" if i % 3 else "",
        )
        for i in range(1, 61)
    )
    for order in orders[::7]:
        order.tags.add(*tags[: order.id % 4])
    Line.objects.using(alias).bulk_create(
        Line(
            order_id=i % 60 + 1,
            customer_id=(i % 60 + 1) % 12 + 1,
            text=f"l{i % 9}",
            count=i % 5,
        )
        for i in range(150)
    )
    reset_ids(alias, Region, Customer, Order)


def reset_ids(alias: str, *models: Any) -> None:
    """Let the next automatic ids follow those that were given."""
    from django.core.management.color import no_style
    from django.db import connections

    connection = connections[alias]
    with connection.cursor() as cursor:
        for sql in connection.ops.sequence_reset_sql(no_style(), models):
            cursor.execute(sql)


@contextmanager
def listening(*wanted: str) -> Iterator[list[Any]]:
    """The events of these names that happen inside."""
    from dbfleet.observe import events

    seen: list[Any] = []

    def hear(event: Any) -> None:
        if event.name in wanted:
            seen.append(event)

    with events.subscribed(hear):
        yield seen


def raises(kind: type[BaseException], part: str, action: Callable[[], Any]) -> None:
    try:
        found = action()
    except kind as error:
        said = str(error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised: {found!r}")
    assert part in said, said


def questions() -> dict[str, Callable[[str], Any]]:
    """Queries that are asked of both aliases."""
    from django.db.models import (
        Avg,
        Count,
        Exists,
        F,
        OuterRef,
        Q,
        Subquery,
        Sum,
        Window,
    )
    from django.db.models.functions import RowNumber

    from tests.distributed.depot.models import Customer, Line, Order, Region, Setting

    def of(model: Any, alias: str) -> Any:
        return model.objects.using(alias)

    return {
        "one key": lambda a: list(of(Order, a).filter(customer=3).values("code")),
        "page": lambda a: list(
            of(Order, a).order_by("-amount", "id").values_list("id")[5:15]
        ),
        "join of one customer's tables": lambda a: list(
            of(Line, a)
            .filter(order__customer=F("customer"), order__amount__gt=4)
            .order_by("id")
            .values_list("id", "order__code")
        ),
        "join off the key": lambda a: list(
            of(Line, a)
            .filter(order__amount__gt=4)
            .order_by("id")
            .values_list("id", "order__code", "order__customer__name")
        ),
        "select_related": lambda a: [
            (line.order.code, line.customer.region.name)
            for line in of(Line, a)
            .select_related("order", "customer__region")
            .order_by("id")[:20]
        ],
        "aggregate": lambda a: of(Order, a).aggregate(
            Sum("amount"), Avg("amount"), n=Count("customer", distinct=True)
        ),
        "groups": lambda a: list(
            of(Customer, a)
            .annotate(n=Count("order"), total=Sum("order__amount"))
            .order_by("id")
            .values_list("id", "name", "n", "total")
        ),
        "groups of whole rows": lambda a: [
            (o.id, o.n, o.code)
            for o in of(Order, a).annotate(n=Count("line")).order_by("id")
        ],
        "correlated": lambda a: list(
            of(Customer, a)
            .annotate(
                last=Subquery(
                    of(Order, a)
                    .filter(amount__gt=OuterRef("id"))
                    .order_by("id")
                    .values("code")[:1]
                )
            )
            .order_by("id")
            .values_list("id", "last")
        ),
        "exists": lambda a: list(
            of(Order, a)
            .filter(Exists(of(Line, a).filter(count=OuterRef("number"))))
            .order_by("id")
            .values_list("id", flat=True)
        ),
        "not exists": lambda a: (
            of(Order, a).exclude(line__text="l3").filter(~Q(code="o5")).count()
        ),
        "many to many": lambda a: list(
            of(Order, a)
            .filter(tags__name="t1")
            .order_by("id")
            .values_list("id", "tags__name")
        ),
        "window": lambda a: list(
            of(Order, a)
            .annotate(place=Window(RowNumber(), order_by=[F("amount"), F("id")]))
            .order_by("id")
            .values_list("id", "place")[:9]
        ),
        "union": lambda a: list(
            of(Order, a)
            .values_list("code")
            .union(of(Line, a).values_list("text"))
            .order_by("code")
        ),
        "local and reference": lambda a: list(
            of(Setting, a).values_list("name", "region__name")
        ),
        "regions by orders": lambda a: list(
            of(Region, a)
            .annotate(n=Count("customer__order"))
            .order_by("id")
            .values_list("name", "n")
        ),
        "iterator": lambda a: [
            o.id
            for o in of(Order, a)
            .filter(Exists(of(Line, a).filter(count=OuterRef("number"))))
            .order_by("id")
            .iterator(chunk_size=2)
        ],
        "in a subquery": lambda a: list(
            of(Order, a)
            .filter(id__in=of(Line, a).filter(count=3).values("order"))
            .order_by("id")
            .values_list("id", flat=True)
        ),
    }


# --- reads ---------------------------------------------------------------------------


def check_answers_are_those_of_one_database() -> None:
    from django.db import transaction

    fill("default")
    fill("plain")
    wrong = {}
    for name, ask in questions().items():
        expected = ask("plain")
        with transaction.atomic():
            inside = ask("default")
            assert list(questions()["one key"]("default"))
        for found in (ask("default"), inside):
            if found != expected:
                wrong[name] = (found, expected)
    assert not wrong, wrong


def citus_what_is_refused_is_gathered() -> None:
    from django.db.models import F

    from tests.distributed.depot.models import Line, Order

    fill("default")
    with listening("refused", "gathered") as seen:
        assert Order.objects.filter(customer=3).count() == 5
        assert not seen
        assert Line.objects.filter(order__amount=F("count")).exists()
        assert [event.name for event in seen] == ["refused", "gathered"], seen
        seen.clear()


def citus_rows_are_locked() -> None:
    from django.db import OperationalError, connection, transaction

    from dbfleet.errors import RouteRefused
    from tests.distributed.depot.models import Order

    fill("default")
    locking = Order.objects.select_for_update(nowait=True)
    started, done = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            assert len(locking.filter(number__in=[3, 4], amount__lt=11)) == 2
            started.set()
            done.wait(20)
        connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert started.wait(20)
        with transaction.atomic():
            free = list(locking.filter(number__gt=4).order_by("id")[:3])
            assert [order.number for order in free] == [5, 6, 7]
            assert len(locking.filter(customer=3, number=2)) == 1
        for taken in (locking.filter(number__lt=5), locking.filter(customer=4)):
            raises(OperationalError, "could not obtain lock", _inside(taken._fetch_all))
    finally:
        done.set()
        holder.join(20)
    joined = locking.select_related("customer").filter(number__gt=4)
    raises(RouteRefused, "rows of several tables", _inside(lambda: list(joined)))


def citus_a_gather_of_many_rows_uses_temporary_tables() -> None:
    from django.db.models import F

    from tests.distributed.depot.models import Line

    fill("default")
    fill("plain")
    for alias in ("default", "plain"):
        Line.objects.using(alias).bulk_create(
            Line(order_id=i % 60 + 1, customer_id=i % 12 + 1, text=f"m{i}", count=i % 9)
            for i in range(700)
        )
    found = [
        list(
            Line.objects.using(alias)
            .filter(order__amount__lte=F("count"), customer__region__name="r1")
            .order_by("text", "count", "order")
            .values_list("text", "count", "order__code")
        )
        for alias in ("default", "plain")
    ]
    assert found[0] == found[1]
    assert len(found[0]) > 50


def citus_a_gather_has_limits() -> None:
    from django.db import connection, transaction
    from django.db.models import F

    from dbfleet.errors import GatherLimitExceeded
    from dbfleet.topology import GatherLimits
    from tests.distributed.depot.models import Line, Order

    fill("default")
    question = Line.objects.filter(order__amount__lte=F("count"))
    routing: Any = connection.routing
    before = routing.topology
    own = frozenset(GatherLimits._fields)
    limits = (
        (GatherLimits(100, 2**20, 10), "more than 100 rows"),
        (GatherLimits(1000, 2**13, 10), "more than 8192 bytes"),
    )
    for limit, text in limits:
        routing.topology = before._replace(gather=limit, gather_own=own)
        with transaction.atomic():
            raises(GatherLimitExceeded, text, lambda: list(question))
            assert Order.objects.filter(customer=1).exists()
    routing.topology = before


def check_raw_sql() -> None:
    from django.db import connection

    from dbfleet.errors import RouteRefused
    from tests.distributed.depot.models import Order

    fill("default")
    sql = (
        "SELECT c.name FROM depot_customer c WHERE EXISTS (SELECT 1 FROM depot_order o "
        "WHERE o.amount > c.id AND o.number > %s) ORDER BY c.id"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [3])
        assert len(cursor.fetchall()) == 9
        cursor.execute("SELECT count(*) FROM depot_order WHERE customer_id = 3")
        assert cursor.fetchone() == (5,)
        cursor.execute("UPDATE depot_order SET amount = 5 WHERE number > 3")
        assert cursor.rowcount == 57
        for sql in (
            "UPDATE depot_order SET code = 'x' WHERE id = 1",
            "DELETE FROM depot_order WHERE id = 1",
            "INSERT INTO depot_order (id, customer_id) VALUES (1, 2)",
        ):
            raises(RouteRefused, "kept over all workers", partial(cursor.execute, sql))
    assert len(list(Order.objects.raw("SELECT * FROM depot_order WHERE id < 3"))) == 2


# --- writes --------------------------------------------------------------------------


def check_unique_values_hold_over_all_rows() -> None:
    from django.db import IntegrityError, transaction

    from tests.distributed.depot.models import Customer, Order

    fill("default")

    def again(**values: Any) -> Callable[[], Any]:
        given = {"customer_id": 1, "number": 1000, "code": "new", **values}
        return lambda: Order.objects.create(**given)

    raises(IntegrityError, "depot_order_code", again(code="o7"))
    raises(IntegrityError, "depot_order_id", again(id=7))
    raises(IntegrityError, "depot_note", again(note="NOTE 1"))
    raises(IntegrityError, "depot_number", again(number=12, customer_id=1))
    raises(
        IntegrityError,
        "depot_customer_email",
        lambda: Customer.objects.create(email="3@x"),
    )
    assert Order.objects.count() == 60
    with transaction.atomic():
        order = again()()
        raises(IntegrityError, "depot_order_code", _inside(again(number=2000)))
        assert Order.objects.filter(code="new").count() == 1
    order.delete()
    again()()
    Order.objects.filter(code="new").update(code="newer")
    again(number=1001)()
    raises(
        IntegrityError,
        "depot_order_code",
        lambda: Order.objects.filter(code="newer").update(code="o1"),
    )


def _inside(action: Callable[[], Any]) -> Callable[[], Any]:
    from django.db import transaction

    def run() -> Any:
        with transaction.atomic():
            return action()

    return run


def check_rows_are_written_as_on_one_database() -> None:
    from django.db.models import F, OuterRef, Subquery, Sum

    from tests.distributed.depot.models import Customer, Line, Order, Region

    rows = {}
    for alias in ("default", "plain"):
        fill(alias)
        orders = Order.objects.using(alias)
        lines = Line.objects.using(alias)
        done: list[Any] = []
        first = orders.get(id=5)
        first.note = "saved with all its columns"
        first.save()
        done.append(orders.filter(amount__gt=8).update(amount=F("amount") + 1))
        total = lines.filter(order=OuterRef("id")).order_by().values("order")
        done.append(
            orders.filter(line__count=4).update(
                amount=Subquery(total.annotate(n=Sum("count")).values("n"))
            )
        )
        done.append(lines.filter(order__amount__lt=3).update(text="few"))
        done.append(orders.filter(customer__region__name="r2").delete()[0])
        done.append(lines.filter(count=0).delete()[0])
        Region.objects.using(alias).filter(name="r3").update(name="renamed")
        done.append(Customer.objects.using(alias).filter(id=11).delete()[0])
        orders.bulk_create(
            [
                Order(customer_id=1, number=12, code="o12b", amount=1),
                Order(customer_id=1, number=77, code="c77", amount=2),
            ],
            update_conflicts=True,
            unique_fields=["customer", "number"],
            update_fields=["amount"],
        )
        orders.bulk_create(
            [
                Order(customer_id=2, number=78, code="o1"),
                Order(customer_id=3, number=79, code="c79"),
            ],
            ignore_conflicts=True,
        )
        Customer.objects.using(alias).bulk_create(
            [Customer(name="by email", email="4@x"), Customer(name="n", email="new@x")],
            update_conflicts=True,
            unique_fields=["email"],
            update_fields=["name"],
        )
        done.append(orders.get_or_create(code="o2", defaults={"number": 1})[1])
        done.append(
            orders.update_or_create(
                code="c80", defaults={"number": 80, "customer_id": 5}
            )[1]
        )
        rows[alias] = [
            done,
            list(
                orders.order_by("code").values_list(
                    "code", "customer", "number", "amount", "note"
                )
            ),
            list(
                lines.order_by("order", "text", "count").values_list(
                    "order", "text", "count"
                )
            ),
            list(
                Customer.objects.using(alias)
                .order_by("email")
                .values_list("email", "name")
            ),
        ]
    for found, expected in zip(*rows.values(), strict=True):
        assert found == expected, (found, expected)


def check_a_row_moves_when_its_key_changes() -> None:
    from django.db import IntegrityError, connection
    from django.db.models import F

    from dbfleet.errors import NullShardKey
    from tests.distributed.depot.models import Line, Order

    fill("default")
    order = Order.objects.get(code="o7")
    assert order.customer_id == 8
    order.customer_id = 2
    order.note = "it's 100% moved"
    order.save()
    found = Order.objects.filter(customer=2, code="o7").values_list("id", "note")
    assert list(found) == [(7, "it's 100% moved")]
    assert not Order.objects.filter(customer=8, code="o7").exists()
    assert Order.objects.filter(customer__in=[3, 4]).update(customer=5) == 10
    assert Order.objects.filter(customer=5).count() == 15
    line = Line.objects.filter(customer=6).first()
    assert line is not None
    assert Line.objects.filter(customer=6).update(customer=F("count") + 1) > 5
    assert Line.objects.filter(id=line.id).get().customer_id == line.count + 1
    raises(
        IntegrityError,
        "depot_number",
        lambda: Order.objects.create(customer_id=2, number=7, code="taken"),
    )
    raises(NullShardKey, "cannot be NULL", lambda: Line.objects.update(customer=None))
    raises(NullShardKey, "cannot be NULL", lambda: Line.objects.create(order_id=1))
    with connection.cursor() as cursor:  # nothing is lost, nothing is there twice
        cursor.execute("SELECT count(*), count(DISTINCT id) FROM depot_order")
        assert cursor.fetchone() == (60, 60)


def check_a_writer_that_waited_gives_up_what_is_claimed_by_then() -> None:
    from django.db import connection, transaction

    from tests.distributed.depot.models import Order

    fill("default")

    def work() -> None:
        Order.objects.filter(id=1).update(code="second")
        connection.close()

    other = threading.Thread(target=work)
    with transaction.atomic():
        Order.objects.filter(id=1).update(code="first")
        other.start()
        _wait_for_a_lock()
    other.join(30)
    assert Order.objects.get(id=1).code == "second"
    Order.objects.create(customer_id=1, number=900, code="first")
    Order.objects.create(customer_id=1, number=901, code="o1")


def _wait_for_a_lock() -> None:
    """Until somebody waits for a lock in the coordinator's database."""
    from django.db import connections

    watcher = connections.create_connection("default")
    sql = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    deadline = time.monotonic() + 20
    with watcher.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute(sql)
            if cursor.fetchone()[0]:
                break
            time.sleep(0.02)
        else:
            raise AssertionError("nobody waited for a lock")
    watcher.close()


def check_of_two_writers_one_gets_the_value() -> None:
    from django.db import IntegrityError, connection

    from tests.distributed.depot.models import Order

    fill("default")
    outcomes: list[str] = []
    start = threading.Barrier(4)

    def work(place: int) -> None:
        start.wait(10)
        for turn in range(8):
            try:
                if turn % 2:
                    Order.objects.filter(id=place + 1).update(code=f"same{turn}")
                else:
                    Order.objects.create(
                        customer_id=place + 1, number=500 + turn, code=f"same{turn}"
                    )
                outcomes.append(f"same{turn}")
            except IntegrityError:
                outcomes.append("taken")
        connection.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert len(outcomes) == 32, outcomes
    codes = list(Order.objects.values_list("code", flat=True))
    assert len(codes) == len(set(codes))
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM dbfleet_unique WHERE constraint_name = "
            "'depot_order_code'"
        )
        assert cursor.fetchone() == (len(codes),)


# --- what the stand-in is told to refuse ---------------------------------------------


def refuse_next() -> None:
    """Have the next statement with ``refused_once()`` refused."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT setval('refusals', 1, false)")


def refused_once() -> Any:
    """A condition that is refused as Citus refuses, after :func:`refuse_next`."""
    from django.db.models import BooleanField, Func

    return Func(function="refused_once", output_field=BooleanField())


def stand_in_a_refused_read_is_gathered() -> None:
    from django.db import transaction
    from django.db.models import Count

    from tests.distributed.depot.models import Order

    fill("default")
    orders = Order.objects.filter(refused_once(), number__lt=9).order_by("number")

    def asked(ask: Callable[[], Any]) -> Any:
        refuse_next()
        with listening("refused", "gathered") as seen:
            found = ask()
            assert [event.name for event in seen] == ["refused", "gathered"], seen
        return found

    def ids() -> list[int]:
        return [order.id for order in orders.all()]

    def streamed() -> list[int]:
        return [order.id for order in orders.iterator(chunk_size=3)]

    assert asked(ids) == asked(streamed) == [*range(1, 9)]
    with transaction.atomic():
        Order.objects.filter(id=1).update(amount=99)
        assert asked(lambda: orders.all()[0].amount) == 99
        assert asked(ids) == asked(streamed) == [*range(1, 9)]
        assert asked(lambda: orders.aggregate(n=Count("id"))) == {"n": 8}


def stand_in_other_errors_are_as_they_were() -> None:
    """Nothing but a refusal is answered another way, or undone."""
    from django.db import DataError, InternalError, connection, transaction
    from django.db.models import F

    from tests.distributed.depot.models import Order

    fill("default")
    broken = Order.objects.annotate(x=1 / (F("number") - 5)).filter(x__gt=2)
    with listening("refused") as seen:
        raises(DataError, "division by zero", lambda: list(broken))
        with transaction.atomic():
            raises(DataError, "division by zero", lambda: list(broken))
            raises(InternalError, "aborted", Order.objects.count)
            transaction.set_rollback(True)
        assert not seen
    assert Order.objects.count() == 60
    connection.close()


def stand_in_a_refused_write_goes_by_key() -> None:
    from django.db import transaction
    from django.db.models import F

    from tests.distributed.depot.models import Line, Order, Setting

    fill("default")
    few = Order.objects.filter(refused_once(), number__lt=9)

    def refused(act: Callable[[], Any]) -> Any:
        refuse_next()
        with listening("refused") as seen:
            found = act()
            assert len(seen) == 1, seen
        return found

    assert refused(lambda: few.update(amount=50)) == 8
    with transaction.atomic():
        assert refused(lambda: few.update(amount=F("amount") + 1)) == 8
        assert Order.objects.filter(amount=51).count() == 8
    named = Setting.objects.filter(refused_once())
    assert refused(lambda: named.update(name="other")) == 1
    lines = Line.objects.filter(refused_once(), count=3)
    assert refused(lambda: lines._raw_delete("default")) == 30
    assert Line.objects.count() == 120


def stand_in_a_refused_lock_is_taken_key_by_key() -> None:
    from django.db import transaction

    from dbfleet.errors import RouteRefused
    from tests.distributed.depot.models import Order

    fill("default")
    locking = Order.objects.select_for_update().order_by("number")
    with transaction.atomic(), listening("refused") as seen:
        refuse_next()
        found = locking.filter(refused_once(), number__lt=9)
        assert [order.number for order in found] == [*range(1, 9)]
        refuse_next()
        assert not list(locking.filter(refused_once(), number__lt=0))
        refuse_next()
        last = locking.filter(refused_once()).order_by("-number").first()
        assert last is not None
        assert last.number == 60
        assert len(seen) == 3
    refuse_next()
    joined = locking.filter(refused_once(), customer__name="c1")
    raises(RouteRefused, "rows of several tables", _inside(lambda: list(joined)))


# --- what people see -----------------------------------------------------------------


def check_routes_say_where() -> None:
    from django.db.models import F

    from tests.distributed.depot.models import Line, Order, Setting

    def reason(queryset: Any) -> str:
        route = queryset.explain_route()
        assert route.clusters == ("home",)
        return str(route.reason)

    assert "Citus asks one worker" in reason(Order.objects.filter(customer=3))
    pinned = Line.objects.filter(customer=3, order__customer=3)
    assert "Citus asks one worker" in reason(pinned)
    assert "what it refuses is gathered" in reason(
        Line.objects.filter(order__amount=F("count"))
    )
    assert "no table of the statement is sharded" in reason(Setting.objects.all())
