"""``DBFLEET["IDS"]``: what rows of a fleet are numbered with, on every engine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.test import override_settings

from dbfleet import conf
from dbfleet.errors import ConfigurationError
from tests.sharding.fleet import ENGINES
from tests.support.project import Project

MODELS = """
import dbfleet

class Shop(models.Model):
    name = models.CharField(max_length=9)

class Tag(models.Model):
    name = models.CharField(max_length=9)

class Order(models.Model):
    customer = models.IntegerField()
    tags = models.ManyToManyField(Tag)

    class Meta:
        shard_key = "customer"

class Note(models.Model):
    id = models.UUIDField(primary_key=True)
    text = models.CharField(max_length=9)

class Made(models.Model):
    id = models.UUIDField(primary_key=True, default=dbfleet.uuid7)

class Old(models.Model):
    text = models.CharField(max_length=9)
"""

SETTINGS = """
DBFLEET = {
    "REFERENCE": ["app.Tag"],
    "LOCAL": ["app.Shop"],
    "IDS": {"app": "time", "app.Note": "uuid7", "app.Old": "leased"},
}
SILENCED_SYSTEM_CHECKS = ["models.W042"]
"""

HEAD = """
import json, os, threading, time, uuid
from app.models import *
from django.core.management import call_command
from django.db import connection, transaction
from dbfleet.sharding import ids
from dbfleet.sharding.clock_ids import EPOCH_MS

def ms_of(pk):
    return (pk >> 22) + EPOCH_MS

def worker_of(pk):
    return pk >> 12 & 1023
"""


@pytest.fixture(scope="module", params=ENGINES)
def shop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    engine = str(request.param)
    head, options = "", {}
    if engine == "sqlite":
        server: Any = request.getfixturevalue("rig").sqlite()
        options = {"init_command": "PRAGMA synchronous = OFF"}
    elif engine == "postgresql":
        server = request.getfixturevalue("postgres")
    else:
        server = request.getfixturevalue("mariadb")
        head = "import pymysql\n\npymysql.install_as_MySQLdb()"
    run = secrets.token_hex(4)
    names = {node: f"test_{run}_{node}" for node in ("home", "a", "b")}
    for name in names.values():
        server.create_database(name)
    urls = {node: server.url(name) for node, name in names.items()}
    project = Project(
        tmp_path_factory.mktemp(engine) / "project",
        databases=f"""
{head}
from dbfleet import Sharded, databases

URLS = {urls!r}
DATABASES = databases(default=Sharded(
    home=URLS["home"], shards={{"a": URLS["a"], "b": URLS["b"]}}, OPTIONS={options!r}
))
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
""",
        models=MODELS,
        settings=SETTINGS,
    )
    try:
        project.manage("migrate", "--run-syncdb")
        yield project
    finally:
        project.close()
        for name in names.values():
            server.drop_database(name)


def run(shop: Project, code: str) -> Any:
    return shop.run(HEAD + code, timeout_s=100)


def test_ids_of_each_model(shop: Project) -> None:
    found = run(
        shop,
        """
before = time.time() * 1000
order = Order.objects.create(customer=1)
many = Order.objects.bulk_create(Order(customer=n) for n in range(50))
tag = Tag.objects.create(name="a")
order.tags.add(tag)
link = Order.tags.through.objects.get()
after = time.time() * 1000
note = Note.objects.create(text="a")
notes = Note.objects.bulk_create([Note(text="b"), Note(text="c")])
explicit = Note.objects.create(pk=uuid.UUID(int=5), text="d")
mixed = Note.objects.bulk_create([Note(pk=uuid.UUID(int=6)), Note()])
ignored = Note.objects.bulk_create([Note(), Note()], ignore_conflicts=True)
saved = [one._state.adding for one in (note, *notes, *mixed)]
result = {
    "timed": [order.pk, *[one.pk for one in many], tag.pk, link.pk],
    "read": sorted(Order.objects.values_list("pk", flat=True)),
    "bounds": [before, after],
    "versions": [one.pk.version for one in (note, *notes, Made.objects.create())],
    "notes": [
        Note.objects.get(pk=one.pk).text for one in (note, *notes, explicit)
    ],
    "count": Note.objects.count(),
    "adding": any(saved),
    "old": Old.objects.create().pk,
    "local": Shop.objects.create().pk,
}
result["ms"] = [ms_of(pk) for pk in result["timed"]]
result["workers"] = len({worker_of(pk) for pk in result["timed"]})
""",
    )
    timed = found["timed"]
    assert timed == sorted(set(timed))
    assert found["read"] == timed[:51]
    before, after = found["bounds"]
    # Home's clock is this machine's here.
    assert before - 1000 < found["ms"][0] <= found["ms"][-1] < after + 1000
    assert found["workers"] == 1
    assert found["versions"] == [7, 7, 7, 7]
    assert found["notes"] == ["a", "b", "c", "d"]
    assert found["count"] == 8
    assert not found["adding"]
    assert found["old"] < 100
    assert found["local"] < 100


def test_what_is_given_explicitly(shop: Project) -> None:
    """An explicit id, also one far ahead, changes nothing for those that follow."""
    far, then, twice = run(
        shop,
        """
far = Order.objects.create(pk=2**62, customer=1).pk
then = Order.objects.create(customer=1).pk
try:
    Order.objects.create(pk=then, customer=1)
    twice = "stored"
except Exception as error:
    twice = type(error).__name__
Order.objects.filter(pk=2**62).delete()
result = far, then, twice
""",
    )
    assert far > then
    assert twice == "IntegrityError"


def test_rolled_back_and_forked(shop: Project) -> None:
    """What was promised stays promised: no other process is given the same again."""
    own, childs, ledger = run(
        shop,
        """
own = []
for _ in range(3):
    ids._times.clear()
    try:
        with transaction.atomic():
            own.append(Order.objects.create(customer=1).pk)
            raise KeyError
    except KeyError:
        pass
    with transaction.atomic():
        own.append(Order.objects.create(customer=2).pk)
own.append(Order.objects.create(customer=3).pk)

def child():
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        found = [Order.objects.create(customer=n).pk for n in range(3)]
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    mine = [Order.objects.create(customer=n).pk for n in range(3)]
    with open(read) as report:
        found = json.load(report)
    os.waitpid(process, 0)
    return mine, found

both = [child() for _ in range(3)]
own += [pk for mine, _ in both for pk in mine]
childs = [found for _, found in both]
with connection.cursor() as cursor:
    cursor.execute("SELECT number, promised_ms FROM dbfleet_worker")
    ledger = dict(cursor.fetchall())
result = own, childs, ledger
""",
    )
    everything = [*own, *(pk for one in childs for pk in one)]
    assert len(set(everything)) == len(everything)
    for pk in everything[3:]:
        assert ledger[str(pk >> 12 & 1023)] >= pk >> 22


def test_round_trips_to_home(shop: Project) -> None:
    """A window is asked for once; then nothing is, in threads and transactions."""
    windows, count = run(
        shop,
        """
from dbfleet.sharding import workers
windows, promised = [], workers.TimeIds._promised
def counted(self, wrapper, **options):
    windows.append(1)
    return promised(self, wrapper, **options)
workers.TimeIds._promised = counted
Order.objects.create(customer=1)
first = len(windows)

def work():
    for n in range(5):
        with transaction.atomic():
            Order.objects.create(customer=n)
    connection.close()

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
    thread.join(30)
result = [first, len(windows)], Order.objects.count()
""",
    )
    assert windows in ([1, 1], [1, 2])  # a slow machine may need a second one
    assert count >= 16


@pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
def test_home_is_restored_or_its_clock_is_wrong(shop: Project) -> None:
    found = run(
        shop,
        """
from dbfleet.sharding import clock_ids, workers
home = type(connection.engine)
sql, result = home.clock_ms_sql, {}

def order():
    return Order.objects.create(customer=1).pk

def renewed():
    for times in ids._times.values():
        times._window = None
    return order()

def failed():
    try:
        return renewed()
    except Exception as error:
        return str(error)

first = order()
with connection.cursor() as cursor:
    cursor.execute("UPDATE dbfleet_worker SET promised_ms = 5")
result["older"] = renewed() > first
with connection.cursor() as cursor:
    cursor.execute("DELETE FROM dbfleet_worker")
last = renewed()
result["emptied"] = last > first
home.clock_ms_sql = f"{sql} - 300000"
result["back"] = last < renewed()
home.clock_ms_sql = f"{sql} - 700000"
result["too far"] = failed()
result["stored"] = Order.objects.filter(customer=1).count()
ids._times.clear()  # a new process
result["new"] = order() < last
home.clock_ms_sql = f"{sql} + 2207520000000"
result["end"] = failed()
""",
    )
    assert found["older"]
    assert found["emptied"]
    assert found["back"]
    assert found["too far"].startswith(
        "alias 'default': time-ordered ids were given for 7"
    )
    assert found["too far"].endswith("(dbfleet.E408)")
    assert found["new"]
    assert "past 2093" in found["end"]


def test_a_long_transaction(shop: Project) -> None:
    """Its ids keep to the clock, and rise."""
    pks, last_ms, now_ms = run(
        shop,
        """
ids._times.clear()
with transaction.atomic():
    pks = [Order.objects.create(customer=1).pk for _ in range(300)]
    many = Order.objects.bulk_create(Order(customer=1) for _ in range(100))
    now_ms = time.time() * 1000
pks += [one.pk for one in many]
pks.append(Order.objects.create(customer=1).pk)
result = pks, ms_of(pks[-2]), now_ms
""",
    )
    assert pks == sorted(set(pks))
    assert last_ms < now_ms + 1000


@pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
def test_a_key_that_cannot_hold_them_is_refused(shop: Project) -> None:
    """Also where nobody ran the checks."""
    error, before, after = run(
        shop,
        """
from django.test import override_settings
before = Order.objects.count()
with override_settings(DBFLEET={"IDS": "uuid7"}):
    try:
        Order.objects.create(customer=1)
    except Exception as caught:
        error = str(caught)
result = error, before, Order.objects.count()
""",
    )
    assert error.startswith("app.Order: id is BigAutoField, which holds numbers")
    assert error.endswith("(dbfleet.E110)")
    assert before == after


def test_counters_of_a_restored_home(shop: Project) -> None:
    """Leased ids: ``fleet ids`` raises what is older than the rows."""
    before, lines, again, after = run(
        shop,
        """
import contextlib, io

def told():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        call_command("fleet", "ids")
    return out.getvalue().splitlines()

before = [one.pk for one in Old.objects.bulk_create(Old() for _ in range(120))]
older = "UPDATE dbfleet_sequence SET next_value = 8 WHERE name = 'app_old'"
if connection.vendor == "postgresql":
    older = "SELECT setval(pg_get_serial_sequence('app_old', 'id'), 7)"
connection.engine.run(connection, older).close()
ids._leases.clear()
lines, again = told(), told()
result = before, lines, again, Old.objects.create().pk
""",
    )
    assert max(before) > 100
    assert lines == [
        f"app_old: {max(before)} is the highest and 8 would have followed: "
        f"raised to {max(before) + 1}"
    ]
    assert again == [
        f"app_old: {max(before)} is the highest, {max(before) + 1} follows"
    ]
    assert after == max(before) + 2


def test_fleet_ids_is_for_sharded_aliases(project: Callable[..., Project]) -> None:
    plain = project(
        databases={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db"}}
    )
    for alias, text in (("default", "is not a sharded"), ("other", "is no alias")):
        refused = plain.manage("fleet", "ids", "--database", alias, check=False)
        assert refused.returncode == 1
        assert f"CommandError: {alias!r} {text}" in refused.stderr


# --- settings and checks -------------------------------------------------------------


def test_the_most_specific_counts() -> None:
    given = {"*": "time", "shop": "leased", "shop.Order": "uuid7"}
    with override_settings(DBFLEET={"IDS": given}):
        found = conf.settings()
        assert found.ids_for("shop", "order") == "uuid7"
        assert found.ids_for("shop", "tag") == "leased"
        assert found.ids_for("other", "order") == "time"
    with override_settings(DBFLEET={"IDS": "time"}):
        assert conf.settings().ids_for("shop", "order") == "time"
    with override_settings(DBFLEET={"IDS": {"shop": "time"}}):
        assert conf.settings().ids_for("other", "order") == "leased"


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("serial", ["DBFLEET['IDS']: must be one of 'leased', 'time', 'uuid7', not "]),
        (None, ["DBFLEET['IDS']: must be one of", "not None"]),
        (
            {"*": 5, "shop.Order": ["time"], "a.b.c": "time"},
            [
                "DBFLEET['IDS']['*']: must be one of",
                "DBFLEET['IDS']['shop.Order']: must be one of",
                "'a.b.c' is not 'app.Model' or 'app'",
            ],
        ),
    ],
)
def test_mistakes(given: object, texts: list[str]) -> None:
    with (
        override_settings(DBFLEET={"IDS": given}),
        pytest.raises(ConfigurationError) as found,
    ):
        conf.settings()
    for text in texts:
        assert text in str(found.value)


def checked(project: Callable[..., Project], given: object) -> list[list[str]]:
    node = {"ENGINE": "django.db.backends.sqlite3"}
    entry = {
        "ENGINE": "dbfleet.backend",
        "PRIMARY": {**node, "NAME": "never"},
        "SHARDS": {"a": {**node, "NAME": "never-a"}},
    }
    made = project(
        databases={"default": entry},
        models=MODELS
        + """
class Small(models.Model):
    id = models.AutoField(primary_key=True)
""",
        settings=f"""
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
DBFLEET = {{"IDS": {given!r}, "LOCAL": ["app.Shop"]}}
""",
    )
    found: list[list[str]] = made.run("""
from django.core import checks
from dbfleet.checks import check_models, check_settings
result = [
    [message.id, str(message.obj), message.msg]
    for message in (*check_settings(), *check_models()) if message.is_serious()
]
""")
    assert not os.path.exists(made.root / "never")
    return found


def test_keys_that_cannot_hold_them(project: Callable[..., Project]) -> None:
    found = checked(project, {"*": "time", "app.Note": "time", "app.Order": "uuid7"})
    assert [one[:2] for one in found] == [
        ["dbfleet.E110", "app.Order"],
        ["dbfleet.E110", "app.Note"],
        ["dbfleet.E110", "app.Small"],
    ]
    order, note, small = (one[2] for one in found)
    assert "gives it 'uuid7' ids, and id is BigAutoField, which holds numbers" in order
    assert "id never waits for one: remove the setting" in note
    assert "id is AutoField, and time-ordered ids have 64 bits" in small
    assert checked(project, {"*": "time", "app.Small": "leased"}) == []
    assert checked(project, {"app.Note": "uuid7"}) == []


def test_names_that_do_not_exist(project: Callable[..., Project]) -> None:
    found = checked(project, {"app.Nite": "time"})
    assert [one[0] for one in found] == ["dbfleet.E102"]
