"""Claims that the shards keep, in the place of home: everything holds as before."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dbfleet.sharding.keepers import by_keeper, keeper_of
from tests.faults.projects import PRELUDE, sharded_source
from tests.sharding import scenarios
from tests.sharding.fleet import SHARDS, ShardedProject
from tests.support.project import Project

CHECKS = [
    (module, check)
    for module in ("lookups", "unique", "races", "inserts", "updates")
    for check in scenarios.names(module)
]


@pytest.mark.parametrize(("module", "check"), CHECKS)
def test_in_a_fleet(spread_fleet: ShardedProject, module: str, check: str) -> None:
    spread_fleet.pass_or_fail(module, check)


def test_home_has_no_part_in_them(spread_fleet: ShardedProject) -> None:
    """Nothing is sent to home, by a write or by a lookup; each claim has one keeper."""
    sent = spread_fleet.run("""
from tests.sharding.scenarios import empty
from tests.sharding.scenarios.lookups import _looked_up, _sent
from tests.sharding.shop.models import Customer

empty()
result = []
with _looked_up():
    for step in (
        lambda: Customer.objects.bulk_create(
            Customer(id=n, email=f"e{n}") for n in range(1, 61)
        ),
        lambda: Customer.objects.filter(pk=1).update(email="new"),
        lambda: Customer.objects.get(email="new"),
        lambda: Customer.objects.filter(email="e2")._raw_delete("default"),
    ):
        with _sent() as clusters:
            step()
        result.append(sorted(set(clusters)))
""")
    assert "home" not in {cluster for step in sent for cluster in step}, sent
    assert spread_fleet.rows("home", "SELECT count(*) FROM dbfleet_unique") == [(0,)]
    for shard in SHARDS:
        kept = spread_fleet.rows(shard, "SELECT claim FROM dbfleet_unique")
        assert len(kept) > 5
        assert {keeper_of(claim, SHARDS) for (claim,) in kept} == {shard}


def test_commands_say_where_claims_are(spread_fleet: ShardedProject) -> None:
    table, told, found = spread_fleet.run("""
import json
from io import StringIO
from django.core.management import call_command
from tests.sharding.scenarios.lookups import _looked_up

def said(*args):
    out = StringIO()
    call_command("fleet", *args, stdout=out)
    return out.getvalue()

with _looked_up():
    lookups = said("lookups", "shop.Customer")
nodes = json.loads(said("status", "--json"))
kept = {one["node"]: one["keeps_claims"] for one in nodes}
result = said("status"), lookups, kept
""")
    assert told == "shop.Customer (email): reads use it; claims on a, b, c\n"
    assert table.count("ok, keeps claims") == 3
    assert found.pop("default/home/primary") is False
    assert found == {f"default/{shard}/primary": True for shard in SHARDS}


def test_a_claim_has_its_keeper_for_ever() -> None:
    assert keeper_of("0" * 64, SHARDS) == keeper_of("5" * 64, SHARDS) == "a"
    assert keeper_of("55555556" + "0" * 56, SHARDS) == "b"
    assert keeper_of("f" * 64, SHARDS) == "c"
    assert keeper_of("f" * 64, ("home",)) == "home"
    claims = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(3000)]
    counts = Counter(keeper_of(claim, SHARDS) for claim in claims)
    assert min(counts.values()) > 900
    taken = [claim for _, some in by_keeper(claims, str, SHARDS) for claim in some]
    assert taken == sorted(claims)


MODELS = """
class Account(models.Model):
    email = models.CharField(max_length=40, unique=True)

    class Meta:
        shard_lookups = ["email"]
"""

MADE = "create_tables()\nAccount.objects.create(id=1, email='x')\n"
USES = """
result = [
    refused(Account.objects.filter(email="x").count),
    refused(Account.objects.create, id=2, email="x"),
    refused(Account.objects.count),
]
"""

Make = Callable[[str], Project]


@pytest.fixture(params=["postgres", "mariadb"])
def make(
    request: pytest.FixtureRequest,
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
) -> Make:
    """Projects on the same databases that say other places for claims."""
    server = request.getfixturevalue(request.param)
    urls = {node: server.url(new_database(server)) for node in ("home", "a", "b")}

    def build(claims: str) -> Project:
        return project(databases=sharded_source(urls, claims=claims), models=MODELS)

    return build


@pytest.mark.parametrize("first", ["home", "shards"])
def test_another_place_is_refused(make: Make, first: str) -> None:
    """Claims there would not be found: the same value could be stored twice."""
    other = {"home": "shards", "shards": "home"}[first]
    there = {"home": "in home", "shards": "in shards (a, b)"}[first]
    make(first).run(PRELUDE + MADE)
    for error in make(other).run(PRELUDE + USES):
        assert error["code"] == "dbfleet.E414"
        assert error["type"] == "ConfigurationError"
        assert f"alias 'default': claims are kept {there}" in error["text"]
        assert f"CLAIMS is '{other}'" in error["text"]
    by_lookup, twice, count = make(first).run(PRELUDE + USES)
    assert (by_lookup, count) == (None, None)
    assert twice["type"] == "IntegrityError"


def test_of_processes_that_begin_at_once_one_place_wins(make: Make) -> None:
    make("home").run(PRELUDE + "create_tables()")
    make("home").run(
        PRELUDE + 'connection.cursor().execute("DELETE FROM dbfleet_keeper")'
    )
    projects = [make(claims) for claims in ("home", "shards") * 2]
    code = PRELUDE + "result = refused(Account.objects.create, id=NUMBER, email='x')"

    def begin(number: int) -> Any:
        return projects[number].run(code.replace("NUMBER", str(number + 1)))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(begin, range(4)))
    types = [error and error["type"] for error in found]
    won = types.index(None) % 2
    assert sorted(types[won::2], key=str) == ["IntegrityError", None], found
    assert types[1 - won :: 2] == ["ConfigurationError"] * 2, found


def test_a_server_that_cannot_prepare_keeps_them_in_home(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    """One writer at a time has a SQLite file: claims on two would be deadlocks."""
    files = {node: f"sqlite:///{tmp_path}/{node}.db" for node in ("home", "a", "b")}
    lite = project(
        databases=f"""
from dbfleet import Sharded, databases
DATABASES = databases(default=Sharded(
    home={files["home"]!r}, shards={{"a": {files["a"]!r}, "b": {files["b"]!r}}},
    claims="shards",
))
""",
        models=MODELS,
    )
    error = lite.run("""
from app.models import Account
from dbfleet.errors import ConfigurationError
try:
    Account.objects.count()
except ConfigurationError as error:
    result = [error.code, str(error)]
""")
    assert error[0] == "dbfleet.E414"
    assert "CLAIMS = 'shards' needs servers that can prepare a transaction" in error[1]
