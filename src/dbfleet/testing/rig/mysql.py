"""MySQL servers and their GTID replicas.

Sources: MySQL manual, "Initializing the Data Directory", "Setting Up Replication
Using GTIDs", "Time Zone Support".
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import ClassVar

from dbfleet.testing.rig.gtid_server import (
    ADMINISTRATOR,
    OPTIONS,
    GtidReplica,
    GtidServer,
)
from dbfleet.testing.rig.identity import run_tool
from dbfleet.testing.rig.mariadb_binaries import zone_directory
from dbfleet.testing.rig.mysql_binaries import MySQLBinaries, find_mysql

#: what is not needed while nobody is connected yet
INSTALL_OPTIONS = (
    "--disable-log-bin",
    "--secure-file-priv=NULL",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=OFF",
    "--innodb-flush-method=nosync",
    f"--innodb-use-native-aio={OPTIONS['innodb-use-native-aio']}",
    f"--performance-schema={OPTIONS['performance-schema']}",
)


class MySQLServer(GtidServer):
    """A MySQL primary with a binary log, GTIDs and loaded time zones."""

    engine = "mysql"
    vendor_options: ClassVar[dict[str, str]] = {
        "mysqlx": "OFF",
        "gtid-mode": "ON",
        "enforce-gtid-consistency": "ON",
        "innodb-redo-log-capacity": "32M",
        "secure-file-priv": "NULL",
    }
    # Each of the first three lets write to a read-only server.
    not_granted: ClassVar[tuple[str, ...]] = (
        "SUPER",
        "CONNECTION_ADMIN",
        "SYSTEM_VARIABLES_ADMIN",
        "REPLICATION_SLAVE_ADMIN",
    )

    @functools.cached_property
    def binaries(self) -> MySQLBinaries:
        """The programs that this server is made of."""
        return find_mysql(self.identity)

    @property
    def _program(self) -> Path:
        return self.binaries.server

    def _more_options(self) -> dict[str, str]:
        return {"socket": str(self.directory / "server.sock")}

    def _install(self, setup: Path) -> None:
        run_tool(
            [
                self._program,
                "--no-defaults",
                "--initialize-insecure",
                f"--datadir={self._pristine_directory}",
                f"--init-file={setup}",
                *INSTALL_OPTIONS,
            ],
            identity=self.identity,
            directory=self.directory,
        )
        # Each copy of the directory names itself, and writes GTIDs under that name.
        (self._pristine_directory / "auto.cnf").unlink(missing_ok=True)

    def _zones_sql(self) -> str:
        zones = run_tool(
            [self.binaries.time_zones, zone_directory()],
            identity=self.identity,
            directory=self.directory,
        )
        return "\n".join(
            line
            for line in zones.splitlines()
            if not line.startswith(("Warning:", "Skipping"))
        )


class MySQLReplica(GtidReplica, MySQLServer):
    """A read-only replica of ``primary``, positioned by GTID."""

    primary: MySQLServer
    status_word: ClassVar[str] = "Replica"

    def _point_to(self, primary: GtidServer) -> None:
        self.execute(
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = %s, SOURCE_PORT = %s, "
            "SOURCE_USER = %s, SOURCE_PASSWORD = %s, SOURCE_AUTO_POSITION = 1, "
            "SOURCE_CONNECT_RETRY = 1, GET_SOURCE_PUBLIC_KEY = 1",
            (primary.host, primary.port, ADMINISTRATOR, self._administrator_password),
        )

    def _primary_position(self) -> str:
        [(position,)] = self.primary.execute("SELECT @@global.gtid_executed")
        return str(position)

    def _has_replayed(self, position: str) -> bool:
        sql = "SELECT GTID_SUBSET(%s, @@global.gtid_executed)"
        if self.execute(sql, (position,)) == [(1,)]:
            return True
        self._check_replication()
        return False
