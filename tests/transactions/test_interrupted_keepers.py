"""Interrupted commits where shards keep claims: one of them decides, and each step of
the protocol leaves what the decision settles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.projects import Fleet, make_fleet
from tests.faults.settling import settle, settle_by_table
from tests.support.project import Project
from tests.transactions.test_interrupted import SHARDS, run_and_die
from tests.transactions.test_interrupted_lookups import FILL, MODELS, SETUP, UNDO

#: right before the nth call of a method -> whether it is committed. Claims are of three
#: shards, and so are rows: one of the six decides, five are prepared.
STEPS = {
    ("FleetTransaction, '_prepare'", 1): False,
    ("FleetTransaction, '_prepare'", 4): False,
    ("FleetTransaction, '_write_decision'", 1): False,
    ("ENGINE, 'commit'", 1): False,
    ("FleetTransaction, '_finish_prepared'", 1): True,
    ("ENGINE, 'commit_prepared'", 2): True,
    ("ENGINE, 'commit_prepared'", 3): True,
    ("ENGINE, 'commit_prepared'", 4): True,
}


@pytest.fixture(params=["postgres", "mariadb"])
def fleet(
    request: pytest.FixtureRequest,
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
) -> Fleet:
    return make_fleet(
        project,
        new_database,
        request.getfixturevalue(request.param),
        ("home", *SHARDS),
        models=MODELS,
        claims="shards",
    )


def test_a_process_that_dies_hides_no_row(fleet: Fleet) -> None:
    """At each step, before and after it is settled, a lookup finds what is there."""
    fleet.run(SETUP + FILL)
    for (method, nth), is_committed in STEPS.items():
        name = f"{method} {nth}"
        run_and_die(
            fleet,
            SETUP + f"import os\nat({method}, lambda: os._exit(7), {nth})\nchange()",
        )
        doubtful, plain, asked = fleet.run(SETUP + "result = compared()")
        assert doubtful == plain, name
        assert asked == 1, name
        settle_by_table(fleet)
        assert fleet.prepared() == {}, name
        (settled, plain, _), differences = fleet.run(
            SETUP + "result = compared(), differing()\n" + UNDO
        )
        assert settled == plain, name
        assert bool(settled["new"]) == is_committed, name
        assert differences == [0, 0, 0], name
        for shard in SHARDS:  # where values were would be asked, whatever comes first
            fleet.rows(shard, "DELETE FROM dbfleet_left")


LOSE = """
direction = {direction!r}
commit = ENGINE.commit


def cutting(self, node, gid):
    if "_c" in gid:
        proxies[node.alias.split("/")[1]].cut_after(0, direction)
    return commit(self, node, gid)


found()
ENGINE.commit = cutting
result = refused(change)
"""


@pytest.mark.parametrize("direction", ["to_client", "to_server"])
def test_the_decision_is_looked_for_where_the_error_says(
    fleet: Fleet, direction: str
) -> None:
    """Home has no part in it; the shard whose answer was lost is named."""
    fleet.run(SETUP + FILL)
    fleet.rows("home", "DELETE FROM dbfleet_decision")  # of what migrations wrote
    error = fleet.run(SETUP + LOSE.format(direction=direction))
    assert error["code"] == "dbfleet.E602"
    decisions = "SELECT gid FROM dbfleet_decision"
    assert fleet.rows("home", decisions) == []
    [decider] = [s for s in SHARDS if f"finds a row in default/{s}" in error["text"]]
    last = {gid for (gid,) in fleet.rows(decider, decisions) if gid in error["text"]}
    settle(fleet, error["text"])
    assert fleet.prepared() == {}
    settled, plain, _ = fleet.run(SETUP + "result = compared()")
    assert settled == plain
    assert bool(settled["new"]) == bool(last)


def test_no_row_is_shown_before_its_claims(fleet: Fleet) -> None:
    """Where a keeper cannot be told, rows stay prepared; the error has the order."""
    fleet.run(SETUP + FILL)
    error = fleet.run(
        SETUP
        + """
commit = ENGINE.commit_prepared


def cutting(self, node, gid):
    if "_c" in gid:
        proxies[node.alias.split("/")[1]].cut_after(0, "to_server")
    return commit(self, node, gid)


found()
ENGINE.commit_prepared = cutting
result = refused(change)
"""
    )
    assert error["code"] == "dbfleet.E603"
    names = [name for held in fleet.prepared().values() for name in held]
    assert sum("_c" in name for name in names) >= 1
    assert sum("_c" not in name for name in names) == len(SHARDS)
    at = {name: error["text"].index(name) for name in names}
    ordered = sorted(names, key=at.__getitem__)
    assert ordered == sorted(ordered, key=lambda name: "_c" not in name)
    doubtful, plain, _ = fleet.run(SETUP + "result = compared()")
    assert doubtful == plain
    settle(fleet, error["text"])
    assert fleet.prepared() == {}
    settled, plain, _ = fleet.run(SETUP + "result = compared()")
    assert settled == plain
    assert settled["new"]
