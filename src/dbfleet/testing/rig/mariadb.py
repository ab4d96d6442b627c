"""MariaDB servers and their GTID replicas."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from dbfleet.testing.rig.gtid_server import ADMINISTRATOR, GtidReplica, GtidServer
from dbfleet.testing.rig.identity import run_tool
from dbfleet.testing.rig.mariadb_binaries import find_mariadb, zone_directory

LOG_FILE_SIZE = "16M"


class MariaDBServer(GtidServer):
    """A MariaDB primary with a binary log, GTIDs and loaded time zones."""

    engine = "mariadb"
    vendor_options: ClassVar[dict[str, str]] = {
        "socket": "",
        "binlog-format": "ROW",
        "log-slave-updates": "ON",
        "innodb-log-file-size": LOG_FILE_SIZE,
    }
    # SUPER lets write to a read-only server before MariaDB 10.11, READ_ONLY ADMIN
    # since.
    not_granted: ClassVar[tuple[str, ...]] = (
        "SUPER",
        "READ_ONLY ADMIN",
        "REPLICATION SLAVE ADMIN",
        "REPLICATION MASTER ADMIN",
    )

    @property
    def gtid_domain(self) -> int:
        """The domain of the GTIDs that this server's cluster writes."""
        return self.port

    @property
    def _program(self) -> Path:
        return find_mariadb().server

    def _more_options(self) -> dict[str, str]:
        return {"gtid-domain-id": str(self.gtid_domain)}

    def _install(self, setup: Path) -> None:
        run_tool(
            [
                find_mariadb().install,
                "--no-defaults",
                f"--datadir={self._pristine_directory}",
                "--skip-test-db",
                "--skip-name-resolve",
                f"--innodb-log-file-size={LOG_FILE_SIZE}",
                "--innodb-flush-log-at-trx-commit=0",
                "--innodb-doublewrite=OFF",
                "--innodb-use-native-aio=OFF",
                f"--extra-file={setup}",
            ],
            identity=self.identity,
            directory=self.directory,
        )

    def _zones_sql(self) -> str:
        zones = run_tool(
            [find_mariadb().time_zones, zone_directory()],
            identity=self.identity,
            directory=self.directory,
        )
        return "\n".join(
            line for line in zones.splitlines() if not line.startswith("Warning:")
        )


class MariaDBReplica(GtidReplica, MariaDBServer):
    """A read-only replica of ``primary``, positioned by GTID."""

    primary: MariaDBServer
    status_word: ClassVar[str] = "Slave"

    @property
    def gtid_domain(self) -> int:
        """The domain of the GTIDs that this server's cluster writes."""
        return self.primary.gtid_domain

    def _point_to(self, primary: GtidServer) -> None:
        self.execute(
            "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s, MASTER_USER = %s, "
            "MASTER_PASSWORD = %s, MASTER_USE_GTID = slave_pos, "
            "MASTER_CONNECT_RETRY = 1",
            (primary.host, primary.port, ADMINISTRATOR, self._administrator_password),
        )

    def _primary_position(self) -> str:
        [(position,)] = self.primary.execute("SELECT @@gtid_binlog_pos")
        return str(position)

    def _has_replayed(self, position: str) -> bool:
        if self.execute("SELECT MASTER_GTID_WAIT(%s, 0)", (position,)) == [(0,)]:
            return True
        self._check_replication()
        return False
