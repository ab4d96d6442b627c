"""MariaDB servers and their GTID replicas.

Guards one invariant: the user that applications get, ``dbfleet``, may do anything
except write to a server that is read-only. Administration goes through a second
user whose password never leaves the rig.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import signal
from pathlib import Path
from typing import Any, ClassVar

from dbfleet.testing.rig.errors import ServerFailed, ServerUnavailable
from dbfleet.testing.rig.identity import Identity, run_tool, unprivileged
from dbfleet.testing.rig.mariadb_binaries import (
    MariaDBBinaries,
    find_mariadb,
    zone_directory,
)
from dbfleet.testing.rig.server import (
    DatabaseServer,
    ReplicaServer,
    checked_name,
    make_password,
)

ADMINISTRATOR = "rig"
CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 60
ACCESS_DENIED = 1045

OPTIONS = {
    "bind-address": "127.0.0.1",
    "socket": "",
    "skip-name-resolve": "ON",
    "character-set-server": "utf8mb4",
    "max-connections": "200",
    "log-bin": "binlog",
    "binlog-format": "ROW",
    "log-slave-updates": "ON",
    "log-bin-trust-function-creators": "ON",
    "default-time-zone": "+00:00",
    "innodb-buffer-pool-size": "64M",
    "innodb-log-file-size": "16M",
    "innodb-use-native-aio": "OFF",
    "innodb-buffer-pool-dump-at-shutdown": "OFF",
    "innodb-buffer-pool-load-at-startup": "OFF",
    "performance-schema": "OFF",
}
# Against a loss of power only. With 0 instead of 2 a killed server would lose up to
# a second of what it acknowledged.
NOT_DURABLE = {
    "innodb-flush-log-at-trx-commit": "2",
    "innodb-doublewrite": "OFF",
    "innodb-flush-method": "nosync",
    "sync-binlog": "0",
}
DURABLE = {"innodb-flush-log-at-trx-commit": "1", "sync-binlog": "1"}

# SUPER lets write to a read-only server before MariaDB 10.11, READ_ONLY ADMIN since.
NOT_GRANTED = (
    "SUPER",
    "READ_ONLY ADMIN",
    "REPLICATION SLAVE ADMIN",
    "REPLICATION MASTER ADMIN",
)


class MariaDBServer(DatabaseServer):
    """A MariaDB primary with a binary log, GTIDs and loaded time zones."""

    engine = "mariadb"
    scheme = "mysql"
    stop_signals: ClassVar[dict[str, signal.Signals]] = {
        "smart": signal.SIGTERM,
        "fast": signal.SIGTERM,
        "immediate": signal.SIGKILL,
    }

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        identity: Identity | None = None,
        durable: bool = False,
        password: str | None = None,
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            name,
            directory,
            identity=identity or unprivileged("mysql"),
            durable=durable,
            password=password or make_password(),
            options=options,
        )
        self._administrator_password = make_password()

    @property
    def server_id(self) -> int:
        """The server's replication id: its port, unique on this machine."""
        return self.port

    @property
    def gtid_domain(self) -> int:
        """The domain of the GTIDs that this server's cluster writes."""
        return self.port

    def settings(self, dbname: str) -> dict[str, Any]:
        """Return Django's own settings of a database of this server."""
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": dbname,
            "USER": self.user,
            "PASSWORD": self.password or "",
            "HOST": self.host,
            "PORT": str(self.port),
        }

    def execute(
        self, statement: str, params: Any = None, *, dbname: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement in autocommit as administrator and return its rows."""
        with contextlib.closing(self._connect(dbname)) as connection:
            cursor = connection.cursor()
            cursor.execute(statement, params)
            return list(cursor.fetchall())

    def create_database(self, name: str) -> None:
        """Create an empty database in utf8mb4."""
        self.execute(f"CREATE DATABASE `{checked_name(name)}` CHARACTER SET utf8mb4")

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending its connections."""
        for (connection,) in self.execute(
            "SELECT id FROM information_schema.processlist WHERE db = %s", (name,)
        ):
            # It may have ended by itself meanwhile.
            with contextlib.suppress(_driver().OperationalError):
                self.execute(f"KILL {connection}")
        self.execute(f"DROP DATABASE IF EXISTS `{checked_name(name)}`")

    @property
    def _pristine_directory(self) -> Path:
        """A copy of the data as it was before the first start; replicas begin there.

        The binary log of the primary holds everything since.
        """
        return self.directory / "pristine"

    def _prepare(self) -> None:
        _driver()
        binaries = find_mariadb()
        extra = self.directory / "users-and-time-zones.sql"
        extra.touch(mode=0o600)
        extra.write_text(self._setup_sql(binaries))
        self.identity.own(extra)
        try:
            run_tool(
                [
                    binaries.install,
                    "--no-defaults",
                    f"--datadir={self._pristine_directory}",
                    "--skip-test-db",
                    "--skip-name-resolve",
                    f"--innodb-log-file-size={OPTIONS['innodb-log-file-size']}",
                    "--innodb-flush-log-at-trx-commit=0",
                    "--innodb-doublewrite=OFF",
                    "--innodb-use-native-aio=OFF",
                    f"--extra-file={extra}",
                ],
                identity=self.identity,
                directory=self.directory,
            )
        finally:
            extra.unlink()
        self._copy_pristine()

    def _copy_pristine(self) -> None:
        shutil.copytree(self._pristine_directory, self.data_directory)
        self.identity.own(self.data_directory)

    def _setup_sql(self, binaries: MariaDBBinaries) -> str:
        # The server escapes nothing here: both passwords must be plain.
        for password in (self.password or "", self._administrator_password):
            if not re.fullmatch(r"[\x20-\x7e]+", password) or set("'\\") & {*password}:
                raise ServerFailed(
                    "a password of the rig may hold printable ASCII except ' and \\"
                )
        zones = run_tool(
            [binaries.time_zones, zone_directory()],
            identity=self.identity,
            directory=self.directory,
        )
        zones = "\n".join(
            line for line in zones.splitlines() if not line.startswith("Warning:")
        )
        administrator = f"'{ADMINISTRATOR}'@'{self.host}'"
        user = f"'{self.user}'@'{self.host}'"
        return f"""
            FLUSH PRIVILEGES;
            CREATE USER {administrator} IDENTIFIED BY '{self._administrator_password}';
            GRANT ALL PRIVILEGES ON *.* TO {administrator};
            CREATE USER {user} IDENTIFIED BY '{self.password}';
            GRANT ALL PRIVILEGES ON *.* TO {user} WITH GRANT OPTION;
            REVOKE {", ".join(NOT_GRANTED)} ON *.* FROM {user};
            {zones}
        """

    def _argv(self) -> list[str | Path]:
        options = (
            OPTIONS
            | (DURABLE if self.durable else NOT_DURABLE)
            | {
                "server-id": str(self.server_id),
                "gtid-domain-id": str(self.gtid_domain),
                "port": str(self.port),
                "datadir": str(self.data_directory),
                "tmpdir": str(self.directory),
                "pid-file": str(self.directory / "server.pid"),
            }
            | self.options
        )
        return [
            find_mariadb().server,
            "--no-defaults",
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def _is_ready(self) -> bool:
        try:
            self._connect(None).close()
        except _driver().OperationalError as error:
            if error.args[0] == ACCESS_DENIED:
                raise ServerFailed(
                    f"port {self.port} is answered by another server than {self.name}"
                ) from None
            return False
        return True

    def _connect(self, dbname: str | None) -> Any:
        return _driver().connect(
            host=self.host,
            port=self.port,
            user=ADMINISTRATOR,
            password=self._administrator_password,
            database=dbname,
            autocommit=True,
            charset="utf8mb4",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=STATEMENT_TIMEOUT_S,
            write_timeout=STATEMENT_TIMEOUT_S,
        )


class MariaDBReplica(MariaDBServer, ReplicaServer):
    """A read-only replica of ``primary``, positioned by GTID."""

    primary: MariaDBServer

    def __init__(
        self,
        name: str,
        primary: MariaDBServer,
        *,
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            name,
            primary.directory.parent,
            identity=primary.identity,
            durable=primary.durable,
            password=primary.password,
            options=primary.options | {"read-only": "ON"} | (options or {}),
        )
        self.primary = primary
        self._administrator_password = primary._administrator_password
        self._is_following = False

    @property
    def gtid_domain(self) -> int:
        """The domain of the GTIDs that this server's cluster writes."""
        return self.primary.gtid_domain

    def start(self) -> None:
        """Start the server and, the first time, its replication."""
        super().start()
        if self._is_following:
            return
        self.execute(
            "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s, MASTER_USER = %s, "
            "MASTER_PASSWORD = %s, MASTER_USE_GTID = slave_pos, "
            "MASTER_CONNECT_RETRY = 1",
            (
                self.primary.host,
                self.primary.port,
                ADMINISTRATOR,
                self._administrator_password,
            ),
        )
        self.execute("START SLAVE")
        self._is_following = True

    def pause_replay(self) -> None:
        """Stop applying what arrives; returns once nothing more is applied."""
        self.execute("STOP SLAVE SQL_THREAD")

    def resume_replay(self) -> None:
        """Apply what arrived meanwhile and what arrives from now on."""
        self.execute("START SLAVE SQL_THREAD")

    def stop_receiving(self) -> None:
        """Receive no more of the primary's log; returns once nothing more comes in.

        What the primary acknowledges from now on is lost when this one is promoted.
        """
        self.execute("STOP SLAVE IO_THREAD")

    def follow(self, primary: MariaDBServer) -> None:
        """Follow another primary, which was promoted; returns once it was told."""
        self.execute("STOP SLAVE")
        self.execute(
            "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s, "
            "MASTER_USE_GTID = slave_pos",
            (primary.host, primary.port),
        )
        self.execute("START SLAVE")
        self.primary = primary

    def promote(self) -> None:
        """Make this replica a primary; returns once it accepts writes.

        What has arrived and was not applied yet is lost: catch up first to keep it.
        """
        self.execute("STOP SLAVE")
        self.execute("RESET SLAVE ALL")
        self.execute("SET GLOBAL read_only = OFF")
        self.options["read-only"] = "OFF"
        self.role = "primary"

    def wait_until_caught_up(self, deadline_s: float = 30.0) -> None:
        """Return once all that the primary has acknowledged by now is visible.

        Raises ``DeadlineExceeded``; ``ServerFailed`` with the server's reason when
        the replication has stopped by an error.
        """
        super().wait_until_caught_up(deadline_s)

    def _primary_position(self) -> str:
        [(position,)] = self.primary.execute("SELECT @@gtid_binlog_pos")
        return str(position)

    def _has_replayed(self, position: str) -> bool:
        if self.execute("SELECT MASTER_GTID_WAIT(%s, 0)", (position,)) == [(0,)]:
            return True
        self._check_replication()
        return False

    def _check_replication(self) -> None:
        with contextlib.closing(self._connect(None)) as connection:
            cursor = connection.cursor(_driver().cursors.DictCursor)
            cursor.execute("SHOW SLAVE STATUS")
            for status in cursor.fetchall():
                for thread in ("SQL", "IO"):
                    # A thread that lost its primary and tries again is "Connecting".
                    has_ended = status[f"Slave_{thread}_Running"] == "No"
                    error = status[f"Last_{thread}_Error"]
                    if has_ended and error:
                        raise ServerFailed(
                            f"the replication of {self.name} ended: {error}"
                        )

    @property
    def _pristine_directory(self) -> Path:
        return self.primary._pristine_directory

    def _prepare(self) -> None:
        self._copy_pristine()


def _driver() -> Any:
    try:
        return importlib.import_module("pymysql")
    except ImportError as error:
        raise ServerUnavailable(
            "the driver of MariaDB is missing: pip install PyMySQL"
        ) from error
