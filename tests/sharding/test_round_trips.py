"""How often each node is asked for one statement, counted by a proxy before each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.projects import Fleet

Sharded = Callable[..., Fleet]

MODELS = """
class Order(models.Model):
    customer = models.IntegerField()
    total = models.DecimalField(max_digits=9, decimal_places=2)

    class Meta:
        shard_key = "customer"


class Tag(models.Model):
    text = models.CharField(max_length=20)
    order = models.IntegerField()

    class Meta:
        shard_key = "text"


class Memo(models.Model):
    text = models.CharField(max_length=20)
"""
SETUP = """
from django.db.models import Avg, Count, Sum

create_tables()
Order.objects.bulk_create(Order(customer=n, total=n % 7) for n in range(60))
Tag.objects.bulk_create(Tag(text=str(n), order=n) for n in range(20))
list(Order.objects.all())  # every connection is there


def trips(action):
    '''Round trips to each node that was asked something.'''
    before = {name: p.counts.round_trips for name, p in proxies.items()}
    action()
    found = {n: p.counts.round_trips - before[n] for n, p in proxies.items()}
    return {name: count for name, count in found.items() if count}
"""
EACH = {"a": 1, "b": 1}


def test_every_shard_is_asked_once(sharded: Sharded) -> None:
    found = sharded(models=MODELS).run(
        SETUP
        + """
orders = Order.objects.all()
asked = {
    "count": orders.count,
    "sums": lambda: orders.aggregate(Sum("total"), Avg("customer")),
    "groups": lambda: list(orders.values("total").annotate(Count("id"))),
    "page": lambda: list(orders.order_by("total", "id")[10:20]),
    "first": lambda: orders.order_by("-total", "id").first(),
    "exists": lambda: orders.filter(total=3).exists(),
}
result = {name: trips(ask) for name, ask in asked.items()}
"""
    )
    assert found == dict.fromkeys(found, EACH)
    assert len(found) == 6


def test_what_shards_answer_connects_to_no_home(sharded: Sharded) -> None:
    found = sharded(models=MODELS).run(
        SETUP
        + """
connection.close()
result = [len(Order.objects.all()), Order.objects.aggregate(Count("id"))["id__count"]]
result.append(connection.connection is None)
"""
    )
    assert found == [60, 60, True]


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_few_rows_take_no_cursor_that_a_server_keeps(sharded: Sharded) -> None:
    found = sharded(models=MODELS).run(
        SETUP
        + """
few = Order.objects.order_by("total", "id")[5:15]
every = Order.objects.order_by("total", "id")
result = {
    "few": trips(lambda: list(few.iterator())),
    "every": trips(lambda: list(every.iterator())),
    "are equal": list(few.iterator(chunk_size=3)) == list(few),
}
"""
    )
    assert found["few"] == EACH
    # DECLARE with its portal, FETCH (two of them), CLOSE.
    assert set(found["every"]) == set(EACH)
    assert min(found["every"].values()) > 2
    assert found["are equal"]


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize("outer", ["contextlib.nullcontext", "transaction.atomic"])
def test_a_gather_by_temporary_tables(sharded: Sharded, outer: str) -> None:
    """The transaction and its tables begin in one round trip and end in one."""
    found = sharded(models=MODELS, more={"GATHER": {"INLINE_ROWS": 0}}).run(
        SETUP
        + f"""
import contextlib
from dbfleet.observe import events

tagged = Order.objects.filter(id__in=Tag.objects.values("order"))
whole = {{}}
with {outer}():
    list(tagged.all())  # what columns there are is read once
    seen = []
    with events.subscribed(lambda event: seen.append(event.name)):
        whole["trips"] = trips(lambda: list(tagged.all()))
    whole["rows"] = sorted(one.id for one in tagged)
    whole["gathered"] = "gathered" in seen
whole["wanted"] = sorted(
    set(Order.objects.values_list("id", flat=True))
    & set(Tag.objects.values_list("order", flat=True))
)
with connection.cursor() as cursor:
    cursor.execute("SELECT count(*) FROM pg_class WHERE relpersistence = 't'")
    whole["left"] = cursor.fetchone()[0]
result = whole
"""
    )
    assert found["gathered"]
    assert found["rows"] == found["wanted"]
    # BEGIN and both tables, a COPY for each (two of them), the statement, COMMIT.
    assert found["trips"]["home"] == 7
    assert found["left"] == 0


def test_an_explicit_id_below_those_in_hand(sharded: Sharded, engine: str) -> None:
    """Home's counter is known to be above it; what is above the ids in hand moves it,
    where the vendor's own counter would."""
    found = sharded(models=MODELS).run(
        SETUP
        + """
def create(pk):
    Memo(id=pk, text="x").save(force_insert=True)


def automatic():
    return Memo.objects.create(text="x").pk


first = automatic()
result = {
    "below": "home" in trips(lambda: create(-5)),
    "next": automatic() - first,
    "above": [create(first + 70), automatic() > first + 70][1],
}
"""
    )
    assert found == {"below": False, "next": 1, "above": engine == "mariadb"}


def test_a_lease_of_ids_opens_a_connection_in_a_transaction_alone(
    sharded: Sharded, engine: str
) -> None:
    """There ids have to outlive it on MariaDB; a sequence of PostgreSQL always does."""
    found = sharded(models=MODELS).run(
        SETUP
        + """
from django.db import transaction
from dbfleet.sharding import ids


def opened():
    ids.forget(connection)
    before = proxies["home"].counts.connections
    first = Order.objects.create(customer=1, total=1).pk
    return proxies["home"].counts.connections - before, first


opened()  # home is connected
outside, first = opened()
with transaction.atomic():
    inside, second = opened()
    transaction.set_rollback(True)
_, third = opened()
result = [outside, inside], first < second < third
"""
    )
    assert found == [[0, int(engine == "mariadb")], True]
