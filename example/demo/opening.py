"""Opening the store: servers, settings, migrations, rows.

Guards one invariant: Django is set up after the servers run, because its settings
say where they are.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from dbfleet.testing.rig.errors import RigError
from example.demo.report import Report
from example.demo.sample import make_sample
from example.demo.servers import PostgresServers, Servers, SQLiteServers

ALIASES = ("default", "sales", "single")


class CannotOpen(Exception):
    """The store cannot open; the message says what to do."""


@contextlib.contextmanager
def open_store(report: Report) -> Iterator[Servers]:
    """Start servers, migrate, load; everything ends with the block.

    Raises ``CannotOpen``.
    """
    print("A music store on a fleet of databases: the demo of django-dbfleet")
    report.part("Servers")
    began = time.monotonic()
    servers, reason = start_servers()
    try:
        if reason:
            report.loud(f"SQLite files, no replicas, no server to lose: {reason}")
        legacy = find_legacy(servers)
        set_up_django(servers)
        about = [
            *servers.described(),
            ("legacy", f"an SQLite file, read-only: {legacy}"),
            ("single", "one plain database, to compare every answer with"),
        ]
        report.lines(
            *(f"{alias:<9}{what}" for alias, what in about),
            f"{servers.engine} on 127.0.0.1, Python {platform.python_version()}: "
            f"up in {time.monotonic() - began:.1f} s",
        )
        fill(report)
        yield servers
    finally:
        servers.stop()


def start_servers() -> tuple[Servers, str]:
    """The servers that ``FLEET`` asks for, and why they are others than usual.

    Without ``FLEET`` PostgreSQL, or SQLite where that cannot run.
    """
    wanted = os.environ.get("FLEET", "")
    if wanted not in {"", "postgresql", "sqlite"}:
        raise CannotOpen(f"FLEET is postgresql or sqlite, not {wanted!r}")
    try:
        if wanted == "sqlite":
            return SQLiteServers(), "FLEET=sqlite asks for that"
        try:
            return PostgresServers(), ""
        except RigError as error:
            if wanted == "postgresql":
                raise
            return SQLiteServers(), f"PostgreSQL cannot run here: {error}"
    except RigError as error:
        raise CannotOpen(str(error)) from error


def find_legacy(servers: Servers) -> str:
    """Put the old system's file into the addresses; returns what it is."""
    given = os.environ.get("CHINOOK")
    if given:
        path = Path(given).expanduser().resolve()
        if not path.is_file():
            raise CannotOpen(f"CHINOOK names no file: {path}")
        about = f"{path.name}, opened read-only"
    else:
        path = servers.directory / "legacy.sqlite3"
        make_sample(path)
        about = "a small sample, made now (CHINOOK=path takes the real one)"
    servers.addresses["legacy"] = path.as_uri()
    return about


def set_up_django(servers: Servers) -> None:
    """Tell the settings where the servers are, and load the project."""
    os.environ["EXAMPLE_SERVERS"] = servers.environment()
    os.environ["DJANGO_SETTINGS_MODULE"] = "example.settings"
    import django

    django.setup()


def fill(report: Report) -> None:
    """Make tables and copy rows, on the fleet and on the single database."""
    from django.core.management import call_command

    from example.demo.load import load
    from example.single import on_single

    report.part(
        "Migrations and rows",
        "`migrate` runs once for each alias; on `sales` its DDL reaches home and every "
        "shard. Rows come from `legacy` through the ORM: unmanaged models there, "
        "bulk_create() here.",
    )
    for alias in ALIASES:
        began = time.monotonic()
        call_command("migrate", database=alias, verbosity=0)
        report.lines(f"migrate --database {alias:<8}{time.monotonic() - began:6.1f} s")
    began = time.monotonic()
    rows = load()
    report.lines(f"{rows} rows, loaded in       {time.monotonic() - began:6.1f} s")
    call_command("fleet", "lookups", build=True, database="sales", stdout=StringIO())
    report.lines("fleet lookups --build: customers are found by email as well")
    with on_single():
        load()
