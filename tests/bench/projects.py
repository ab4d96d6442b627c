"""The projects that are compared, and the servers under them.

Each is as its documentation would have it written. All nodes are on one machine, and
each project reads from the same kind of server as its baseline: a replica of the
cluster against that replica, a shard against a database beside it on one server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from dbfleet.testing.rig import PostgresCluster

REPOSITORY = Path(__file__).resolve().parents[2]
SHARDS = ("a", "b", "c")
#: of the primary; "plain" is the baseline of the shards
DATABASES = ("shop", "plain", "home", *SHARDS)

_SETTINGS = """\
SECRET_KEY = "bench"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    {dbfleet}
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "tests.bench.shop",
]
{databases}
{routers}
"""
_FLEET = """\
from dbfleet import Cluster, Sharded, databases

DATABASES = databases(default={default})
"""
#: What a project writes today: reads from a random replica, writes to the primary.
_ROUTER = '''\
"""The usual router of replicas."""

import random


class ReplicaRouter:
    def db_for_read(self, model, **hints):
        return random.choice(["replica1", "replica2"])

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True

    def allow_migrate(self, db, app_label, model_name=None, **hints):
        return db == "default"
'''


@dataclass(frozen=True)
class Project:
    """A settings module and the directory it lies in."""

    name: str
    directory: Path

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(
            map(str, (self.directory, REPOSITORY / "src", REPOSITORY))
        )
        # Modules are compiled once, as they are where a package is installed.
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return {
            **kept,
            "PYTHONPYCACHEPREFIX": str(self.directory / "pycache"),
            "DJANGO_SETTINGS_MODULE": f"bench_{self.name}",
            "PYTHONPATH": path,
        }


class Worker:
    """A running process of a project."""

    def __init__(self, project: Project) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.worker"],
            cwd=project.directory,
            env=project.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> float:
        """Have the process do something; return the seconds that it took."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a worker ended with exit code {process.wait()}")
        return float(json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def write_projects(
    directory: Path, servers: PostgresCluster, far: Sequence[str]
) -> dict[str, Project]:
    """Write the settings of every project; returns them by name.

    ``far``: URLs of the replicas behind proxies that answer later.
    """
    primary, (first, second) = servers.primary, servers.replicas
    urls = [first.url("shop"), second.url("shop")]
    behind = urlsplit(far[0])
    shards = {name: primary.url(name) for name in SHARDS}
    router_databases = {
        "default": primary.settings("shop"),
        "replica1": first.settings("shop"),
        "replica2": second.settings("shop"),
    }
    placement = 'DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]'
    fleets = {
        "cluster": f"Cluster({primary.url('shop')!r}, replicas={urls!r})",
        "far_cluster": f"Cluster({primary.url('shop')!r}, replicas={list(far)!r})",
        "sharded": f"Sharded(home={primary.url('home')!r}, shards={shards!r})",
    }
    plain = {
        "replica": {"default": first.settings("shop")},
        "primary": {"default": primary.settings("plain")},
        "far_replica": {
            "default": first.settings("shop")
            | {"HOST": behind.hostname, "PORT": str(behind.port)}
        },
    }
    sources = {
        name: _SETTINGS.format(
            dbfleet='"dbfleet",',
            databases=_FLEET.format(default=default),
            routers=placement,
        )
        for name, default in fleets.items()
    }
    for name, databases in {**plain, "router": router_databases}.items():
        routers = 'DATABASE_ROUTERS = ["bench_routers.ReplicaRouter"]'
        sources[name] = _SETTINGS.format(
            dbfleet="",
            databases=f"DATABASES = {pformat(databases)}",
            routers=routers if name == "router" else "",
        )
    (directory / "bench_routers.py").write_text(_ROUTER)
    for name, source in sources.items():
        (directory / f"bench_{name}.py").write_text(source)
    return {name: Project(name, directory) for name in sources}


def load(projects: dict[str, Project], servers: PostgresCluster) -> None:
    """Fill every database; replicas have it all when this returns."""
    for name in ("cluster", "primary", "sharded"):
        worker = Worker(projects[name])
        worker.ask(load=True)
        worker.close()
    for name in DATABASES:
        servers.primary.execute("VACUUM (ANALYZE)", dbname=name)
    servers.primary.execute("CHECKPOINT", dbname="shop")
    servers.wait_until_caught_up()
