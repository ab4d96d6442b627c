"""A commit that is interrupted: what is left, what is said, and that it settles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.projects import PRELUDE, Fleet
from tests.faults.settling import settle, settle_by_table

Sharded = Callable[..., Fleet]

SHARDS = ("a", "b", "c")

SETUP = """
from django.db.models import F
from dbfleet.transactions.transaction import FleetTransaction
A, B, C = (ids(shard)[0] for shard in "abc")


def fill():
    create_tables()
    Account.objects.bulk_create([Account(id=n, balance=10) for n in range(1, 41)])


def transfer():
    with transaction.atomic():
        Account.objects.filter(pk=A).update(balance=F("balance") + 2)
        Account.objects.filter(pk=B).update(balance=F("balance") - 1)
        Account.objects.filter(pk=C).update(balance=F("balance") - 1)


def at(owner, name, act, nth=1):
    '''Call ``act`` right before the nth call of a method.'''
    original, calls = getattr(owner, name), []

    def method(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            act()
        return original(self, *args, **kwargs)

    setattr(owner, name, method)
    return lambda: setattr(owner, name, original)


from django.db.backends.base.base import BaseDatabaseWrapper
ENGINE = type(connection.engine)
"""


@dataclass(frozen=True)
class Step:
    """A place in the protocol: right before the nth call of a method."""

    method: str
    nth: int
    prepared: tuple[str, ...]
    is_committed: bool


STEPS = {
    "before the first PREPARE": Step("FleetTransaction, '_prepare'", 1, (), False),
    "between PREPAREs": Step("FleetTransaction, '_prepare'", 3, ("a", "b"), False),
    "before the decision": Step(
        "FleetTransaction, '_write_decision'", 1, SHARDS, False
    ),
    "before home's COMMIT": Step("BaseDatabaseWrapper, '_commit'", 1, SHARDS, False),
    "after home's COMMIT": Step(
        "FleetTransaction, '_finish_prepared'", 1, SHARDS, True
    ),
    "between COMMITs": Step("ENGINE, 'commit_prepared'", 2, ("b", "c"), True),
    "before the last COMMIT": Step("ENGINE, 'commit_prepared'", 3, ("c",), True),
}


def balances(fleet: Fleet) -> dict[str, list[int]]:
    """Balances other than 10 on each shard, from its own database."""
    sql = "SELECT balance FROM app_account WHERE balance <> 10 ORDER BY 1"
    return {s: [row[0] for row in fleet.rows(s, sql)] for s in SHARDS}


UNTOUCHED: dict[str, list[int]] = {"a": [], "b": [], "c": []}
MOVED = {"a": [12], "b": [9], "c": [9]}


def run_and_die(fleet: Fleet, code: str) -> None:
    path = fleet.project.write("run/dying.py", "")
    path.write_text(PRELUDE + SETUP + code)
    done = fleet.project.python("run.py", str(path), f"{path}.json", check=False)
    assert done.returncode == 7, done.stderr


def test_the_process_is_killed_at_each_step(sharded: Sharded) -> None:
    """The table of states in ARCHITECTURE holds, and the decision settles each."""
    fleet = sharded(("home", *SHARDS))
    fleet.run(SETUP + "fill()")
    for name, step in STEPS.items():
        run_and_die(
            fleet,
            f"import os\nat({step.method}, lambda: os._exit(7), {step.nth})\n"
            "transfer()",
        )
        assert tuple(sorted(fleet.prepared())) == step.prepared, name
        settle_by_table(fleet)
        assert fleet.prepared() == {}, name
        assert balances(fleet) == (MOVED if step.is_committed else UNTOUCHED), name
        for shard in SHARDS:
            fleet.rows(shard, "UPDATE app_account SET balance = 10 WHERE balance <> 10")


@dataclass(frozen=True)
class Loss:
    """A connection lost at a place of the protocol, and what must be said."""

    node: str
    method: str
    cut: str
    errors: tuple[str, ...]
    #: what the rows show once it is settled
    is_committed: bool


REQUEST = "proxies[{node!r}].cut_after(0, 'to_server')"
ANSWER = "proxies[{node!r}].cut_after(0)"
GONE = "proxies[{node!r}].refuse() or proxies[{node!r}].cut()"

_PREPARE = "FleetTransaction, '_prepare', {act}, 2"
_COMMIT_HOME = "BaseDatabaseWrapper, '_commit', {act}, 1"
_COMMIT_PREPARED = "ENGINE, 'commit_prepared', {act}, 2"

_UNDONE = ("NodeUnavailable", "RollbackPending")

LOSSES = {
    "PREPARE is lost": Loss("b", _PREPARE, REQUEST, _UNDONE, False),
    "PREPARE's answer is lost": Loss("b", _PREPARE, ANSWER, _UNDONE, False),
    "a server is gone at PREPARE": Loss(
        "b", _PREPARE, GONE, ("RollbackPending",), False
    ),
    "home's COMMIT is lost": Loss(
        "home", _COMMIT_HOME, REQUEST, ("CommitUnknown",), False
    ),
    "home's answer is lost": Loss(
        "home", _COMMIT_HOME, ANSWER, ("CommitUnknown",), True
    ),
    "home is gone at COMMIT": Loss(
        "home", _COMMIT_HOME, GONE, ("CommitUnknown",), False
    ),
    "COMMIT PREPARED is lost": Loss(
        "b", _COMMIT_PREPARED, REQUEST, ("CommitPending",), True
    ),
    "its answer is lost": Loss("b", _COMMIT_PREPARED, ANSWER, ("CommitPending",), True),
    "a server is gone at COMMIT PREPARED": Loss(
        "b", _COMMIT_PREPARED, GONE, ("CommitPending",), True
    ),
}

CODES = {
    "NodeUnavailable": "dbfleet.E204",
    "CommitUnknown": "dbfleet.E602",
    "CommitPending": "dbfleet.E603",
    "RollbackPending": "dbfleet.E604",
}


def test_a_connection_is_lost_at_each_step(sharded: Sharded) -> None:
    fleet = sharded(("home", *SHARDS))
    fleet.run(SETUP + "fill()")
    for name, loss in LOSSES.items():
        act = f"lambda: {loss.cut.format(node=loss.node)}"
        error = fleet.run(
            SETUP
            + f"""
balances()
undo = at({loss.method.format(act=act)})
error = refused(transfer)
undo()
proxies[{loss.node!r}].forward()
# The next transaction of the process works; what is in doubt locks its own rows.
with transaction.atomic():
    Account.objects.filter(pk=ids("a", 2)[1]).update(balance=10)
    Account.objects.filter(pk=ids("b", 2)[1]).update(balance=10)
result = error
"""
        )
        assert error is not None, name
        assert error["type"] in loss.errors, (name, error)
        assert error["code"] == CODES[error["type"]], name
        assert "'default'" in error["text"], name
        settle(fleet, error["text"])
        assert fleet.prepared() == {}, f"{name}: the error did not name all"
        assert balances(fleet) == (MOVED if loss.is_committed else UNTOUCHED), name
        for shard in SHARDS:
            fleet.rows(shard, "UPDATE app_account SET balance = 10 WHERE balance <> 10")


@pytest.mark.parametrize("node", ["a", "home"])
def test_a_lost_plain_commit_is_reported_once_and_never_repeated(
    sharded: Sharded, node: str
) -> None:
    fleet = sharded(("home", *SHARDS))
    found = fleet.run(
        SETUP
        + f"""
fill()
run = ENGINE.run


def cutting(self, node, sql, params=None):
    if sql.startswith(("COMMIT", "XA COMMIT")):
        proxies[{node!r}].cut_after(0, direction)
    return run(self, node, sql, params)


def break_commit():
    if {node!r} == "home":
        return at(
            BaseDatabaseWrapper,
            "_commit",
            lambda: proxies["home"].cut_after(0, direction),
        )
    ENGINE.run = cutting
    return lambda: setattr(ENGINE, "run", run)


def add_one():
    with transaction.atomic():
        if {node!r} == "a":
            Account.objects.filter(pk=A).update(balance=F("balance") + 1)
        else:
            Note.objects.create(text=direction)


result = []
for direction in ("to_client", "to_server"):
    balances(), Note.objects.count()
    undo = break_commit()
    result.append(refused(add_one))
    undo()
    connection.close()
result = result, Account.objects.get(pk=A).balance, Note.objects.count()
"""
    )
    for error in found[0]:
        assert error["type"] == "CommitUnknown"
        assert error["code"] == "dbfleet.E602"
        assert f"default/{node}/primary" in error["text"]
    # Of two commits one was lost before the server, one after it: done once.
    assert found[1:] == ([11, 0] if node == "a" else [10, 1])


def test_a_session_sees_what_a_pending_commit_wrote(
    postgres: Any,
    project: Any,
    new_database: Any,
) -> None:
    """The error says that it is committed; a replica must not deny it."""
    from tests.faults.projects import MODELS, SETTINGS, database_source

    names = {node: new_database(postgres) for node in ("home", "a", "b")}
    urls = {node: postgres.url(name) for node, name in names.items()}
    urls["r"] = postgres.replica_urls(names["a"])[0]
    source = database_source(
        urls,
        "Sharded(home=NODES['home'], shards={'b': NODES['b'], "
        "'a': Cluster(NODES['a'], replicas=[NODES['r']])})",
    )
    built = project(databases=source, models=MODELS, settings=SETTINGS)
    built.run(PRELUDE + "create_tables()\nAccount.objects.create(id=ids('a')[0])")
    postgres.wait_until_caught_up()
    postgres.replicas[0].pause_replay()
    try:
        found = built.run(
            PRELUDE
            + """
from dbfleet.transactions.transaction import FleetTransaction
A, B = ids("a")[0], ids("b")[0]
finish = FleetTransaction._finish_prepared


def lose(self, prepared):
    proxies["b"].cut_after(0)
    return finish(self, prepared)


FleetTransaction._finish_prepared = lose


def write():
    with transaction.atomic():
        Account.objects.filter(pk=A).update(balance=5)
        Account.objects.create(id=B)


result = refused(write)["type"], Account.objects.get(pk=A).balance
"""
        )
    finally:
        postgres.replicas[0].resume_replay()
    assert found == ["CommitPending", 5]
