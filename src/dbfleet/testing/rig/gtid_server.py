"""What the servers of MariaDB and MySQL share: PyMySQL, users, replication by GTID.

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
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from dbfleet.testing.rig.errors import ServerFailed, ServerUnavailable
from dbfleet.testing.rig.identity import Identity, unprivileged
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

#: options of both vendors' servers
OPTIONS = {
    "bind-address": "127.0.0.1",
    "skip-name-resolve": "ON",
    "character-set-server": "utf8mb4",
    "max-connections": "200",
    "log-bin": "binlog",
    "log-bin-trust-function-creators": "ON",
    "default-time-zone": "+00:00",
    "innodb-buffer-pool-size": "64M",
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


class GtidServer(DatabaseServer):
    """A primary with a binary log, GTIDs and loaded time zones."""

    scheme = "mysql"
    #: the vendor's own options
    vendor_options: ClassVar[dict[str, str]]
    #: what ALL PRIVILEGES would give an application too much
    not_granted: ClassVar[tuple[str, ...]]
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
            with contextlib.suppress(pymysql().OperationalError):
                self.execute(f"KILL {connection}")
        self.execute(f"DROP DATABASE IF EXISTS `{checked_name(name)}`")

    @property
    def _pristine_directory(self) -> Path:
        """A copy of the data as it was before the first start; replicas begin there.

        The binary log of the primary holds everything since.
        """
        return self.directory / "pristine"

    @abstractmethod
    def _install(self, setup: Path) -> None:
        """Make the pristine directory, and run the SQL of a file in it."""

    @abstractmethod
    def _zones_sql(self) -> str:
        """Return the SQL that loads the machine's time zones."""

    @property
    @abstractmethod
    def _program(self) -> Path:
        """The server's program."""

    def _prepare(self) -> None:
        pymysql()
        setup = self.directory / "users-and-time-zones.sql"
        setup.touch(mode=0o600)
        setup.write_text(self._setup_sql())
        self.identity.own(setup)
        try:
            self._install(setup)
        finally:
            setup.unlink()
        self._copy_pristine()

    def _copy_pristine(self) -> None:
        shutil.copytree(self._pristine_directory, self.data_directory)
        self.identity.own(self.data_directory)

    def _setup_sql(self) -> str:
        # The server escapes nothing here: both passwords must be plain.
        for password in (self.password or "", self._administrator_password):
            if not re.fullmatch(r"[\x20-\x7e]+", password) or set("'\\") & {*password}:
                raise ServerFailed(
                    "a password of the rig may hold printable ASCII except ' and \\"
                )
        administrator = f"'{ADMINISTRATOR}'@'{self.host}'"
        user = f"'{self.user}'@'{self.host}'"
        return "\n".join(
            [
                "USE mysql;",
                "FLUSH PRIVILEGES;",
                f"CREATE USER {administrator} IDENTIFIED BY "
                f"'{self._administrator_password}';",
                f"GRANT ALL PRIVILEGES ON *.* TO {administrator};",
                f"CREATE USER {user} IDENTIFIED BY '{self.password}';",
                f"GRANT ALL PRIVILEGES ON *.* TO {user} WITH GRANT OPTION;",
                f"REVOKE {', '.join(self.not_granted)} ON *.* FROM {user};",
                self._zones_sql(),
                "",
            ]
        )

    def _argv(self) -> list[str | Path]:
        options = (
            OPTIONS
            | self.vendor_options
            | (DURABLE if self.durable else NOT_DURABLE)
            | {
                "server-id": str(self.server_id),
                "port": str(self.port),
                "datadir": str(self.data_directory),
                "tmpdir": str(self.directory),
                "pid-file": str(self.directory / "server.pid"),
            }
            | self._more_options()
            | self.options
        )
        return [
            self._program,
            "--no-defaults",
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def _more_options(self) -> dict[str, str]:
        """Options that this server alone has."""
        return {}

    def _is_ready(self) -> bool:
        try:
            self._connect(None).close()
        except pymysql().OperationalError as error:
            if error.args[0] == ACCESS_DENIED:
                raise ServerFailed(
                    f"port {self.port} is answered by another server than {self.name}"
                ) from None
            return False
        return True

    def _connect(self, dbname: str | None) -> Any:
        return pymysql().connect(
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


class GtidReplica(GtidServer, ReplicaServer):
    """A read-only replica of ``primary``, positioned by GTID."""

    primary: GtidServer
    #: what the vendor calls a replica in the columns of SHOW REPLICA STATUS
    status_word: ClassVar[str]

    def __init__(
        self,
        name: str,
        primary: GtidServer,
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

    @abstractmethod
    def _point_to(self, primary: GtidServer) -> None:
        """Name the server to follow; replication does not run."""

    def start(self) -> None:
        """Start the server and, the first time, its replication."""
        super().start()
        if self._is_following:
            return
        self._point_to(self.primary)
        self.execute("START REPLICA")
        self._is_following = True

    def pause_replay(self) -> None:
        """Stop applying what arrives; returns once nothing more is applied."""
        self.execute("STOP REPLICA SQL_THREAD")

    def resume_replay(self) -> None:
        """Apply what arrived meanwhile and what arrives from now on."""
        self.execute("START REPLICA SQL_THREAD")

    def stop_receiving(self) -> None:
        """Receive no more of the primary's log; returns once nothing more comes in.

        What the primary acknowledges from now on is lost when this one is promoted.
        """
        self.execute("STOP REPLICA IO_THREAD")

    def follow(self, primary: GtidServer) -> None:
        """Follow another primary, which was promoted; returns once it was told."""
        self.execute("STOP REPLICA")
        self._point_to(primary)
        self.execute("START REPLICA")
        self.primary = primary

    def promote(self) -> None:
        """Make this replica a primary; returns once it accepts writes.

        What has arrived and was not applied yet is lost: catch up first to keep it.
        """
        self.execute("STOP REPLICA")
        self.execute("RESET REPLICA ALL")
        self.execute("SET GLOBAL read_only = OFF")
        self.options["read-only"] = "OFF"
        self.role = "primary"

    def wait_until_caught_up(self, deadline_s: float = 30.0) -> None:
        """Return once all that the primary has acknowledged by now is visible.

        Raises ``DeadlineExceeded``; ``ServerFailed`` with the server's reason when
        the replication has stopped by an error.
        """
        super().wait_until_caught_up(deadline_s)

    def _check_replication(self) -> None:
        with contextlib.closing(self._connect(None)) as connection:
            cursor = connection.cursor(pymysql().cursors.DictCursor)
            cursor.execute("SHOW REPLICA STATUS")
            for status in cursor.fetchall():
                for thread in ("SQL", "IO"):
                    # A thread that lost its primary and tries again is "Connecting".
                    running = status[f"{self.status_word}_{thread}_Running"]
                    error = status[f"Last_{thread}_Error"]
                    if running == "No" and error:
                        raise ServerFailed(
                            f"the replication of {self.name} ended: {error}"
                        )

    @property
    def _pristine_directory(self) -> Path:
        return self.primary._pristine_directory

    def _prepare(self) -> None:
        self._copy_pristine()


def pymysql() -> Any:
    """Return the driver; raise ``ServerUnavailable`` where it is missing."""
    try:
        return importlib.import_module("pymysql")
    except ImportError as error:
        raise ServerUnavailable(
            "the driver of MariaDB and MySQL is missing: pip install PyMySQL"
        ) from error
