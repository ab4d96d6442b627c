"""The databases of a run: one plain, and sharded aliases of the same engine.

Every database of a shard is also a plain alias of its own, so that the harness can
empty it and look at it without any help of the code under test. Guards one
invariant: the code of a case names no alias; :func:`working_on` chooses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support import newer  # noqa: F401  (names MySQL where it was fetched)

PLAIN = "plain"
#: automatic ids start above, so that they never meet one that a case gives
AUTOMATIC = 100_000
#: how many rows travel inline; the rest by temporary tables, both must be right
INLINE_ROWS = {1: 200, 2: 0, 3: 200, 7: 5}

_alias: ContextVar[str] = ContextVar("alias", default=PLAIN)


@dataclass(frozen=True)
class Fleet:
    """The aliases of a run."""

    engine: str
    #: sharded alias -> node name -> plain alias of the node's own database
    nodes: dict[str, dict[str, str]]
    #: where unique values are claimed: "home" or "shards"
    claims: str = "home"

    @property
    def sharded(self) -> tuple[str, ...]:
        return tuple(self.nodes)

    def keeps_claims(self, node: str) -> bool:
        """Whether a node, by its plain alias, has a table of claims."""
        if node == PLAIN:
            return False
        return self.claims == "shards" or node.endswith("_home")

    @property
    def folds_text(self) -> bool:
        """Whether text that differs may be equal to the database."""
        return self.engine in ("mariadb", "mysql")


class CurrentAlias:
    """A database router: everything is on the alias at work."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return _alias.get()

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return _alias.get()


@contextlib.contextmanager
def working_on(alias: str) -> Iterator[None]:
    """Querysets inside run on ``alias``."""
    token = _alias.set(alias)
    try:
        yield
    finally:
        _alias.reset(token)


def current() -> str:
    """The alias at work."""
    return _alias.get()


@contextlib.contextmanager
def serve(
    engine: str,
    shard_counts: Sequence[int],
    source: str = "rows",
    claims: str = "home",
) -> Iterator[Fleet]:
    """Start a server, set Django up and make every table."""
    with contextlib.ExitStack() as stack:
        servers = _servers(engine, stack)
        entries: dict[str, Any] = {PLAIN: _entry(servers, PLAIN)}
        declared = {}
        nodes: dict[str, dict[str, str]] = {}
        for count in shard_counts:
            alias = f"sharded{count}"
            names = ["home", *(f"s{number}" for number in range(1, count + 1))]
            nodes[alias] = {name: f"{alias}_{name}" for name in names}
            entries |= {n: _entry(servers, n) for n in nodes[alias].values()}
            declared[alias] = {
                name: servers.node(n) for name, n in nodes[alias].items()
            }
        _configure(engine, entries, declared, source, claims)
        fleet = Fleet(engine, nodes, claims)
        _create_tables(fleet)
        if source != "rows":
            _make_foreign_tables(fleet)
        try:
            yield fleet
        finally:
            from django.db import connections

            connections.close_all()


def _servers(engine: str, stack: contextlib.ExitStack) -> Any:
    from tests.conformance.fleet import ServerNodes, SQLiteNodes

    if engine == "sqlite":
        return SQLiteNodes(Path(stack.enter_context(TemporaryDirectory())))
    from dbfleet.testing.rig import Rig

    rig = stack.enter_context(Rig())
    if engine == "postgresql":
        return ServerNodes(rig.postgresql_cluster())
    import pymysql

    pymysql.install_as_MySQLdb()
    is_mysql = engine == "mysql"
    return ServerNodes(rig.mysql_cluster() if is_mysql else rig.mariadb_cluster())


def _entry(servers: Any, name: str) -> dict[str, Any]:
    """A plain alias, on which the harness may send several statements at once."""
    entry: dict[str, Any] = servers.plain(name)
    if entry["ENGINE"].endswith("mysql"):
        from pymysql.constants import CLIENT

        # Django itself gives the first flag, which an option would replace.
        flags = CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS
        options = {**entry.get("OPTIONS", {}), "client_flag": flags}
        entry = entry | {"OPTIONS": options}
    return entry


def _configure(
    engine: str,
    entries: dict[str, Any],
    declared: dict[str, dict[str, Any]],
    source: str,
    claims: str,
) -> None:
    import django
    from django.conf import settings

    from dbfleet import Sharded, databases

    fleets = {}
    for alias, urls in declared.items():
        shards = {name: url for name, url in urls.items() if name != "home"}
        fleets[alias] = Sharded(home=urls["home"], shards=shards)
    sharded = databases(**fleets)
    for alias, entry in sharded.items():
        count = len(declared[alias]) - 1
        rows = INLINE_ROWS.get(count, 50)
        entry["GATHER"] = {"INLINE_ROWS": rows, "SOURCE": source}
        entry["CLAIMS"] = claims
    settings.configure(
        SECRET_KEY="differential",
        INSTALLED_APPS=[
            "dbfleet",
            "django.contrib.contenttypes",
            "tests.differential.apps.DifferentialConfig",
        ],
        DATABASES={"default": entries[PLAIN], **entries, **sharded},
        DATABASE_ROUTERS=["tests.differential.fleet.CurrentAlias"],
        DBFLEET={"SHARD_KEYS": {"differential.Customer_favorites": "customer"}},
        USE_TZ=True,
        TIME_ZONE="Europe/Berlin",
    )
    django.setup()


def _create_tables(fleet: Fleet) -> None:
    from django.core.management import call_command

    for alias in (PLAIN, *fleet.sharded):
        with working_on(alias):
            # First what our tables refer to: unmigrated apps come before migrated ones.
            for args in (("contenttypes",), ()):
                call_command(
                    "migrate", *args, database=alias, run_syncdb=not args, verbosity=0
                )
    _raise_counters(fleet)


def _make_foreign_tables(fleet: Fleet) -> None:
    from django.core.management import call_command

    for alias in fleet.sharded:
        call_command("fleet", "gather", "--install", database=alias)


def _raise_counters(fleet: Fleet) -> None:
    """Let automatic ids start above :data:`AUTOMATIC`, on every side."""
    from django.apps import apps
    from django.db import connections
    from django.db.models import AutoField

    app = apps.get_app_config("differential")
    for model in app.get_models(include_auto_created=True):
        pk = model._meta.pk
        if not isinstance(pk, AutoField):
            continue
        table = model._meta.db_table
        for alias in (PLAIN, *(nodes["home"] for nodes in fleet.nodes.values())):
            with connections[alias].cursor() as cursor:
                cursor.execute(_COUNTERS[fleet.engine].format(table=table))
                if alias != PLAIN and fleet.engine != "postgresql":
                    cursor.execute(
                        "INSERT INTO dbfleet_sequence (name, next_value) "
                        f"VALUES ('{table}', {AUTOMATIC})"
                    )


_COUNTERS = {
    "postgresql": f'ALTER SEQUENCE "{{table}}_id_seq" RESTART WITH {AUTOMATIC}',
    "mariadb": f"ALTER TABLE `{{table}}` AUTO_INCREMENT = {AUTOMATIC}",
    "mysql": f"ALTER TABLE `{{table}}` AUTO_INCREMENT = {AUTOMATIC}",
    "sqlite": "INSERT INTO sqlite_sequence (name, seq) "
    f"VALUES ('{{table}}', {AUTOMATIC})",
}
