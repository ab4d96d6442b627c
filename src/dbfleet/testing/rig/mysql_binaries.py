"""Finding the programs of MySQL.

Guards one invariant: what is found is MySQL, not a MariaDB of the same program names,
recent enough, and can be run by the user who runs the server. In this order: the
environment variable ``DBFLEET_RIG_MYSQL`` (a directory that holds ``mysqld``), the
system's.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dbfleet.testing.rig.errors import ServerUnavailable
from dbfleet.testing.rig.identity import TOOL_TIMEOUT_S, Identity
from dbfleet.testing.rig.mariadb_binaries import MORE_PATHS

OLDEST = (8, 4)
VARIABLE = "DBFLEET_RIG_MYSQL"
TIME_ZONES = "mysql_tzinfo_to_sql"
NAME = "MySQL " + ".".join(map(str, OLDEST))


@dataclass(frozen=True)
class MySQLBinaries:
    """The programs of MySQL."""

    server: Path
    time_zones: Path


def find_mysql(identity: Identity) -> MySQLBinaries:
    """Return the first usable MySQL of this machine; raise ``ServerUnavailable``."""
    for directory in _candidates():
        server = directory / "mysqld"
        # Beside it or in the other directory of its installation: a MariaDB in PATH
        # has a program of that name too.
        places = (directory, directory.parent / "bin")
        zones = [p / TIME_ZONES for p in places if (p / TIME_ZONES).is_file()]
        if not zones or (_version(server) or (0, 0)) < OLDEST:
            continue
        if not identity.can_execute(server):
            raise ServerUnavailable(
                f"user {identity.name}, who runs the servers, cannot run {server}: "
                "put MySQL where every user may enter"
            )
        return MySQLBinaries(server, zones[0])
    if VARIABLE in os.environ:
        raise ServerUnavailable(
            f"{VARIABLE} must name a directory with mysqld of {NAME} or newer and "
            f"{TIME_ZONES} in it or in ../bin; {os.environ[VARIABLE]} is none"
        )
    raise ServerUnavailable(
        f"{NAME} or newer is missing: install mysql-server, or name the directory of "
        f"its mysqld in {VARIABLE}"
    )


def _candidates() -> Iterator[Path]:
    if VARIABLE in os.environ:
        yield Path(os.environ[VARIABLE]).absolute()
        return
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    yield from map(Path, [*paths, *MORE_PATHS])


@functools.cache
def _version(server: Path) -> tuple[int, int] | None:
    """The version of a MySQL server; None if it is none."""
    if not server.is_file():
        return None
    shown = subprocess.run(
        [server, "--no-defaults", "--version"],
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    found = re.search(r"Ver (\d+)\.(\d+)\.", shown.stdout)
    if found is None or "MariaDB" in shown.stdout:
        return None
    return int(found[1]), int(found[2])
