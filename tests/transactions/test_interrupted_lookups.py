"""An interrupted commit hides no row from a lookup, and leaves claims in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.projects import Fleet, make_fleet
from tests.faults.settling import settle_by_table
from tests.support.project import Project
from tests.transactions.test_interrupted import SETUP as STEPS_SETUP
from tests.transactions.test_interrupted import SHARDS, STEPS, run_and_die

MODELS = """
class Account(models.Model):
    balance = models.IntegerField(default=0)
    email = models.CharField(max_length=40, unique=True)

    class Meta:
        shard_lookups = ["email"]
"""

SETUP = (
    STEPS_SETUP[: STEPS_SETUP.index("def fill")]
    + STEPS_SETUP[STEPS_SETUP.index("def at(") :]
    + """
from django.test import override_settings
from dbfleet.sharding.lookup_builds import builds

EMAILS = ["old", "new", "stays", "gone", "later", "x"]

def change():
    '''One row changes its value, one passes it on to another shard, one goes.'''
    with transaction.atomic():
        Account.objects.filter(pk=A).update(email="new")
        Account.objects.filter(pk=B).update(email="later")
        Account.objects.filter(pk=C).delete()
        Account.objects.create(pk=ids("a", 2)[1], email="x")


def found():
    return {
        email: sorted(Account.objects.filter(email=email).values_list("pk", flat=True))
        for email in EMAILS
    }


def compared():
    '''What is found by the lookup and without; how many shards are asked.'''
    asked = len(Account.objects.filter(email="stays").explain_route().clusters)
    by_lookup = found()
    with override_settings(DBFLEET={"SHARD_LOOKUPS": {"app.Account": []}}):
        return [by_lookup, found(), asked]


def differing():
    routing = connection.routing
    [one] = builds(routing, routing.table_of(Account._meta))
    counts = one.verify(repairs=False)
    return [counts.missing, counts.conflicts, counts.orphans]
"""
)

FILL = """
create_tables()
Account.objects.bulk_create([
    Account(id=A, email="old"), Account(id=B, email="x"), Account(id=C, email="gone"),
    Account(id=ids("b", 2)[1], email="stays"),
])
"""
UNDO = """
Account.objects.all().delete()
Account.objects.bulk_create([
    Account(id=A, email="old"), Account(id=B, email="x"), Account(id=C, email="gone"),
    Account(id=ids("b", 2)[1], email="stays"),
])
"""


#: before home has claims and after; nothing differs between those left out
INTERRUPTIONS = (
    "between PREPAREs",
    "before home's COMMIT",
    "after home's COMMIT",
    "between COMMITs",
)


@pytest.fixture
def fleet(
    postgres: Any,
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
) -> Fleet:
    return make_fleet(project, new_database, postgres, ("home", *SHARDS), models=MODELS)


def test_a_process_that_dies_hides_no_row(fleet: Fleet) -> None:
    """At each step, before and after it is settled, a lookup finds what is there."""
    fleet.run(SETUP + FILL)
    for name in INTERRUPTIONS:
        step = STEPS[name]
        run_and_die(
            fleet,
            SETUP + f"import os\nat({step.method}, lambda: os._exit(7), {step.nth})\n"
            "change()",
        )
        doubtful, plain, asked = fleet.run(SETUP + "result = compared()")
        assert doubtful == plain, name
        assert asked == 1, name
        settle_by_table(fleet)
        (settled, plain, _), differences = fleet.run(
            SETUP + "result = compared(), differing()\n" + UNDO
        )
        assert settled == plain, name
        assert bool(settled["new"]) == step.is_committed, name
        assert differences == [0, 0, 0], name


def test_a_connection_to_home_that_is_lost_costs_no_read(fleet: Fleet) -> None:
    """Every shard is asked instead; the next read looks up again."""
    found = fleet.run(
        SETUP
        + FILL
        + """
query = Account.objects.filter(email="stays")
query.get()
proxies["home"].cut()
reason = query.explain_route().reason
query.get()
proxies["home"].cut()
result = query.count(), reason, len(query.explain_route().clusters)
"""
    )
    assert found[0] == 1
    assert "no lookup was used: home cannot be asked" in found[1]
    assert found[2] == 1
