"""PostgreSQL servers and their streaming replicas.

Guards one invariant: a server of the rig can do all that a fleet may ask of it
(prepared transactions, logical WAL, hot standby), whatever the machine's defaults.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, ClassVar

from dbfleet.testing.rig.errors import ServerUnavailable
from dbfleet.testing.rig.identity import Identity, run_tool, unprivileged
from dbfleet.testing.rig.postgresql_binaries import PostgresBinaries, find_postgresql
from dbfleet.testing.rig.server import DatabaseServer, ReplicaServer, checked_name
from dbfleet.testing.rig.waiting import wait_until

CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 60

OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_prepared_transactions": "64",
    "wal_level": "logical",
    "hot_standby": "on",
    # A replica that was away for a while must still find what it missed.
    "wal_keep_size": "256MB",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "100ms",
    "shared_buffers": "64MB",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
# Against a loss of power only: a killed server still keeps what it acknowledged.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer(DatabaseServer):
    """A PostgreSQL primary.

    Without ``password`` every local user may connect (trust), with it the server
    asks for it (SCRAM). The user ``dbfleet`` is a superuser.
    """

    engine = "postgresql"
    scheme = "postgres"
    stop_signals: ClassVar[dict[str, signal.Signals]] = {
        "smart": signal.SIGTERM,
        "fast": signal.SIGINT,
        "immediate": signal.SIGQUIT,
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
        binaries: PostgresBinaries | None = None,
    ) -> None:
        super().__init__(
            name,
            directory,
            identity=identity or unprivileged("postgres"),
            durable=durable,
            password=password,
            options=options,
        )
        self._binaries = binaries

    @property
    def binaries(self) -> PostgresBinaries:
        """The programs that this server is made of; found at first use."""
        if self._binaries is None:
            self._binaries = find_postgresql(
                self.identity, copies_in=self.directory.parent
            )
        return self._binaries

    def settings(self, dbname: str) -> dict[str, Any]:
        """Return Django's own settings of a database of this server."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": dbname,
            "USER": self.user,
            "PASSWORD": self.password or "",
            "HOST": self.host,
            "PORT": str(self.port),
        }

    def execute(
        self, statement: str, params: Any = None, *, dbname: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement in autocommit as ``dbfleet`` and return its rows."""
        try:
            import psycopg
        except ImportError as error:
            raise ServerUnavailable(
                "the driver of PostgreSQL is missing: pip install 'psycopg[binary]'"
            ) from error
        with psycopg.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            dbname=dbname or "postgres",
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
        ) as connection:
            cursor = connection.execute(statement.encode(), params)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str) -> None:
        """Create an empty database in UTF-8."""
        self.execute(f'CREATE DATABASE "{checked_name(name)}"')

    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending its connections."""
        self.execute(f'DROP DATABASE IF EXISTS "{checked_name(name)}" WITH (FORCE)')

    def _prepare(self) -> None:
        argv: list[str | Path] = [
            self.binaries.program("initdb"),
            f"--pgdata={self.data_directory}",
            f"--username={self.user}",
            "--encoding=UTF8",
            f"--locale={self.binaries.locale}",
            "--no-instructions",
        ]
        if not self.durable:
            argv.append("--no-sync")
        if not self.password:
            argv.append("--auth=trust")
            run_tool(argv, identity=self.identity, directory=self.directory)
            return
        password_file = self.directory / "password"
        argv += ["--auth=scram-sha-256", f"--pwfile={password_file}"]
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        self.identity.own(password_file)
        try:
            run_tool(argv, identity=self.identity, directory=self.directory)
        finally:
            password_file.unlink()

    def _argv(self) -> list[str | Path]:
        options = OPTIONS | ({} if self.durable else NOT_DURABLE) | self.options
        argv: list[str | Path] = [
            self.binaries.program("postgres"),
            "-D",
            self.data_directory,
            "-p",
            str(self.port),
        ]
        for name, value in options.items():
            argv += ["-c", f"{name}={value}"]
        return argv

    def _is_ready(self) -> bool:
        # What pg_ctl does: line 1 is the process, line 8 its state.
        try:
            pid_file = self.data_directory / "postmaster.pid"
            lines = pid_file.read_text().splitlines()
        except FileNotFoundError:
            return False
        return (
            len(lines) >= 8
            and lines[0] == str(self.pid)
            and lines[7].strip() == "ready"
        )


class PostgresReplica(PostgresServer, ReplicaServer):
    """A streaming replica of ``primary``, copied from it at its first start."""

    primary: PostgresServer

    def __init__(
        self,
        name: str,
        primary: PostgresServer,
        *,
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            name,
            primary.directory.parent,
            identity=primary.identity,
            durable=primary.durable,
            password=primary.password,
            options=primary.options | (options or {}),
            binaries=primary.binaries,
        )
        self.primary = primary

    def pause_replay(self) -> None:
        """Stop applying what arrives; returns once nothing more is applied."""
        self.execute("SELECT pg_wal_replay_pause()")
        wait_until(
            lambda: (
                self.execute("SELECT pg_get_wal_replay_pause_state()") == [("paused",)]
            ),
            timeout_s=STATEMENT_TIMEOUT_S,
            what=f"{self.name} pauses its replay",
        )

    def resume_replay(self) -> None:
        """Apply what arrived meanwhile and what arrives from now on."""
        self.execute("SELECT pg_wal_replay_resume()")

    def stop_receiving(self) -> None:
        """Receive no more of the primary's log; returns once nothing more comes in.

        What the primary acknowledges from now on is lost when this one is promoted.
        """
        self.execute("ALTER SYSTEM SET primary_conninfo = ''")
        self.execute("SELECT pg_reload_conf()")
        wait_until(
            lambda: self.execute("SELECT 1 FROM pg_stat_wal_receiver") == [],
            timeout_s=STATEMENT_TIMEOUT_S,
            what=f"{self.name} stops receiving",
        )

    def follow(self, primary: PostgresServer) -> None:
        """Follow another primary, which was promoted; returns once it was told."""
        conninfo = f"host={primary.host} port={primary.port} user={primary.user}"
        if primary.password:
            conninfo += f" password={primary.password}"
        self.execute(f"ALTER SYSTEM SET primary_conninfo = '{conninfo}'")
        self.execute("SELECT pg_reload_conf()")
        self.primary = primary

    def delay_replay(self, seconds: float) -> None:
        """Apply each commit ``seconds`` after its primary made it; 0 ends that.

        What a transaction did is applied at once, its commit is not: the position of
        the replica then lies just before a commit. Returns once the server was told.
        """
        delay = f"{round(seconds * 1000)}ms"
        self.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = '{delay}'")
        self.execute("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Make this replica a primary; returns once it accepts writes."""
        self.execute("SELECT pg_promote(false)")
        wait_until(
            lambda: self.execute("SELECT pg_is_in_recovery()") == [(False,)],
            timeout_s=STATEMENT_TIMEOUT_S,
            what=f"{self.name} is promoted",
        )
        self.role = "primary"

    def _primary_position(self) -> str:
        [(position,)] = self.primary.execute("SELECT pg_current_wal_flush_lsn()::text")
        return str(position)

    def _has_replayed(self, position: str) -> bool:
        return self.execute(
            "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)
        ) == [(True,)]

    def _prepare(self) -> None:
        argv: list[str | Path] = [
            self.binaries.program("pg_basebackup"),
            f"--pgdata={self.data_directory}",
            f"--host={self.primary.host}",
            f"--port={self.primary.port}",
            f"--username={self.user}",
            "--no-password",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--write-recovery-conf",
        ]
        if not self.durable:
            argv.append("--no-sync")
        run_tool(
            argv,
            identity=self.identity,
            directory=self.directory,
            environment={"PGPASSWORD": self.password} if self.password else None,
        )
