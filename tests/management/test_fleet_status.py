"""``manage.py fleet status`` tells the truth, in bounded time, and no password."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from dbfleet.testing.rig import MariaDBCluster, PostgresCluster, Rig, ServerCluster
from tests.support.project import Finished, Project

PASSWORD = "s3cr3t-Pw"
#: a process, connecting to every node and a busy machine
BOUND_S = 30


def secret(url: str) -> str:
    """The URL with a password; servers that trust everyone accept it."""
    return url.replace("@", f":{PASSWORD}@", 1)


def declare(**aliases: str) -> str:
    """Source that binds DATABASES; each alias is given as an expression."""
    entries = ", ".join(f"{name}={value}" for name, value in aliases.items())
    return (
        "from dbfleet import Cluster, Sharded, databases\n"
        f"DATABASES = databases({entries})\n"
    )


def status(
    project: Project, *args: str, code: int = 0
) -> tuple[dict[str, dict[str, Any]], Finished]:
    """Run the command as JSON; returns the nodes by name."""
    finished = project.manage(
        "fleet", "status", "--json", *args, check=False, timeout_s=BOUND_S
    )
    assert finished.returncode == code, finished
    assert PASSWORD not in finished.stdout + finished.stderr
    return {one["node"]: one for one in json.loads(finished.stdout)}, finished


def test_healthy_fleet(
    project: Callable[..., Project],
    postgres: PostgresCluster,
    new_database: Callable[[ServerCluster[Any, Any]], str],
) -> None:
    home, a, b = (new_database(postgres) for _ in range(3))
    replicas = [secret(url) for url in postgres.replica_urls(home)]
    shop = project(
        databases=declare(
            default=f"Cluster({secret(postgres.url(home))!r}, replicas={replicas!r})",
            sales=f"Sharded(home={postgres.url(home)!r}, slots=10, shards="
            f"{{'a': {postgres.url(a)!r}, 'b': {postgres.url(b)!r}}})",
        )
        + "DATABASES['plain'] = "
        + repr(postgres.primary.settings(home)),
        models="class Order(models.Model):\n    pass\n",
    )
    nodes, _ = status(shop)
    assert {name: one["role"] for name, one in nodes.items()} == {
        "default/primary": "primary",
        "default/replica1": "replica",
        "default/replica2": "replica",
        "sales/home/primary": "primary",
        "sales/a/primary": "primary",
        "sales/b/primary": "primary",
        "plain/primary": "primary",
    }
    for name, one in nodes.items():
        assert one["server_role"] == one["role"], name
        assert one["reachable"] is True
        assert one["problem"] is None
        assert 0 < one["latency_ms"] < 5_000
        assert int(one["version"].partition(".")[0]) >= 13
    assert nodes["default/replica1"]["caught_up"] is True
    # looking made no map; using the alias does
    assert nodes["sales/a/primary"]["slots"] is None
    shop.manage("migrate", "--database", "sales", "--run-syncdb", "-v0")
    nodes, _ = status(shop, "--database", "sales")
    assert [nodes[f"sales/{shard}/primary"]["slots"] for shard in "ab"] == [5, 5]
    table = shop.manage("fleet", "status").stdout
    assert PASSWORD not in table
    assert table.count(" ok") == 7


def test_a_silent_node_delays_the_answer_and_never_prevents_it(
    project: Callable[..., Project],
    postgres: PostgresCluster,
    new_database: Callable[[ServerCluster[Any, Any]], str],
    rig: Rig,
) -> None:
    home = new_database(postgres)
    proxy, url = rig.proxy(postgres.url(home))
    silent = [secret(url)]
    shop = project(
        databases=declare(
            default=f"Cluster({postgres.url(home)!r}, replicas={silent!r})",
        )
    )
    proxy.black_hole()
    start = time.monotonic()
    nodes, finished = status(shop, "--timeout", "2", code=1)
    assert time.monotonic() - start < BOUND_S
    assert nodes["default/primary"]["reachable"] is True
    assert nodes["default/replica1"]["reachable"] is False
    assert nodes["default/replica1"]["problem"]
    assert "1 of 2 nodes" in finished.stderr
    assert "default/replica1" in finished.stderr
    assert "DOWN" in shop.manage("fleet", "status", check=False).stdout


def test_wrong_roles_are_problems(
    project: Callable[..., Project],
    postgres: PostgresCluster,
    new_database: Callable[[ServerCluster[Any, Any]], str],
) -> None:
    home, other = new_database(postgres), new_database(postgres)
    replica = postgres.replicas[0]
    shop = project(
        databases=declare(
            writable=f"Cluster({postgres.url(home)!r}, "
            f"replicas=[{postgres.url(other)!r}])",
            promoted=f"Cluster({replica.url(home)!r})",
            reading=f"Cluster({replica.url(other)!r}, read_only=True)",
            default="Cluster('sqlite:///missing.sqlite3')",
        )
    )
    nodes, _ = status(shop, code=1)
    assert nodes["writable/replica1"]["problem"] == (
        "is declared as replica, the server says primary"
    )
    assert nodes["promoted/primary"]["problem"] == (
        "is declared as primary, the server says replica"
    )
    assert nodes["reading/primary"]["problem"] is None
    assert nodes["reading/primary"]["role"] == "read-only"
    assert nodes["default/primary"]["reachable"] is False
    assert not (shop.root / "missing.sqlite3").exists()


def test_a_paused_replica_is_behind(
    project: Callable[..., Project],
    postgres: PostgresCluster,
    new_database: Callable[[ServerCluster[Any, Any]], str],
) -> None:
    home = new_database(postgres)
    shop = project(
        databases=declare(
            default=f"Cluster({postgres.url(home)!r}, "
            f"replicas={postgres.replica_urls(home)!r})"
        )
    )
    paused = postgres.replicas[1]
    paused.pause_replay()
    try:
        postgres.primary.execute("CREATE TABLE t (n int)", dbname=home)
        postgres.replicas[0].wait_until_caught_up()
        nodes, _ = status(shop)
        assert nodes["default/replica1"]["caught_up"] is True
        assert nodes["default/replica2"]["caught_up"] is False
        assert "behind its primary" in shop.manage("fleet", "status").stdout
    finally:
        paused.resume_replay()


def test_mariadb(
    project: Callable[..., Project],
    mariadb: MariaDBCluster,
    new_database: Callable[[ServerCluster[Any, Any]], str],
) -> None:
    home = new_database(mariadb)
    password = mariadb.primary.password
    shop = project(
        databases="import pymysql\npymysql.install_as_MySQLdb()\n"
        + declare(
            default=f"Cluster({mariadb.url(home)!r}, "
            f"replicas={mariadb.replica_urls(home)!r})"
        )
    )
    nodes, finished = status(shop)
    assert password
    assert password not in finished.stdout + finished.stderr
    assert [one["server_role"] for one in nodes.values()] == ["primary", "replica"]
    assert nodes["default/replica1"]["caught_up"] is True


def test_wrong_password_is_named_without_it(
    project: Callable[..., Project],
    mariadb: MariaDBCluster,
    new_database: Callable[[ServerCluster[Any, Any]], str],
) -> None:
    settings = {**mariadb.primary.settings(new_database(mariadb)), "PASSWORD": PASSWORD}
    shop = project(
        databases="import pymysql\npymysql.install_as_MySQLdb()\n"
        + declare(default=f"Cluster({settings!r})")
    )
    nodes, _ = status(shop, code=1)
    assert "Access denied" in nodes["default/primary"]["problem"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "--database", "nowhere"], "there is no alias 'nowhere'"),
        (["status", "--timeout", "0"], "invalid seconds value"),
        (["unknown"], "invalid choice"),
        ([], "required: subcommand"),
    ],
)
def test_wrong_use(
    project: Callable[..., Project], arguments: list[str], message: str
) -> None:
    shop = project(databases=declare(default="Cluster('sqlite:///d.sqlite3')"))
    finished = shop.manage("fleet", *arguments, check=False)
    assert finished.returncode in (1, 2)
    assert message in finished.stderr
