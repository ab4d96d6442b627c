"""Finding the programs of MariaDB and the machine's time zones.

Guards one invariant: what is found is MariaDB with all programs the rig needs; a
MySQL of the same program names is not taken for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zoneinfo
from dataclasses import dataclass
from pathlib import Path

from dbfleet.testing.rig.errors import ServerUnavailable
from dbfleet.testing.rig.identity import TOOL_TIMEOUT_S

# Servers lie where an ordinary user's PATH does not look.
MORE_PATHS = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/local/libexec")


@dataclass(frozen=True)
class MariaDBBinaries:
    """The programs of MariaDB."""

    server: Path
    install: Path
    time_zones: Path


def find_mariadb() -> MariaDBBinaries:
    """Return the programs of the system's MariaDB; raise ``ServerUnavailable``."""
    server = _which("mariadbd", "mysqld")
    install = _which("mariadb-install-db", "mysql_install_db")
    time_zones = _which("mariadb-tzinfo-to-sql", "mysql_tzinfo_to_sql")
    if server is None or install is None or time_zones is None or not _is_maria(server):
        raise ServerUnavailable("MariaDB is missing: apt-get install mariadb-server")
    return MariaDBBinaries(server, install, time_zones)


def zone_directory() -> Path:
    """Return the directory of the machine's time zones."""
    for path in zoneinfo.TZPATH:
        if Path(path, "Europe").is_dir():
            return Path(path)
    raise ServerUnavailable("the time zones are missing: apt-get install tzdata")


def _which(*names: str) -> Path | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *MORE_PATHS])
    for name in names:
        if found := shutil.which(name, path=path):
            return Path(found)
    return None


def _is_maria(server: Path) -> bool:
    shown = subprocess.run(
        [server, "--no-defaults", "--version"],
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    return "MariaDB" in shown.stdout
