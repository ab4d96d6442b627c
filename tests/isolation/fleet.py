"""The project of these tests: a cluster, a sharded alias, a run-time database.

Its sessions are told apart by ``application_name``; every node's connection says its
server process, so that two users of one connection cannot be missed.
"""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
import urllib.request
from collections.abc import Callable
from typing import Any

from dbfleet.testing.rig import PostgresCluster
from dbfleet.testing.rig.waiting import wait_until
from tests.isolation.sessions import DEADLINE_S, wait_for_sessions
from tests.support.project import Project

SETTINGS = """
from dbfleet import Cluster, Sharded, databases

NAMED = {{"application_name": {name!r}}}
DATABASES = databases(
    default=Cluster(
        {default!r},
        replicas={replicas!r},
        policy="dbfleet.policies.RoundRobin",  # both serve, however quick
        OPTIONS={{**NAMED, **{options}}},
        {django}
    ),
    sales=Sharded(
        home={home!r},
        shards={{"a": {a!r}, "b": {b!r}}},
        OPTIONS={{**NAMED, **{options}}},
        {django}
    ),
)
DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
RUN_TIME = {runtime!r}
"""

MODELS = """
class Note(models.Model):
    text = models.CharField(max_length=100)

class Order(models.Model):
    text = models.CharField(max_length=100)

    class Meta:
        using = "sales"
"""

#: what the tests' own code, in whatever process, knows
PROBE = '''
"""What a thread, a task or a request sees of itself."""

import time

import psycopg
from django.conf import settings
from django.db import connections, transaction

import dbfleet
from app.models import Note, Order
from dbfleet import sessions
from dbfleet.sessions import pins

RUN_TIME = settings.RUN_TIME


def pids():
    """The server process of every node's connection that is open here."""
    found = {}
    for wrapper in connections.all(initialized_only=True):
        nodes = [wrapper, *wrapper.nodes.opened()]
        for node in nodes:
            if node.connection is not None:
                alias = "runtime" + node.alias[16:] if node.alias[:4] == "run:" else (
                    node.alias)
                found[alias] = node.connection.info.backend_pid
    return found


def server_sessions(name=settings.NAMED["application_name"]):
    """The sessions of that name, and of longer ones, on all the fleet's servers."""
    found, asked = set(), set()
    for node in connections["default"].settings_dict["NODES"].values():
        server = {"host": node["HOST"], "port": node["PORT"], "user": node["USER"]}
        if node["PORT"] in asked:
            continue
        asked.add(node["PORT"])
        with psycopg.connect(**server, dbname="postgres", autocommit=True) as watch:
            found |= {
                (node["PORT"], pid)
                for (pid,) in watch.execute(
                    "SELECT pid FROM pg_stat_activity "
                    "WHERE starts_with(application_name, %s)", [name])
            }
    return found


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.02)


def touch(text):
    """Use every node in a transaction of its own kind; the pids that served."""
    Note.objects.count()  # a replica
    with transaction.atomic(), transaction.atomic("sales"):
        with transaction.atomic(RUN_TIME):
            Note.objects.create(text=text)
            Note.objects.using(RUN_TIME).create(text=text)
            Order.objects.bulk_create(Order(text=text) for _ in range(8))
            seen = [
                Note.objects.exclude(text=text).filter(text__startswith="open").count(),
                Order.objects.exclude(text=text).filter(text__startswith="open").count(),
                Note.objects.using(RUN_TIME).exclude(text=text).filter(
                    text__startswith="open").count(),
            ]
            used = pids()
            yield seen, used
            transaction.set_rollback(True, using=RUN_TIME)
        transaction.set_rollback(True, using="sales")
        transaction.set_rollback(True)


def state():
    """What this context inherited from whoever ran here before."""
    here = connections.all(initialized_only=True)
    return {
        "floors": sorted(
            name
            for name, one in (sessions.peek() or sessions.Session()).clusters.items()
            if not one.is_blank()
        ),
        "level": getattr(sessions.chosen_level(), "name", None),
        "shard": pins.shard_for("sales"),
        "runtime": [one.alias for one in here if one.alias.startswith("run:")],
        "in_atomic": [one.alias for one in here if one.in_atomic_block],
        "manual": [
            one.alias
            for one in here
            if one.connection is not None and not one.get_autocommit()
        ],
        "enlisted": [one.alias for one in here if one.transaction.enlisted],
    }


CLEAN = {
    "floors": [], "level": None, "shard": None, "runtime": [], "in_atomic": [],
    "manual": [], "enlisted": [],
}


never_left = []


def soil():
    """Leave behind all that careless code can leave."""
    Note.objects.create(text="soiled")
    Order.objects.create(text="soiled")
    sessions._level.set(dbfleet.bounded(1))
    never_left.append(dbfleet.on_shard("sales", "a"))
    never_left[-1].__enter__()
    connections[RUN_TIME].ensure_connection()
    transaction.set_autocommit(False, using="sales")
    Order.objects.create(text="never committed")
    return pids()
'''


class Fleet:
    """The project, migrated, and its sessions on the servers."""

    def __init__(
        self,
        project: Callable[..., Project],
        postgres: PostgresCluster,
        databases: list[str],
        name: str,
        *,
        options: str = "{}",
        django: str = "",
        settings: str = "",
    ) -> None:
        default, home, a, b, runtime = databases
        self.postgres, self.name = postgres, name
        self.runtime_name = f"{name}-rt"
        declared = SETTINGS.format(
            name=name,
            default=postgres.url(default),
            replicas=postgres.replica_urls(default),
            home=postgres.url(home),
            a=postgres.url(a),
            b=postgres.url(b),
            runtime=f"{postgres.url(runtime)}?application_name={self.runtime_name}",
            options=options,
            django=django,
        )
        self.project = project(databases=declared, models=MODELS, settings=settings)
        self.project.write("probe.py", PROBE)
        if self._is_migrated(default):
            for database in (default, runtime):
                self._truncate(database, "app_note")
            for database in (a, b):
                self._truncate(database, "app_order")
        else:
            self._migrate()
        postgres.wait_until_caught_up()

    def _is_migrated(self, database: str) -> bool:
        found = self.postgres.primary.execute(
            "SELECT to_regclass('app_note') IS NOT NULL", dbname=database
        )
        return bool(found[0][0])

    def _truncate(self, database: str, table: str) -> None:
        self.postgres.primary.execute(f"TRUNCATE {table}", dbname=database)

    def _migrate(self) -> None:
        self.run(
            """
            from django.core.management import call_command

            for database in ("default", "sales", RUN_TIME):
                call_command(
                    "migrate", run_syncdb=True, verbosity=0, database=database
                )
            """
        )
        self.wait_for_sessions(0)

    def run(self, code: str, **options: Any) -> Any:
        """Run code that has the probe's names; returns its ``result``."""
        lines = "from probe import *\nfrom probe import CLEAN, RUN_TIME\n"
        return self.project.run(lines + textwrap.dedent(code), **options)

    def wait_for_sessions(self, count: int) -> None:
        """Return once the nodes of the aliases have that many sessions in all."""
        wait_for_sessions(self.postgres, self.name, count)

    def wait_for_runtime_sessions(self, count: int) -> None:
        wait_for_sessions(self.postgres, self.runtime_name, count)

    def serve(self, *args: str) -> Server:
        """Start a web server of the project."""
        return Server(self.project, args)


class Server:
    """A real web server in a process of its own; ends with the test."""

    def __init__(self, project: Project, args: tuple[str, ...]) -> None:
        self._process: subprocess.Popen[str] = project.start("-m", *args)
        logs = project.root.glob("process-*.log")
        log = max(logs, key=lambda one: one.stat().st_mtime)
        address: list[str] = []

        def is_listening() -> bool:
            address[:] = re.findall(r"http://127\.0\.0\.1:\d+", log.read_text())
            assert self._process.poll() is None, log.read_text()
            return bool(address)

        wait_until(
            is_listening, timeout_s=DEADLINE_S * 2, what="the web server listens"
        )
        self.log, self.address = log, address[0]

    def get(self, path: str) -> Any:
        """The JSON that the server answers; a failure shows the server's log."""
        try:
            with urllib.request.urlopen(self.address + path, timeout=30) as response:
                return json.loads(response.read())
        except OSError as error:
            raise AssertionError(f"{path}: {error}\n{self.log.read_text()}") from error
