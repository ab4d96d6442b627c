"""Where the servers lie that no stable distribution has: ``tools/newer_servers``.

Named by ``DBFLEET_NEWER`` (what was given to that tool, ``build/newer`` by default);
``DBFLEET_RIG_MYSQL`` and ``DBFLEET_NEWER_POSTGRESQL`` name the directories of other
programs. Tests that need them are skipped where they are missing, and fail with
``DBFLEET_REQUIRE_NEWER``.
"""

from __future__ import annotations

import os
from pathlib import Path

from dbfleet.testing.rig.mysql_binaries import VARIABLE as MYSQL_VARIABLE
from tests.support.project import REPOSITORY

DIRECTORY = Path(os.environ.get("DBFLEET_NEWER") or REPOSITORY / "build" / "newer")
POSTGRESQL = Path(
    os.environ.get("DBFLEET_NEWER_POSTGRESQL")
    or DIRECTORY / "usr/lib/postgresql/19/bin"
)
MYSQL = DIRECTORY / "usr/sbin"

REQUIRED = os.environ.get("DBFLEET_REQUIRE_NEWER", "") not in {"", "0"}
HOW_TO_GET = "tools/newer_servers fetches it on Debian and Ubuntu"

if (MYSQL / "mysqld").exists():
    os.environ.setdefault(MYSQL_VARIABLE, str(MYSQL))
