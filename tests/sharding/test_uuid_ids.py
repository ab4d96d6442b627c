"""UUIDs of version 7: RFC 9562's bits, rising in a process, apart in a fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid

import pytest
from django.db import models
from django.db.migrations.writer import MigrationWriter

import dbfleet
from dbfleet.sharding import uuids
from tests.support.project import REPOSITORY


def ms_of(value: uuid.UUID) -> int:
    return value.int >> 80


def test_bits() -> None:
    before = time.time_ns() // 10**6
    found = [dbfleet.uuid7() for _ in range(1000)]
    after = time.time_ns() // 10**6
    assert {one.version for one in found} == {7}
    assert {one.variant for one in found} == {uuid.RFC_4122}
    assert before <= ms_of(found[0]) <= ms_of(found[-1]) <= after + 1
    assert len({one.int & (1 << 62) - 1 for one in found}) == 1000


def test_they_rise_over_threads() -> None:
    found: list[list[uuid.UUID]] = [[] for _ in range(4)]

    def make(into: list[uuid.UUID]) -> None:
        into.extend(uuids.uuid7() for _ in range(3000))

    threads = [threading.Thread(target=make, args=[one]) for one in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(one == sorted(one) for one in found)
    assert len({value for one in found for value in one}) == 12_000


@pytest.mark.parametrize(
    ("last", "now_ms", "then"),
    [
        ((1000, 5), 1001, (1001, 77)),
        ((1000, 5), 1000, (1000, 6)),
        ((1000, 5), 400, (1000, 6)),  # set back a little: time stands still
        ((1000, 4095), 1000, (1001, 77)),  # a millisecond is full
        ((20_000, 5), 9_999, (9_999, 77)),  # set back by more than 10 s
    ],
)
def test_the_counter(last: tuple[int, int], now_ms: int, then: tuple[int, int]) -> None:
    assert uuids._after(last, now_ms, 77) == then


def test_a_fork_makes_others() -> None:
    code = """
import json, os
from dbfleet import uuid7
uuid7()
read, write = os.pipe()
child = os.fork()
found = [str(uuid7()) for _ in range(500)]
if child == 0:
    os.write(write, json.dumps(found).encode())
    os._exit(0)
os.close(write)
print(json.dumps([found, json.loads(open(read).read())]))
os.waitpid(child, 0)
"""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, check=True,
        timeout=60,
    )  # fmt: skip
    own, childs = json.loads(done.stdout)
    assert len({*own, *childs}) == 1000


def test_a_migration_names_the_public_default() -> None:
    field = models.UUIDField(primary_key=True, default=dbfleet.uuid7)
    text, imports = MigrationWriter.serialize(field)
    assert "default=dbfleet.uuid7" in text
    assert "import dbfleet" in imports
