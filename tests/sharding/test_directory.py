"""A directory of keys on real servers: placing, finding, growing, repairing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.sharding.fleet import ENGINES, server_engine
from tests.sharding.test_maps import CREATE, Fleet, started
from tests.support.project import Project

NEW = "map=__import__('dbfleet').DirectoryMap(int)"
PLACED = "map={'DIRECTORY': {'KEYS': 'int', 'NEW': None}}"
ALL_TO_B = "map={'DIRECTORY': {'KEYS': 'int', 'NEW': 'b'}}"

HELP = """
import contextlib, io
import dbfleet
from django.core.management import execute_from_command_line

def fleet_place(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        call_command("fleet", "place", *arguments, stdout=out)
    return out.getvalue()
"""


@pytest.fixture(params=ENGINES)
def fleet(
    request: pytest.FixtureRequest, project: Callable[..., Project]
) -> Iterator[Fleet]:
    yield from started(request, project)


def test_keys_are_placed_and_found(fleet: Fleet) -> None:
    found = fleet.project(PLACED)(
        CREATE
        + HELP
        + """
result = {"before": [
    refused(Region.objects.create, key=1),
    refused(Region.objects.bulk_create, [Region(key=1), Region(key=2)]),
    Region.objects.filter(key=1).count(),
    clusters(Region.objects.filter(key=1)),
]}
dbfleet.place("default", 1, "a")
dbfleet.place("default", 1, "a")
fleet_place("2", "c")
dbfleet.place("default", 7, "c")
Region.objects.bulk_create([Region(key=1), Region(key=2)])
for region in (1, 2, 2):
    Sale.objects.create(region_id=region, total=region)
result |= {
    "refused": [
        refused(dbfleet.place, "default", 1, "b"),
        refused(dbfleet.place, "default", 9, "z"),
        refused(dbfleet.place, "default", "9", "a"),
        refused(call_command, "fleet", "place", "2", "a"),
        refused(call_command, "fleet", "place", "x", "a"),
        refused(Sale.objects.filter(region=1).update, region=99),
        refused(Pair.objects.create, one=1, other=2),
    ],
    "routes": [
        clusters(Sale.objects.filter(region=2)),
        clusters(Sale.objects.filter(region__in=[1, 2, 3])),
        clusters(Sale.objects.filter(region__in=[2, 7, 8])),
        clusters(Sale.objects.filter(region__gt=1)),
        clusters(Region.objects.filter(key=3)),
    ],
    "answers": [
        sorted(Sale.objects.values_list("region").annotate(n=models.Count("pk"))),
        Region.objects.filter(key__in=[1, 2, 3]).count(),
        sorted(Sale.objects.filter(region__key=2).values_list("total")),
    ],
    "told": [fleet_place("2"), fleet_place("5"), fleet_place()],
}
"""
    )
    for error in found["before"][:2]:
        assert error[:2] == ["UncoveredShardKey", "dbfleet.E409"]
        assert "place it first, by manage.py fleet place" in error[2]
        assert "Nothing was written" in error[2]
    assert found["before"][2:] == [0, ["a"]]
    codes = [error[1] for error in found["refused"]]
    assert codes[:3] == ["dbfleet.E413"] * 3
    assert codes[5:] == ["dbfleet.E409"] * 2
    texts = [error[2] for error in found["refused"]]
    assert "key 1 of alias 'default' is on shard 'a', and stays there" in texts[0]
    assert "has no shard 'z'; it has a, b, c" in texts[1]
    assert "'9' is no key of the directory of 'default'" in texts[2]
    assert "is on shard 'c', and stays there" in texts[3]
    assert "'x' is no key of the directory: it is of the type int" in texts[4]
    assert found["routes"] == [["c"], ["a", "c"], ["c"], ["a", "b", "c"], ["a"]]
    assert found["answers"] == [[[1, 1], [2, 2]], 2, [[2], [2]]]
    assert found["told"][:2] == ["2: c\n", "5: on no shard yet\n"]
    assert found["told"][2].split("\n")[:3] == ["a: 1 keys", "b: 0 keys", "c: 2 keys"]
    assert fleet.rows("app_sale", "region_id") == {"a": [1], "b": [], "c": [2, 2]}


def test_new_keys_are_spread_and_a_shard_can_be_added(fleet: Fleet) -> None:
    fleet.project(NEW)(CREATE)  # the shard that is added has the tables of a dump
    first = fleet.project(NEW, nodes=("home", "a", "b"))
    first(
        """
Region.objects.bulk_create([Region(key=n) for n in range(40)])
Sale.objects.bulk_create([Sale(region_id=n, total=n) for n in range(40)])
"""
    )
    before = fleet.rows("app_sale", "region_id")
    assert min(len(before["a"]), len(before["b"])) > 8
    more = fleet.project(NEW)
    answers = more(
        """
Region.objects.bulk_create([Region(key=n) for n in range(40, 60)])
Sale.objects.bulk_create([Sale(region_id=n, total=n) for n in range(60)])
result = [
    Sale.objects.filter(region=3).count(),
    Sale.objects.filter(region__in=range(30, 50)).count(),
    Sale.objects.aggregate(n=models.Sum("total"))["n"],
]
"""
    )
    assert answers == [2, 30, sum(range(40)) + sum(range(60))]
    after = fleet.rows("app_sale", "region_id")
    for shard in ("a", "b"):
        kept = [key for key in after[shard] if key < 40]
        assert kept == sorted(before[shard] * 2)
    assert after["c"]
    assert min(after["c"]) >= 40
    # A shard that has keys cannot be left out again.
    gone = fleet.project(NEW, nodes=("home", "a", "b"))(
        "result = refused(Sale.objects.filter(region__in=range(40, 60)).count)"
    )
    assert gone[1] == "dbfleet.E403"
    assert "places keys on c, which SHARDS does not declare" in gone[2]


def test_processes_that_place_one_key_at_once_agree(fleet: Fleet) -> None:
    fleet.project(NEW)(CREATE)
    runs = [fleet.project(options) for options in (NEW, ALL_TO_B) for _ in range(2)]
    code = """
for n in range(40):
    Entry.objects.create(place=n, total=1)
"""
    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(lambda run: run(code), runs))
    rows = fleet.rows("app_entry", "place")
    assert sorted(key for found in rows.values() for key in found) == sorted(
        4 * [*range(40)]
    )
    shards = {
        key: {s for s, found in rows.items() if key in found} for key in range(40)
    }
    assert all(len(found) == 1 for found in shards.values()), shards
    counted = fleet.project(NEW)(
        "result = [Entry.objects.filter(place=n).count() for n in range(40)]"
    )
    assert counted == 40 * [4]


def test_a_rolled_back_statement_leaves_nothing_wrong(fleet: Fleet) -> None:
    found = fleet.project(ALL_TO_B)(
        CREATE
        + HELP
        + """
from django.db import transaction
try:
    with transaction.atomic():
        Entry.objects.create(place=5)
        result = [Entry.objects.filter(place=5).count()]
        raise ValueError
except ValueError:
    pass
result.append(Entry.objects.filter(place=5).count())
Entry.objects.create(place=5)
result += [Entry.objects.filter(place=5).count(), fleet_place("5")]
"""
    )
    assert found == [1, 0, 1, "5: b\n"]


def test_a_lost_directory_is_repaired_from_the_rows(fleet: Fleet) -> None:
    run = fleet.project(ALL_TO_B)
    run(
        CREATE
        + "Entry.objects.bulk_create([Entry(place=n) for n in range(30)])\n"
        + "Region.objects.bulk_create([Region(key=n) for n in range(30, 50)])\n"
    )
    is_file = server_engine(fleet.server) == "sqlite"
    execute = fleet.server.execute if is_file else fleet.server.primary.execute
    execute(
        "DELETE FROM dbfleet_directory WHERE key_text LIKE '%5'",
        dbname=fleet.names["home"],
    )
    assert run(
        HELP
        + """
result = [
    Entry.objects.filter(place=5).count(),
    fleet_place("--repair"),
    Entry.objects.filter(place=5).count(),
    Entry.objects.filter(place__in=range(50)).count(),
    Region.objects.filter(key__in=range(50)).count(),
    fleet_place("--repair"),
]
"""
    ) == [
        0,
        "5 keys were added to the directory\n",
        1,
        30,
        20,
        "0 keys were added to the directory\n",
    ]


def test_rows_on_a_wrong_shard_are_told(fleet: Fleet) -> None:
    run = fleet.project(ALL_TO_B)
    run(CREATE + "Entry.objects.bulk_create([Entry(place=n) for n in range(3)])\n")
    is_file = server_engine(fleet.server) == "sqlite"
    execute = fleet.server.execute if is_file else fleet.server.primary.execute
    execute(
        "UPDATE dbfleet_directory SET shard = 'a' WHERE key_text = '2'",
        dbname=fleet.names["home"],
    )
    error = run(HELP + 'result = refused(fleet_place, "--repair")')
    assert error[0] == "CommandError"
    assert "2 of app.Entry on b, not a" in error[2]


def test_text_keys_of_any_length(fleet: Fleet) -> None:
    found = fleet.project(
        "map=__import__('dbfleet').DirectoryMap(str, new='c')", "CharField"
    )(
        CREATE
        + HELP
        + """
dbfleet.place("default", "no", "a")
dbfleet.place("default", "n" * 500, "b")
Entry.objects.bulk_create([Entry(place=k) for k in ("no", "se", "")])
result = [
    Entry.objects.filter(place="no").count(),
    Entry.objects.filter(place__in=["se", "no", ""]).count(),
    fleet_place("n" * 500)[-5:],
]
"""
    )
    assert found == [1, 3, "nn: b\n"[-5:]]
    assert fleet.rows("app_entry", "place")["a"] == ["no"]


def test_a_gather_asks_each_shard_for_the_keys_that_it_has(fleet: Fleet) -> None:
    answers = fleet.project(NEW)(
        CREATE
        + """
from dbfleet.executor import reducing
from dbfleet.observe import events
from dbfleet.planner.forced import gathering

Region.objects.bulk_create([Region(key=n) for n in range(40)])
Sale.objects.bulk_create([Sale(region_id=n, total=n % 10) for n in range(40)])
reducing.PROBE_ROWS = 2
seen = []
with gathering(), events.subscribed(seen.append):
    some = Sale.objects.filter(total=3).values("region")
    result = {
        "in a query": sorted(r.key for r in Region.objects.filter(key__in=some)),
        "in a list": Region.objects.filter(key__in=range(30, 90)).count(),
        "nowhere": Region.objects.filter(key__in=[90, 91]).count(),
    }
told = [one.fields for one in seen if one.name == "gathered"]
result["reduced"] = told[0]["reduced"]
"""
    )
    assert answers == {
        "in a query": [3, 13, 23, 33],
        "in a list": 10,
        "nowhere": 0,
        "reduced": ["app_region"],
    }
