"""Unique constraints hold over all shards, and let go when their row does."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models import F

from tests.sharding.scenarios import (
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
    Alias,
    Country,
    Customer,
    Order,
    Page,
    Parcel,
    Passport,
    Product,
    Reading,
    Slot,
    Tag,
)


def _refuses(model: Any, **values: Any) -> None:
    """The row is refused, by every way of writing it, and nothing of it is left."""
    count, held = model.objects.count(), claims()
    with refused(IntegrityError):
        model.objects.create(**values)
    with refused(IntegrityError):
        model.objects.bulk_create([model(**values)])
    with refused(IntegrityError), transaction.atomic():
        Tag.objects.create(word="beside it")
        model.objects.create(**values)
    same((model.objects.count(), len(places(model, _pk(model)))), (count, count))
    same((claims(), Tag.objects.count()), (held, 0))


def _pk(model: Any) -> str:
    return str(model._meta.pk_fields[-1].column)


def _fill(model: Any, first: int = 1, **values: Any) -> None:
    """The same values may not come again, whichever shard the new row's id is for."""
    model.objects.create(**values)
    for _ in range(4):
        _refuses(model, **values)


def check_a_field() -> None:
    _fill(Customer, email="one")
    Customer.objects.create(email="two")
    same(Customer.objects.count(), 2)


def check_a_nullable_field() -> None:
    here, there = apart(Parcel)
    for region in (here, there, here):
        Parcel.objects.create(region=region)  # NULL is not equal to NULL
    Parcel.objects.create(region=here, code="one")
    _refuses(Parcel, region=there, code="one")
    _refuses(Parcel, region=here, code="one")
    Parcel.objects.create(region=there, code="")
    _refuses(Parcel, region=here, code="")


def check_a_primary_key_that_is_not_the_shard_key() -> None:
    here, there = apart(Parcel)
    one = Parcel.objects.create(region=here)
    _refuses(Parcel, pk=one.pk, region=there)
    same(Parcel.objects.get(pk=one.pk).region, here)


def check_a_composite_primary_key() -> None:
    Reading.objects.create(sensor=1, number=1)
    Reading.objects.create(sensor=2, number=1)
    with refused(IntegrityError):
        Reading.objects.create(sensor=1, number=1)
    same(Reading.objects.count(), 2)


def check_fields_together() -> None:
    _fill(Product, name="a", shelf=1, place=2, is_active=False)
    Product.objects.create(name="a", shelf=1, place=3, is_active=False)
    for _ in range(3):
        Product.objects.create(name="a", shelf=1, place=None, is_active=False)
    # The shard key among them: one shard sees all candidates.
    customer = Customer.objects.create(email="x")
    Order.objects.create(customer=customer, number=1)
    _refuses(Order, customer=customer, number=1)
    Order.objects.create(customer=Customer.objects.create(email="y"), number=1)


def check_one_to_one() -> None:
    customers = [Customer.objects.create(email=str(n)) for n in range(4)]
    for one in customers:
        Passport.objects.create(customer=one)
        _refuses(Passport, customer=one)
    same([one.passport.customer_id for one in customers], [c.pk for c in customers])


def check_a_condition() -> None:
    _fill_active = {"name": "a", "is_active": True}
    if not connection.features.supports_partial_indexes:
        for _ in range(3):  # this vendor's one database would take them too
            Product.objects.create(**_fill_active)
        return
    _fill(Product, **_fill_active)
    for _ in range(3):
        Product.objects.create(name="a", is_active=False)
    with refused(IntegrityError):
        Product.objects.filter(is_active=False).update(is_active=True)
    same(Product.objects.filter(is_active=True).count(), 1)
    Product.objects.filter(is_active=True).update(is_active=False)
    Product.objects.create(**_fill_active)
    _refuses(Product, **_fill_active)


def check_an_expression() -> None:
    if not connection.features.supports_expression_indexes:
        for word in ("Red", "red", "Red"):
            Alias.objects.create(word=word)
        return
    Alias.objects.create(word="Red")
    for word in ("Red", "red", "RED"):
        _refuses(Alias, word=word)
    Alias.objects.create(word="blue")
    with refused(IntegrityError):
        Alias.objects.filter(word="blue").update(word="rED")


def check_nulls_that_are_equal() -> None:
    if not connection.features.supports_nulls_distinct_unique_constraints:
        for _ in range(3):
            Slot.objects.create(day=1)
        return
    _fill(Slot, day=None, hour=None)
    _fill(Slot, day=1, hour=None)
    _fill(Slot, day=1, hour=2)
    same(Slot.objects.count(), 3)


def check_equality_is_the_databases_own() -> None:
    is_loose = engine() == "mysql"
    for one, other in [("red", "RED"), ("caf\u00e9", "cafe"), ("end", "end ")]:
        Customer.objects.create(email=one)
        # MySQL's collations count trailing blanks, MariaDB's do not.
        if is_loose and (one != "end" or connection.mysql_is_mariadb):
            _refuses(Customer, email=other)
        else:
            Customer.objects.create(email=other)
    # Sharded by the text itself: equal text may be on other shards.
    Page.objects.create(slug="red", language="en")
    for other in ("Red", "RED", "rED"):
        if is_loose:
            _refuses(Page, slug=other, language="EN")
        else:
            Page.objects.create(slug=other, language="en")
    _refuses(Page, slug="red", language="en")


def check_reference_tables() -> None:
    _fill(Country, code="no", name="x")
    same(len(places(Country)), 1)


def check_a_value_is_free_when_its_row_is_gone() -> None:
    made = Customer.objects.create(email="one")
    made.delete()
    again = Customer.objects.create(email="one")
    Customer.objects.filter(email="one").update(email="two")
    third = Customer.objects.create(email="one")
    _refuses(Customer, email="two")
    third.email = "three"
    third.save()
    Customer.objects.create(email="one")
    Customer.objects.filter(email__in=["one", "three"]).delete()
    for email in ("one", "three"):
        Customer.objects.create(email=email)
    same(Customer.objects.get(email="two"), again)
    same(claims(), 3)


def check_a_rollback_frees_what_it_took() -> None:
    with transaction.atomic():
        Customer.objects.create(email="one")
        transaction.set_rollback(True)
    same(claims(), 0)
    Customer.objects.create(email="one")
    with transaction.atomic():
        with refused(ZeroDivisionError), transaction.atomic():
            Customer.objects.create(email="inner")
            Customer.objects.filter(email="one").update(email="renamed")
            raise ZeroDivisionError
        Customer.objects.create(email="inner")
        with refused(IntegrityError), transaction.atomic():
            Customer.objects.create(email="one")
        Customer.objects.create(email="renamed")
    same(
        sorted(Customer.objects.values_list("email", flat=True)),
        ["inner", "one", "renamed"],
    )


def check_a_conflict_inside_one_statement() -> None:
    with refused(IntegrityError):
        Customer.objects.bulk_create(Customer(email=e) for e in ("a", "b", "c", "a"))
    same((Customer.objects.count(), claims()), (0, 0))
    Customer.objects.bulk_create(
        (Customer(email=e) for e in ("a", "b", "c", "a")), ignore_conflicts=True
    )
    same(sorted(Customer.objects.values_list("email", flat=True)), ["a", "b", "c"])


def check_many_to_many_pairs() -> None:
    customer = Customer.objects.create(email="one")
    tags = [Tag.objects.create(word=str(n)) for n in range(6)]
    for _ in range(2):
        customer.tags.add(*tags)
    same(customer.tags.count(), 6)
    through = Customer.tags.through
    with refused(IntegrityError):
        through.objects.create(customer=customer, tag=tags[0])
    customer.tags.set(tags[3:])
    same(sorted(customer.tags.values_list("word", flat=True)), ["3", "4", "5"])
    customer.tags.clear()
    same(through.objects.count(), 0)
    customer.tags.add(*tags)


# -- at the same time ---------------------------------------------------------------


def _one_wins(found: list[Any]) -> None:
    won = [one for one in found if not isinstance(one, Exception)]
    lost = [one for one in found if isinstance(one, Exception)]
    # A file turns a second writer away; InnoDB may see a deadlock where there is none.
    is_busy = engine() in {"sqlite", "mysql"}
    expected = (IntegrityError, OperationalError) if is_busy else IntegrityError
    unexpected = [one for one in lost if not isinstance(one, expected)]
    if unexpected:
        raise unexpected[0]
    same(len(won), 1)


def check_of_two_threads_one_gets_the_value() -> None:
    for n in range(8):
        found = in_threads(lambda _, n=n: Customer.objects.create(email=str(n)))
        _one_wins(found)
        same(Customer.objects.filter(email=str(n)).count(), 1)
    regions = apart(Parcel)
    for n in range(6):
        found = in_threads(
            lambda at, n=n: Parcel.objects.create(region=regions[at], code=str(n))
        )
        _one_wins(found)
    same((Parcel.objects.count(), len(places(Parcel))), (6, 6))


def check_of_two_updates_one_gets_the_value() -> None:
    if engine() == "sqlite":
        return  # one writer at a time
    pairs = [[Customer.objects.create(email=f"{n}{p}") for p in "ab"] for n in range(6)]
    for n, pair in enumerate(pairs):

        def work(at: int, n: int = n, pair: list[Customer] = pair) -> int:
            return Customer.objects.filter(pk=pair[at].pk).update(email=f"new {n}")

        _one_wins(in_threads(work))
        same(Customer.objects.filter(email=f"new {n}").count(), 1)
    same((Customer.objects.count(), claims()), (12, 12))


def check_get_or_create_in_threads() -> None:
    if engine() == "sqlite":
        return
    for n in range(4):
        found = in_threads(
            lambda at, n=n: Customer.objects.get_or_create(
                email=str(n), defaults={"balance": at}
            ),
            3,
        )
        errors = [one for one in found if isinstance(one, Exception)]
        if errors:
            raise errors[0]
        same(sum(is_new for _, is_new in found), 1)
        same(len({one.pk for one, _ in found}), 1)
    same(Customer.objects.count(), 4)


def check_update_or_create_in_threads() -> None:
    if engine() == "sqlite":
        return
    Customer.objects.create(email="counter")

    def work(n: int) -> None:
        for _ in range(5):
            Customer.objects.update_or_create(
                email="counter", defaults={"balance": F("balance") + 1}
            )
            Customer.objects.update_or_create(email=f"own {n}", defaults={"name": "x"})

    same(in_threads(work), [None, None])
    same(Customer.objects.get(email="counter").balance, 10)
    same(Customer.objects.count(), 3)


def check_a_row_of_another_shard_does_not_hide_a_conflict() -> None:
    """Both ways round, whichever shard holds the value first."""
    for here, there in (apart(Parcel), apart(Parcel)[::-1]):
        Parcel.objects.create(region=here, code="x")
        same(shard_of(Parcel, here) != shard_of(Parcel, there), True)
        _refuses(Parcel, region=there, code="x")
        same(Parcel.objects.filter(code="x").delete()[0], 1)
