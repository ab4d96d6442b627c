"""Savepoints over nodes, and what a commit sends when nothing fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.projects import Fleet

Sharded = Callable[..., Fleet]

SETUP = """
create_tables()
Account.objects.bulk_create([Account(id=n, balance=10) for n in range(1, 31)])
A, B = ids("a")[0], ids("b")[0]


def add(pk, amount):
    row = Account.objects.get(pk=pk)
    Account.objects.filter(pk=pk).update(balance=row.balance + amount)


def changed():
    return {pk: balance for pk, balance in balances() if balance != 10}


class Undo(Exception):
    pass


sent = []
engine = type(connection.engine)
run = engine.run


def recording(self, node, sql, params=None):
    sent.append((node.alias, sql.split("'")[0].strip()))
    return run(self, node, sql, params)


engine.run = recording


def control(*verbs):
    '''What was sent to shards to end or prepare transactions.'''
    words = {"COMMIT", "PREPARE", "XA PREPARE", "XA COMMIT", "COMMIT PREPARED"}
    found = [
        (node, sql.replace(" TRANSACTION", ""))
        for node, sql in sent
        if sql.replace(" TRANSACTION", "") in words
    ]
    sent.clear()
    return found
"""


def test_savepoints_undo_on_every_node(sharded: Sharded) -> None:
    found = sharded().run(
        SETUP
        + """
with transaction.atomic():
    add(A, 1)
    try:
        with transaction.atomic():
            add(A, 10)
            add(B, 10)  # enlisted late: the savepoint is replayed there
            with transaction.atomic():
                add(B, 100)
            raise Undo
    except Undo:
        pass
    sid = transaction.savepoint()
    add(B, 5)
    Note.objects.create(text="undone")
    transaction.savepoint_rollback(sid)
    add(B, 2)
    inside = changed()
result = [inside, changed(), [A, B], Note.objects.count()]
"""
    )
    a, b = map(str, found[2])
    assert found[0] == found[1] == {a: 11, b: 12}
    assert found[3] == 0


def test_an_exception_rolls_every_node_back(sharded: Sharded) -> None:
    fleet = sharded()
    found = fleet.run(
        SETUP
        + """
called = []
for nested in (False, True):
    try:
        with transaction.atomic():
            transaction.on_commit(lambda: called.append("never"))
            add(A, 1)
            Note.objects.create(text="undone")
            with transaction.atomic(durable=False):
                add(B, 1)
                if nested:
                    raise Undo
            raise Undo
    except Undo:
        pass
result = changed(), Note.objects.count(), called
"""
    )
    assert found == [{}, 0, []]
    assert fleet.prepared() == {}


def test_a_failed_statement_undoes_its_transaction_everywhere(sharded: Sharded) -> None:
    found = sharded().run(
        SETUP
        + """
def twice():
    with transaction.atomic():
        add(A, 1)
        Account.objects.create(id=B)


result = refused(twice)["type"], changed()
"""
    )
    assert found == ["IntegrityError", {}]


def test_one_writer_commits_plainly_and_several_prepare(
    sharded: Sharded, engine: str
) -> None:
    fleet = sharded(("home", "a", "b", "c"))
    found = fleet.run(
        SETUP
        + """
C = ids("c")[0]
steps = []
control()
with transaction.atomic():
    add(A, 1)
    Account.objects.get(pk=B)
steps.append(control())
with transaction.atomic():
    Note.objects.create(text="home alone")
    Account.objects.get(pk=B)
steps.append(control())
Account.objects.filter(pk=B).update(balance=11)
steps.append(control())
with transaction.atomic():
    add(A, 1)
    Note.objects.create(text="home and a")
steps.append(control())
with transaction.atomic():
    add(A, 1)
    add(B, 1)
    add(C, 1)
steps.append(control())
result = steps
"""
    )
    is_postgresql = engine == "postgresql"
    prepare, finish = (
        ("PREPARE", "COMMIT PREPARED") if is_postgresql else ("XA PREPARE", "XA COMMIT")
    )
    commit = "COMMIT" if is_postgresql else "XA COMMIT"
    a, b, c = (f"default/{shard}/primary" for shard in "abc")
    assert sorted(found[0]) == [[a, commit], [b, commit]]
    assert found[1] == [[b, commit]]
    assert found[2] == []
    assert found[3] == [[a, prepare], [a, finish]]
    assert found[4] == [[n, prepare] for n in (a, b, c)] + [
        [n, finish] for n in (a, b, c)
    ]
    assert fleet.prepared() == {}


def test_on_commit_runs_when_every_node_has_committed(sharded: Sharded) -> None:
    found = sharded().run(
        SETUP
        + """
import threading
seen = []


def look():
    def from_another_connection():
        seen.append(changed())
        connections.close_all()

    thread = threading.Thread(target=from_another_connection)
    thread.start()
    thread.join(20)


with transaction.atomic():
    add(A, 1)
    transaction.on_commit(look)
    add(B, 1)
    look()
result = seen, [A, B]
"""
    )
    a, b = map(str, found[1])
    assert found[0] == [{}, {a: 11, b: 11}]


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_deferred_constraint_is_checked_before_anything_commits(
    sharded: Sharded,
) -> None:
    """PostgreSQL checks it at PREPARE, so a shard can still refuse."""
    fleet = sharded(
        models="""
class Account(models.Model):
    id = models.IntegerField(primary_key=True)
    place = models.IntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["id", "place"],
                name="deferred",
                deferrable=models.Deferrable.DEFERRED,
            )
        ]
""",
        settings="",
    )
    found = fleet.run(
        """
create_tables()
from django.db import connection
A, B = ids("a")[0], ids("b")[0]
with connection.cursor() as cursor:
    cursor.execute(
        "ALTER TABLE app_account ADD CONSTRAINT late UNIQUE (place) "
        "DEFERRABLE INITIALLY DEFERRED"
    )


def twice():
    with transaction.atomic():
        Account.objects.create(id=A, place=1)
        Account.objects.create(id=B, place=1)
        Account.objects.create(id=ids("b")[1], place=1)


result = refused(twice), Account.objects.count()
"""
    )
    assert found[0]["type"] == "IntegrityError"
    assert "late" in found[0]["text"]
    assert found[1] == 0
    assert fleet.prepared() == {}


#: an UPDATE is no block of Django's: what it takes on two shards, and in home for
#: claims, is a transaction of the statement's own
PEOPLE = """
create_tables()
from django.db.models import F, Value
from django.db.models.functions import Concat
A, B = ids("a")[0], ids("b")[0]
for email, pk in enumerate([A, B, ids("b")[1]], 1):
    Person.objects.create(id=pk, email=str(email))


def rename(**values):
    return Person.objects.update(email=Concat("email", Value("!")), **values)


def emails():
    '''What another connection sees, which would wait for claims that are held.'''
    import threading
    found = []

    def look():
        Person.objects.get(id=A).save()
        found.extend(Person.objects.order_by("email").values_list("email", flat=True))
        connections.close_all()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(20)
    return found
"""


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_shard_that_refuses_to_prepare_undoes_the_statement(sharded: Sharded) -> None:
    """Home, too, whose transaction the statement had begun for claims."""
    fleet = sharded(
        models="""
class Person(models.Model):
    id = models.IntegerField(primary_key=True)
    email = models.CharField(max_length=50, unique=True)
    place = models.IntegerField(default=0)


class Account(models.Model):
    id = models.IntegerField(primary_key=True)
""",
        settings="SILENCED_SYSTEM_CHECKS = ['dbfleet.W105']",
    )
    found = fleet.run(
        PEOPLE
        + """
Person.objects.update(place=F("id"))
with connection.cursor() as cursor:
    cursor.execute(
        "ALTER TABLE app_person ADD CONSTRAINT late UNIQUE (place) "
        "DEFERRABLE INITIALLY DEFERRED"
    )
error = refused(rename, place=1)
state = connection.connection.info.transaction_status.name
result = error, state, emails(), rename(), emails()
"""
    )
    assert found[0]["type"] == "IntegrityError"
    assert "late" in found[0]["text"]
    assert found[1:] == ["IDLE", ["1", "2", "3"], 3, ["1!", "2!", "3!"]]
    assert fleet.prepared() == {}


def test_a_shard_lost_before_it_prepares_undoes_the_statement(sharded: Sharded) -> None:
    fleet = sharded()
    found = fleet.run(
        PEOPLE
        + """
from dbfleet.transactions.transaction import FleetTransaction
prepare = FleetTransaction._prepare


def cut_first(self, part):
    if part.cluster == "b":
        proxies["b"].cut_after(0, "to_server")
    return prepare(self, part)


FleetTransaction._prepare = cut_first
error = refused(rename)
FleetTransaction._prepare = prepare
proxies["b"].forward()
result = error, emails(), rename(), emails()
"""
    )
    assert found[0]["code"] in {"dbfleet.E204", "dbfleet.E604"}
    assert "default/b/primary" in found[0]["text"]
    assert found[1:] == [["1", "2", "3"], 3, ["1!", "2!", "3!"]]
    assert fleet.prepared() == {}
