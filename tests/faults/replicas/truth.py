"""What the primary holds, asked past the proxy and past the alias under test."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tests.faults.replicas.servers import DATABASE

TIMEOUT_S = 5


class Truth:
    """One connection for the clients of a process."""

    def __init__(self, engine: str, urls: Sequence[str], leader: Any) -> None:
        self._engine, self._urls, self._leader = engine, urls, leader
        self._at = -1
        self._lock = threading.Lock()
        self._connection: Any = None

    def counter(self, register: int) -> int | None:
        """A register's counter; None where the primary does not answer."""
        sql = f"SELECT counter FROM replicas_register WHERE id = {register:d}"
        with self._lock:
            try:
                if self._connection is None or self._at != self._leader[0]:
                    self._at = self._leader[0]
                    self._connection = self._connect(urlsplit(self._urls[self._at]))
                cursor = self._connection.cursor()
                cursor.execute(sql)
                return int(cursor.fetchone()[0])
            except Exception:  # noqa: BLE001 - of two drivers: it is down
                self._connection = None
                return None

    def _connect(self, url: SplitResult) -> Any:
        if self._engine == "postgresql":
            import psycopg

            return psycopg.connect(
                host=url.hostname,
                port=url.port,
                user=url.username,
                dbname=DATABASE,
                autocommit=True,
                connect_timeout=TIMEOUT_S,
            )
        import pymysql

        return pymysql.connect(
            host=url.hostname,
            port=url.port or 0,
            user=url.username,
            password=url.password or "",
            database=DATABASE,
            autocommit=True,
            connect_timeout=TIMEOUT_S,
            read_timeout=TIMEOUT_S,
        )
