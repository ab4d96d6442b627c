"""What a fragment leaves behind: only filters and columns that cannot be missed.

``test_pruning`` searches for a filter that is too strong; here is what has to be
pushed, so that a gather stays small, and what must not be, case by case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db.models import CharField, Count, Exists, F, OuterRef, Q, Subquery, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Lower, Now, Upper
from django.db.models.lookups import Exact, GreaterThan, IntegerLessThan
from django.test.utils import register_lookup

from dbfleet.planner.pushdown import MAX_ALTERNATIVES
from dbfleet.planner.route import HOME, Fragment
from dbfleet.planner.uses import Statement
from tests.planner import offline
from tests.planner.offline import Fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with offline.fleet() as found:
        yield found


def _model(name: str) -> Any:
    from tests.planner.store import models

    return getattr(models, name)


def _objects(name: str) -> Any:
    return _model(name).objects


def filter_of(fragment: Fragment) -> tuple[str, tuple[Any, ...]]:
    """A pushed filter without quotes, brackets and the app's name."""
    text = re.sub(r'["()]|planner_store_', "", fragment.where)
    return text, fragment.params


# -- pushed -------------------------------------------------------------------------

PUSHED: dict[str, tuple[Callable[[], Any], str, tuple[Any, ...]]] = {
    "equality": (
        lambda: _objects("Customer").filter(name="red"),
        "customer.name = %s",
        ("red",),
    ),
    "each condition of an AND": (
        lambda: _objects("Customer").filter(name="red", age__gt=3, pk__range=(1, 5)),
        "customer.age > %s AND customer.name = %s AND customer.id BETWEEN %s AND %s",
        (3, "red", 1, 5),
    ),
    "an OR over one table": (
        lambda: _objects("Customer").filter(Q(name="red") | Q(age__isnull=True)),
        "customer.name = %s OR customer.age IS NULL",
        ("red",),
    ),
    "NOT": (
        lambda: _objects("Customer").exclude(name="red"),
        "NOT customer.name = %s",
        ("red",),
    ),
    "a foreign key": (
        lambda: _objects("Coupon").filter(order=4, customer__in=[1, 2]),
        "coupon.customer_id IN %s, %s AND coupon.order_id = %s",
        (1, 2, 4),
    ),
    "a pattern": (
        lambda: _objects("Customer").filter(name__contains="r%d"),
        "customer.name LIKE %s ESCAPE '\\'",
        (r"%r\%d%",),
    ),
    "a column of the same row": (
        lambda: _objects("Customer").filter(age=F("country_id")),
        "customer.age = customer.country_id",
        (),
    ),
    "a plain value": (
        lambda: _objects("Customer").filter(name=Value("red")),
        "customer.name = %s",
        ("red",),
    ),
    "only what concerns the table": (
        lambda: _objects("Order").filter(total=3, customer__name="red"),
        "order.total = %s",
        (3,),
    ),
    "what stands beside something that cannot be pushed": (
        lambda: _objects("Customer").filter(
            Exists(_objects("Coupon").filter(customer=OuterRef("pk"))), name="red"
        ),
        "customer.name = %s",
        ("red",),
    ),
}


@pytest.mark.parametrize("what", PUSHED)
def test_a_condition_on_one_table_is_pushed(fleet: Fleet, what: str) -> None:
    make, text, params = PUSHED[what]
    queryset = make()
    assert filter_of(fleet.fragment(queryset, queryset.model)) == (text, params)


def test_what_django_spells_out_for_a_server_is_pushed_as_well(fleet: Fleet) -> None:
    xor = _objects("Customer").filter(Q(name="red") ^ Q(age=1))
    text, params = filter_of(fleet.fragment(xor, xor.model))
    assert "CASE WHEN" in text
    assert params.count("red") == text.count("customer.name")


def test_each_table_of_a_join_gets_its_own_filter(fleet: Fleet) -> None:
    found = _objects("Coupon").filter(percent=5, customer__name="red", order__total=2)
    expected = {"Coupon": "coupon.percent", "Customer": "customer.name"}
    for name, column in {**expected, "Order": "order.total"}.items():
        text, _ = filter_of(fleet.fragment(found, _model(name)))
        assert text == f"{column} = %s"


def test_a_subquery_gets_the_filter_of_its_own_block(fleet: Fleet) -> None:
    inner = _objects("Coupon").filter(percent=5)
    found = _objects("Customer").filter(pk__in=inner.values("customer"), age=3)
    assert filter_of(fleet.fragment(found, _model("Coupon")))[1] == (5,)
    assert filter_of(fleet.fragment(found, _model("Customer")))[1] == (3,)


# -- not pushed -----------------------------------------------------------------------


class NotReally(Exact):
    """A project's own lookup, which may mean anything."""

    lookup_name = "notreally"

    def get_rhs_op(self, connection: Any, rhs: str) -> str:
        return f"<> {rhs}"


class Bilateral(Upper):
    """A project's transform of both sides."""

    lookup_name = "bilateral"
    bilateral = True


@pytest.fixture
def own_lookups() -> Iterator[None]:
    with (
        register_lookup(CharField, NotReally, Bilateral),
        register_lookup(CharField, Upper),
    ):
        yield


def _with_rank() -> Any:
    return _objects("Customer").annotate(n=Count("coupons"))


NOT_PUSHED: dict[str, Callable[[], Any]] = {
    "a function of the server's clock": lambda: _objects("Customer").filter(name=Now()),
    "a function of the column": lambda: _objects("Customer").filter(name__upper="RED"),
    "an annotation": lambda: (
        _objects("Customer").annotate(small=Lower("name")).filter(small="red")
    ),
    "a project's own lookup": lambda: _objects("Customer").filter(
        name__notreally="red"
    ),
    "a transform of both sides": lambda: _objects("Customer").filter(
        name__bilateral="red"
    ),
    "a column of another table": lambda: _objects("Customer").filter(
        name=F("country__name")
    ),
    "a subquery": lambda: _objects("Customer").filter(
        name=Subquery(_objects("Page").values("slug")[:1])
    ),
    "a list with an expression": lambda: _objects("Customer").filter(
        name__in=["red", F("country__name")]
    ),
    "raw SQL": lambda: _objects("Customer").filter(name=RawSQL("lower(name)", ())),
    "extra()": lambda: _objects("Customer").extra(where=["age > 3"]),
    "EXISTS": lambda: _objects("Customer").filter(
        Exists(_objects("Coupon").filter(customer=OuterRef("pk")))
    ),
    "an aggregate": lambda: _with_rank().filter(n=2),
    "an OR with another table": lambda: _objects("Customer").filter(
        Q(name="red") | Q(coupons__percent=3)
    ),
    "an OR with an aggregate": lambda: _with_rank().filter(Q(name="red") | Q(n=2)),
}


@pytest.mark.parametrize("what", NOT_PUSHED)
def test_what_a_shard_cannot_decide_alone_stays(
    fleet: Fleet, own_lookups: None, what: str
) -> None:
    found = NOT_PUSHED[what]()
    for name in ("Customer", "Coupon"):
        table = _model(name)._meta.db_table
        for part in fleet.plan(found).fragments:
            if part.table == table:
                assert filter_of(part) == ("", ())


def test_nothing_is_pushed_past_an_outer_join(fleet: Fleet) -> None:
    coupon, order = _model("Coupon"), _model("Order")
    for found in (
        _objects("Order").filter(coupons__percent__isnull=True),
        _objects("Order").filter(Q(coupons__percent=3) | Q(total=1)),
        _objects("Order").filter(Q(coupons__isnull=True) | Q(coupons__percent=3)),
        _objects("Order").annotate(n=Count("coupons", filter=Q(coupons__percent=3))),
    ):
        assert filter_of(fleet.fragment(found, coupon)) == ("", ())
    # The inner side of the same join is another matter.
    found = _objects("Order").filter(coupons__percent__isnull=True, total=1)
    assert filter_of(fleet.fragment(found, order)) == ("order.total = %s", (1,))
    # Nor past one that lies further up.
    found = _objects("Coupon").filter(
        Q(order__customer__name__isnull=True) | Q(percent=1)
    )
    assert filter_of(fleet.fragment(found, _model("Customer"))) == ("", ())


def test_filters_of_several_occurrences_are_alternatives(fleet: Fleet) -> None:
    customer = _model("Customer")
    both = _objects("Customer").filter(age=3, referrer__age=4)
    text = "customer.age = %s"
    found = filter_of(fleet.fragment(both, customer))
    assert found == (f"{text} OR {text}", (3, 4))
    # One that has no filter wants every row, and so does an outer join's.
    for open_ended in (
        _objects("Customer").filter(referrer__age=4).order_by("referrer__name"),
        _objects("Customer").filter(age=3).select_related("referrer"),
        _objects("Customer").filter(Exists(_objects("Customer").filter()), age=3),
    ):
        assert filter_of(fleet.fragment(open_ended, customer)) == ("", ())


def test_equal_filters_are_sent_once_and_many_not_at_all(fleet: Fleet) -> None:
    customer = _model("Customer")

    def union(count: int, ages: Callable[[int], int]) -> Any:
        first, *others = (
            _objects("Customer").filter(age=ages(n)) for n in range(count)
        )
        return first.union(*others)

    same = fleet.fragment(union(3, lambda n: 7), customer)
    assert filter_of(same) == ("customer.age = %s", (7,))
    most = fleet.fragment(union(MAX_ALTERNATIVES, lambda n: n), customer)
    assert most.params == tuple(range(MAX_ALTERNATIVES))
    assert (
        fleet.fragment(union(MAX_ALTERNATIVES + 1, lambda n: n), customer).where == ""
    )


def test_a_condition_that_nothing_satisfies_fetches_nothing(fleet: Fleet) -> None:
    found = _objects("Customer").filter(
        Exists(_objects("Coupon").filter(percent__in=[])) | Q(age=1)
    )
    assert filter_of(fleet.fragment(found, _model("Coupon"))) == ("1 = 0", ())
    impossible = _objects("Customer").filter(Q(age__in=[]) | Q(age=2))
    assert filter_of(fleet.fragment(impossible, _model("Customer")))[1] == (2,)


def test_comparisons_that_django_makes_of_its_own_are_pushed(fleet: Fleet) -> None:
    """Django has subclasses of its lookups for some fields."""
    found = _objects("Customer").filter(age__lt=3.5)
    [lookup] = found.query.where.children
    assert type(lookup) is IntegerLessThan
    assert filter_of(fleet.fragment(found, found.model))[1] == (4,)
    text = _objects("Customer").filter(name__gt="a")
    assert type(text.query.where.children[0]) is GreaterThan
    assert filter_of(fleet.fragment(text, text.model))[1] == ("a",)


# -- columns --------------------------------------------------------------------------


def columns(fleet: Fleet, queryset: Any, name: str) -> tuple[str, ...]:
    return fleet.fragment(queryset, _model(name)).columns


def test_only_columns_that_the_statement_names_travel(fleet: Fleet) -> None:
    customers = _objects("Customer")
    assert columns(fleet, customers.values("name"), "Customer") == ("id", "name")
    every = ("id", "name", "age", "country_id", "referrer_id")
    assert columns(fleet, customers.all(), "Customer") == every
    deferred = customers.defer("name", "age").filter(age=1)
    assert columns(fleet, deferred, "Customer") == (
        "id",
        "age",
        "country_id",
        "referrer_id",
    )
    total = _objects("Order").filter(customer__name="red").values("total")
    assert columns(fleet, total, "Order") == ("id", "customer_id", "total")
    assert columns(fleet, total, "Customer") == ("id", "name")
    assert columns(fleet, customers.order_by("age").values("pk"), "Customer") == (
        "id",
        "age",
    )


def test_a_column_of_another_table_does_not_travel(fleet: Fleet) -> None:
    found = _objects("Coupon").filter(customer__age=1).values("percent")
    # Every table has a column of the name "id".
    assert columns(fleet, found, "Coupon") == ("id", "customer_id", "percent")
    found = _objects("Order").filter(lines__quantity=1).values("total")
    assert columns(fleet, found, "Order") == ("id", "total")
    assert columns(fleet, found, "Line") == ("id", "order_id", "quantity")
    # An alias counts for every table that has it, in whatever block.
    inner = _objects("Coupon").filter(order=OuterRef("pk")).values("percent")
    found = (
        _objects("Order")
        .filter(Exists(_objects("Line").filter(order=OuterRef("pk"), quantity=1)))
        .annotate(p=Subquery(inner[:1]))
        .values("p")
    )
    assert columns(fleet, found, "Coupon") == ("id", "order_id", "percent")
    assert columns(fleet, found, "Line") == ("id", "order_id", "quantity")
    assert columns(fleet, found, "Order") == ("id",)


def test_a_name_without_its_table_is_of_every_table(fleet: Fleet) -> None:
    found = _objects("Coupon").filter(customer__name="red").values("percent")
    for text in ("age > 3", "unknown.age > 3"):
        sql = found.extra(where=[text])
        assert columns(fleet, sql, "Customer") == ("id", "name", "age")
        assert columns(fleet, sql, "Coupon") == ("id", "customer_id", "percent")
        sql = found.annotate(n=RawSQL(text.replace("age", "order_id"), ())).values("n")
        assert "order_id" in columns(fleet, sql, "Coupon")


def test_a_shard_is_sent_only_the_keys_that_it_may_have(fleet: Fleet) -> None:
    customer, orders = _model("Customer"), _objects("Order")
    keys = [*range(1, 40)]
    of: dict[str, list[int]] = {shard: [] for shard in offline.SHARDS}
    for key in keys:
        of[fleet.shard(customer, key)].append(key)
    assert all(of.values())
    for found in (
        orders.filter(customer__in=[*keys, None], total=3),
        orders.filter(customer__pk__in=keys).filter(total__exact=3),
    ):
        part = fleet.fragment(found, found.model)
        assert set(part.clusters) == set(offline.SHARDS)
        for shard in part.clusters:
            where, params = part.filter_at(shard)
            assert sorted(params) == sorted([*of[shard], 3]), (where, params)
    # Each occurrence brings its own list, and one without a filter every row.
    both = orders.filter(customer__in=keys[:20]).filter(
        Exists(orders.filter(customer__in=keys[20:], total=OuterRef("total")))
    )
    part = fleet.fragment(both, both.model)
    for shard in part.clusters:
        assert sorted(part.filter_at(shard).params) == of[shard]
    open_ended = orders.filter(
        Exists(orders.filter(total=OuterRef("total"))), customer__in=keys
    )
    part = fleet.fragment(open_ended, open_ended.model)
    assert {part.filter_at(shard) for shard in part.clusters} == {("", ())}


def test_lists_that_say_nothing_of_shards_are_sent_to_all(fleet: Fleet) -> None:
    for found in (
        _objects("Order").filter(total__in=range(9)),
        _objects("Order").exclude(customer__in=range(9)),
        _objects("Order").filter(Q(customer__in=range(9)) | Q(total=1)),
        _objects("Line").filter(order__in=range(9)),
        _objects("Reading").filter(sensor__in=range(9)),
    ):
        part = fleet.fragment(found, found.model)
        filters = {part.filter_at(shard) for shard in part.clusters}
        assert len(filters) == 1
        assert filters.pop().where == part.where != ""


def test_hand_written_sql_gets_every_column_and_every_row(fleet: Fleet) -> None:
    from django.apps import apps

    sql = "SELECT name FROM planner_store_customer WHERE age = 3"
    route = fleet.route_of(Statement(sql, (), apps, is_raw=True))
    [part] = route.fragments
    # No columns are every column that the server knows.
    assert (part.columns, part.where, part.clusters) == ((), "", offline.SHARDS)


def test_a_table_that_only_text_mentions_gets_every_row(fleet: Fleet) -> None:
    found = (
        _objects("Customer")
        .filter(age=3)
        .extra(
            where=["EXISTS (SELECT 1 FROM planner_store_customer c WHERE c.age = 4)"]
        )
    )
    part = fleet.fragment(found, _model("Customer"))
    assert (part.columns, part.where) == ((), "")


def test_home_reads_its_own_tables_and_its_copy_of_a_reference_table(
    fleet: Fleet,
) -> None:
    found = _objects("Customer").filter(
        country__name="red", age__in=_objects("Setting").values("number")
    )
    for name in ("Country", "Setting"):
        assert fleet.fragment(found, _model(name)).clusters == (HOME,)
