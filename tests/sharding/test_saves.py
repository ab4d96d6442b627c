"""``save()`` over shards, counted by a proxy before each server."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.projects import Fleet

Sharded = Callable[..., Fleet]

MODELS = """
from django.db.models import Q
from django.db.models.functions import Lower


class Parcel(models.Model):
    region = models.IntegerField()
    code = models.CharField(max_length=20, null=True, unique=True)
    label = models.CharField(max_length=20, default="", db_index=True)
    weight = models.IntegerField(default=0)

    class Meta:
        shard_key = "region"
        ordering = ["weight"]


class Account(models.Model):
    id = models.IntegerField(primary_key=True)
    email = models.CharField(max_length=50, unique=True)
    name = models.CharField(max_length=50, default="")


class Word(models.Model):
    text = models.CharField(max_length=20)
    is_active = models.BooleanField(default=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(Lower("text"), name="one_word"),
            models.UniqueConstraint(
                fields=["text"], condition=Q(is_active=True), name="one_active"
            ),
        ]


class Depot(models.Model):
    region = models.IntegerField()

    class Meta:
        shard_key = "region"


class Crate(models.Model):
    depot = models.ForeignKey(Depot, models.CASCADE)
    label = models.CharField(max_length=20, unique=True)

    class Meta:
        shard_key = "depot__region"
"""

SETTINGS = "SILENCED_SYSTEM_CHECKS = ['dbfleet.W105', 'models.W044', 'models.W036']"

SETUP = """
create_tables()


def spot(model, key):
    fields = connection.routing.table_of(model._meta).key_fields
    return connection.routing.shard_of(fields, (key,))


def apart(model):
    first = next(n for n in range(1, 999) if spot(model, n) == "a")
    return first, next(n for n in range(1, 999) if spot(model, n) == "b")


def trips(action):
    '''Round trips to each node that was asked something.'''
    before = {name: p.counts.round_trips for name, p in proxies.items()}
    action()
    found = {n: p.counts.round_trips - before[n] for n, p in proxies.items()}
    return {name: count for name, count in found.items() if count}


def claims():
    with connection.routing.on_home(), connection.cursor() as cursor:
        cursor.execute("SELECT claim, shard FROM dbfleet_unique ORDER BY claim")
        return cursor.fetchall()
"""


def test_a_row_that_stays_takes_one_statement(sharded: Sharded) -> None:
    found = sharded(models=MODELS, settings=SETTINGS).run(
        SETUP
        + """
here, there = apart(Parcel)
parcel = Parcel.objects.create(region=here, code="x")
account = Account.objects.create(id=ids("b")[0], email="a@b")
Account.objects.create(id=ids("a")[0], email="other")
before = claims()
result = []
read = Parcel.objects.get(), Account.objects.get(pk=account.pk)
for one in (parcel, account, *read):
    one.weight, one.name = 7, "new"
    result.append(trips(one.save))
for one in (parcel, account):
    with transaction.atomic():
        one.weight, one.name = 8, "newer"
        list(type(one).objects.all())  # every node is in the transaction
        result.append(trips(one.save))
code = Parcel.objects.create(region=there)  # NULL is a value to be found, too
code.weight = 9
result.append(trips(code.save))
rows = sorted(Parcel.objects.values_list("code", "weight"), key=str)
names = sorted(Account.objects.values_list("email", "name"))
result = result, rows, names, len(claims()) - len(before)
"""
    )
    assert found[0][:4] == [{"a": 1}, {"b": 1}, {"a": 1}, {"b": 1}]
    assert found[0][4:6] == [{"a": 1}, {"b": 1}]
    assert found[0][6] == {"b": 1}
    assert found[1] == [["x", 8], [None, 9]]
    assert found[2] == [["a@b", "newer"], ["other", ""]]
    assert found[3] == 1  # the new row's primary key


def test_a_row_that_is_elsewhere_is_looked_for(sharded: Sharded) -> None:
    found = sharded(models=MODELS, settings=SETTINGS).run(
        SETUP
        + """
here, there = apart(Parcel)
parcel = Parcel.objects.create(region=here, code="x")
stale = Parcel.objects.get()
Parcel.objects.filter(pk=parcel.pk).update(region=there)
moved = [shard for _, shard in claims()]
stale.weight = 3
stale.save()  # as on one database: the old key comes back
back = [shard for _, shard in claims()]
rows = list(Parcel.objects.values_list("region", "weight"))
stale.region = there
stale.save()
again = [shard for _, shard in claims()]
new = Parcel(pk=stale.pk + 1000, region=here, code="new")
new.save()
gone = Parcel(pk=stale.pk + 2000, region=here)
lost = refused(gone.save, force_update=True)
no_key = Parcel.objects.get(pk=stale.pk)
no_key.region = None
result = [
    moved, back, rows == [(here, 3)], again, Parcel.objects.count(),
    lost["text"], refused(no_key.save)["type"],
]
"""
    )
    assert found[:4] == [["b", "b"], ["a", "a"], True, ["b", "b"]]
    assert found[4] == 2
    assert "did not affect any rows" in found[5]
    assert found[6] == "IntegrityError"


def test_claims_follow_what_a_save_changes(sharded: Sharded, engine: str) -> None:
    """Unique values that change, by expression or condition too, cost more."""
    fleet = sharded(models=MODELS, settings=SETTINGS)
    found = fleet.run(
        SETUP
        + """
a, b = ids("a")[0], ids("b")[0]
one = Account.objects.create(id=a, email="one")
two = Account.objects.create(id=b, email="two")
two.email = "one"
taken = refused(two.save)
two.email = "three"
two.save()
one.email = "two"  # free now
one.save()
word = Word.objects.create(text="Word")
word.text = "word"
word.save()
twice = [refused(Word.objects.create, text="WORD"), Word.objects.count()]
word.is_active = False
word.save()
free = Word.objects.filter(pk=word.pk).update(text="other")
again = refused(Word.objects.create, text="Word")
emails = sorted(Account.objects.values_list("email", flat=True))
result = taken["type"], twice, free, again, emails, len(claims())
"""
    )
    assert found[0] == "IntegrityError"
    assert found[2:5] == [1, None, ["three", "two"]]
    if engine == "mariadb":  # which has no such constraints
        assert found[1] == [None, 2]
        assert found[5] == 2
    else:
        assert found[1][0]["type"] == "IntegrityError"
        # Two e-mail addresses; two words by expression, one of which is active.
        assert found[5] == 2 + 2 + 1


def test_a_child_that_stays_with_its_parent(sharded: Sharded) -> None:
    found = sharded(models=MODELS, settings=SETTINGS).run(
        SETUP
        + """
first, second = (Depot.objects.create(region=r) for r in apart(Depot))
crate = Crate.objects.create(depot=first, label="one")
same = trips(crate.save)
crate.depot = second
crate.save()
moved = [row[1] for row in claims()]
result = same, Crate.objects.get(depot__region=second.region).pk == crate.pk, moved
"""
    )
    assert found[0] == {"a": 2, "b": 1}  # where is the parent? and the row's own shard
    assert found[1] is True
    assert sorted(found[2]) == ["a", "b", "b", "b"]
