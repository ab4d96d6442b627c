"""Bulk writes over shards: what each shard is sent, and that nothing else differs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.projects import Fleet

Sharded = Callable[..., Fleet]

NODES = ("home", "a", "b", "c")

MODELS = """
class Account(models.Model):
    id = models.IntegerField(primary_key=True)
    name = models.CharField(max_length=200, default="")
    balance = models.IntegerField(default=0)


class Person(models.Model):
    email = models.CharField(max_length=50, unique=True)
    region = models.IntegerField()
    name = models.CharField(max_length=200, default="")

    class Meta:
        shard_key = "region"


class Reading(models.Model):
    pk = models.CompositePrimaryKey("sensor", "number")
    sensor = models.IntegerField()
    number = models.IntegerField()
    value = models.IntegerField(default=0)

    class Meta:
        shard_key = "sensor"


class Word(models.Model):
    text = models.CharField(max_length=20, primary_key=True)
    count = models.IntegerField(default=0)
"""

SETTINGS = "SILENCED_SYSTEM_CHECKS = ['dbfleet.W105']"

SETUP = """
from django.db.models import F

create_tables()


def spot(model, *key):
    fields = connection.routing.table_of(model._meta).key_fields
    return connection.routing.shard_of(fields, key)


def rows(model):
    return {
        shard: sorted(on(shard, f"SELECT * FROM app_{model._meta.model_name}"))
        for shard in "abc"
    }


def on(shard, sql):
    with connection.routing.on(shard, is_write=False), connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def sent(action):
    '''What action gave, and the bytes that each shard was sent meanwhile.'''
    shards = {name: proxy for name, proxy in proxies.items() if name != "home"}
    before = {name: p.counts.bytes_to_server for name, p in shards.items()}
    found = action()
    return found, {n: p.counts.bytes_to_server - before[n] for n, p in shards.items()}
"""


def test_bulk_update_sends_each_shard_its_rows(sharded: Sharded) -> None:
    found = sharded(NODES, models=MODELS, settings=SETTINGS).run(
        SETUP
        + """
accounts = Account.objects.bulk_create(Account(id=n, balance=n) for n in range(90))
people = Person.objects.bulk_create(
    Person(email=str(n), region=n) for n in range(90)
)
result = []
for made in (accounts, people):
    model = type(made[0])
    for one in made:
        one.name = f"<{one.pk:05}>" + 100 * "x"
    here = [one for one in made if spot(model, getattr(one, "region", one.pk)) == "a"]
    # One shard's rows by themselves are the measure.
    _, alone = sent(lambda: model.objects.bulk_update(here, ["name"]))
    count, shares = sent(lambda: model.objects.bulk_update(made, ["name"]))
    same = all(
        model.objects.get(pk=one.pk).name == one.name for one in made
    )
    result.append([count, same, shares["a"] / alone["a"], min(shares.values())])
for one in accounts:
    one.balance = F("balance") + (1 if one.pk % 2 else 2)
    one.name = "both"
count = Account.objects.bulk_update(accounts, ["balance", "name"], batch_size=40)
result.append(count)
result.append(
    list(Account.objects.order_by("pk").values_list("balance", flat=True))
    == [n + (1 if n % 2 else 2) for n in range(90)]
)
gone = Account(id=1000, name="gone")
result.append(Account.objects.bulk_update([accounts[0], gone, accounts[0]], ["name"]))
"""
    )
    for count, same, ratio, least in found[:2]:
        assert (count, same) == (90, True)
        assert ratio < 1.4, "a shard was sent rows of others"
        assert least > 1000, "a shard has no rows: nothing was compared"
    assert found[2:] == [90, True, 1]


def test_bulk_update_of_every_kind_of_key(sharded: Sharded, engine: str) -> None:
    """Text that a collation calls equal, two columns, unique values, new shards."""
    found = sharded(NODES, models=MODELS, settings=SETTINGS).run(
        SETUP
        + """
words = Word.objects.bulk_create(Word(text=text) for text in "abcdefgh")
for word in words:
    word.count = ord(word.text)
    word.text = word.text.upper()
result = [Word.objects.bulk_update(words, ["count"])]
result.append(dict(Word.objects.values_list("text", "count")))
readings = Reading.objects.bulk_create(
    Reading(sensor=s, number=n) for s in range(6) for n in range(2)
)
for at, one in enumerate(readings):
    one.value = at
result.append(Reading.objects.bulk_update(readings, ["value"]))
result.append(list(Reading.objects.order_by("sensor", "number").values_list(
    "value", flat=True
)))
people = Person.objects.bulk_create(Person(email=str(n), region=n) for n in range(12))
for one in people:
    one.email, one.region = f"new {one.email}", one.region + 50
result.append(Person.objects.bulk_update(people, ["email", "region"]))
stored = Person.objects.order_by("pk").values_list("email", "region")
result.append(list(stored) == [(f"new {n}", n + 50) for n in range(12)])
result.append(all(
    spot(Person, region) == shard
    for shard in "abc" for (region,) in on(shard, "SELECT region FROM app_person")
))
people[0].email = people[1].email
result.append(refused(Person.objects.bulk_update, people[:2], ["email"])["type"])
Person.objects.create(email="0", region=1)  # what was let go of is free
"""
    )
    count, words = found[:2]
    if engine == "mariadb":  # whose text is equal in either case
        assert count == 8
        assert words == {text: ord(text) for text in "abcdefgh"}
    else:
        assert count == 0
        assert set(words.values()) == {0}
    assert found[2:] == [12, list(range(12)), 12, True, True, "IntegrityError"]


@pytest.mark.parametrize("claimed", [False, True])
def test_bulk_create_and_conflicts(
    sharded: Sharded, engine: str, claimed: bool
) -> None:
    """Large batches, ids of both kinds, and upserts beside them."""
    model, key = ("Person", "region") if claimed else ("Account", "id")
    found = sharded(NODES, models=MODELS, settings=SETTINGS).run(
        SETUP
        + f"""
Model, key, claimed, engine = {model}, {key!r}, {claimed}, {engine!r}
"""
        + """


def make(n, name="old"):
    more = {"email": f"e'{n}%s"} if claimed else {}
    return Model(**{key: n % 500 if claimed else n, "name": name, **more})


made = Model.objects.bulk_create([make(n) for n in range(1200)])
placed = all(
    spot(Model, value) == shard
    for shard in "abc"
    for (value,) in on(shard, f"SELECT {key} FROM app_{Model._meta.model_name}")
)
ids = [one.pk for one in made]
result = [Model.objects.count(), placed, len(set(ids)), None not in ids]
again = [make(n, "new") for n in range(1190, 1210)]
Model.objects.bulk_create(again, ignore_conflicts=True)
result.append([Model.objects.count(), Model.objects.filter(name="new").count()])
again = [make(n, "newest") for n in range(1190, 1220)]
more = {"update_conflicts": True, "update_fields": ["name"]}
if engine != "mariadb":
    more["unique_fields"] = ["email" if claimed else "id"]
Model.objects.bulk_create(again, **more)
result.append([Model.objects.count(), Model.objects.filter(name="newest").count()])
result.append(refused(Model.objects.bulk_create, [make(5000), make(3)])["type"])
result.append(Model.objects.count())
deleted = Model.objects.all().delete()[0]
with connection.routing.on("home", is_write=False), connection.cursor() as cursor:
    cursor.execute("SELECT count(*) FROM dbfleet_unique")
    result.append([deleted, cursor.fetchone()[0]])
"""
    )
    assert found[:4] == [1200, True, 1200, True]
    assert found[4] == [1210, 10]
    assert found[5] == [1220, 30]
    assert found[6:8] == ["IntegrityError", 1220]
    assert found[8] == [1220, 0]
