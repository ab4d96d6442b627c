"""Queries of several shards beside one database with the same rows.

One process has them all as aliases, so that a ratio is taken between calls a few
milliseconds apart: ``default`` (one database), ``four`` (the same rows on four shards
of the same server), and ``eight`` (eight shards, each behind a proxy that answers 5 ms
later) beside ``shard1`` … ``shard8``, each of its shards as plain Django has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from pprint import pformat
from typing import Any
from urllib.parse import urlsplit

from dbfleet.testing.rig import Rig
from tests.bench.projects import Project

DELAY_S = 0.005
ROWS, QUICK_ROWS = 2_000_000, 20_000
FOUR = tuple(f"four_{n}" for n in range(1, 5))
EIGHT = tuple(f"eight_{n}" for n in range(1, 9))
NAMES = ("plain", "home", "far_home", *FOUR, *EIGHT)

_SETTINGS = """\
from dbfleet import Sharded, databases

SECRET_KEY = "bench"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["dbfleet", "django.contrib.auth", "django.contrib.contenttypes",
                  "tests.bench.shop"]
DATABASES = databases(
    four=Sharded(home={home!r}, shards={four!r}, CONN_MAX_AGE=600),
    eight=Sharded(home={far_home!r}, shards={eight!r}, CONN_MAX_AGE=600),
)
DATABASES |= {plain}
DATABASE_ROUTERS = []
DBFLEET = {{"SHARD_KEYS": {{}}}}
"""


def measure_shards(
    directory: Path, *, quick: bool, rows: int | None = None
) -> list[dict[str, Any]]:
    """Ordered pages, aggregates, streams and loads; about four minutes.

    ``rows`` of the tables, 2 million unless it is quick.
    """
    with Rig(durable=False) as rig:
        servers = rig.postgresql_cluster(databases=NAMES, options=_tuned())
        far = {}
        proxies = []
        for name in ("far_home", *EIGHT):
            proxy, far[name] = rig.proxy(servers.url(name))
            proxies.append(proxy)
        project = _project(directory / "shards", servers, far)
        measuring = _Process(project)
        measuring.ask("fill", rows=rows or (QUICK_ROWS if quick else ROWS))
        results = measuring.ask("near", quick=quick)
        streaming = _Process(project)
        results.append(streaming.ask("stream"))
        streaming.close()
        for proxy in proxies:
            proxy.delay(DELAY_S)
        results += measuring.ask("far", quick=quick)
        measuring.close()
    return list(results)


def _tuned() -> dict[str, str]:
    """The server's settings, for one database as for shards: as many parallel workers
    as there are cores. By default PostgreSQL starts up to eight, which is more than
    small machines have, and four queries at once then wait for each other's."""
    workers = str(os.cpu_count() or 2)
    return {
        "shared_buffers": "512MB",
        "work_mem": "32MB",
        "max_parallel_workers": workers,
    }


def _project(directory: Path, servers: Any, far: dict[str, str]) -> Project:
    directory.mkdir()
    plain = {"default": servers.primary.settings("plain") | {"CONN_MAX_AGE": 600}}
    for number, name in enumerate(EIGHT, 1):
        parts = urlsplit(far[name])
        entry = servers.primary.settings(name)
        entry |= {"HOST": parts.hostname, "PORT": str(parts.port), "CONN_MAX_AGE": 600}
        plain[f"shard{number}"] = entry
    source = _SETTINGS.format(
        home=servers.url("home"),
        four={name: servers.url(name) for name in FOUR},
        far_home=far["far_home"],
        eight={name: far[name] for name in EIGHT},
        plain=pformat(plain),
    )
    (directory / "bench_shards.py").write_text(source)
    return Project("shards", directory)


class _Process:
    """The process that measures; it answers each request with a line of JSON."""

    def __init__(self, project: Project) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.shards_worker"],
            cwd=project.directory,
            env=project.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str, **options: Any) -> Any:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([what, options]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended with exit code {process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()
