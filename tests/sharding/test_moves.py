"""A row whose shard key changes takes along the rows that live with it."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.projects import PRELUDE, Fleet
from tests.faults.settling import settle_by_table

Sharded = Callable[..., Fleet]

NODES = ("home", "a", "b", "c")

MODELS = """
import uuid


class Depot(models.Model):
    region = models.IntegerField()
    code = models.CharField(max_length=20, unique=True)
    neighbour = models.ForeignKey("self", models.SET_NULL, null=True)

    class Meta:
        shard_key = "region"


class Yard(Depot):
    size = models.IntegerField(default=1)


class Crate(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    depot = models.ForeignKey(Depot, models.CASCADE, related_name="crates")
    label = models.CharField(max_length=20, unique=True)
    data = models.JSONField(default=dict)
    weight = models.DecimalField(max_digits=12, decimal_places=3, null=True)

    class Meta:
        shard_key = "depot__region"
        shard_lookups = ["label"]


class Item(models.Model):
    id = models.UUIDField(primary_key=True)
    crate = models.ForeignKey(Crate, models.CASCADE, related_name="items")
    name = models.CharField(max_length=20)
    blob = models.BinaryField(default=b"")
    made = models.DateTimeField(null=True)

    class Meta:
        shard_key = "crate__depot__region"


class Visit(models.Model):
    depot = models.ForeignKey(Depot, models.CASCADE, null=True)
    item = models.ForeignKey(Item, models.SET_NULL, null=True)
"""

SETTINGS = """
USE_TZ = True
SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]
"""

SETUP = """
import uuid
from datetime import UTC, datetime
from dbfleet.errors import RouteRefused

create_tables()


def spot(model, key):
    fields = connection.routing.table_of(model._meta).key_fields
    return connection.routing.shard_of(fields, (key,))


def regions(*shards, model=Depot):
    return [next(n for n in range(1, 999) if spot(model, n) == s) for s in shards]


def places(*models):
    '''The shards that hold rows of each table.'''
    found = {}
    for model in models:
        table = model._meta.db_table
        for shard in "abc":
            with connection.routing.on(shard, is_write=False):
                with connection.cursor() as cursor:
                    cursor.execute(f"SELECT count(*) FROM {table}")
                    if count := cursor.fetchone()[0]:
                        found.setdefault(table.removeprefix("app_"), {})[shard] = count
    return found


def rows(*models):
    return [list(m.objects.order_by("pk").values_list()) for m in models]


def claimed():
    with connection.routing.on("home", is_write=False), connection.cursor() as cursor:
        cursor.execute("SELECT table_name, shard FROM dbfleet_unique")
        found = sorted(set(cursor.fetchall()))
        return [[table.removeprefix("app_"), shard] for table, shard in found]


def fill(region, code="x", crates=3):
    depot = Yard.objects.create(region=region, code=code, size=7).depot_ptr
    for n in range(crates):
        crate = Crate.objects.create(
            depot=depot, label=f"{code} {n}", weight="1.5",
            data={"a": [None, "%s'\\"\\\\"]},
        )
        Item.objects.bulk_create(
            Item(
                id=uuid.uuid4(), crate=crate, name=str(k), blob=bytes(range(256)),
                made=datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC),
            )
            for k in range(2)
        )
    return depot


ALL = Depot, Yard, Crate, Item
"""


def test_what_lives_with_a_row_moves_along(sharded: Sharded) -> None:
    fleet = sharded(NODES, models=MODELS, settings=SETTINGS)
    found = fleet.run(
        SETUP
        + """
here, there, third = regions(*"abc")
other = fill(here, "stays", crates=1)
depot = fill(here)
Depot.objects.filter(pk=depot.pk).update(neighbour=other)
for item in Item.objects.all():
    Visit.objects.create(depot=depot, item=item)
visits = rows(Visit)


def state():
    '''All but the shard key as it was.'''
    depots, yards, *found = rows(*ALL)
    return [[(pk, *more) for pk, _, *more in one] for one in (depots, yards)] + found


before = state()
steps = []
steps.append(Depot.objects.filter(pk=depot.pk).update(region=there))
steps.append([state() == before, places(*ALL), claimed()])
depot.refresh_from_db()
depot.region = third
depot.save()
steps.append([state() == before, places(*ALL), rows(Visit) == visits])
both = list(Depot.objects.all())
for one in both:
    one.region = there
steps.append(Depot.objects.bulk_update(both, ["region"]))
steps.append([state() == before, places(*ALL)])
result = steps, refused(Crate.objects.create, depot=other, label="x 1")["type"]
Crate.objects.create(depot=depot, label="new")
labels = "x 0", "stays 0", "new"
found = [Crate.objects.get(label=label).items.count() for label in labels]
total = depot.delete()[0]
result = *result, found, total, places(*ALL)
"""
    )
    steps = found[0]
    stays = {"depot": 1, "yard": 1, "crate": 1, "item": 2}
    moved = {"depot": 1, "yard": 1, "crate": 3, "item": 6}

    def on(shard: str) -> dict[str, dict[str, int]]:
        return {name: {"a": stays[name], shard: moved[name]} for name in stays}

    tables = ("crate", "depot", "item", "yard")
    assert steps[0] == 1
    assert steps[1][:2] == [True, on("b")]
    assert steps[1][2] == [[table, shard] for table in tables for shard in "ab"]
    assert steps[2] == [True, on("c"), True]
    assert steps[3] == 2
    together = {name: {"b": stays[name] + moved[name]} for name in stays}
    assert steps[4] == [True, together]
    assert found[1] == "IntegrityError"
    assert found[2] == [2, 2, 0]
    assert found[4] == {name: {"b": stays[name]} for name in stays}


def test_a_row_moves_to_another_parent(sharded: Sharded) -> None:
    found = sharded(NODES, models=MODELS, settings=SETTINGS).run(
        SETUP
        + """
first, second = (fill(r, code=str(r), crates=1) for r in regions(*"ab"))
crate, other = first.crates.get(), second.crates.get()
item = crate.items.first()
item.crate = other
item.save()
steps = [places(Item)["item"], other.items.count(), crate.items.count()]
crate.depot = second
crate.save()
steps.append(places(Crate, Item))
gone = refused(Item.objects.filter(pk=item.pk).update, crate=uuid.uuid4())
result = steps, gone["code"], other.items.count()
"""
    )
    assert found[0][:3] == [{"a": 1, "b": 3}, 3, 1]
    assert found[0][3] == {"crate": {"b": 2}, "item": {"b": 4}}
    assert found[1:] == ["dbfleet.E404", 3]


def test_a_move_that_is_undone_leaves_everything(sharded: Sharded) -> None:
    found = sharded(NODES, models=MODELS, settings=SETTINGS).run(
        SETUP
        + """
here, there = regions(*"ab")
depot, other = fill(here), fill(there, "taken", crates=1)


class Undo(Exception):
    pass


before = rows(*ALL), places(*ALL), claimed()
try:
    with transaction.atomic():
        Depot.objects.filter(pk=depot.pk).update(region=there)
        inside = places(*ALL)
        raise Undo
except Undo:
    pass
same = [(rows(*ALL), places(*ALL), claimed()) == before]
error = refused(Depot.objects.filter(pk=depot.pk).update, region=there, code="taken")
same.append((rows(*ALL), places(*ALL), claimed()) == before)
try:
    with transaction.atomic():
        with transaction.atomic():
            Depot.objects.filter(pk=depot.pk).update(region=there)
            transaction.set_rollback(True)
        kept = Crate.objects.count()
        raise Undo
except Undo:
    pass
same.append((rows(*ALL), places(*ALL), claimed()) == before)
result = same, inside["item"], error["type"]
"""
    )
    assert found[0] == [True] * 3
    assert found[1] == {"b": 8}
    assert found[2] == "IntegrityError"


def test_a_move_is_bounded(sharded: Sharded) -> None:
    limit = {"GATHER": {"MAX_ROWS": 10}}
    found = sharded(NODES, models=MODELS, settings=SETTINGS, more=limit).run(
        SETUP
        + """
here, there = regions(*"ab")
depot = fill(here)  # a row of each parent, three crates, six items: eleven
before = places(*ALL)
error = refused(Depot.objects.filter(pk=depot.pk).update, region=there)
after = places(*ALL)
Item.objects.filter(pk=Item.objects.first().pk).delete()
result = error, before == after, Depot.objects.update(region=there), places(*ALL)
"""
    )
    assert found[0]["code"] == "dbfleet.E412"
    assert found[0]["type"] == "MoveRefused"
    for text in ("app.Depot", "'default'", "more than 10", "GATHER['MAX_ROWS']"):
        assert text in found[0]["text"]
    assert found[1:3] == [True, 1]
    assert found[3] == {
        "depot": {"b": 1},
        "yard": {"b": 1},
        "crate": {"b": 3},
        "item": {"b": 5},
    }


REFUSED = """
from dbfleet import REFERENCE


class Depot(models.Model):
    region = models.IntegerField()

    class Meta:
        shard_key = "region"


class Loose(models.Model):
    depot = models.ForeignKey(Depot, models.CASCADE, db_constraint=False)

    class Meta:
        shard_key = "depot__region"


class Zone(models.Model):
    number = models.IntegerField(unique=True)
    name = models.CharField(max_length=20, default="")

    class Meta:
        shard_key = "number"


class Country(models.Model):
    name = models.CharField(max_length=20)

    class Meta:
        shard_key = REFERENCE


class Stall(models.Model):
    country = models.ForeignKey(Country, models.CASCADE, null=True)
    zone = models.ForeignKey(Zone, models.CASCADE, to_field="number")

    class Meta:
        shard_key = "zone"
"""


def test_what_cannot_move_is_refused(sharded: Sharded) -> None:
    fleet = sharded(NODES, models=REFUSED, settings=SETTINGS)
    found = fleet.run(
        SETUP[: SETUP.index("ALL =")].replace("def fill", "def unused")
        + """
here, there = regions(*"ab")
depot = Depot.objects.create(region=here)
Loose.objects.create(depot=depot)
errors = [refused(Depot.objects.update, region=there)]

first, second = regions(*"ab", model=Zone)
near = next(n for n in range(first + 1, 999) if spot(Zone, n) == "a")
zone = Zone.objects.create(number=first)
Stall.objects.create(zone=zone)
errors.append(refused(Zone.objects.update, number=second))
errors.append(refused(Zone.objects.update, number=near))
unchanged = Zone.objects.update(number=first, name="new")
# Another foreign key of a row that changes its key and stays, or goes.
country = Country.objects.create(name="no")
stall = Stall.objects.get()
zones = [Zone.objects.create(number=number) for number in (near, second)]
for zone in zones:
    errors.append(refused(Stall.objects.update, zone=zone, country=country.pk + 9))
    errors.append(Stall.objects.update(zone=zone, country=country))
    errors.append(list(Stall.objects.values_list("zone", "country")) == [
        (zone.number, country.pk)
    ])
for zone in zones:
    Stall.objects.filter(zone=zone).delete()
    zone.delete()
moved = Zone.objects.update(number=second)
result = errors, unchanged, moved, places(Depot, Loose, Zone, Stall)
"""
    )
    assert [error["code"] for error in found[0][:3]] == ["dbfleet.E411"] * 3
    for text in ("app.Depot", "app.Loose", "no foreign key"):
        assert text in found[0][0]["text"]
    for missing, *stored in (found[0][3:6], found[0][6:]):
        assert missing["type"] == "IntegrityError"
        assert "foreign key constraint" in missing["text"]
        assert stored == [1, True]
    for error in found[0][1:3]:
        for text in ("app.Zone.number", "app.Stall", "by zone"):
            assert text in error["text"]
    assert found[1:3] == [1, 1]
    assert found[3] == {"depot": {"a": 1}, "loose": {"a": 1}, "zone": {"b": 1}}


def test_a_map_without_a_place_for_the_key(sharded: Sharded) -> None:
    more = {"MAP": {"LIST": {1: "a", 2: "b"}}}
    found = sharded(
        NODES[:3],
        models=MODELS[: MODELS.index("class Item")],
        settings=SETTINGS + 'DBFLEET = {"IDS": {}}\n',
        more=more,
    ).run(
        """
create_tables()
depot = Depot.objects.create(region=1, code="x")
Crate.objects.create(depot=depot, label="one")
error = refused(Depot.objects.update, region=3)
kept = Depot.objects.filter(region=1).count(), Crate.objects.count()
moved = Depot.objects.update(region=2)
result = error["code"], kept, moved, Crate.objects.get(depot__region=2).label
"""
    )
    assert found == ["dbfleet.E409", [1, 1], 1, "one"]


#: a depot goes there and back while others add crates to it, and read
TOGETHER = """
import threading
from django.db import OperationalError, IntegrityError

homes = regions(*"ab")
depot = fill(homes[0])
start = {item.pk for item in Item.objects.all()}
done, added, seen, errors = threading.Event(), [], [], []


def move():
    try:
        for n in range(12):
            region = homes[(n + 1) % 2]
            try:
                Depot.objects.filter(pk=depot.pk).update(region=region)
            except OperationalError as error:  # a wait that was given up
                errors.append(str(error))
                continue
            # It has come back: whoever asks from now on finds all of it, once.
            with lock:
                found = [pk for (pk,) in Item.objects.filter(
                    crate__depot__region=region, name__in="01"
                ).values_list("pk")]
                seen.append(sorted(found) == sorted(start))
    except BaseException as error:
        errors.append(f"mover: {error!r}")
    finally:
        done.set()
        connections.close_all()


def add(name):
    n = 0
    try:
        while not done.is_set():
            n += 1
            try:
                crate = Crate.objects.create(depot_id=depot.pk, label=f"{name} {n}")
                added.append(crate.pk)
            except (OperationalError, IntegrityError, RouteRefused):
                pass  # the depot went away at this moment
            except Exception as error:
                # Between the commits of two shards a depot may be on none.
                if "dbfleet.E404" not in str(error):
                    errors.append(f"adder: {error!r}")
    finally:
        connections.close_all()


def read():
    try:
        while not done.is_set():
            found = len(Item.objects.filter(name__in="01"))
            if found % len(start) and found not in partial:
                partial.append(found)
    except BaseException as error:
        errors.append(f"reader: {error!r}")
    finally:
        connections.close_all()


lock, partial = threading.Lock(), []
threads = [threading.Thread(target=move), threading.Thread(target=read)]
threads += [threading.Thread(target=add, args=[name]) for name in ("p", "q")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(50)
crates = set(Crate.objects.values_list("pk", flat=True))
where = places(*ALL)
result = {
    "alive": [t.name for t in threads if t.is_alive()],
    "errors": errors,
    "seen": [len(seen), all(seen)],
    "partial": partial,
    "lost": sorted(set(added) - crates),
    "extra": len(crates) - len(added) - 3,
    "one shard": [len(where[name]) for name in ("depot", "yard", "crate", "item")],
    "claims": len(claimed()),
    "added": len(added),
}
"""


def test_others_add_and_read_while_a_row_moves(sharded: Sharded) -> None:
    """Nothing is lost and nothing stays behind; each shard shows all or nothing."""
    fleet = sharded(NODES, models=MODELS, settings=SETTINGS)
    found = fleet.run(SETUP + TOGETHER, timeout_s=110)
    assert found["alive"] == []
    assert found["errors"] == []
    assert found["seen"] == [12, True]
    assert found["partial"] == []
    assert (found["lost"], found["extra"]) == ([], 0)
    assert found["one shard"] == [1, 1, 1, 1]
    assert found["claims"] == 4  # each table's name one shard
    assert found["added"] > 0
    assert fleet.prepared() == {}


DIES = {
    "before the first PREPARE": ("FleetTransaction", "_prepare", 1, "a"),
    "between PREPAREs": ("FleetTransaction", "_prepare", 2, "a"),
    "before the decision": ("FleetTransaction", "_write_decision", 1, "a"),
    "after home's COMMIT": ("FleetTransaction", "_finish_prepared", 1, "b"),
    "between COMMITs": ("ENGINE", "commit_prepared", 2, "b"),
}


def test_the_process_is_killed_at_each_step(sharded: Sharded) -> None:
    """The table of states in ARCHITECTURE holds."""
    fleet = sharded(NODES, models=MODELS, settings=SETTINGS)
    fleet.run(SETUP + 'fill(regions("a")[0])')
    whole = {"depot": 1, "yard": 1, "crate": 3, "item": 6}
    for name, (owner, method, nth, shard) in DIES.items():
        path = fleet.project.write("run/dying.py", "")
        code = f"""
import os
from dbfleet.transactions.transaction import FleetTransaction
ENGINE = type(connection.engine)
original, calls = getattr({owner}, {method!r}), []


def dying(self, *args, **kwargs):
    calls.append(1)
    if len(calls) == {nth}:
        os._exit(7)
    return original(self, *args, **kwargs)


{owner}.{method} = dying
Depot.objects.update(region=regions("b")[0])
"""
        path.write_text(PRELUDE + SETUP.replace("create_tables()\n", "") + code)
        done = fleet.project.python("run.py", str(path), f"{path}.json", check=False)
        assert done.returncode == 7, done.stderr
        settle_by_table(fleet)
        assert fleet.prepared() == {}, name
        found = fleet.run(
            SETUP.replace("create_tables()\n", "")
            + """
result = places(*ALL), claimed(), Crate.objects.get(label="x 1").items.count()
Depot.objects.update(region=regions("a")[0])
result = *result, places(*ALL)
"""
        )
        assert found[0] == {table: {shard: n} for table, n in whole.items()}, name
        assert found[1] == [[table, shard] for table in sorted(whole)], name
        assert found[2] == 2, name
        assert found[3] == {table: {"a": n} for table, n in whole.items()}, name
