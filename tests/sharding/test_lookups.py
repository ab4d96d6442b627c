"""Rows are found by unique columns that are no shard key, where home says they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.projects import PRELUDE, database_source
from tests.sharding import scenarios
from tests.sharding.fleet import ShardedProject
from tests.support.project import Project


@pytest.mark.parametrize("check", scenarios.names("lookups"))
def test_in_a_fleet(fleet: ShardedProject, check: str) -> None:
    fleet.pass_or_fail("lookups", check)


COMMAND = """
from contextlib import redirect_stdout
from io import StringIO
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings
from dbfleet.sharding import lookups
from tests.sharding.shop.models import Customer, Parcel
from tests.sharding.scenarios import empty, on_node, shard_of

def lookups_command(*args):
    out = StringIO()
    try:
        with redirect_stdout(out):
            call_command("fleet", "lookups", *args)
    except CommandError as error:
        out.write(f"failed: {error}")
    return out.getvalue().splitlines()

empty()
on_node("home", "DELETE FROM dbfleet_lookup")
result = []
with override_settings(DBFLEET={"SHARD_LOOKUPS": {"shop.Customer": ["email"]}}):
    Customer.objects.bulk_create(Customer(id=n, email=f"e{n}") for n in range(1, 6))
    result.append(lookups_command())
    result.append(lookups_command("--build"))
    result.append(lookups_command())
    Customer.objects.create(id=9, email="gone")
    on_node(shard_of(Customer, 9), "DELETE FROM shop_customer")
    result.append(lookups_command("--verify", "shop.Customer"))
    result.append(lookups_command("--repair"))
    result.append(lookups_command("shop.Parcel"))
result.append(lookups_command())
connection.close()
"""


def test_the_command(fleet: ShardedProject) -> None:
    found = fleet.run(COMMAND)
    if fleet.engine == "sqlite":
        none = ["no lookup can be used on 'default'"]
        assert found[0] == found[1] == found[-1] == none
        return
    name = "shop.Customer (email)"
    assert found[0] == [f"{name}: not built: reads ask every shard"]
    same = "0 without a claim, 0 of them with a value of another row"
    assert found[1] == [f"{name}: 5 rows, {same}, 0 claims without a row; reads use it"]
    assert found[2] == [f"{name}: reads use it"]
    left, gone = found[3][0].split(" rows")[0][-1], found[3][0].split(" claims")[0][-1]
    assert int(left) + int(gone) == 6
    assert int(gone) >= 1
    assert found[3][1].startswith(f"failed: {gone} differ.")
    assert found[4] == [found[3][0]]
    assert found[5] == ["failed: no lookup of shop.parcel can be used on 'default'"]
    assert found[6] == ["no lookup can be used on 'default'"]


MODELS = """
class Account(models.Model):
    balance = models.IntegerField(default=0)
    email = models.CharField(max_length=40, unique=True)

    class Meta:
        shard_lookups = ["email"]
"""


def test_home_is_asked_on_its_primary_and_shards_at_their_level(
    postgres: Any,
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
) -> None:
    """An old claim would hide a new row; a replica may show a value that was left."""
    names = {node: new_database(postgres) for node in ("home", "a", "b")}
    urls = {node: postgres.url(name) for node, name in names.items()}
    for node in ("home", "a"):
        urls[f"{node}_r"] = postgres.replica_urls(names[node])[0]
    source = database_source(
        urls,
        "Sharded(home=Cluster(NODES['home'], replicas=[NODES['home_r']]), shards={"
        "'a': Cluster(NODES['a'], replicas=[NODES['a_r']]), 'b': NODES['b']})",
    )
    built = project(databases=source, models=MODELS)
    built.run(
        PRELUDE + "create_tables()\nAccount.objects.create(id=ids('a')[0], email='x')"
    )
    postgres.wait_until_caught_up()
    postgres.replicas[0].pause_replay()
    try:
        found = built.run(
            PRELUDE
            + """
import dbfleet
Account.objects.create(id=ids("b")[0], email="new")
Account.objects.filter(email="x").update(email="y")

def seen():
    return [
        list(Account.objects.filter(email=e).values_list("email", flat=True))
        for e in ("new", "x", "y")
    ]

result = [seen()]
with dbfleet.session(), dbfleet.consistency("eventual"):
    result.append(seen())
    route = Account.objects.filter(email="new").explain_route()
    result.append(route.clusters)
"""
        )
    finally:
        postgres.replicas[0].resume_replay()
    assert found[0] == [["new"], [], ["y"]]
    # The old row is what the replica of its shard has, as without a lookup.
    assert found[1] == [["new"], ["x"], []]
    assert found[2] == ["b"]
