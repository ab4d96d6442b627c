"""SQLite files of the rig."""

from __future__ import annotations

import contextlib
import sqlite3
from urllib.parse import urlsplit

import pytest

from dbfleet.testing.rig import Rig, RigError


def test_urls_and_settings_name_the_same_file(rig: Rig) -> None:
    files = rig.sqlite(databases=["a", "b"])
    files.execute("CREATE TABLE item (id int)", dbname="a")
    files.execute("INSERT INTO item VALUES (?)", (5,), dbname="a")
    path = urlsplit(files.url("a")).path[1:]
    assert path == files.settings("a")["NAME"] == str(files.path("a"))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM item").fetchall() == [(5,)]
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        files.execute("SELECT id FROM item", dbname="b")


def test_dropped_database_leaves_no_file(rig: Rig) -> None:
    files = rig.sqlite(name="dropped", databases=["a"])
    files.drop_database("a")
    files.drop_database("a")
    assert list(files.directory.iterdir()) == []


def test_statement_on_an_absent_database_is_refused(rig: Rig) -> None:
    files = rig.sqlite(name="absent")
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        files.execute("SELECT 1", dbname="nowhere")
    assert list(files.directory.iterdir()) == []
    with pytest.raises(RigError, match="cannot name a database"):
        files.path("../outside")
