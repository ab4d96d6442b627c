"""A directory of SQLite files, in the shape of a server of the rig."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from dbfleet.testing.rig.server import checked_name


class SQLiteDirectory:
    """SQLite databases, one file each. There is no process and no replica."""

    engine = "sqlite"
    role = "primary"

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory / name

    def path(self, dbname: str) -> Path:
        """Return the file of a database."""
        return self.directory / f"{checked_name(dbname)}.sqlite3"

    def url(self, dbname: str) -> str:
        """Return the URL of a database."""
        return f"sqlite:///{self.path(dbname)}"

    def settings(self, dbname: str) -> dict[str, Any]:
        """Return Django's own settings of a database."""
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(self.path(dbname))}

    def start(self) -> None:
        """Make the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def create_database(self, name: str) -> None:
        """Create an empty database file in WAL mode, so that readers never wait."""
        with contextlib.closing(sqlite3.connect(self.path(name))) as connection:
            connection.execute("PRAGMA journal_mode = wal")

    def drop_database(self, name: str) -> None:
        """Delete the files of a database if it exists."""
        path = self.path(name)
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def execute(
        self, statement: str, params: Any = (), *, dbname: str
    ) -> list[tuple[Any, ...]]:
        """Run one statement in autocommit and return its rows."""
        # A wrong name must not make a file.
        connection = sqlite3.connect(
            f"{self.path(dbname).resolve().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
        )
        with contextlib.closing(connection):
            return connection.execute(statement, params).fetchall()
