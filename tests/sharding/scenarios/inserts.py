"""INSERT: ids, places, conflicts."""

from __future__ import annotations

from django.db import IntegrityError, transaction
from django.db.models import Count, F, Max, Subquery, Value
from django.db.models.functions import Upper

from dbfleet.errors import InvalidShardKey, NullShardKey
from tests.sharding.scenarios import (
    NODES,
    SHARDS,
    apart,
    claims,
    engine,
    in_threads,
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
    Rate,
    Reading,
    Setting,
    Tag,
)


def check_every_row_is_on_the_shard_of_its_key() -> None:
    for n in range(24):
        Tag.objects.create(word=str(n))
    found = places(Tag)
    same(len(found), 24)
    for pk, nodes in found.items():
        same(nodes, (shard_of(Tag, pk),))
    same({nodes[0] for nodes in found.values()}, set(SHARDS))


def check_children_are_on_the_shard_of_their_parent() -> None:
    for n in range(6):
        customer = Customer.objects.create(email=str(n))
        order = Order.objects.create(customer=customer, number=n)
        line = Line.objects.create(order=order)
        shard = shard_of(Customer, customer.pk)
        same(places(Order)[order.pk], (shard,))
        same(places(Line)[line.pk], (shard,))
    for region in apart(Depot, 3):
        depot = Depot.objects.create(region=region)
        crate = Crate.objects.create(depot=depot, label=str(region))
        same(places(Crate)[crate.pk], (shard_of(Depot, region),))


def check_keys_of_other_types_place_their_rows() -> None:
    for n, word in enumerate(("red", "Red", "blau", "")):
        page = Page.objects.create(slug=word, language=str(n))
        same(places(Page)[page.pk], (shard_of(Page, word),))
    reading = Reading.objects.create(sensor=3, number=4)
    same(places(Reading, "number"), {4: (shard_of(Reading, 3),)})
    same(Reading.objects.get(pk=(3, 4)), reading)
    # A server rounds 1.005 before it compares.
    Rate.objects.create(amount="1.005", name="rounded")
    stored = Rate.objects.get(name="rounded").amount
    Rate.objects.filter(name="rounded").update(name="found")
    same(
        Rate.objects.filter(amount=stored, name="found").exists(), engine() != "sqlite"
    )
    same(Rate.objects.filter(amount__gt=1, name="found").count(), 1)
    Rate.objects.get(name="found").delete()
    same(Rate.objects.count(), 0)


def check_reference_rows_are_everywhere_and_local_ones_at_home() -> None:
    country = Country.objects.create(code="no", name="Norway")
    Country.objects.bulk_create([Country(code="dk"), Country(code="se")])
    setting = Setting.objects.create(name="one")
    same(set(places(Country).values()), {NODES})
    same(len(places(Country)), 3)
    same(places(Setting), {setting.pk: ("home",)})
    same(Country.objects.count(), 3)
    same(Country.objects.get(code="no"), country)


def check_ids_are_unique_in_threads() -> None:
    def work(n: int) -> list[int]:
        one_by_one = [Tag.objects.create(word=str(n)).pk for _ in range(15)]
        many = Tag.objects.bulk_create(Tag(word=str(n)) for _ in range(15))
        return one_by_one + [tag.pk for tag in many]

    # A file has one writer at a time: there, threads would only wait.
    found = [work(n) for n in range(3)] if engine() == "sqlite" else in_threads(work, 3)
    pks = [pk for one in found for pk in one]
    same(len(set(pks)), 90)
    same(sorted(places(Tag)), sorted(pks))
    same(max(pks) - min(pks) < 400, True)  # integers stay small


def check_explicit_ids_are_respected() -> None:
    first = Tag.objects.create(word="automatic")
    chosen = first.pk + 10_000
    same(Tag.objects.create(pk=chosen, word="explicit").pk, chosen)
    same(Tag.objects.get(pk=chosen).word, "explicit")
    later = Tag.objects.create(word="later").pk
    # A PostgreSQL sequence is not moved by explicit values; the others are.
    same(later > chosen, engine() != "postgresql")
    mixed = Tag.objects.bulk_create(
        [Tag(word="new"), Tag(pk=chosen + 5_000, word="explicit"), Tag(word="new")]
    )
    same(len({tag.pk for tag in mixed}), 3)
    same(mixed[1].pk, chosen + 5_000)
    with refused(IntegrityError):
        Tag.objects.create(pk=chosen, word="again")
    same(Tag.objects.filter(pk=chosen).count(), 1)


def check_bulk_create_keeps_the_order_of_its_objects() -> None:
    made = Tag.objects.bulk_create([Tag(word=str(n)) for n in range(40)], batch_size=7)
    for n, tag in enumerate(made):
        same(Tag.objects.get(pk=tag.pk).word, str(n))
    same({nodes[0] for nodes in places(Tag).values()}, set(SHARDS))


def check_a_null_key_is_refused() -> None:
    with refused(NullShardKey, "shop.Parcel.region", "dbfleet.E401"):
        Parcel.objects.create(code="one")
    with refused(NullShardKey, "shop.Line", "order", "dbfleet.E401"):
        Line.objects.create(quantity=3)
    with refused(IntegrityError):  # as Django's users expect
        Parcel.objects.bulk_create([Parcel(region=1), Parcel()])
    same((places(Parcel), places(Line), claims()), ({}, {}, 0))


def check_a_child_without_its_parent_is_refused() -> None:
    with refused(InvalidShardKey, "shop.Line", "shop_order", "dbfleet.E404"):
        Line.objects.create(order_id=12345)
    same(places(Line), {})


def check_an_insert_over_shards_is_all_or_nothing() -> None:
    Customer.objects.create(email="taken")
    before = claims()
    rows = [Customer(email=str(n)) for n in range(20)]
    with refused(IntegrityError):
        Customer.objects.bulk_create([*rows, Customer(email="taken")])
    same(Customer.objects.count(), 1)
    same((len(places(Customer)), claims()), (1, before))
    same([row.pk for row in rows], [None] * 20)


def check_a_rollback_leaves_nothing_anywhere() -> None:
    class Stop(Exception):
        pass

    with refused(Stop), transaction.atomic():
        made = [Customer.objects.create(email=str(n)) for n in range(9)]
        Order.objects.bulk_create(Order(customer=one, number=1) for one in made)
        Country.objects.create(code="no")
        Setting.objects.create(name="one")
        same(Order.objects.count(), 9)
        raise Stop
    for model in (Customer, Order, Country, Setting):
        same(places(model), {})
    same(claims(), 0)


def check_conflicts_are_ignored_over_all_shards() -> None:
    old = Customer.objects.create(email="old", name="first")
    made = [Customer(email=str(n), name="second") for n in range(8)]
    Customer.objects.bulk_create(
        [
            *made,
            Customer(email="old", name="second"),
            Customer(email="3", name="third"),
        ],
        ignore_conflicts=True,
    )
    same(Customer.objects.count(), 9)
    same(Customer.objects.get(email="old"), old)
    same(Customer.objects.get(email="old").name, "first")
    same(Customer.objects.filter(name="third").exists(), False)
    same((claims() > 8, len(places(Customer))), (True, 9))
    Customer.objects.bulk_create(
        [Customer(pk=old.pk, email="other")], ignore_conflicts=True
    )
    same(Customer.objects.filter(email="other").exists(), False)
    Customer.objects.create(email="other")  # and nobody holds it


def check_conflicts_update_the_row_where_it_is() -> None:
    unique = [] if engine() == "mysql" else ["email"]
    old = Customer.objects.bulk_create(
        [Customer(email=str(n), name="old", balance=n) for n in range(10)]
    )
    where = places(Customer)
    Customer.objects.bulk_create(
        [Customer(email=str(n), name="new", balance=100) for n in range(5, 15)],
        update_conflicts=True,
        unique_fields=unique,
        update_fields=["name"],
    )
    found = Customer.objects.order_by("balance", "email")
    same(
        list(found.values_list("email", "name", "balance")),
        [(str(n), "old", n) for n in range(5)]
        + [(str(n), "new", n) for n in range(5, 10)]
        + [(str(n), "new", 100) for n in range(10, 15)],
    )
    same({pk: places(Customer)[pk] for pk in where}, where)
    same({one.pk for one in old}, set(where))
    same(Customer.objects.count(), 15)


def check_conflicts_on_one_shard_update_there() -> None:
    unique = [] if engine() == "mysql" else ["customer", "number"]
    customers = [Customer.objects.create(email=str(n)) for n in range(6)]
    for status in ("new", "paid"):
        Order.objects.bulk_create(
            [Order(customer=one, number=7, status=status) for one in customers],
            update_conflicts=True,
            unique_fields=unique,
            update_fields=["status"],
        )
    same(list(Order.objects.values_list("status", flat=True)), ["paid"] * 6)


def check_values_may_be_expressions_over_other_shards() -> None:
    Parcel.objects.bulk_create(Parcel(region=n, weight=n) for n in range(10))
    heaviest = Parcel.objects.values("data").annotate(m=Max("weight")).values("m")
    order = Setting.objects.create(name="x", number=Subquery(heaviest))
    same(Setting.objects.get(pk=order.pk).number, 9)
    made = Customer.objects.create(
        email=Upper(Value("a@b")), balance=Subquery(heaviest)
    )
    made.refresh_from_db()
    same((made.email, made.balance), ("A@B", 9))
    count = Tag.objects.order_by().values("word").annotate(n=Count("*")).values("n")
    Tag.objects.create(word="one")
    moved = Parcel.objects.create(region=Subquery(count), code="by subquery")
    moved.refresh_from_db()
    same(moved.region, 1)
    same(places(Parcel)[moved.pk], (shard_of(Parcel, 1),))


def check_what_is_written_is_read_again_unchanged() -> None:
    rich = {
        "data": {"a": [1, None, "\u00fc"]},
        "blob": bytes(range(256)),
        "price": "1.230",
    }
    made = Parcel.objects.bulk_create(
        Parcel(region=n, code=f"%s {n} '\"\\", **rich) for n in range(4)
    )
    for parcel in Parcel.objects.all():
        same((parcel.data, bytes(parcel.blob)), (rich["data"], rich["blob"]))
        same(str(parcel.price), "1.230")
        same(parcel.code, f"%s {parcel.region} '\"\\")
    same(Parcel.objects.filter(code=made[2].code).get().region, 2)
    Parcel.objects.update(weight=F("region") + 1)
    same(Parcel.objects.get(region=3).weight, 4)
