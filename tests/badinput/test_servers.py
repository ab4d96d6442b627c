"""Servers that are not what the settings say: another one's, read-only, writable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dbfleet.testing.rig.ports import free_port
from tests.conftest import start_or_skip
from tests.faults.projects import (
    MODELS,
    PRELUDE,
    SETTINGS,
    Fleet,
    database_source,
    sharded_source,
)
from tests.support.project import Project

if TYPE_CHECKING:
    from dbfleet.testing.rig import Rig

Build = Callable[..., Project]
NewDatabase = Callable[[Any], str]

PASSWORD = "not-to-be-seen-4711"

CLUSTER = "Cluster(NODES['primary'], replicas=[NODES['replica']])"


@pytest.fixture
def replicated(request: pytest.FixtureRequest, engine: str) -> Any:
    """A primary with replicas of the engine at hand."""
    return request.getfixturevalue("postgres" if engine == "postgresql" else "mariadb")


@pytest.fixture(scope="module")
def guarded(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """Servers that ask for a password and cannot prepare transactions."""
    from dbfleet.testing.rig import Rig

    started: dict[str, Any] = {}
    with Rig(password=PASSWORD) as rig:

        def server(engine: str) -> Any:
            if engine not in started:
                started[engine] = start_or_skip(
                    request, engine, lambda: _guarded(rig, engine)
                )
            return started[engine]

        yield server


def _guarded(rig: Rig, engine: str) -> Any:
    if engine == "mariadb":
        return rig.mariadb_cluster()
    return rig.postgresql_cluster(options={"max_prepared_transactions": "0"})


def cluster_project(build: Build, primary: str, replica: str) -> Project:
    urls = {"primary": primary, "replica": replica}
    return build(
        databases=database_source(urls, CLUSTER), models=MODELS, settings=SETTINGS
    )


READ_AND_WRITE = (
    PRELUDE
    + """
create_tables()
with transaction.atomic():
    Account.objects.create(id=1, balance=10)
    inside = balances()
read = refused(balances)
Account.objects.filter(id=1).update(balance=11)
with transaction.atomic():
    result = read, inside, balances()
"""
)


def test_a_replica_of_another_server(
    replicated: Any, cluster: Any, project: Build, new_database: NewDatabase
) -> None:
    """``cluster`` knows nothing of ``replicated``, a replica of which is declared."""
    name = new_database(cluster)
    replicated.create_database(name)
    try:
        primary, replica = cluster.url(name), replicated.replica_urls(name)[0]
        read, inside, after = cluster_project(project, primary, replica).run(
            READ_AND_WRITE
        )
    finally:
        replicated.drop_database(name)
    assert read["type"] == "NodeMismatch"
    assert read["code"] == "dbfleet.E201"
    assert "default/replica1" in read["text"]
    assert "correct REPLICAS of alias 'default'" in read["text"]
    assert (inside, after) == ([[1, 10]], [[1, 11]])


def test_a_replica_that_accepts_writes(
    cluster: Any, project: Build, new_database: NewDatabase
) -> None:
    primary, other = cluster.url(new_database(cluster)), new_database(cluster)
    read, inside, after = cluster_project(project, primary, cluster.url(other)).run(
        READ_AND_WRITE
    )
    assert read["type"] == "NodeMismatch"
    assert read["code"] == "dbfleet.E203"
    assert "default/replica1" in read["text"]
    assert "alias 'default'" in read["text"]
    assert (inside, after) == ([[1, 10]], [[1, 11]])


WRITE = (
    PRELUDE + "result = refused(Account.objects.create, id=1), refused(create_tables)"
)


def assert_read_only(error: dict[str, Any], node: str) -> None:
    assert error is not None, "the write was taken"
    assert error["type"] == "NodeMismatch"
    assert error["code"] == "dbfleet.E202"
    assert f"{node} is declared as a primary of alias 'default'" in error["text"]


def test_a_primary_that_is_read_only(
    replicated: Any, project: Build, new_database: NewDatabase
) -> None:
    """And no other node that is declared accepts writes."""
    name = new_database(replicated)
    standby = replicated.replica_urls(name)[0]
    nobody = standby.replace(f":{replicated.replicas[0].port}/", f":{free_port()}/")
    replicated.primary.execute(_ACCOUNTS, dbname=name)
    replicated.wait_until_caught_up()
    for error in cluster_project(project, standby, nobody).run(WRITE):
        assert_read_only(error, "default/primary")
    assert replicated.primary.execute(
        "SELECT count(*) FROM app_account", dbname=name
    ) == [(0,)]


def test_a_primary_and_a_replica_that_changed_their_roles(
    replicated: Any, project: Build, new_database: NewDatabase
) -> None:
    """The one that accepts writes takes them, whatever it is declared as."""
    name = new_database(replicated)
    standby, other = replicated.replica_urls(name)[0], replicated.url(name)
    replicated.primary.execute(_ACCOUNTS, dbname=name)
    replicated.wait_until_caught_up()
    found = cluster_project(project, standby, other).run(
        PRELUDE + "Account.objects.create(id=1, balance=10)\nresult = balances()"
    )
    assert found == [[1, 10]]
    assert replicated.primary.execute(
        "SELECT count(*) FROM app_account", dbname=name
    ) == [(1,)]


_ACCOUNTS = (
    "CREATE TABLE app_account (id integer PRIMARY KEY, balance integer DEFAULT 0)"
)


def test_a_home_that_is_read_only(
    replicated: Any, project: Build, new_database: NewDatabase
) -> None:
    home, shard = new_database(replicated), new_database(replicated)
    urls = {"home": replicated.replica_urls(home)[0], "a": replicated.url(shard)}
    built = project(databases=sharded_source(urls), models=MODELS, settings=SETTINGS)
    for error in built.run(WRITE):
        assert_read_only(error, "default/home/primary")


def test_a_shard_that_is_read_only(
    replicated: Any, project: Build, new_database: NewDatabase
) -> None:
    """It became a replica, as after a failover; writes with others happen nowhere."""
    names = {node: new_database(replicated) for node in ("home", "a", "b")}
    urls = {node: replicated.url(name) for node, name in names.items()}
    sources = (
        sharded_source(urls),
        sharded_source(urls | {"b": replicated.replica_urls(names["b"])[0]}),
    )
    before, after = (
        Fleet(
            project(databases=source, models=MODELS, settings=SETTINGS),
            replicated,
            names,
        )
        for source in sources
    )
    before.run(
        "create_tables()\n"
        "Account.objects.bulk_create([Account(id=n, balance=10) for n in range(20)])"
    )
    replicated.wait_until_caught_up()
    found = after.run(
        """
def transfer():
    with transaction.atomic():
        Account.objects.filter(id=ids("a")[0]).update(balance=0)
        Account.objects.filter(id=ids("b")[0]).update(balance=20)


errors = [
    refused(Account.objects.filter(id=ids("b")[0]).update, balance=1),
    refused(Account.objects.update, balance=1),
    refused(transfer),
]
result = errors, balances()
"""
    )
    for error in found[0]:
        assert_read_only(error, "default/b/primary")
    assert found[1] == [[n, 10] for n in range(20)]


def test_a_query_that_writes_on_a_replica_is_not_blamed_on_the_primary(
    postgres: Any, project: Build, new_database: NewDatabase
) -> None:
    """A replica refuses a function that writes; the primary then runs the query."""
    name = new_database(postgres)
    urls = {"primary": postgres.url(name), "replica": postgres.replica_urls(name)[0]}
    built = project(
        databases=database_source(urls, CLUSTER), models=MODELS, settings=SETTINGS
    )
    postgres.primary.execute("CREATE SEQUENCE counter", dbname=name)
    found = built.run(
        PRELUDE
        + """
from django.db.models import Func, IntegerField, Value
create_tables()
Account.objects.create(id=1)
call = Func(Value("counter"), function="nextval", output_field=IntegerField())
result = list(Account.objects.annotate(n=call).values_list("n", flat=True))
"""
    )
    assert found == [1]


@pytest.mark.parametrize("node", ["home", "a"])
def test_a_wrong_password(
    guarded: Callable[[str], Any],
    engine: str,
    project: Build,
    new_database: NewDatabase,
    node: str,
) -> None:
    server = guarded(engine)
    urls = {name: server.url(new_database(server)) for name in ("home", "a")}
    urls[node] = urls[node].replace(PASSWORD, f"{PASSWORD}-wrong")
    built = project(databases=sharded_source(urls), models=MODELS, settings=SETTINGS)
    error = built.run(PRELUDE + "result = refused(create_tables)")
    assert error["type"] == "NodeUnavailable"
    assert error["code"] == "dbfleet.E204"
    assert f"default/{node}/primary of alias 'default'" in error["text"]
    assert "credentials" in error["text"]
    failed = built.manage("migrate", "--run-syncdb", check=False)
    assert failed.returncode == 1
    for text in (error["text"], failed.stdout, failed.stderr):
        assert PASSWORD not in text


def test_a_server_that_cannot_prepare(
    guarded: Callable[[str], Any], project: Build, new_database: NewDatabase
) -> None:
    server = guarded("postgresql")
    urls = {name: server.url(new_database(server)) for name in ("home", "a", "b")}
    best_effort, two_phase = (
        project(
            databases=sharded_source(urls, more=more), models=MODELS, settings=SETTINGS
        )
        for more in ({"COMMIT": "best_effort"}, {})
    )
    best_effort.run(
        PRELUDE + "create_tables()\n"
        "Account.objects.bulk_create([Account(id=n, balance=10) for n in range(20)])"
    )
    errors, one, after = two_phase.run(
        PRELUDE
        + """
def transfer():
    with transaction.atomic():
        Account.objects.filter(id=ids("a")[0]).update(balance=0)
        Account.objects.filter(id=ids("b")[0]).update(balance=20)


errors = [refused(transfer), refused(Account.objects.update, balance=1)]
with transaction.atomic():
    Account.objects.filter(id=ids("b")[0]).update(balance=11)
result = errors, ids("b")[0], balances()
"""
    )
    for error in errors:
        assert error["type"] == "TwoPhaseUnavailable"
        assert error["code"] == "dbfleet.E601"
        for part in ("default/a/primary", "alias 'default'", "max_prepared_transact"):
            assert part in error["text"]
    assert after == [[n, 11 if n == one else 10] for n in range(20)]
