"""Reads by a lookup ask home, then the shards that it names, and miss no row."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from django.db import IntegrityError, connection, transaction
from django.db.models import Avg, F, Max, Q, Sum
from django.test import override_settings

from dbfleet.errors import ConfigurationError
from dbfleet.observe import events
from dbfleet.planner.route import Rung
from dbfleet.sharding import claims as claims_module
from dbfleet.sharding import lookup_builds, lookups
from dbfleet.sharding.lookup_builds import LookupBuild, builds
from tests.sharding.scenarios import (
    NODES,
    SHARDS,
    apart,
    claims,
    elsewhere,
    engine,
    in_threads,
    keeper,
    keepers,
    on_keepers,
    on_node,
    places,
    refused,
    same,
    shard_of,
)
from tests.sharding.scenarios.races import _stopped
from tests.sharding.shop.models import (
    Crate,
    Customer,
    Depot,
    Line,
    Order,
    Parcel,
    Passport,
)

NAMES = {
    "shop.Customer": ["email"],
    "shop.Order": ["id"],
    "shop.Parcel": ["code"],
    "shop.Passport": ["customer", "number"],
    "shop.Crate": ["label"],
}


@contextlib.contextmanager
def _looked_up() -> Iterator[None]:
    with override_settings(DBFLEET={"SHARD_LOOKUPS": NAMES}):
        _build_all()
        yield


SCOPE = _looked_up


def _build_all() -> None:
    for model in (Customer, Order, Parcel, Passport, Crate):
        for one in _builds(model):
            one.build()


def _builds(model: Any) -> list[Any]:
    routing = connection.routing
    return builds(routing, routing.table_of(model._meta))


def _is_used() -> bool:
    """SQLite commits its files one after the other: lookups are not relied on."""
    return engine() != "sqlite"


def _asked(queryset: Any) -> tuple[str, ...]:
    return tuple(queryset.explain_route().clusters)


def _is_asked(queryset: Any, *shards: str) -> None:
    same(_asked(queryset), shards if _is_used() else SHARDS)


@contextlib.contextmanager
def _sent() -> Iterator[list[str]]:
    """The clusters that were sent a statement."""
    found: list[str] = []

    def note(event: Any) -> None:
        if event.name == "sent":
            found.append(event.fields["cluster"])

    with events.subscribed(note):
        yield found


def _claim_of(pk: int) -> str:
    """The claim of a customer's e-mail."""
    routing = connection.routing
    table = routing.table_of(Customer._meta)
    rules = [r for r in routing.claim_rules(table) if r.only_column == "email"]
    shard = shard_of(Customer, pk)
    node = routing.node(shard, is_write=False)
    [one] = claims_module.Claims(routing.facts(), table, rules, connection).of_rows(
        node, "id = %s", [pk], shard
    )
    return str(one.claim)


def _is_sent(sent: list[str], pk: int, asked: str) -> None:
    """The value's keeper was asked, then the shard; any keeper may have spelled it."""
    spelling = engine() == "mysql" and keepers() != ("home",)
    same(sent[1 if spelling else 0 :], [asked, shard_of(Customer, pk)])


def _people(count: int = 12) -> None:
    Customer.objects.bulk_create(
        Customer(id=n, email=f"e{n}", balance=n) for n in range(1, count + 1)
    )


# -- reads -----------------------------------------------------------------------------


def check_get_asks_home_and_one_shard() -> None:
    _people()
    for n in range(1, 13):
        query = Customer.objects.filter(email=f"e{n}")
        _is_asked(query, shard_of(Customer, n))
        same(query.get().pk, n)
    asked = keeper(_claim_of(5))
    with _sent() as sent:
        same(Customer.objects.get(email="e5").pk, 5)
    if _is_used():
        _is_sent(sent, 5, asked)


def check_explain_names_the_lookup() -> None:
    _people()
    route = Customer.objects.filter(email="e1").explain_route()
    if _is_used():
        same(route.rung, Rung.NODE)
        whose = "home's" if keepers() == ("home",) else "the shards'"
        same(route.reason, f"{whose} lookup of shop.Customer (email) names the shards")
    else:
        same("lookup" in route.reason, False)


def check_a_value_that_nobody_has() -> None:
    _people()
    same(Customer.objects.filter(email="nobody").exists(), False)
    same(Customer.objects.filter(email="nobody").count(), 0)
    _is_asked(Customer.objects.filter(email="nobody"), SHARDS[0])


@contextlib.contextmanager
def _off() -> Iterator[None]:
    """Nothing is looked up: every shard is asked."""
    with override_settings(DBFLEET={}):
        yield


def _same_as_without(make: Any) -> list[Any]:
    """What a queryset finds, which is what it finds when all shards are asked."""
    found = sorted(make().values_list("pk", flat=True))
    with _off():
        same(found, sorted(make().values_list("pk", flat=True)))
    return found


def check_equal_is_what_the_database_calls_equal() -> None:
    words = [
        "\u00c4rger",
        "stra\u00dfe",
        "Plain",
        "padded",
        "\ufb01ne",
        "100%",
        "a'b\\c",
        "",
    ]
    Customer.objects.bulk_create(
        Customer(id=n, email=word) for n, word in enumerate(words, 1)
    )
    for word in [*words, "arger", "\u00c4RGER", "strasse", "plain", "padded  ", "fine"]:
        _same_as_without(lambda word=word: Customer.objects.filter(email=word))
    same(_same_as_without(lambda: Customer.objects.filter(email="Plain")), [3])


def check_conditions_beside_a_lookup() -> None:
    _people()
    at = {n: shard_of(Customer, n) for n in range(1, 13)}
    far = next(n for n in range(2, 13) if at[n] != at[1])
    two = tuple(s for s in SHARDS if s in {at[1], at[far]})
    cases: list[tuple[Any, tuple[str, ...], list[int]]] = [
        (Q(email="e1", balance=1), (at[1],), [1]),
        (Q(email="e1", balance=2), (at[1],), []),
        (Q(email__in=["e1", f"e{far}"]), two, [1, far]),
        (Q(email="e1") | Q(pk=far), two, [1, far]),
        (Q(email="e1") & (Q(name="") | Q(balance=3)), (at[1],), [1]),
        (~~Q(email="e1"), (at[1],), [1]),
    ]
    for condition, shards, expected in cases:
        query = Customer.objects.filter(condition)
        _is_asked(query, *shards)
        same(_same_as_without(lambda q=query: q.all()), expected)
    for condition in (
        ~Q(email="e1"),
        Q(email="e1") | Q(balance=far),
        Q(email__in=[f"e{n}" for n in range(7)]),
        Q(email__gt="e1"),
        Q(email__startswith="e1"),
    ):
        query = Customer.objects.filter(condition)
        same(_asked(query), SHARDS)
        _same_as_without(lambda q=query: q.all())


def check_null_is_nobodys_value() -> None:
    first, second = apart(Parcel)
    Parcel.objects.create(id=1, region=first, code=None)
    Parcel.objects.create(id=2, region=second, code=None)
    Parcel.objects.create(id=3, region=second, code="x")
    query = Parcel.objects.filter(Q(code="x") | Q(code=None))
    same(_asked(query), SHARDS)
    same(sorted(query.values_list("pk", flat=True)), [1, 2, 3])
    _is_asked(Parcel.objects.filter(code="x"), shard_of(Parcel, second))


def check_the_primary_key_where_another_column_places_rows() -> None:
    people = [Customer.objects.create(id=n, email=f"e{n}") for n in range(1, 9)]
    orders = [Order.objects.create(customer=one, number=1) for one in people]
    for one in orders:
        _is_asked(Order.objects.filter(pk=one.pk), shard_of(Order, one.customer_id))
        same(Order.objects.get(pk=one.pk).customer_id, one.customer_id)
    one = orders[0]
    one.status = "paid"
    with _sent() as sent:
        one.save(update_fields=["status"])
    if _is_used():
        same(sent[-1], shard_of(Order, one.customer_id))
        same(len(sent), 2)
    one.refresh_from_db()
    same(one.status, "paid")


def check_a_one_to_one_field() -> None:
    for n in range(1, 9):
        person = Customer.objects.create(id=n, email=f"e{n}")
        Passport.objects.create(id=100 + n, customer=person, number=n)
    for n in range(1, 9):
        _is_asked(Passport.objects.filter(customer=n), shard_of(Passport, 100 + n))
        _is_asked(Passport.objects.filter(number=n), shard_of(Passport, 100 + n))
        same(Customer.objects.get(pk=n).passport.number, n)


def check_the_parent_of_a_join() -> None:
    for n in range(1, 9):
        person = Customer.objects.create(id=n, email=f"e{n}")
        for number in (1, 2):
            order = Order.objects.create(customer=person, number=number)
            Line.objects.create(order=order, quantity=number)
    for n in range(1, 9):
        at = shard_of(Customer, n)
        for query in (
            Order.objects.filter(customer__email=f"e{n}"),
            Line.objects.filter(order__customer__email=f"e{n}"),
            Customer.objects.filter(email=f"e{n}", orders__number=1),
        ):
            if "customer__email" in str(query.query.where):
                raise AssertionError
            same(len(_same_as_without(lambda q=query: q.all())) > 0, True)
        _is_asked(Order.objects.filter(customer__email=f"e{n}"), at)
        same(Order.objects.filter(customer__email=f"e{n}").count(), 2)
        same(Line.objects.filter(order__customer__email=f"e{n}").count(), 2)
    found = Customer.objects.filter(email="e3").prefetch_related("orders").get()
    same(len(found.orders.all()), 2)


def check_aggregates_and_pages() -> None:
    _people()
    query = Customer.objects.filter(email__in=["e1", "e2"])
    same(query.count(), 2)
    same(
        query.aggregate(a=Sum("balance"), b=Max("email"), c=Avg("balance")),
        {"a": 3, "b": "e2", "c": 1.5},
    )
    same([one.pk for one in query.order_by("-email")[:1]], [2])
    same([one.pk for one in query.order_by("email").iterator()], [1, 2])
    same(
        list(query.values_list("balance").distinct().order_by("balance")), [(1,), (2,)]
    )


# -- writes ----------------------------------------------------------------------------


def check_update_and_delete_by_a_lookup() -> None:
    _people()
    asked = keeper(_claim_of(3))
    with _sent() as sent:
        same(Customer.objects.filter(email="e3").update(balance=F("balance") + 10), 1)
    if _is_used():
        _is_sent(sent, 3, asked)
    same(Customer.objects.get(pk=3).balance, 13)
    same(Customer.objects.filter(email="e4").update(email="new"), 1)
    same(Customer.objects.get(email="new").pk, 4)
    same(Customer.objects.filter(email="e5").delete()[0], 1)
    same(Customer.objects.filter(email="e5").exists(), False)
    query = Customer.objects.filter(email="e6")
    same(query._raw_delete(query.db), 1)
    same(sorted(places(Customer)), [1, 2, 3, 4, 7, 8, 9, 10, 11, 12])
    same(claims(), 10)
    with transaction.atomic():
        same(Customer.objects.select_for_update().get(email="e7").pk, 7)


def check_lookups_follow_every_write() -> None:
    _people(6)
    one = Customer.objects.get(email="e1")
    one.email = "saved"
    one.save()
    two, three = Customer.objects.get(pk=2), Customer.objects.get(pk=3)
    two.email, three.email = "b2", "b3"
    Customer.objects.bulk_update([two, three], ["email"])
    Customer.objects.update_or_create(email="b2", defaults={"email": "u2"})
    Customer.objects.update_or_create(email="u7", defaults={"id": 7})
    Customer.objects.bulk_create(
        [Customer(id=4, email="c4"), Customer(id=8, email="c8")],
        update_conflicts=True,
        update_fields=["email"],
        unique_fields=None if engine() == "mysql" else ["id"],
    )
    Customer.objects.bulk_create(
        [Customer(id=9, email="e5"), Customer(id=10, email="i10")],
        ignore_conflicts=True,
    )
    found = {
        "saved": 1, "u2": 2, "b3": 3, "c4": 4, "e5": 5, "e6": 6, "u7": 7, "c8": 8,
        "i10": 10,
    }  # fmt: skip
    for email, pk in found.items():
        query = Customer.objects.filter(email=email)
        same(_same_as_without(query.all), [pk])
        same(_asked(query) == SHARDS, not _is_used())
    for email in ("e1", "e2", "b2", "e3", "e4"):
        same(_same_as_without(Customer.objects.filter(email=email).all), [])
    same(_differing(Customer), (9, 0, 0, 0))


def check_a_row_that_moves_is_found_where_it_is() -> None:
    first, second = apart(Parcel)
    one = Parcel.objects.create(region=first, code="x")
    _is_asked(Parcel.objects.filter(code="x"), shard_of(Parcel, first))
    Parcel.objects.filter(pk=one.pk).update(region=second)
    same(Parcel.objects.get(code="x").region, second)
    both = tuple(
        s for s in SHARDS if s in {shard_of(Parcel, r) for r in (first, second)}
    )
    _is_asked(Parcel.objects.filter(code="x"), *both)  # where it was shows it a while
    depots = [Depot.objects.create(region=region) for region in (first, second)]
    crate = Crate.objects.create(depot=depots[0], label="l")
    crate.depot = depots[1]
    crate.save()
    same(_same_as_without(Crate.objects.filter(label="l").all), [crate.pk])


def check_a_value_passes_from_row_to_row() -> None:
    first, second = apart(Customer)
    Customer.objects.create(id=first, email="x")
    with transaction.atomic():
        Customer.objects.filter(pk=first).update(email="y")
        Customer.objects.create(id=second, email="x")
        same(Customer.objects.get(email="x").pk, second)
        same(Customer.objects.get(email="y").pk, first)
    same(Customer.objects.get(email="x").pk, second)
    same(elsewhere(lambda: Customer.objects.get(email="x").pk), second)


# -- transactions ----------------------------------------------------------------------


def check_a_transaction_sees_what_it_wrote() -> None:
    _people(4)
    with contextlib.suppress(IntegrityError), transaction.atomic():
        Customer.objects.create(id=20, email="mine")
        same(Customer.objects.get(email="mine").pk, 20)
        same(elsewhere(lambda: Customer.objects.filter(email="mine").count()), 0)
        with contextlib.suppress(ValueError), transaction.atomic():
            Customer.objects.filter(pk=1).update(email="other")
            same(Customer.objects.get(email="other").pk, 1)
            raise ValueError
        same(Customer.objects.get(email="e1").pk, 1)
        raise IntegrityError
    same(Customer.objects.filter(email="mine").exists(), False)


def check_old_snapshots_are_not_pruned() -> None:
    if engine() == "sqlite":
        return
    _people()
    options = connection.settings_dict["OPTIONS"]
    connection.close()
    if engine() == "mysql":
        options["isolation_level"] = "repeatable read"
    else:
        with connection.cursor() as cursor:  # on each node
            cursor.execute(
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL "
                "REPEATABLE READ"
            )
    try:
        with transaction.atomic():
            route = Customer.objects.filter(email="e1").explain_route()
            same(Customer.objects.get(email="e1").pk, 1)
        # A statement of its own has a snapshot of its own.
        same(len(_asked(Customer.objects.filter(email="e1"))), 1)
    finally:
        options.pop("isolation_level", None)
        connection.close()
    same(
        "no lookup was used: this transaction may read snapshots" in route.reason, True
    )
    same(route.clusters, SHARDS)


# -- others at the same time -----------------------------------------------------------


def check_a_row_is_seen_as_it_was_until_its_commit_is_carried_out() -> None:
    """Home shows the new value, its shard the old one: neither hides the row."""
    if engine() == "sqlite":
        return
    _people(4)
    change = Customer.objects.filter(pk=1)
    with _stopped(lambda: change.update(email="new")):
        same(Customer.objects.get(email="e1").pk, 1)
        same(Customer.objects.filter(email="new").count(), 0)
    same(Customer.objects.filter(email="e1").count(), 0)
    same(Customer.objects.get(email="new").pk, 1)


def check_a_moving_row_is_seen_until_its_commit_is_carried_out() -> None:
    if engine() == "sqlite":
        return
    first, second = apart(Parcel)
    Parcel.objects.create(id=1, region=first, code="x")
    with _stopped(lambda: Parcel.objects.filter(pk=1).update(region=second)):
        same(Parcel.objects.get(code="x").region, first)
    same(Parcel.objects.get(code="x").region, second)


def check_a_value_is_found_while_it_passes_to_another_row() -> None:
    if engine() == "sqlite":
        return
    first, second = apart(Customer)
    Customer.objects.create(id=first, email="x")

    def swap() -> None:
        with transaction.atomic():
            Customer.objects.filter(pk=first).update(email="y")
            Customer.objects.create(id=second, email="x")

    with _stopped(swap):
        same(Customer.objects.get(email="x").pk, first)
        same(Customer.objects.filter(email="y").count(), 0)
    same(Customer.objects.get(email="x").pk, second)


def check_rows_that_stay_are_always_found() -> None:
    if engine() == "sqlite":
        return
    _people(6)
    rounds = 15

    def work(n: int) -> list[Any]:
        failures = []
        for turn in range(rounds):
            if n == 0:  # a row has one of two values
                new = "e1" if turn % 2 else "other"
                Customer.objects.filter(pk=1).update(email=new)
            elif n == 1:
                Customer.objects.update_or_create(
                    id=50 + turn % 3, defaults={"email": f"t{turn}"}
                )
                Customer.objects.filter(email=f"t{turn - 1}").delete()
            else:
                found = [
                    one.pk for one in Customer.objects.filter(email__in=["e1", "other"])
                ]
                if found != [1]:
                    failures.append(found)
                for pk in (2, 3, 4):
                    if Customer.objects.get(email=f"e{pk}").pk != pk:
                        failures.append(pk)
        return failures

    same(in_threads(work, 4), [[], [], [], []])
    same(_differing(Customer)[1:], (0, 0, 0))


# -- builds ----------------------------------------------------------------------------


def _one(model: Any = Customer) -> Any:
    [build] = [b for b in _builds(model) if b.field.column in {"email", "code"}]
    return build


def _differing(model: Any = Customer, *, repairs: bool = False) -> tuple[int, ...]:
    """(rows, those without a claim, of these with another's value, claims alone)."""
    if not _is_used():
        return _differing_of(model, repairs)
    return _counted(_one(model).verify(repairs=repairs))


def _differing_of(model: Any, repairs: bool) -> tuple[int, ...]:
    routing = connection.routing
    table = routing.table_of(model._meta)
    [field] = [f for f in table.opts.local_concrete_fields if f.column == "email"]
    rule = lookups.rule_of(routing.claim_rules(table), field)
    return _counted(LookupBuild(routing, table, field, rule).verify(repairs=repairs))


def _counted(found: Any) -> tuple[int, ...]:
    return found.rows, found.missing, found.conflicts, found.orphans


def _opened() -> None:
    """As after a build; what a check closed stays closed for others otherwise."""
    for one in _builds(Customer):
        one.build()


def _state() -> str:
    return str(_one().state()[0])


@contextlib.contextmanager
def _small_batches(rows: int = 2) -> Iterator[None]:
    before = lookup_builds.BATCH, lookup_builds.COMPARED
    lookup_builds.BATCH = lookup_builds.COMPARED = rows
    try:
        yield
    finally:
        lookup_builds.BATCH, lookup_builds.COMPARED = before


def _without_claims(*emails: str) -> None:
    """Rows whose claims are lost, as after a crash of what commits file by file."""
    for email in emails:
        claim = _claim_of(Customer.objects.get(email=email).pk)
        on_keepers("DELETE FROM dbfleet_unique WHERE claim = %s", [claim])


def check_a_lookup_that_is_not_built_is_not_used() -> None:
    if not _is_used():
        return
    _people()
    on_keepers("DELETE FROM dbfleet_lookup")
    lookups.forget()
    try:
        route = Customer.objects.filter(email="e1").explain_route()
        same(route.clusters, SHARDS)
        same(
            "shop.Customer (email) was not used: manage.py fleet" in route.reason, True
        )
        with _sent() as sent:  # nor is home asked for it each time
            same(Customer.objects.get(email="e1").pk, 1)
        same(len(sent), len(SHARDS))
    finally:
        _build_all()
    same(len(_asked(Customer.objects.filter(email="e1"))), 1)


def check_a_build_takes_what_is_missing_in_batches() -> None:
    if not _is_used():
        return
    _people()
    _without_claims("e2", "e5", "e9")
    same(claims(), 9)
    with _small_batches():
        same(_counted(_one().build()), (12, 3, 0, 0))
    same((claims(), _state()), (12, "ready"))
    same(Customer.objects.get(email="e5").pk, 5)
    with contextlib.suppress(IntegrityError):
        Customer.objects.create(id=50, email="e5")
        raise AssertionError("two rows")


def check_a_build_that_was_stopped_goes_on() -> None:
    if not _is_used():
        return
    _people()
    one, saved = _one(), []
    original = LookupBuild._save

    def save(self: Any, state: str, progress: dict[str, Any]) -> None:
        original(self, state, progress)
        saved.append(progress)
        if len(saved) == 4:
            raise KeyboardInterrupt

    LookupBuild._save = save  # type: ignore[method-assign]
    try:
        with _small_batches(), contextlib.suppress(KeyboardInterrupt):
            one.build()
    finally:
        LookupBuild._save = original  # type: ignore[method-assign]
    same(one.state()[0], "building")
    lookups.forget()
    same(_asked(Customer.objects.filter(email="e1")), SHARDS)
    with _small_batches():
        counts = one.build()
    same(0 < counts.rows < 12, True)
    same(_state(), "ready")


def check_what_differs_is_found_and_repaired() -> None:
    _people(6)
    same(_differing(), (6, 0, 0, 0))
    same(_differing_after_loss(), (6, 2, 0, 1))
    if _is_used():
        same(_state(), "building")  # rows might be missed
        lookups.forget()
        same(_asked(Customer.objects.filter(email="e2")), SHARDS)
        same(Customer.objects.get(email="e2").pk, 2)
    with _small_batches():
        same(_differing(repairs=True), (6, 2, 0, 1))
    same(_differing(), (6, 0, 0, 0))
    Customer.objects.create(id=99, email="gone")  # a claim alone blocks a value
    if _is_used():
        _opened()


def _differing_after_loss() -> tuple[int, ...]:
    Customer.objects.create(id=99, email="gone")
    on_node(shard_of(Customer, 99), "DELETE FROM shop_customer WHERE id = 99")
    _without_claims("e2", "e5")
    return _differing()


def check_two_rows_with_one_value_keep_a_lookup_closed() -> None:
    if not _is_used():
        return
    first, second = apart(Customer)
    Customer.objects.create(id=first, email="x")
    Customer.objects.create(id=second, email="y")
    name = "UPDATE shop_customer SET email = 'x' WHERE id = %s"
    on_node(shard_of(Customer, second), name, [second])
    try:
        same(_counted(_one().build())[1:3], (1, 1))
        same(_state(), "building")
        lookups.forget()
        query = Customer.objects.filter(email="x")
        same(sorted(query.values_list("pk", flat=True)), sorted([first, second]))
    finally:
        Customer.objects.filter(pk=second).delete()
        _differing(repairs=True)
        _opened()


def check_claims_of_a_commit_in_doubt_are_left_alone() -> None:
    if not _is_used():
        return
    _people(3)
    with _stopped(lambda: Customer.objects.create(id=50, email="late")):
        same(_differing(), (3, 0, 0, 0))
        same(_differing(repairs=True), (3, 0, 0, 0))
    same(Customer.objects.get(email="late").pk, 50)
    same(_differing(), (4, 0, 0, 0))


def check_writers_go_on_beside_a_build() -> None:
    if not _is_used():
        return
    _people()
    _without_claims("e2", "e5", "e9")

    def work(n: int) -> Any:
        if n == 0:
            with _small_batches():
                return _counted(_one().build())[2:]
        for turn in range(10):
            Customer.objects.filter(pk=n).update(email=f"w{n}-{turn}")
            Customer.objects.create(id=100 * n + turn, email=f"n{n}-{turn}")
        return None

    same(in_threads(work, 3), [(0, 0), None, None])
    same(_differing(), (32, 0, 0, 0))
    same(_state(), "ready")


def check_a_column_that_nodes_compare_differently_is_refused() -> None:
    if engine() != "mysql":
        return
    alter = "ALTER TABLE shop_customer MODIFY email varchar(50) COLLATE {} NOT NULL"
    [(before,)] = on_node(
        "home",
        "SELECT collation_name FROM information_schema.columns WHERE column_name = "
        "'email' AND table_name = 'shop_customer' AND table_schema = DATABASE()",
    )
    on_node("home", alter.format("utf8mb4_bin"))
    try:
        with refused(
            ConfigurationError, "(email) cannot be a lookup", "(dbfleet.E111)"
        ):
            _one().build()
    finally:
        on_node("home", alter.format(before))


def check_tables_that_migrations_make_are_built() -> None:
    if not _is_used():
        return
    for node in NODES:
        if node in {"home", *keepers()}:
            on_node(node, "DELETE FROM dbfleet_lookup WHERE table_name = 'shop_crate'")
    with connection.schema_editor() as editor:
        editor.delete_model(Crate)
    with connection.schema_editor() as editor:
        editor.create_model(Crate)
    [one] = _builds(Crate)
    same(one.state()[0], "ready")
    with connection.schema_editor() as editor:
        editor.delete_model(Crate)
    same(one.state()[0], "")
    with connection.schema_editor() as editor:
        editor.create_model(Crate)


def check_what_was_left_long_ago_is_forgotten() -> None:
    if not _is_used():
        return
    _people()
    Customer.objects.filter(pk=1).update(email="a")
    on_keepers("UPDATE dbfleet_left SET left_at = '2020-01-01 00:00:00'")
    Customer.objects.filter(pk=2).update(email="b")
    left = "SELECT claim FROM dbfleet_left"
    old = f"{left} WHERE left_at < '2021-01-01 00:00:00'"
    same((len(on_keepers(left)), len(on_keepers(old))), (2, 1))
    before = claims_module._leavings
    claims_module._leavings = itertools.repeat(0)  # type: ignore[assignment]
    try:
        for pk in range(3, 13):  # among them are values of each keeper
            Customer.objects.filter(pk=pk).update(email=f"c{pk}")
    finally:
        claims_module._leavings = before
    same((len(on_keepers(left)), len(on_keepers(old))), (11, 0))
