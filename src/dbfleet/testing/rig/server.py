"""What every database server of the rig has in common.

Guards two invariants: ``start()`` returns only once the server accepts
connections, and no method waits without a deadline. A killed server keeps all it
acknowledged: the speed settings of the engines give up safety against a loss of
power, never against the death of the process.
"""

from __future__ import annotations

import re
import secrets
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from dbfleet.testing.rig import ports
from dbfleet.testing.rig.errors import DeadlineExceeded, RigError, ServerFailed
from dbfleet.testing.rig.identity import Identity
from dbfleet.testing.rig.processes import ServerProcess
from dbfleet.testing.rig.waiting import wait_until

USER = "dbfleet"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
#: How many ports are tried when another process takes one before the server.
PORT_ATTEMPTS = 4


class DatabaseServer(ABC):
    """One database server on ``127.0.0.1`` with a directory of its own.

    ``options`` are settings of the server by name; they override the rig's and may
    be changed between a ``stop()`` and the next ``start()``.
    """

    engine: ClassVar[str]
    scheme: ClassVar[str]
    role = "primary"
    stop_signals: ClassVar[dict[str, signal.Signals]]

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        identity: Identity,
        durable: bool = False,
        password: str | None = None,
        options: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.directory = directory / name
        self.identity = identity
        self.durable = durable
        self.user = USER
        self.password = password
        self.options = dict(options or {})
        self.host = ports.HOST
        self.port = 0
        self._process: ServerProcess | None = None
        self._is_prepared = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} on port {self.port}>"

    @property
    def data_directory(self) -> Path:
        """Where the server keeps its data."""
        return self.directory / "data"

    @property
    def log_path(self) -> Path:
        """The file that the server's output goes to."""
        return self.directory / "server.log"

    @property
    def pid(self) -> int:
        """The id of the server's first process; 0 when it does not run."""
        if self._process is None or not self._process.is_running:
            return 0
        return self._process.pid or 0

    @property
    def is_running(self) -> bool:
        """Tell whether the process exists; a paused server is running."""
        return self._process is not None and self._process.is_running

    def url(self, dbname: str) -> str:
        """Return the URL of a database of this server, password included."""
        secret = f":{quote(self.password, safe='')}" if self.password else ""
        return (
            f"{self.scheme}://{self.user}{secret}@{self.host}:{self.port}"
            f"/{quote(dbname, safe='')}"
        )

    def start(self) -> None:
        """Start the server and return once it accepts connections.

        Makes its data first if there is none. A server keeps its port for life.
        Raises ``ServerFailed`` quoting its log, ``ServerUnavailable`` when its
        programs are missing.
        """
        if self.is_running:
            return
        if not self._is_prepared:
            self.directory.mkdir()
            self.identity.own(self.directory)
            self._prepare()
            self._is_prepared = True
        if self.port:
            self._launch()
            return
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.port = ports.free_port()
            try:
                self._launch()
            except ServerFailed as error:
                taken = "address already in use" in str(error).lower()
                if not taken or attempt == PORT_ATTEMPTS:
                    raise
            else:
                return

    def stop(self, mode: str = "fast") -> None:
        """Stop the server and return once it has ended.

        ``mode`` is ``"smart"`` (waits for clients), ``"fast"`` (ends them) or
        ``"immediate"`` (recovers at the next start). Raises ``DeadlineExceeded``.
        """
        if mode not in self.stop_signals:
            raise ValueError(f"mode {mode!r} is not one of {[*self.stop_signals]}")
        if self._process is None or not self._process.is_running:
            return
        self._process.send(self.stop_signals[mode])
        self._process.thaw()
        self._process.wait(STOP_TIMEOUT_S)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start the server; changed ``options`` take effect."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End all processes of the server at once (SIGKILL)."""
        if self._process is not None:
            self._process.kill()

    def discard(self) -> None:
        """End the server for good, as fast as leaves nothing behind."""
        try:
            self.stop("immediate")
        except DeadlineExceeded:
            self.kill()
        if self.port:
            ports.give_back(self.port)

    def detach(self) -> None:
        """Let the server outlive this interpreter; it cannot be stopped here then."""
        if self._process is not None:
            self._process.detach()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open, nothing answers."""
        if self._process is not None:
            self._process.freeze()

    def resume(self) -> None:
        """Let a paused server go on."""
        if self._process is not None:
            self._process.thaw()

    @abstractmethod
    def execute(
        self, statement: str, params: Any = None, *, dbname: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement as administrator, outside a transaction; return rows.

        Opens a connection of its own. Errors are the driver's.
        """

    @abstractmethod
    def create_database(self, name: str) -> None:
        """Create an empty database."""

    @abstractmethod
    def drop_database(self, name: str) -> None:
        """Drop a database if it exists, ending its connections."""

    @abstractmethod
    def settings(self, dbname: str) -> dict[str, Any]:
        """Return Django's own settings of a database of this server."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data directory."""

    @abstractmethod
    def _argv(self) -> list[str | Path]:
        """Return the command line of the server."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Tell whether the server accepts connections."""

    def _launch(self) -> None:
        process = ServerProcess(
            self._argv(),
            directory=self.directory,
            identity=self.identity,
        )
        self._process = process
        process.start()

        def is_ready_or_dead() -> bool:
            return not process.is_running or self._is_ready()

        try:
            wait_until(
                is_ready_or_dead, timeout_s=START_TIMEOUT_S, what=f"{self.name} starts"
            )
        except BaseException as error:
            process.kill()
            if not isinstance(error, DeadlineExceeded):
                raise
            raise ServerFailed(
                f"{error}; its log ends:\n{process.log_tail()}"
            ) from None
        if not process.is_running:
            status = process.wait(STOP_TIMEOUT_S)
            raise ServerFailed(
                f"server {self.name} ended with exit status {status} instead of "
                f"starting; its log ends:\n{process.log_tail()}"
            )


class ReplicaServer(DatabaseServer):
    """A server that follows ``primary`` and refuses the writes of applications."""

    role = "replica"
    primary: DatabaseServer

    @abstractmethod
    def pause_replay(self) -> None:
        """Stop applying what arrives; returns once nothing more is applied."""

    @abstractmethod
    def resume_replay(self) -> None:
        """Apply what arrived meanwhile and what arrives from now on."""

    @abstractmethod
    def promote(self) -> None:
        """Make this replica a primary; returns once it accepts writes."""

    def has_caught_up(self) -> bool:
        """Tell whether all that the primary has acknowledged by now is visible."""
        return self._has_replayed(self._primary_position())

    def wait_until_caught_up(self, deadline_s: float = 30.0) -> None:
        """Return once all that the primary has acknowledged by now is visible.

        Raises ``DeadlineExceeded``.
        """
        position = self._primary_position()
        wait_until(
            lambda: self._has_replayed(position),
            timeout_s=deadline_s,
            what=f"{self.name} catches up with {self.primary.name}",
        )

    @abstractmethod
    def _primary_position(self) -> str:
        """Return the position of all that the primary has acknowledged."""

    @abstractmethod
    def _has_replayed(self, position: str) -> bool:
        """Tell whether all up to ``position`` is visible here."""


def make_password() -> str:
    """Return a new random password."""
    return secrets.token_hex(12)


def checked_name(name: str) -> str:
    """Return ``name`` if it may name a database of the rig; raise ``RigError``."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", name):
        raise RigError(
            f"{name!r} cannot name a database of the rig: use letters, digits and "
            "underscores, at most 63"
        )
    return name
