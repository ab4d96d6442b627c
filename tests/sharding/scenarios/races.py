"""Writers at the same time, each stopped where another one can get in its way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from django.db import (
    DataError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.models import F
from django.test import override_settings

from dbfleet.sharding import settling
from tests.sharding.scenarios import (
    SHARDS,
    THREAD_TIMEOUT_S,
    apart,
    elsewhere,
    engine,
    in_threads,
    keeper,
    on_keepers,
    on_node,
    places,
    refused,
    same,
    shard_of,
)
from tests.sharding.shop.models import Customer, Parcel

#: InnoDB renews its view of transactions when nobody has asked for 0.1 s
PAUSE_S = 0.12


class Started:
    """Work of another thread that goes on; its result, or its error as a value."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._found: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = self._work()
        except Exception as error:  # noqa: BLE001 - the caller looks at it
            self._found = error
        finally:
            connections.close_all()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for this or for the work's end."""
        deadline = time.monotonic() + THREAD_TIMEOUT_S
        while not condition() and not self.is_done:
            if time.monotonic() > deadline:
                raise AssertionError("it does not come to that")
            time.sleep(PAUSE_S)

    def result(self) -> Any:
        self._thread.join(THREAD_TIMEOUT_S)
        if not self.is_done:
            raise AssertionError("a thread does not end")
        return self._found


def _waits(cluster: str) -> Callable[[], bool]:
    return lambda: _someone_waits(cluster)


def _someone_waits(cluster: str) -> bool:
    """Whether a statement waits for a lock in the database of a node."""
    name = connection.nodes.clusters[cluster].primary
    database = connection.settings_dict["NODES"][name]["NAME"]
    if engine() == "postgresql":
        sql = (
            "SELECT COUNT(*) FROM pg_stat_activity "
            "WHERE datname = %s AND wait_event_type = 'Lock'"
        )
    else:
        sql = (
            "SELECT COUNT(*) FROM information_schema.innodb_trx JOIN "
            "information_schema.processlist ON id = trx_mysql_thread_id "
            "WHERE db = %s AND trx_state = 'LOCK WAIT'"
        )
    return bool(on_node("home", sql, [database])[0][0])


@contextlib.contextmanager
def _in_transaction(cluster: str, sql: str, *params: Any) -> Iterator[list[Any]]:
    """A stranger's transaction on a node that did this, and is undone at the end."""
    on_node(cluster, "BEGIN")
    try:
        yield on_node(cluster, sql, params)
    finally:
        on_node(cluster, "ROLLBACK")


def _stranger_with(email: str, shard: str) -> Any:
    """A row that keeps others from this email on its shard, and nowhere else."""
    return _in_transaction(
        shard,
        "INSERT INTO shop_customer (id, email, name, balance) VALUES (%s, %s, '', 0)",
        1_000_000,
        email,
    )


# -- locks --------------------------------------------------------------------------


def check_an_update_that_waits_on_a_shard_holds_nothing_in_home() -> None:
    if engine() == "sqlite":
        return  # one writer at a time
    customer = Customer.objects.create(email="old")
    shard = shard_of(Customer, customer.pk)
    with _stranger_with("new", shard):
        update = Started(
            lambda: Customer.objects.filter(pk=customer.pk).update(email="new")
        )
        update.until(_waits(shard))
        same((update.is_done, update._found), (False, None))
        locking = "SELECT constraint_name FROM dbfleet_unique FOR UPDATE NOWAIT"
        same(on_keepers(locking), [("shop_customer_email",)])
        same(update.is_done, False)
    same(update.result(), 1)


def check_claims_are_taken_after_the_rows_of_every_shard() -> None:
    if engine() == "sqlite":
        return
    keys: dict[str, list[int]] = {shard: [] for shard in SHARDS}
    for key in range(1, 100):
        keys[shard_of(Customer, key)].append(key)
    rows = [Customer(id=keys[shard][0], email=shard) for shard in "cba"]
    with _stranger_with("b", "b"):
        insert = Started(lambda: Customer.objects.bulk_create(rows))
        insert.until(_waits("b"))
        # Nothing in its way: neither in home, nor on the shard that comes later.
        for at, email in enumerate("ac", 1):
            one = Customer(id=keys["c"][at], email=email)
            other = Started(lambda one=one: one.save(force_insert=True))
            same(other.result(), None)
        same(insert.is_done, False)
    same(type(insert.result()), IntegrityError)
    same(sorted(Customer.objects.values_list("email", flat=True)), ["a", "c"])


def check_a_claim_is_changed_beside_a_locked_one() -> None:
    """Whichever of the two comes first in an index of home."""
    if engine() == "sqlite":
        return
    pks, held = [], []
    for email in "xy":
        pks.append(Customer.objects.create(email=email).pk)
        held += [one for one in _held() if one not in held]
    for mine, other in ((0, 1), (1, 0)):
        before = _held()
        delete = "DELETE FROM dbfleet_unique WHERE claim = %s"
        with _in_transaction(keeper(held[other]), delete, held[other]):
            change = Started(
                lambda pk=pks[mine]: Customer.objects.filter(pk=pk).update(
                    email=f"new {pk}"
                )
            )
            change.until(_waits(keeper(held[other])))
            same(change.is_done, True)
        same(change.result(), 1)
        held[mine] = next(one for one in _held() if one not in before)


def _held() -> list[str]:
    return [row[0] for row in on_keepers("SELECT claim FROM dbfleet_unique")]


def check_a_write_that_changes_no_claim_is_its_shards_own() -> None:
    customer = Customer.objects.create(email="x")
    with transaction.atomic():
        customer.name = "new"
        customer.save()
        same(connection.transaction.home_wrote, False)
    same(places(Customer, "name"), {"new": (shard_of(Customer, customer.pk),)})
    with refused(IntegrityError):
        Customer.objects.create(email="x")


def check_a_deadlock_over_two_servers_ends() -> None:
    if engine() == "sqlite":
        return
    pair = [Parcel.objects.create(region=region) for region in apart(Parcel)]
    together = threading.Barrier(2)

    def work(n: int) -> str:
        limit = {
            "postgresql": f"SET lock_timeout = '{1 + 14 * n}s'",
            "mysql": f"SET innodb_lock_wait_timeout = {1 + 14 * n}",
        }
        for shard in SHARDS:
            node = connection.nodes.primary(shard)
            connection.engine.run(node, limit[engine()]).close()
        with transaction.atomic():
            for parcel in (pair[n], pair[1 - n]):
                Parcel.objects.filter(region=parcel.region).update(
                    weight=F("weight") + 1
                )
                if parcel is pair[n]:
                    together.wait(THREAD_TIMEOUT_S)
        return "committed"

    first, second = in_threads(work)
    same((type(first), second), (OperationalError, "committed"))
    same(list(Parcel.objects.values_list("weight", flat=True)), [1, 1])


def check_writes_of_several_shards_run_side_by_side_where_settings_say() -> None:
    if engine() == "sqlite":
        return  # its files have one writer at a time
    regions = apart(Parcel)
    for weight, region in enumerate(regions):
        Parcel.objects.create(region=region, weight=weight)

    def both_wait() -> bool:
        return all(_someone_waits(shard_of(Parcel, region)) for region in regions)

    with override_settings(DBFLEET={"FANOUT": {"PARALLEL_WRITES": True}}):
        with transaction.atomic():
            for region in regions:
                list(Parcel.objects.filter(region=region).select_for_update())
            more = {"weight": F("weight") + 1}
            started = Started(lambda: Parcel.objects.update(**more))
            started.until(both_wait)
            same(started.is_done, False)
        same(started.result(), 2)
        with refused(DataError):  # of one of both
            Parcel.objects.update(weight=F("weight") * 2_000_000_000)
        same(sorted(Parcel.objects.values_list("weight", flat=True)), [1, 2])
        same(Parcel.objects.filter(weight__gt=0)._raw_delete("default"), 2)


def check_a_shards_transaction_does_not_wait_for_ever() -> None:
    if engine() != "postgresql":
        return  # InnoDB has a limit of its own
    parcel = Parcel.objects.create(region=1)
    node = connection.nodes.primary(shard_of(Parcel, 1))
    for own, expected in (("0", "30s"), ("7s", "7s")):
        connection.engine.run(node, f"SET lock_timeout = '{own}'").close()
        with transaction.atomic():
            parcel.save()
            found = connection.engine.fetch(node, "SHOW lock_timeout")
            same(found, [(expected,)])
        same(connection.engine.fetch(node, "SHOW lock_timeout"), [(own,)])


# -- between home's commit and a shard's ----------------------------------------------


class Stopped:
    """A commit that home has decided and a shard has yet to carry out."""

    def __init__(self) -> None:
        self.decided, self.asked = threading.Event(), threading.Event()
        self._goes_on = threading.Event()

    def go_on(self) -> None:
        self._goes_on.set()

    def wait(self) -> None:
        self.decided.set()
        self._goes_on.wait(THREAD_TIMEOUT_S)


@contextlib.contextmanager
def _stopped(work: Callable[[], Any]) -> Iterator[Stopped]:
    """``work`` goes on in another thread, up to its first COMMIT PREPARED."""
    kind = type(connection.engine)
    commit, is_prepared = kind.commit_prepared, kind.is_prepared
    here, stopped = threading.local(), Stopped()

    def committing(self: Any, node: Any, gid: str) -> None:
        if getattr(here, "is_stopped", False):
            stopped.wait()
        commit(self, node, gid)

    def asking(self: Any, node: Any, gid: str) -> bool:
        found = bool(is_prepared(self, node, gid))
        stopped.asked.set()
        return found

    def stopping() -> Any:
        here.is_stopped = True
        return work()

    kind.commit_prepared, kind.is_prepared = committing, asking
    try:
        started = Started(stopping)
        try:
            started.until(stopped.decided.is_set)
            yield stopped
        finally:
            stopped.go_on()
            same(isinstance(started.result(), Exception), False)
    finally:
        kind.commit_prepared, kind.is_prepared = commit, is_prepared


def _get_or_create(email: str, there: int) -> Any:
    found, is_new = Customer.objects.get_or_create(email=email, defaults={"id": there})
    return found.pk, is_new


def _update_or_create(email: str, there: int) -> Any:
    found, is_new = Customer.objects.update_or_create(
        email=email, defaults={"name": "x"}, create_defaults={"id": there}
    )
    return found.pk, is_new


def _ignoring(email: str, there: int) -> Any:
    one = Customer(id=there, email=email)
    Customer.objects.bulk_create([one], ignore_conflicts=True)
    return Customer.objects.get(email=email).pk, False


def _in_atomic(email: str, there: int) -> Any:
    with transaction.atomic():
        same(Customer.objects.filter(email=email).exists(), False)  # on every shard
        return _get_or_create(email, there)


def check_a_conflict_shows_the_row_that_is_in_the_way() -> None:
    if engine() == "sqlite":
        return  # no two phases
    here, there = apart(Customer)
    shard = shard_of(Customer, here)
    for way in (_get_or_create, _update_or_create, _ignoring, _in_atomic):
        email = way.__name__
        with _stopped(
            lambda email=email: Customer.objects.create(id=here, email=email)
        ) as stopped:
            other = Started(lambda way=way, email=email: way(email, there))
            # A locking read of InnoDB waits for the prepared row itself.
            other.until(lambda: stopped.asked.is_set() or _someone_waits(shard))
            stopped.go_on()
            same(other.result(), (here, False))
        same(places(Customer, "email"), {email: (shard,)})
        Customer.objects.all().delete()


def check_a_conflict_does_not_wait_for_ever() -> None:
    if engine() == "sqlite":
        return
    here, there = apart(Customer)
    before, settling.TIMEOUT_S = settling.TIMEOUT_S, 0.1
    try:
        with _stopped(lambda: Customer.objects.create(id=here, email="x")):
            found = elsewhere(lambda: _get_or_create("x", there))
            same(type(found), IntegrityError)
            sql = connection.engine.settling_sql(_gid(), commit=True)
            same(sql in str(found), True)
    finally:
        settling.TIMEOUT_S = before
    same(_get_or_create("x", there), (here, False))


def _gid() -> str:
    return str(on_keepers("SELECT gid FROM dbfleet_unique")[0][0])
