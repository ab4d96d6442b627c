"""A cluster of each engine, a project on it, and one process that stays.

``which`` is a view that tells the port of the server that reads it; ``mark()`` is a
function that writes a row, and ``sneaky`` a view that calls it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clusters.console import Console
from tests.support.project import Project

_DATABASES = """
{head}
from random import Random as Chance

from dbfleet import Cluster, databases
from dbfleet.policies import First, Random, RoundRobin, Weighted

URL, REPLICAS = {url!r}, {replicas!r}

DATABASES = databases(
    default=Cluster(URL, replicas=REPLICAS, policy=RoundRobin()),
    reader=Cluster(URL, replicas=REPLICAS, read_only=True),
    weighted=Cluster(
        URL,
        replicas=REPLICAS,
        policy=Weighted({{"replica1": 3, "replica2": 1}}, rng=Chance(7)),
    ),
    first=Cluster(URL, replicas=REPLICAS, policy="dbfleet.policies.First"),
    rest=Cluster(URL, replicas=REPLICAS),
)
DBFLEET = {{
    "POLICY": Random(rng=Chance(11)),
    "POLICIES": {{"app.Tag": First()}},
}}
"""

_MODELS = """
class Note(models.Model):
    text = models.CharField(max_length=40)


class Tag(models.Model):
    word = models.CharField(max_length=40)


class Which(models.Model):
    port = models.IntegerField(primary_key=True)

    class Meta:
        managed = False
        db_table = "which"


class Sneaky(models.Model):
    n = models.IntegerField(primary_key=True)

    class Meta:
        managed = False
        db_table = "sneaky"
"""

_PRELUDE = """
import contextvars
import dbfleet
from dbfleet import sessions
from dbfleet.health import breaker
from django.db import connection, connections, transaction
from django.db.models.expressions import RawSQL
from app.models import Note, Sneaky, Tag, Which

ROLES = {roles!r}


def where(queryset=None):
    '''The server that answers a read of the ORM.'''
    rows = Which.objects.all() if queryset is None else queryset
    return ROLES[rows.values_list("port", flat=True).get()]


def tag_where():
    '''The same for another model, whose statement asks the view.'''
    found = Tag.objects.annotate(port=RawSQL("SELECT port FROM which", ()))
    return ROLES[found.values_list("port", flat=True)[0]]


def raw(sql, params=None, using="default"):
    with connections[using].cursor() as cursor:
        cursor.execute(sql, params)
        return [list(row) for row in cursor.fetchall()] if cursor.description else None


def raw_where(sql):
    '''The server that a raw statement, which selects the port first, is read from.'''
    return ROLES[raw(sql)[0][0]]


def bounded_where(max_lag_s):
    with dbfleet.consistency(dbfleet.bounded(max_lag_s)):
        return where()


def turns(count, read=None):
    '''What the reads of as many sessions say.'''
    found = []
    for _ in range(count):
        with dbfleet.session():
            found.append((read or where)())
    return found


def texts():
    return sorted(Note.objects.values_list("text", flat=True))


def refused(action, *args, **kwargs):
    try:
        action(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, getattr(error, "code", None), str(error)]
    return None


def start():
    '''As a request begins: a session that wrote nothing, healthy nodes.'''
    connections.close_all()
    sessions.forget()
    breaker.reset()
"""

_POSTGRESQL = (
    "CREATE VIEW which AS SELECT inet_server_port() AS port",
    "CREATE FUNCTION mark() RETURNS integer LANGUAGE plpgsql VOLATILE AS $$ BEGIN "
    "INSERT INTO app_note (text) VALUES ('mark'); RETURN 1; END $$",
    "CREATE VIEW sneaky AS SELECT mark() AS n",
)
#: of MariaDB and MySQL
_MYSQL = (
    "CREATE FUNCTION which_port() RETURNS integer NO SQL RETURN @@port",
    "CREATE VIEW which AS SELECT which_port() AS port",
    "CREATE FUNCTION mark() RETURNS integer MODIFIES SQL DATA BEGIN "
    "INSERT INTO app_note (text) VALUES ('mark'); RETURN 1; END",
    "CREATE VIEW sneaky AS SELECT mark() AS n",
)


@dataclass
class Fleet:
    """A project on clusters, its process, and the servers."""

    engine: str
    servers: Any
    console: Console
    database: str

    @property
    def replicas(self) -> list[str]:
        """The names of the replicas, as ``where()`` tells them."""
        return [f"replica{n}" for n, _ in enumerate(self.servers.replicas, 1)]

    def run(self, code: str, **options: Any) -> Any:
        return self.console.run(code, **options)

    def ask(self, expression: str) -> Any:
        return self.console.ask(expression)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the primary, past the alias."""
        return list(self.servers.primary.execute(sql, dbname=self.database))


def _project(root: Any, engine: str, servers: Any, database: str) -> Project:
    head = ""
    if engine != "postgresql":
        head = "import pymysql\n\npymysql.install_as_MySQLdb()"
    source = _DATABASES.format(
        head=head, url=servers.url(database), replicas=servers.replica_urls(database)
    )
    return Project(root, databases=source, models=_MODELS)


@pytest.fixture(scope="package", params=["postgres", "mariadb", "mysql", "postgres19"])
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """One fleet of each kind of server for all tests here."""
    servers = request.getfixturevalue(request.param)
    engine = servers.primary.engine
    database = f"test_{secrets.token_hex(6)}"
    servers.create_database(database)
    project = _project(
        tmp_path_factory.mktemp(engine) / "project", engine, servers, database
    )
    try:
        project.manage("migrate", "--run-syncdb", "--verbosity=0")
        for sql in _POSTGRESQL if engine == "postgresql" else _MYSQL:
            servers.primary.execute(sql, dbname=database)
        console = Console(project)
        try:
            roles = {servers.primary.port: "primary"}
            for number, replica in enumerate(servers.replicas, 1):
                roles[replica.port] = f"replica{number}"
            console.run(_PRELUDE.format(roles=roles))
            yield Fleet(engine, servers, console, database)
        finally:
            console.close()
    finally:
        project.close()
        servers.drop_database(database)


@pytest.fixture
def fleet(started: Fleet) -> Iterator[Fleet]:
    """The fleet, healthy and empty, in a session of its own."""
    servers = started.servers
    for table in ("app_note", "app_tag"):
        started.rows(f"DELETE FROM {table}")
    servers.wait_until_caught_up()
    started.run("start()")
    try:
        yield started
    finally:
        for server in servers.servers:
            server.start()
        for replica in servers.replicas:
            replica.resume_replay()
        servers.wait_until_caught_up()
        started.run("start()")
