"""UPDATE and DELETE: by key, by filters on other shards, of the shard key itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.db import DataError, IntegrityError, transaction
from django.db.models import (
    Case,
    Count,
    Exists,
    F,
    OuterRef,
    ProtectedError,
    Q,
    Subquery,
    Sum,
    TextField,
    Value,
    When,
)
from django.db.models.functions import Cast, Concat, Now, Random, Substr
from django.db.models.signals import post_delete

from tests.sharding.scenarios import (
    NODES,
    apart,
    claims,
    created,
    elsewhere,
    engine,
    in_threads,
    on_node,
    places,
    refused,
    same,
    shard_of,
)
from tests.sharding.shop.models import (
    Country,
    Crate,
    Customer,
    Depot,
    Line,
    Order,
    Page,
    Parcel,
    Passport,
    Reading,
    Setting,
    Tag,
    Visit,
)


def _customers(count: int = 9) -> list[Customer]:
    return created(Customer(email=str(n), name="old", balance=n) for n in range(count))


def check_an_update_by_its_own_columns() -> None:
    made = _customers()
    same(Customer.objects.filter(balance__gte=3).update(name="new"), 6)
    same(Customer.objects.filter(name="new").count(), 6)
    same(Customer.objects.filter(pk=made[0].pk).update(balance=F("balance") + 10), 1)
    same(Customer.objects.get(pk=made[0].pk).balance, 10)
    same(Customer.objects.filter(pk__in=[]).update(name="x"), 0)
    same(Customer.objects.filter(pk=-1).update(name="x"), 0)
    Customer.objects.update(
        name=Concat("email", Value("!")),
        balance=Case(When(balance__gt=5, then=F("balance") * 2), default=Value(-1)),
    )
    found = Customer.objects.order_by("email").values_list("name", "balance")
    expected = [20, -1, -1, -1, -1, -1, 12, 14, 16]
    same(list(found), [(f"{n}!", balance) for n, balance in enumerate(expected)])


def check_an_update_by_rows_of_other_shards() -> None:
    made = _customers()
    for one in made:
        Visit.objects.create(customer=one, guard=made[0])
    rich = Customer.objects.filter(balance__gte=6)
    same(Visit.objects.filter(customer__in=rich).update(guard=None), 3)
    same(Visit.objects.filter(guard=None).count(), 3)
    same(Visit.objects.filter(customer__balance__lt=2).update(guard=made[1]), 2)
    same(Visit.objects.filter(guard=made[1]).count(), 2)
    counted = Visit.objects.filter(customer=OuterRef("pk")).values("customer")
    visits = Subquery(counted.annotate(n=Count("*")).values("n"))
    same(Customer.objects.filter(balance__lt=4).update(balance=visits + 100), 4)
    same(Customer.objects.filter(balance=101).count(), 4)
    unguarded = Visit.objects.filter(customer=OuterRef("pk"), guard=None)
    same(Customer.objects.filter(Exists(unguarded)).update(name="alone"), 3)
    same(Customer.objects.filter(name="alone").aggregate(s=Sum("balance"))["s"], 21)


def check_saving_an_object() -> None:
    made = _customers(6)
    for one in made:
        one.name = "saved"
        one.save()
        one.balance = F("balance") + 1
        one.save(update_fields=["balance"])
        one.refresh_from_db()
    same(Customer.objects.filter(name="saved").count(), 6)
    found = Customer.objects.order_by("email").values_list("balance", flat=True)
    same(list(found), [n + 1 for n in range(6)])
    gone = made[0]
    gone.delete()
    gone.pk = made[1].pk + 100_000
    gone.save()  # no such row: it is inserted
    same(Customer.objects.count(), 6)
    gone.delete()
    gone.pk = 5
    with refused(Customer.NotUpdated if hasattr(Customer, "NotUpdated") else Exception):
        gone.save(force_update=True)


def check_bulk_update_over_shards() -> None:
    made = _customers()
    for one in made:
        one.name, one.balance = f"bulk {one.email}", 50
    same(Customer.objects.bulk_update(made, ["name", "balance"], batch_size=4), 9)
    for one in made:
        found = Customer.objects.get(pk=one.pk)
        same((found.name, found.balance), (f"bulk {one.email}", 50))


def check_a_row_whose_key_changes_moves() -> None:
    here, there = apart(Parcel)
    rich = {
        "code": "%s'\"\\",
        "data": {"a": [None, 1.5, "\u00fc"]},
        "blob": bytes(range(256)),
        "price": "12345.678",
        "sent": datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC),
    }
    made = Parcel.objects.create(region=here, weight=3, **rich)
    before = Parcel.objects.get(pk=made.pk)
    same(Parcel.objects.filter(pk=made.pk).update(region=there), 1)
    same(places(Parcel), {made.pk: (shard_of(Parcel, there),)})
    found = Parcel.objects.get(region=there)
    for name in ("pk", "code", "data", "price", "sent", "weight"):
        same((name, getattr(found, name)), (name, getattr(before, name)))
    same(bytes(found.blob), rich["blob"])
    # save() of a row whose key has changed
    found.region, found.weight = here, 4
    found.save()
    same(places(Parcel), {made.pk: (shard_of(Parcel, here),)})
    same(Parcel.objects.get(pk=made.pk).weight, 4)
    same(Parcel.objects.filter(region=there).exists(), False)
    # Its unique value went with it.
    with refused(IntegrityError):
        Parcel.objects.create(region=there, code=rich["code"])


def check_many_rows_move_at_once() -> None:
    Parcel.objects.bulk_create(Parcel(region=n, weight=n) for n in range(12))
    same(Parcel.objects.filter(weight__lt=10).update(region=F("region") + 100), 10)
    placed = places(Parcel)
    for parcel in Parcel.objects.all():
        expected = parcel.weight + (100 if parcel.weight < 10 else 0)
        same(parcel.region, expected)
        same(placed[parcel.pk], (shard_of(Parcel, expected),))
    moved = Parcel.objects.order_by("weight")
    for parcel in moved:
        parcel.region = 7
    Parcel.objects.bulk_update(moved, ["region"])
    same(set(places(Parcel).values()), {(shard_of(Parcel, 7),)})
    same(Parcel.objects.filter(region=7).count(), 12)


def check_a_key_does_not_become_null() -> None:
    made = Parcel.objects.create(region=1, code="one")
    with refused(IntegrityError):
        Parcel.objects.update(region=None)
    same(Parcel.objects.get().region, 1)
    same(places(Parcel), {made.pk: (shard_of(Parcel, 1),)})


def check_a_child_moves_to_its_new_parent() -> None:
    first, second, third = (Depot.objects.create(region=r) for r in apart(Depot, 3))
    crate = Crate.objects.create(depot=first, label="one")
    other = Crate.objects.create(depot=first, label="two")
    crate.depot = second
    crate.save()
    same(places(Crate)[crate.pk], (shard_of(Depot, second.region),))
    same(places(Crate)[other.pk], (shard_of(Depot, first.region),))
    same(Crate.objects.filter(depot=first).update(depot=third), 1)
    same(places(Crate)[other.pk], (shard_of(Depot, third.region),))
    same(Crate.objects.get(depot__region=third.region), other)
    with refused(IntegrityError):
        Crate.objects.create(depot=first, label="two")


def check_a_parent_moves_with_its_children() -> None:
    here, there, third = apart(Depot, 3)
    depot = Depot.objects.create(region=here)
    crates = [Crate.objects.create(depot=depot, label=text) for text in "ab"]
    other = Crate.objects.create(depot=Depot.objects.create(region=here), label="c")
    for region in (there, third):
        same(Depot.objects.filter(pk=depot.pk).update(region=region), 1)
        spot = (shard_of(Depot, region),)
        same(places(Depot)[depot.pk], spot)
        expected = {crate.pk: spot for crate in crates}
        same(places(Crate), {**expected, other.pk: (shard_of(Depot, here),)})
        same(Crate.objects.filter(depot__region=region).count(), 2)
    with refused(IntegrityError):
        Crate.objects.create(depot=other.depot, label="a")
    held = claims()
    depot.region = here
    with refused(ZeroDivisionError), transaction.atomic():
        depot.save()
        same(places(Crate)[crates[0].pk], spot)
        _ = 1 / 0
    same((places(Crate)[crates[0].pk], claims()), (spot, held))
    depot.save()
    same(set(places(Crate).values()), {(shard_of(Depot, here),)})
    # The same shard is no move.
    stays = next(
        n for n in range(100, 1000) if shard_of(Depot, n) == shard_of(Depot, here)
    )
    same(Depot.objects.filter(pk=depot.pk).update(region=stays), 1)
    same(Crate.objects.filter(depot__region=stays).count(), 2)


def check_a_child_does_not_move_to_a_parent_that_is_not_there() -> None:
    depot = Depot.objects.create(region=1)
    crate = Crate.objects.create(depot=depot, label="one")
    with refused(DataError, "shop.Crate", "has no row", "dbfleet.E404"):
        Crate.objects.filter(pk=crate.pk).update(depot=depot.pk + 1000)
    same(Crate.objects.get().depot, depot)


def check_reference_rows_stay_the_same_on_every_node() -> None:
    for code in ("no", "dk", "se"):
        Country.objects.create(code=code, name="old")
    same(Country.objects.filter(code="no").update(name="new"), 1)
    same(Country.objects.update(name=Concat("name", Value("!"))), 3)
    same(Country.objects.get(code="no").name, "new!")
    one = Country.objects.get(code="dk")
    one.name = "saved"
    one.save()
    Setting.objects.create(name="x", number=9)
    number = Subquery(Setting.objects.values("number")[:1])
    Country.objects.filter(code="se").update(name=Concat(Value("n"), number))
    rows = {
        node: on_node(node, "SELECT id, code, name FROM shop_country ORDER BY id")
        for node in NODES
    }
    same(len(set(map(tuple, rows.values()))), 1)
    same([row[2] for row in rows["a"]], ["new!", "saved", "n9"])
    same(Country.objects.filter(code="no").delete(), (1, {"shop.Country": 1}))
    same(set(places(Country).values()), {NODES})
    same(Country.objects.count(), 2)


def check_reference_rows_get_one_value_of_what_changes() -> None:
    """A clock, or chance, is asked once for all copies."""
    now, chance = (Substr(Cast(each, TextField()), 1, 20) for each in (Now(), Random()))
    for code in ("no", "dk", "se"):
        Country.objects.create(code=code, name=now)
    same(Country.objects.exclude(code="no").update(name=chance), 2)
    rows = {
        node: on_node(node, "SELECT id, code, name FROM shop_country ORDER BY id")
        for node in NODES
    }
    same(len(set(map(tuple, rows.values()))), 1)


def check_update_or_create() -> None:
    for balance in (1, 2):
        one, is_new = Customer.objects.update_or_create(
            email="one", defaults={"balance": balance}
        )
        same((one.balance, is_new), (balance, balance == 1))
    got, is_new = Customer.objects.get_or_create(email="one", defaults={"balance": 3})
    same((got.pk, got.balance, is_new), (one.pk, 2, False))
    parcel, _ = Parcel.objects.update_or_create(code="x", defaults={"region": 1})
    for region in apart(Parcel, 3):
        Parcel.objects.update_or_create(code="x", defaults={"region": region})
        same(places(Parcel), {parcel.pk: (shard_of(Parcel, region),)})


def check_a_failed_update_changes_nothing() -> None:
    made = _customers(6)
    held = claims()
    with refused(IntegrityError):
        Customer.objects.filter(balance__gt=0).update(email="0", name="new")
    with refused(IntegrityError), transaction.atomic():
        Customer.objects.filter(pk=made[0].pk).update(name="kept?")
        Customer.objects.filter(pk=made[1].pk).update(email=made[2].email)
    same(Customer.objects.filter(name="old").count(), 6)
    same(sorted(Customer.objects.values_list("email", flat=True)), list("012345"))
    same(claims(), held)


# -- together -----------------------------------------------------------------------


def check_no_increment_is_lost() -> None:
    """Threads that add to the same rows, chosen by rows of other shards."""
    if engine() == "sqlite":
        return  # a file has one writer, who turns the others away
    made = _customers(4)
    for one in made:
        Visit.objects.create(customer=one, guard=made[0])
    guarded = Visit.objects.filter(guard=made[0]).values("customer")

    def work(n: int) -> None:
        for _ in range(8):
            Customer.objects.filter(pk__in=guarded).update(balance=F("balance") + 1)

    same(in_threads(work), [None, None])
    found = Customer.objects.order_by("email").values_list("balance", flat=True)
    same(list(found), [n + 16 for n in range(4)])


def check_a_row_is_taken_once() -> None:
    """The condition of an update that writes a unique value is still true then."""
    if engine() == "sqlite":
        return
    made = _customers(12)

    def work(n: int) -> int:
        taken = 0
        for at, one in enumerate(made):
            free = Customer.objects.filter(pk=one.pk, name="old")
            taken += free.update(name=f"thread {n}", email=f"{n}-{at}")
        return taken

    found = in_threads(work)
    same(sum(found), 12)
    for n in (0, 1):
        same(Customer.objects.filter(name=f"thread {n}").count(), found[n])
        same(Customer.objects.filter(email__startswith=f"{n}-").count(), found[n])
    same(claims(), 12)


def check_two_threads_may_save_one_object() -> None:
    """The later one wins, as on one database; neither stumbles over its own values."""
    if engine() == "sqlite":
        return
    one = Customer.objects.create(email="one")

    def work(n: int) -> None:
        for at in range(8):
            mine = Customer.objects.get(pk=one.pk)
            mine.name = f"{n} {at}"
            mine.email = "one" if at % 2 else f"renamed {n} {at}"
            mine.save()

    same(in_threads(work), [None, None])
    same((Customer.objects.get().email, claims()), ("one", 1))


def check_a_deleted_row_is_deleted_once() -> None:
    if engine() == "sqlite":
        return
    made = _customers(12)

    def work(n: int) -> int:
        doomed = Customer.objects.filter(name="old")
        return sum(doomed.filter(pk=one.pk)._raw_delete("default") for one in made)

    same(sum(in_threads(work)), 12)
    same((Customer.objects.count(), claims()), (0, 0))
    _customers(12)  # and every value is free


# -- DELETE -------------------------------------------------------------------------


def check_a_delete_by_its_own_columns() -> None:
    made = _customers()
    same(Customer.objects.filter(balance__gte=6).delete()[0], 3)
    same(made[0].delete(), (1, {"shop.Customer": 1}))
    same(Customer.objects.count(), 5)
    same(Reading.objects.filter(pk=(1, 2)).delete()[0], 0)
    Reading.objects.bulk_create(
        Reading(sensor=s, number=n) for s in range(5) for n in range(3)
    )
    same(Reading.objects.filter(sensor__lt=3, number=1).delete()[0], 3)
    same(Reading.objects.filter(pk__in=[(4, 0), (4, 1), (0, 1)]).delete()[0], 2)
    same(Reading.objects.count(), 10)


def check_a_delete_by_rows_of_other_shards() -> None:
    made = _customers()
    for one in made:
        Visit.objects.create(customer=one)
    same(Visit.objects.filter(customer__balance__gte=5).delete()[0], 4)
    with_visit = Visit.objects.values("customer")
    same(Customer.objects.exclude(pk__in=with_visit).delete()[0], 4)
    same((Customer.objects.count(), Visit.objects.count()), (5, 5))


def check_cascades_reach_every_shard() -> None:
    made = _customers(6)
    for one in made:
        order = Order.objects.create(customer=one, number=1)
        Line.objects.bulk_create(Line(order=order) for _ in range(2))
        one.tags.add(Tag.objects.create(word="x"), Tag.objects.create(word="y"))
        Passport.objects.create(customer=one, number=one.balance)
    for one in made:
        for order in Order.objects.all():
            Visit.objects.create(customer=one, order=order)
    gone = []
    post_delete.connect(receiver := (lambda instance, **_: gone.append(instance)))
    try:
        total, by_model = made[0].delete()
    finally:
        post_delete.disconnect(receiver)
    same(
        by_model,
        {
            "shop.Customer": 1,
            "shop.Order": 1,
            "shop.Line": 2,
            "shop.Passport": 1,
            "shop.Visit": 6,
            "shop.Customer_tags": 2,
        },
    )
    same(len(gone), total - 2)  # Django tells nobody of automatic tables
    same(Visit.objects.filter(order=None).count(), 5)  # SET_NULL
    same((Order.objects.count(), Line.objects.count()), (5, 10))
    same((Tag.objects.count(), Passport.objects.count()), (12, 5))
    guard = made[1]
    Visit.objects.filter(customer=made[2]).update(guard=guard)
    with refused(ProtectedError):
        guard.delete()
    same(Customer.objects.count(), 5)
    Customer.objects.filter(~Q(pk=guard.pk)).delete()
    same((Customer.objects.count(), Visit.objects.count()), (1, 6))


def check_a_rolled_back_delete_keeps_rows_and_values() -> None:
    made = _customers(6)
    held = claims()
    with transaction.atomic():
        same(Customer.objects.all().delete()[0], 6)
        same((Customer.objects.count(), claims() >= held), (0, True))
        transaction.set_rollback(True)
    same(Customer.objects.count(), 6)
    with refused(IntegrityError):
        Customer.objects.create(email=made[3].email)
    with transaction.atomic():
        try:
            with transaction.atomic():
                made[0].delete()
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        made[1].delete()
    same(sorted(Customer.objects.values_list("email", flat=True)), list("02345"))
    Customer.objects.create(email="1")
    with refused(IntegrityError):
        Customer.objects.create(email="0")


def check_what_is_not_committed_is_not_seen() -> None:
    made = _customers(6)
    if engine() == "sqlite":
        return
    with transaction.atomic():
        Customer.objects.update(name="mine")
        made[0].delete()
        Tag.objects.bulk_create(Tag(word=str(n)) for n in range(6))

        def seen() -> tuple[int, int, int]:
            mine = Customer.objects.filter(name="mine").count()
            return Customer.objects.count(), mine, Tag.objects.count()

        same(elsewhere(seen), (6, 0, 0))
        same(seen(), (5, 5, 6))
    same(elsewhere(seen), (5, 5, 6))


def check_text_keys_find_their_rows() -> None:
    pages = [
        Page.objects.create(slug=w, language="en") for w in ("red", "blue", "\u00fc")
    ]
    for page in pages:
        same(Page.objects.filter(slug=page.slug).update(title="by key"), 1)
        same(Page.objects.get(slug=page.slug, language="en"), page)
    # A case-insensitive collation finds RED too, wherever "red" is.
    expected = 1 if engine() == "mysql" else 0
    same(Page.objects.filter(slug="RED").update(title="other case"), expected)
    same(Page.objects.filter(title="other case").delete()[0], expected)


def check_dates_compare_in_every_zone() -> None:
    noon = datetime(2024, 2, 29, 12, tzinfo=UTC)
    for n in range(6):
        Parcel.objects.create(region=n, sent=noon + timedelta(hours=n))
    same(Parcel.objects.filter(sent__gt=noon + timedelta(hours=2)).update(weight=1), 3)
    same(Parcel.objects.filter(sent__date=noon.date()).count(), 6)
    same(Parcel.objects.dates("sent", "day").count(), 1)
