"""Clusters that are broken while clients use them, and two projects on each.

The same servers twice: as a dbfleet alias, and as plain Django has them, each replica
an alias and a router that takes a random one. The victim is the last replica; behind a
proxy, where a fault is one of the network.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.bench.projects import Project

if TYPE_CHECKING:
    from dbfleet.testing.rig import PostgresCluster, Rig
    from dbfleet.testing.rig.proxy import FaultProxy

DATABASE = "shop"
ANSWER_S = 60

_SETTINGS = """\
SECRET_KEY = "bench"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [{apps}]
{databases}
DATABASE_ROUTERS = [{router!r}]
"""
_FLEET = """\
from dbfleet import Cluster, databases

DATABASES = databases(
    default=Cluster({url!r}, replicas={replicas!r}, CONN_MAX_AGE=600)
)
"""
#: As projects write it; with PIN_S, as django-multidb-router does: who wrote reads from
#: the primary for so long. Counts where reads go.
_ROUTER = '''\
"""Reads from a random replica, writes to the primary."""

import random
import threading
import time
from collections import Counter

REPLICAS = {replicas!r}
PIN_S = {pin_s!r}
served = Counter()
state = threading.local()


class ReplicaRouter:
    def db_for_read(self, model, **hints):
        is_pinned = time.monotonic() < getattr(state, "pinned_until", 0.0)
        alias = "default" if is_pinned else random.choice(REPLICAS)
        served[alias] += 1
        return alias

    def db_for_write(self, model, **hints):
        state.pinned_until = time.monotonic() + PIN_S
        return "default"

    def allow_relation(self, one, other, **hints):
        return True

    def allow_migrate(self, db, app_label, model_name=None, **hints):
        return db == "default"
'''


@dataclass(frozen=True)
class Fleet:
    """Servers, and the projects ``fleet`` and ``plain`` on them."""

    servers: PostgresCluster
    projects: dict[str, Project]
    #: before the last replica, for the projects
    proxy: FaultProxy

    @property
    def victim(self) -> Any:
        return self.servers.replicas[-1]


def start_fleet(
    rig: Rig, directory: Path, *, replicas: int, is_proxied: bool, pin_s: float = 0.0
) -> Fleet:
    """Start a cluster with the tables of the benchmark, filled, on every replica."""
    directory.mkdir()
    servers = rig.postgresql_cluster(replicas=replicas, databases=[DATABASE])
    proxy, proxied = rig.proxy(servers.replicas[-1].url(DATABASE))
    urls = servers.replica_urls(DATABASE)
    settings = [one.settings(DATABASE) for one in servers.replicas]
    if is_proxied:
        urls[-1] = proxied
        parts = urlsplit(proxied)
        settings[-1] |= {"HOST": parts.hostname, "PORT": str(parts.port)}
    names = [f"replica{number}" for number in range(1, replicas + 1)]
    plain = {"default": servers.primary.settings(DATABASE)}
    plain |= dict(zip(names, settings, strict=True))
    for entry in plain.values():
        entry["CONN_MAX_AGE"] = 600
    apps = '"django.contrib.auth", "django.contrib.contenttypes", "tests.bench.shop"'
    sources = {
        "bench_fleet": _SETTINGS.format(
            apps=f'"dbfleet", {apps}',
            databases=_FLEET.format(url=servers.url(DATABASE), replicas=urls),
            router="dbfleet.PlacementRouter",
        ),
        "bench_plain": _SETTINGS.format(
            apps=apps,
            databases=f"DATABASES = {pformat(plain)}",
            router="bench_routers.ReplicaRouter",
        ),
        "bench_routers": _ROUTER.format(replicas=names, pin_s=pin_s),
    }
    for name, source in sources.items():
        (directory / f"{name}.py").write_text(source)
    projects = {name: Project(name, directory) for name in ("fleet", "plain")}
    filling = Clients(projects["plain"])
    filling.ask(fill=True)
    filling.close()
    servers.wait_until_caught_up()
    return Fleet(servers, projects, proxy)


@dataclass(frozen=True)
class Request:
    """One request of a client, by the machine's monotonic clock."""

    what: str
    start: float
    #: None: it had not ended when the clients were stopped
    seconds: float | None
    error: str | None

    @property
    def is_good(self) -> bool:
        return self.seconds is not None and self.error is None


@dataclass(frozen=True)
class Record:
    """What the clients of one process did."""

    requests: Sequence[Request]
    #: when, which, of which node
    events: Sequence[tuple[float, str, str]]
    #: node -> reads that it answered
    served: dict[str, int]
    ended: float

    def between(self, start: float, end: float) -> list[Request]:
        return [one for one in self.requests if start <= one.start < end]

    def p99_ms(self, start: float, end: float) -> float | None:
        """Of the requests that began then, None if every client hung; those that
        never ended count as long."""
        took = sorted(
            self.ended - one.start if one.seconds is None else one.seconds
            for one in self.between(start, end)
        )
        return round(took[int(0.99 * (len(took) - 1))] * 1000, 1) if took else None

    def slowest_ms(self, start: float, end: float) -> float:
        took = [
            self.ended - one.start if one.seconds is None else one.seconds
            for one in self.between(start, end)
        ]
        return round(max(took, default=0.0) * 1000, 1)

    def failed(self, start: float, end: float) -> int:
        return sum(not one.is_good for one in self.between(start, end))


class Clients:
    """A process of a project whose threads play clients."""

    def __init__(self, project: Project) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.clients"],
            cwd=project.directory,
            env=project.environment() | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("BENCH_DEBUG") else None,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Have the process do something; return its answer."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            if not waiting.select(ANSWER_S):
                raise RuntimeError(f"no answer to {request} in {ANSWER_S} s")
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"clients ended with exit code {process.wait()}")
        return json.loads(answer)

    def stop(self, patience_s: float) -> Record:
        """Send no more requests; wait so long for those on their way."""
        found = self.ask(stop=True, patience_s=patience_s)
        self.close()
        return Record(
            [Request(*one) for one in found["requests"]],
            [tuple(one) for one in found["events"]],
            found["served"],
            time.monotonic(),
        )

    def close(self) -> None:
        """End the process, also where its threads hang."""
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
