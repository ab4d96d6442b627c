"""Declared maps on real servers: rows, pruning, keys without a shard, changed maps."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.sharding.fleet import ENGINES, server_engine
from tests.support.project import Project

NODES = ("home", "a", "b", "c")

_DATABASES = """
{head}
import datetime
from dbfleet import ListMap, RangeMap, Sharded, databases

URLS = {urls!r}
DATABASES = databases(
    default=Sharded(
        home=URLS["home"],
        shards={{name: url for name, url in URLS.items() if name != "home"}},
        {options}
    )
)
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
"""

_MODELS = """
class Region(models.Model):
    key = models.{key}(primary_key=True)
    name = models.CharField(max_length=20, default="")


class Sale(models.Model):
    region = models.ForeignKey(Region, models.CASCADE)
    total = models.IntegerField(default=0)

    class Meta:
        shard_key = "region"


class Entry(models.Model):
    place = models.{key}()
    number = models.IntegerField(unique=True, null=True)
    total = models.IntegerField(default=0)

    class Meta:
        shard_key = "place"
        shard_lookups = ["number"]


class Pair(models.Model):
    pk = models.CompositePrimaryKey("one", "other")
    one = models.IntegerField()
    other = models.IntegerField()
"""

_SETTINGS = 'SILENCED_SYSTEM_CHECKS = ["models.W042"]'

_PRELUDE = """
import datetime
from django.core.management import call_command
from django.db import connection
from app.models import *

def refused(action, *args, **kwargs):
    try:
        action(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, getattr(error, "code", None), str(error)]
    return None

def clusters(queryset):
    return list(queryset.explain_route().clusters)
"""

INTS = "map=RangeMap([(0, 100, 'a'), (100, 200, 'b'), (200, None, 'c')])"
TEXTS = "map={'LIST': {'no': 'a', 'se': 'a', 'dk': 'b', 'fi': 'c'}}"
DATES = (
    "map=RangeMap([(None, datetime.date(2024, 1, 1), 'a'), "
    "(datetime.date(2024, 1, 1), None, 'b')])"
)


class Fleet:
    """Databases on one server, and projects that declare a map over them."""

    def __init__(self, server: Any, make: Callable[..., Project]) -> None:
        self.server, self._make = server, make
        run = secrets.token_hex(4)
        self.names = {node: f"test_{run}_{node}" for node in NODES}
        for name in self.names.values():
            server.create_database(name)

    def project(
        self, options: str, key: str = "IntegerField", nodes: tuple[str, ...] = NODES
    ) -> Callable[..., Any]:
        """Run code in a project with these options of its alias."""
        options_of_key = "max_length=20" if key == "CharField" else ""
        models = _MODELS.replace("{key}()", f"{key}({options_of_key})").replace(
            "{key}(primary", f"{key}({options_of_key and options_of_key + ', '}primary"
        )
        head = ""
        if server_engine(self.server) == "mariadb":
            head = "import pymysql\n\npymysql.install_as_MySQLdb()"
        urls = {node: self.server.url(self.names[node]) for node in nodes}
        source = _DATABASES.format(head=head, urls=urls, options=options)
        built = self._make(databases=source, models=models, settings=_SETTINGS)
        return lambda code: built.run(_PRELUDE + code)

    def rows(self, table: str, column: str) -> dict[str, list[Any]]:
        """Shard -> values of a column, past the alias."""
        sql = f"SELECT {column} FROM {table} ORDER BY {column}"
        is_file = server_engine(self.server) == "sqlite"
        ask = self.server.execute if is_file else self.server.primary.execute
        return {
            node: [value for (value,) in ask(sql, dbname=self.names[node])]
            for node in NODES[1:]
        }

    def close(self) -> None:
        for name in self.names.values():
            self.server.drop_database(name)


def started(
    request: pytest.FixtureRequest, project: Callable[..., Project]
) -> Iterator[Fleet]:
    """A fleet on the engine that a fixture's parameter names."""
    fixture = {"postgresql": "postgres", "mariadb": "mariadb", "sqlite": "rig"}
    server = request.getfixturevalue(fixture[request.param])
    found = Fleet(server.sqlite() if request.param == "sqlite" else server, project)
    yield found
    found.close()


@pytest.fixture(params=ENGINES)
def fleet(
    request: pytest.FixtureRequest, project: Callable[..., Project]
) -> Iterator[Fleet]:
    yield from started(request, project)


CREATE = 'call_command("migrate", run_syncdb=True, verbosity=0)\n'


def test_a_range_map_places_finds_and_refuses(fleet: Fleet) -> None:
    run = fleet.project(INTS)
    found = run(
        CREATE
        + """
Region.objects.bulk_create([Region(key=n) for n in (0, 99, 100, 199, 200, 5000)])
for n in (0, 99, 100, 199, 200, 5000):
    Sale.objects.create(region_id=n, total=n)
Entry.objects.bulk_create([Entry(place=n, total=n, number=n) for n in (5, 105, 205)])
uncovered = [
    refused(Region.objects.create, key=-1),
    refused(Region.objects.bulk_create, [Region(key=7), Region(key=-7)]),
    refused(Sale.objects.create, region_id=-1),
    refused(Entry.objects.filter(place=5).update, place=-5),
    refused(Pair.objects.create, one=1, other=2),
]
Entry.objects.filter(place=205).update(place=50)
result = {
    "uncovered": uncovered,
    "reads": [
        Region.objects.filter(key=-1).count(),
        list(Region.objects.filter(key__lt=0)),
        Region.objects.filter(key=-1).first() is None,
        Region.objects.filter(key__in=[-1, 99]).count(),
        Region.objects.filter(key=-1).aggregate(n=models.Count("pk"))["n"],
        Entry.objects.filter(models.Q(place=-1) | models.Q(number=105)).count(),
        Entry.objects.filter(models.Q(place__lt=-9) | models.Q(number=5)).count(),
        Entry.objects.filter(models.Q(place=-1) | models.Q(number=1)).delete()[0],
        Sale.objects.filter(region=-1).update(total=3),
        Sale.objects.filter(region__lt=-5).delete()[0],
    ],
    "missing": refused(Region.objects.get, key=-1)[0],
    "routes": [
        clusters(Region.objects.filter(key__lt=100)),
        clusters(Region.objects.filter(key__gte=100, key__lt=100_000)),
        clusters(Region.objects.filter(key__range=(100, 100_000))),
        clusters(Region.objects.filter(key__gt=199)),
        clusters(Sale.objects.filter(region__lte=150, total__gt=1)),
        clusters(Sale.objects.filter(total__gt=1)),
        clusters(Sale.objects.exclude(region__lt=200)),
        clusters(Sale.objects.filter(region__name="x", region__key__gte=200)),
    ],
    "answers": [
        sorted(Region.objects.filter(key__gte=100, key__lt=300).values_list("key")),
        Sale.objects.filter(region__gte=100).aggregate(n=models.Sum("total"))["n"],
        sorted(Sale.objects.filter(region__key__lte=99).values_list("total")),
    ],
    "epoch": Region.objects.filter(key=5).explain_route().epoch,
    "epochs": Region.objects.filter(key__gt=5).explain_route().describe(),
}
"""
    )
    for name, code, text in found["uncovered"]:
        assert (name, code) == ("UncoveredShardKey", "dbfleet.E409"), text
        assert "Nothing was written" in text
    assert (
        "is key=-1, which MAP RANGE of 'default' does not" in found["uncovered"][0][2]
    )
    assert "has 2 columns (one, other)" in found["uncovered"][4][2]
    assert found["reads"] == [0, [], True, 1, 0, 1, 1, 0, 0, 0]
    assert found["missing"] == "DoesNotExist"
    assert found["routes"] == [
        ["a"],
        ["b", "c"],
        ["b", "c"],
        ["c"],
        ["a", "b"],
        ["a", "b", "c"],
        ["c"],
        ["c"],
    ]
    assert found["answers"] == [[[100], [199], [200]], 5499, [[0], [99]]]
    assert found["epoch"] == 1
    assert "epoch:    1" in found["epochs"]
    by_range = {"a": [0, 99], "b": [100, 199], "c": [200, 5000]}
    assert fleet.rows("app_region", _quoted(fleet)) == by_range
    assert fleet.rows("app_sale", "region_id") == by_range
    assert fleet.rows("app_entry", "place") == {"a": [5, 50], "b": [105], "c": []}


def _quoted(fleet: Fleet) -> str:
    return "`key`" if server_engine(fleet.server) == "mariadb" else "key"


def test_a_list_map_places_finds_and_refuses(fleet: Fleet) -> None:
    run = fleet.project(TEXTS, "CharField")
    found = run(
        CREATE
        + """
Region.objects.bulk_create([Region(key=k) for k in ("no", "se", "dk", "fi")])
Sale.objects.bulk_create([Sale(region_id=k) for k in ("no", "fi", "no", "dk")])
result = {
    "uncovered": [
        refused(Region.objects.create, key="is"),
        refused(Region(key="NO").save),
    ],
    "reads": [
        Region.objects.filter(key="is").count(),
        Region.objects.filter(key__in=["is", "no"]).count(),
        Sale.objects.filter(region="no").count(),
        Sale.objects.exclude(region="no").count(),
        sorted(Sale.objects.values_list("region").annotate(n=models.Count("pk"))),
    ],
    "routes": [
        clusters(Region.objects.filter(key__in=["no", "se"])),
        clusters(Region.objects.exclude(key__in=["no", "se"])),
    ],
}
"""
    )
    if server_engine(fleet.server) == "mariadb":
        # There 'NO' is 'no', so save() has found its row and written that.
        assert found["uncovered"].pop() is None
    for name, code, text in found["uncovered"]:
        assert (name, code) == ("UncoveredShardKey", "dbfleet.E409"), text
    assert found["reads"] == [0, 1, 2, 2, [["dk", 1], ["fi", 1], ["no", 2]]]
    if server_engine(fleet.server) != "mariadb":  # there 'no' finds 'NO' as well
        assert found["routes"] == [["a"], ["b", "c"]]
    else:
        assert found["routes"] == [["a", "b", "c"]] * 2
    assert fleet.rows("app_sale", "region_id") == {
        "a": ["no", "no"],
        "b": ["dk"],
        "c": ["fi"],
    }


def test_dates_are_ranges_of_days(fleet: Fleet) -> None:
    run = fleet.project(DATES, "DateField")
    found = run(
        CREATE
        + """
day = datetime.date
days = [day(2023, 12, 31), day(2024, 1, 1), day(2025, 6, 1)]
Entry.objects.bulk_create([Entry(place=one) for one in days])
result = [
    clusters(Entry.objects.filter(place__lt=day(2024, 1, 1))),
    clusters(Entry.objects.filter(place__lte=day(2024, 1, 1))),
    clusters(Entry.objects.filter(place__gte=day(2024, 1, 1))),
    clusters(Entry.objects.filter(place__year=2025)),
    Entry.objects.filter(place__gt=day(2023, 1, 1)).count(),
    Entry.objects.filter(place__year=2024).count(),
]
"""
    )
    assert found[:3] == [["a"], ["a", "b"], ["b"]]
    assert {*found[3]} >= {"b"}
    assert found[4:] == [3, 1]
    assert [len(rows) for rows in fleet.rows("app_entry", "place").values()] == [
        1,
        2,
        0,
    ]


OTHER = "map=RangeMap([(0, 101, 'a'), (101, 200, 'b'), (200, None, 'c')])"
SAME = (
    "map={'RANGE': [(200, None, 'c'), (100, 150, 'b'), (150, 200, 'b'), (0, 100, 'a')]}"
)
TRY = """
result = [
    refused(Entry.objects.filter(place=100).count),
    refused(Entry.objects.filter(place__gt=100).count),
    refused(Entry.objects.create, place=100),
]
"""


def test_a_changed_map_is_refused_and_nothing_misrouted(fleet: Fleet) -> None:
    fleet.project(INTS)(CREATE + "Entry.objects.create(place=100)")
    for options in (OTHER, "", "slots=12", "map={'LIST': {100: 'b'}}"):
        for name, code, text in fleet.project(options)(TRY):
            assert (name, code) == ("ConfigurationError", "dbfleet.E403"), options
            assert "alias 'default'" in text
            assert "a map cannot change once rows are stored" in text
    # Another order, and ranges that are split otherwise, are the same map.
    assert fleet.project(SAME)(
        "result = [clusters(Entry.objects.filter(place=100)), Entry.objects.count()]"
    ) == [["b"], 1]


def test_slots_do_not_become_a_map(fleet: Fleet) -> None:
    fleet.project("")(CREATE + "Entry.objects.create(place=100)")
    for _, code, text in fleet.project(INTS)(TRY):
        assert code == "dbfleet.E403"
        assert "placed by the map 'hash slots'" in text
    assert fleet.project("")("result = Entry.objects.filter(place=100).count()") == 1


def test_of_processes_that_begin_at_once_one_map_wins(fleet: Fleet) -> None:
    tables = fleet.project(INTS)
    tables(CREATE + 'connection.cursor().execute("SELECT 1")')
    _forget_map(fleet)
    runs = [fleet.project(options) for options in (INTS, OTHER, "") for _ in range(2)]
    code = "result = refused(Entry.objects.filter(place=100).count)"
    with ThreadPoolExecutor(len(runs)) as pool:
        found = list(pool.map(lambda run: run(code), runs))
    won = [error is None for error in found]
    assert sum(won) == 2, found
    assert won.index(True) % 2 == 0
    assert won[won.index(True) + 1], found
    assert {error[1] for error in found if error} == {"dbfleet.E403"}


def _forget_map(fleet: Fleet) -> None:
    is_file = server_engine(fleet.server) == "sqlite"
    run = fleet.server.execute if is_file else fleet.server.primary.execute
    run("DELETE FROM dbfleet_shard", dbname=fleet.names["home"])


def test_the_status_counts_no_slots(fleet: Fleet) -> None:
    text = fleet.project(INTS)(
        CREATE
        + """
import contextlib, io
from django.core.management import execute_from_command_line
Entry.objects.filter(place=1).count()
with contextlib.redirect_stdout(io.StringIO()) as out:
    execute_from_command_line(["manage.py", "fleet", "status"])
result = out.getvalue()
"""
    )
    assert "WRONG" not in text
    assert " 0 " not in text
