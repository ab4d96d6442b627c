"""A shard that goes away in the middle of a read or of a write."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.projects import Fleet

Sharded = Callable[..., Fleet]

#: The ways in which shard b goes away; each is tried in turn, on a healthy fleet.
BREAKS = """
create_tables()
FULL = [(n, 10) for n in range(1, 21)]
Account.objects.bulk_create([Account(id=n, balance=10) for n, _ in FULL])
Person.objects.create(id=ids("a")[0], email="old")


def answer_lost():
    proxies["b"].cut_after(0)


def request_lost():
    proxies["b"].cut_after(0, "to_server")


def server_gone():
    proxies["b"].refuse()
    proxies["b"].cut()


def each_break():
    for broken in (answer_lost, request_lost, server_gone):
        assert Account.objects.count() == 20  # every node is connected
        yield broken
        proxies["b"].forward()
"""


def assert_names_shard(error: dict[str, Any] | None) -> None:
    assert error is not None, "the failure was hidden"
    assert error["code"] == "dbfleet.E204"
    assert error["type"] == "NodeUnavailable"
    assert "default/b/primary of alias 'default'" in error["text"]


def test_a_read_over_shards_fails_and_works_again(sharded: Sharded) -> None:
    found = sharded(("home", "a", "b", "c")).run(
        BREAKS
        + """
result = []
for broken in each_break():
    broken()
    error = refused(balances)
    proxies["b"].forward()
    result.append((broken.__name__, error, balances() == sorted(FULL)))
"""
    )
    assert len(found) == 3
    for broken, error, is_whole in found:
        assert_names_shard(error)
        assert is_whole, broken


def test_other_shards_are_read_meanwhile(sharded: Sharded) -> None:
    found = sharded().run(
        BREAKS
        + """
server_gone()
refused(balances)
result = Account.objects.get(pk=ids("a")[0]).balance, refused(balances)
"""
    )
    assert found[0] == 10
    assert_names_shard(found[1])
    assert "cannot be reached" in found[1]["text"]


def test_a_write_over_shards_happens_nowhere(sharded: Sharded) -> None:
    fleet = sharded()
    found = fleet.run(
        BREAKS
        + """
writes = {
    "update": lambda: Account.objects.update(balance=10),
    "delete": lambda: Account.objects.filter(balance=10).delete(),
    "insert": lambda: Account.objects.bulk_create(
        [Account(id=n) for n in range(100, 120)]
    ),
    "claim": lambda: Person.objects.create(id=ids("b")[0], email="new"),
}
result = []
for broken in each_break():
    for name, write in writes.items():
        broken()
        error = refused(write)
        proxies["b"].forward()
        people = list(Person.objects.values_list("email", flat=True))
        is_undone = (balances(), people) == (sorted(FULL), ["old"])
        result.append((f"{name}, {broken.__name__}", error, is_undone))
works = [refused(write) for write in writes.values()]
result = result, works
"""
    )
    assert len(found[0]) == 12
    for what, error, is_undone in found[0]:
        assert_names_shard(error)
        assert is_undone, f"{what}: a write that failed left something behind"
    assert found[1] == [None] * 4, "the same writes do not work after the failure"
    assert fleet.prepared() == {}


def test_a_transaction_that_lost_a_shard_can_only_be_rolled_back(
    sharded: Sharded,
) -> None:
    found = sharded().run(
        BREAKS
        + """
a, b = ids("a")[0], ids("b")[0]


def transfer(broken, errors):
    with transaction.atomic():
        Account.objects.filter(pk=a).update(balance=1)
        Account.objects.filter(pk=b).update(balance=19)
        broken()
        errors.append(refused(Account.objects.filter(pk=b).update, balance=18))
        proxies["b"].forward()
        # The shard answers again, but what the transaction did there is gone.
        errors.append(refused(Account.objects.filter(pk=b).update, balance=17))


result = []
for broken in each_break():
    errors = []
    transfer(broken, errors)
    result.append((broken.__name__, errors, balances() == sorted(FULL)))
"""
    )
    assert len(found) == 3
    for broken, errors, is_undone in found:
        assert len(errors) == 2
        for error in errors:
            assert_names_shard(error)
        assert is_undone, broken


def test_a_shard_lost_before_the_commit_is_noticed(sharded: Sharded) -> None:
    fleet = sharded()
    found = fleet.run(
        BREAKS
        + """
def transfer(broken):
    with transaction.atomic():
        Account.objects.filter(pk=ids("a")[0]).update(balance=1)
        Account.objects.filter(pk=ids("b")[0]).update(balance=19)
        broken()
        refused(Account.objects.get, pk=ids("b")[1])
        proxies["b"].forward()


result = []
for broken in each_break():
    error = refused(transfer, broken)
    result.append((broken.__name__, error, balances() == sorted(FULL)))
"""
    )
    assert len(found) == 3
    for broken, error, is_undone in found:
        assert_names_shard(error)
        assert is_undone, broken
    assert fleet.prepared() == {}


def test_closing_old_connections_ends_a_transaction_on_every_node(
    sharded: Sharded,
) -> None:
    """Django closes a connection inside a transaction too, and refuses to go on."""
    found = sharded().run(
        BREAKS
        + """
from django.db import close_old_connections
b = ids("b")[0]


def transfer():
    with transaction.atomic():
        Account.objects.filter(pk=b).update(balance=1)
        close_old_connections()
        Account.objects.filter(pk=b).update(balance=2)


result = refused(transfer)["type"], balances() == sorted(FULL)
"""
    )
    assert found == ["TransactionManagementError", True]


def test_a_silent_shard_is_given_up_after_its_time_limits(
    sharded: Sharded, engine: str
) -> None:
    is_mariadb = engine == "mariadb"
    limits = "?connect_timeout=2" + ("&read_timeout=2" if is_mariadb else "")
    start = time.monotonic()
    found = sharded(query=limits).run(
        BREAKS
        + f"""
result = []
if {is_mariadb}:
    proxies["b"].black_hole()
    result.append(refused(balances))
    proxies["b"].forward()
connection.close()
proxies["b"].black_hole()
result.append(refused(balances))
""",
        timeout_s=40,
    )
    assert time.monotonic() - start < 30
    for error in found:
        assert_names_shard(error)


@pytest.mark.parametrize("node", ["home", "b"])
def test_no_password_in_the_error_of_an_unreachable_node(
    sharded: Sharded, node: str
) -> None:
    error = sharded().run(
        f"proxies[{node!r}].refuse()\n"
        "result = refused(lambda: Account.objects.get(pk=ids('b')[0]))"
    )
    assert error["code"] == "dbfleet.E204"
    assert f"default/{node}/primary of alias 'default'" in error["text"]
    assert "@" not in error["text"]
