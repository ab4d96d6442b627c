"""Gathers over foreign tables: right answers, or an error that says what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from dbfleet.testing.rig import Rig
from tests.conftest import start_or_skip
from tests.faults.projects import PRELUDE, Fleet, make_fleet
from tests.foreign.conftest import HELP, MODELS, SETTINGS
from tests.support.project import Project

START = HELP + "tables(); fill(); fleet('gather', '--install')\n"


def test_every_type_and_name_is_the_same_both_ways(foreign: Fleet) -> None:
    found = foreign.run(
        HELP
        + """
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from django.db.models.functions import Lower, TruncHour

tables()
names = ["\\u00e5sa", "anna", "Bo", "\\u00e4da", "zoe", "Ada"]
Customer.objects.bulk_create(
    Customer(id=n, name=name, city="xy"[n % 2]) for n, name in enumerate(names, 1)
)
Parcel.objects.bulk_create(
    Parcel(
        id=n, region=n, customer_id=n % 6 + 1,
        mood=[None, "sad", "fine", "glad"][n % 4], loose="aAbB"[n % 4],
        data={"n": n, "deep": [None, 1.5, {"\\u00e9": True}]},
        marks=[n, n % 3], price=None if n % 5 == 0 else Decimal(n) / 8,
        sent=datetime(2024, 2, 29, n % 24, 30, 15, 123456, tzinfo=UTC),
        took=timedelta(days=n, microseconds=1), blob=bytes(range(n)),
        order=f"{n}\\t'\\\\%s",
    )
    for n in range(1, 40)
)
asked = {
    "all": lambda: [
        tuple(bytes(v) if isinstance(v, memoryview) else v for v in row)
        for row in Parcel.objects.order_by("customer__name", "pk").values_list()
    ],
    "mood": lambda: list(Parcel.objects.filter(customer__city="x", mood__isnull=False)
        .order_by("-mood", "pk").values_list("mood", "pk")),
    "loose": lambda: Parcel.objects.filter(customer__city="x", loose="A").count(),
    "json": lambda: Parcel.objects.filter(customer__city="x", data__n__gte=20).count(),
    "array": lambda: Parcel.objects.filter(
        customer__city="x", marks__contains=[2]).count(),
    "order": lambda: list(Parcel.objects.filter(customer__city="x")
        .order_by(Lower("customer__name"), "order").values_list("order", "twice")),
    "hours": lambda: list(Parcel.objects.filter(customer__city="x")
        .annotate(h=TruncHour("sent")).values("h")
        .annotate(s=Sum("price"), t=Max("took"))
        .order_by("h").values_list("h", "s", "t")),
    "nested": lambda: list(Customer.objects.filter(
        Exists(Parcel.objects.filter(customer=OuterRef("pk"), region__gt=35)))
        .annotate(n=Subquery(Parcel.objects.filter(customer=OuterRef("pk"))
            .order_by("-price", "pk").values("price")[:1]))
        .order_by("name").values_list("name", "n")),
    "union": lambda: sorted(Parcel.objects.filter(customer__city="y").values_list("pk")
        .intersection(Parcel.objects.filter(customer__name__gt="b").values_list("pk"))),
}
with source("rows"):
    by_rows = {name: how(ask) for name, ask in asked.items()}
fleet("gather", "--install")
by_fdw = {name: how(ask) for name, ask in asked.items()}
result = {
    "differ": [name for name in asked if by_rows[name][0] != by_fdw[name][0]],
    "rows": [name for name in asked if set(by_rows[name][1]) != {"rows"}],
    "fdw": [name for name in asked if set(by_fdw[name][1]) != {"fdw"}],
    "empty": [name for name in asked if not by_rows[name][0]],
}
"""
    )
    assert found == {"differ": [], "rows": [], "fdw": [], "empty": []}


def test_installed_looked_at_and_removed(foreign: Fleet) -> None:
    found = foreign.run(
        HELP
        + """
tables(); fill()
result = [refused(fleet, "gather")]
result += [fleet("gather", "--install").splitlines(), fleet("gather").splitlines()]
result += [fleet("gather", "--install").splitlines()]  # again
result += [how(joined), str(Parcel.objects.filter(customer=1).explain_route())]
result += [fleet("gather", "--remove").splitlines(), refused(joined)]
with source("auto"):
    result += [how(joined)]
"""
    )
    missing, made, shown, again, asked, route, removed, refusal, by_auto = found
    assert "--install" in missing["text"]
    assert [line.split(",")[0] for line in made] == [
        "a: 2 foreign tables",
        "b: 2 foreign tables",
    ]
    assert made == again
    assert shown == [f"{n}: gathers may read its foreign tables" for n in "ab"]
    assert asked == [20, ["fdw"]]
    assert "source:" not in route  # the shards answer that one
    assert removed == ["dbfleet_fdw_a: removed", "dbfleet_fdw_b: removed"]
    assert refusal["code"] == "dbfleet.E506"
    assert "home has no foreign tables of shard a" in refusal["text"]
    assert "fleet gather --install --database default" in refusal["text"]
    assert by_auto == [20, ["rows"]]
    left = "SELECT count(*) FROM pg_foreign_server"
    assert foreign.rows("home", left) == [(0,)]


def test_a_changed_table_is_not_read_by_its_old_foreign_tables(foreign: Fleet) -> None:
    found = foreign.run(
        START
        + """
ddl("ALTER TABLE app_customer ALTER COLUMN city TYPE varchar(90)")  # the same values
wider = how(joined)
ddl("ALTER TABLE app_customer ALTER COLUMN city TYPE text")
result = [wider, refused(joined), refused(fleet, "gather")]
with source("auto", MAX_ROWS=15):  # only foreign tables could answer
    result += [refused(joined)]
fleet("gather", "--install")
result += [how(joined)]
"""
    )
    wider, stale, shown, too_large, after = found
    assert wider == [20, ["fdw"]]
    assert stale["code"] == "dbfleet.E506"
    assert (
        "app_customer was changed since its foreign tables were made" in (stale["text"])
    )
    assert "--install" in shown["text"]
    assert too_large["code"] == "dbfleet.E501"
    assert after == [20, ["fdw"]]


def test_a_transaction_and_locks_have_their_rows_fetched(foreign: Fleet) -> None:
    found = foreign.run(
        START
        + """
result = []
with transaction.atomic():
    Parcel.objects.create(id=999, region=999, customer_id=3)
    ordered = Parcel.objects.order_by("customer__name")
    result += [how(joined), str(ordered.explain_route())]
result += [how(joined)]
with transaction.atomic():
    locked = Parcel.objects.select_for_update().filter(customer__city="x")
    result += [how(lambda: len(locked))]
with connection.cursor() as cursor:
    cursor.execute('SELECT p.region, c.name FROM "Select Parcel\\'s" p '
                   "JOIN app_customer c ON c.id = p.customer_id WHERE p.region = 999")
    result += [how(cursor.fetchall)]
    cursor.execute("SELECT c.id, c.name, count(*) FROM app_customer c "
                   'JOIN "Select Parcel\\'s" p ON p.customer_id = c.id GROUP BY c.id')
    result += [len(cursor.fetchall()), [one["source"] for one in seen]]
"""
    )
    inside, route, after, locked, raw, grouped, sources = found
    assert inside == [21, ["rows"]]
    assert "source:   rows (a transaction sees its own rows" in route
    assert after == [21, ["fdw"]]
    assert locked == [21, ["rows"]]
    assert raw == [[[999, "c3"]], []]
    assert grouped == 12
    assert sources == ["rows"]  # it relies on the primary key


def test_what_a_session_set_is_not_lost_on_the_way(foreign: Fleet) -> None:
    """SET reaches every node, but not the connections that home has to them."""
    found = foreign.run(
        START
        + """
with connection.cursor() as cursor:
    cursor.execute("SET app.tenant = '7'")
result = [how(joined), Parcel.objects.order_by("customer__name")
    .explain_route().source[:2]]
connection.close()
result += [how(joined)]
ddl("CREATE SCHEMA other", "SET search_path = other, public",
    "CREATE TABLE other.app_customer (LIKE public.app_customer)")
options = {"options": "-c search_path=other,public"}
for node in connection.settings_dict["NODES"].values():
    node["OPTIONS"] = {**node["OPTIONS"], **options}
connection.settings_dict["OPTIONS"] = {**connection.settings_dict["OPTIONS"], **options}
connection.close()
result += [refused(joined)]
fleet("gather", "--install")
result += [how(joined)]
"""
    )
    kept, source, after, moved, again = found
    assert kept == [20, ["rows"]]
    assert source[0] == "rows"
    assert "SET gave the connections a state" in source[1]
    assert after == [20, ["fdw"]]
    assert "the search_path finds another app_customer" in moved["text"]
    assert again == [0, ["fdw"]]


def test_only_shards_that_may_have_rows_are_read(foreign: Fleet) -> None:
    found = foreign.run(
        START
        + """
from django.test.utils import CaptureQueriesContext

[region] = [n for n in range(1, 60) if connection.routing.shard_of(
    (Parcel._meta.get_field("region"),), (n,)) == "b"][:1]
connection.force_debug_cursor = True
asked = Parcel.objects.filter(region=region, customer__city__in="xyz")
result = [how(asked.count), str(asked.explain_route())]
ways["a"].refuse(); ways["a"].cut()
# customers are on both shards, so home has to reach both
result += [refused(asked.count)]
"""
    )
    (count, sources), route, refusal = found
    assert (count, sources) == (1, ["fdw"])
    assert "from b where" in route
    assert refusal["code"] == "dbfleet.E507"


def test_a_shard_that_home_cannot_reach_is_named(foreign: Fleet) -> None:
    found = foreign.run(
        START
        + """
with source("auto"):
    for _ in range(2):  # the second one measures foreign tables
        joined()
before = how(joined)
ways["b"].refuse()
ways["b"].cut()
lost = refused(joined)
down = refused(joined)
with source("auto"):
    from dbfleet.executor import costs
    costs.too_large("default", "")
    by_auto = how(joined)
ways["b"].forward()
result = [before, lost, down, by_auto, how(joined)]
"""
    )
    before, lost, down, by_auto, after = found
    assert before == [20, ["fdw"]]
    for error in (lost, down):
        assert error["type"] == "NodeUnavailable", error
        assert error["code"] == "dbfleet.E507"
        assert "could not connect" in error["text"] or "b" in error["text"]
    assert "cannot read shard b through its foreign tables" in down["text"]
    assert "home of alias 'default'" in down["text"]
    assert by_auto == [20, ["rows"]]
    assert after == [20, ["fdw"]]


def test_a_shard_that_does_not_answer_ends_in_time(foreign: Fleet) -> None:
    found = foreign.run(
        START
        + """
import time
how(joined)
ways["b"].black_hole()
started = time.monotonic()
fanout = {"DEADLINE_S": 1}
with override_settings(DBFLEET={**settings.DBFLEET, "FANOUT": fanout}):
    error = refused(joined)
took = time.monotonic() - started
ways["b"].cut(); ways["b"].forward()
result = [error, took, how(joined)]
""",
        timeout_s=100,
    )
    error, took, after = found
    assert error["type"] == "FanoutTimeout"
    assert error["code"] == "dbfleet.E505"
    assert took < 45, took
    assert after == [20, ["fdw"]]


def test_auto_takes_what_was_measured_to_cost_less(foreign: Fleet) -> None:
    found = foreign.run(
        HELP
        + """
tables()
fill(3000)
fleet("gather", "--install")
from dbfleet.executor import costs
from dbfleet.planner.sources import Measure

def route():
    return Parcel.objects.filter(customer__city="x").order_by("customer__name", "pk")

def told():
    return route().explain_route().source

def ask():
    return how(lambda: len(route()))

result = []
with source("auto"):
    result += [told().reason, ask()]                # by rows, measured
    result += [told().reason, ask()]                # tried
    known = costs.measured("default", told().text)
    costs._note("default", told().text, known._replace(by_rows_s=9.0, by_fdw_s=1.0))
    result += [told().reason, ask()]
    costs._note("default", told().text, known._replace(by_rows_s=1.0, by_fdw_s=9.0))
    result += [told().reason, ask()]
    costs.forget("default")
    with source("auto", MAX_ROWS=500):
        result += [ask(), told().reason]            # only foreign tables can
    costs.forget("default")
    result += [how(joined), how(joined)]
"""
    )
    first, one, second, two, third, three, fourth, four, over, why, *few = found
    assert (first, one[1]) == ("not measured yet", ["rows"])
    assert second.endswith("fdw is to be tried")
    assert two[1] == ["fdw"]
    assert third == "by rows 9000 ms for 3006 rows, by fdw 1000 ms"
    assert three[1] == ["fdw"]
    assert fourth.startswith("by rows 1000 ms")
    assert four[1] == ["rows"]
    assert one[0] == two[0] == three[0] == four[0] == over[0] == 1000
    assert over[1] == ["fdw"]
    assert why == "by rows it passed a limit"
    assert few == [[1000, ["rows"]], [1000, ["fdw"]]]


def test_home_that_reads_another_server_is_found_out(foreign: Fleet) -> None:
    """Each process of this project has proxies on ports of its own."""
    foreign.run(START + "result = None")
    found = foreign.run(HELP + "result = refused(joined)")
    assert found["code"] == "dbfleet.E506"
    assert "home reads another server than shard a's primary" in found["text"]


def test_a_role_without_the_right_is_told_what_it_needs(
    foreign: Fleet, request: pytest.FixtureRequest
) -> None:
    server, home = foreign.cluster.primary, foreign.databases["home"]
    role = f"{home}_app"
    server.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'sesame-4711'")
    request.addfinalizer(lambda: server.execute(f'DROP OWNED BY "{role}"', dbname=home))
    found = foreign.run(
        HELP
        + f"""
tables(); fill()
ddl("GRANT ALL ON ALL TABLES IN SCHEMA public TO \\"{role}\\"")
connection.close()
settings.DATABASES["default"]["USER"] = {role!r}
connection.settings_dict["USER"] = {role!r}
result = [refused(fleet, "gather", "--install")]
with source("auto"):
    result += [how(joined)]
"""
    )
    refusal, by_auto = found
    assert "dbfleet.E508" in refusal["text"]
    assert "CREATE EXTENSION postgres_fdw" in refusal["text"]
    assert "GRANT USAGE ON FOREIGN DATA WRAPPER" in refusal["text"]
    assert by_auto == [20, ["rows"]]
    server.execute("CREATE EXTENSION postgres_fdw", dbname=home)
    again = foreign.run(
        HELP
        + f"""
connection.settings_dict["USER"] = {role!r}
result = refused(fleet, "gather", "--install")
"""
    )
    assert "GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw" in again["text"]


def test_no_password_in_any_text(
    request: pytest.FixtureRequest,
    project: Callable[..., Project],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    secret = "swordfish-0815"
    with Rig(password=secret) as rig:
        server = start_or_skip(request, "postgresql", rig.postgresql_cluster)
        names = iter(("home", "a", "b"))

        def create(cluster: Any) -> str:
            name = next(names)
            cluster.create_database(name)
            return name

        fleet = make_fleet(project, create, server, models=MODELS, settings=SETTINGS)
        found = fleet.run(
            START
            + """
result = [how(joined), fleet("gather"), refused(fleet, "status"), seen]
ddl("SELECT 1")
for option in ("SET password 'wrong'", "DROP password"):
    connection.engine.run(
        connection,
        "ALTER USER MAPPING FOR CURRENT_USER SERVER dbfleet_fdw_b "
        f"OPTIONS ({option})",
    )
    connection.close()
    result += [refused(joined)]
connection.settings_dict["NODES"]["default/b/primary"]["PASSWORD"] = "swordfish-0816"
connection.close()
result += [refused(fleet, "gather", "--install")]
"""
        )
    assert found[0] == [20, ["fdw"]]
    wrong, dropped, refusal = found[-3:]
    assert wrong["code"] == "dbfleet.E507"
    assert "shard b" in wrong["text"]
    assert dropped["code"] == "dbfleet.E507"
    assert refusal is not None
    assert "swordfish" not in repr(found)
    assert "wrong" not in repr(found)


def test_servers_that_are_reached_by_sockets(
    request: pytest.FixtureRequest, project: Callable[..., Project]
) -> None:
    with Rig() as rig, TemporaryDirectory() as sockets:
        Path(sockets).chmod(0o777)  # the server has a user of its own
        where = {"unix_socket_directories": sockets}
        server = start_or_skip(
            request,
            "postgresql",
            lambda: rig.postgresql_cluster(databases=("home", "a", "b"), options=where),
        )
        port, user = server.primary.port, server.primary.user
        url = f"postgres://{user}@/{{}}?host={sockets}&port={port}"
        urls = {name: url.format(name) for name in ("home", "a", "b")}
        shop = project(
            databases=(
                "from dbfleet import Sharded, databases\n"
                f"URLS = {urls!r}\n"
                "DATABASES = databases(default=Sharded(home=URLS['home'], "
                "shards={n: URLS[n] for n in 'ab'}))\n"
            ),
            models=MODELS,
            settings="DBFLEET = {'SHARD_KEYS': {'app.Parcel': 'region'}, "
            "'GATHER': {'SOURCE': 'fdw'}}\nWAYS = PROXIES = {}\n"
            "SILENCED_SYSTEM_CHECKS = ['dbfleet.W105']\n",
        )
        found = shop.run(PRELUDE + START + "result = [how(joined), fleet('gather')]")
    assert found[0] == [20, ["fdw"]]
    assert found[1].count("may read") == 2


def test_mariadb_has_none(
    lone_servers: Callable[[str], Any],
    project: Callable[..., Project],
    new_database: Callable[[Any], str],
) -> None:
    fleet = make_fleet(project, new_database, lone_servers("mariadb"))
    found = fleet.run("result = refused(call_command, 'fleet', 'gather', '--install')")
    assert "no PostgreSQL" in found["text"]
