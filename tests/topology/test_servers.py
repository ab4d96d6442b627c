"""What is declared reaches real servers: several hosts, late secrets, inheritance."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.utils import OperationalError

from dbfleet import Cluster, databases
from dbfleet.topology import load, resolve

if TYPE_CHECKING:
    from dbfleet.testing.rig import PostgresCluster


def nodes(declared: Cluster) -> dict[str, dict[str, Any]]:
    entry = databases(default=declared)["default"]
    load("default", entry)
    found: dict[str, dict[str, Any]] = entry["NODES"]
    return found


def ask(node: Any, sql: str) -> Any:
    """The first value of one query over Django's own wrapper of that node."""
    wrapper = DatabaseWrapper(dict(resolve(node)), "asked")
    try:
        with wrapper.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0]
    finally:
        wrapper.close()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_first_host_that_answers_serves(postgres: PostgresCluster) -> None:
    parts = urlsplit(postgres.url("postgres"))
    credentials = parts.netloc.rpartition("@")[0]
    hosts = f"127.0.0.1:{closed_port()},{parts.hostname}:{parts.port}"
    node = nodes(Cluster(f"postgres://{credentials}@{hosts}/postgres"))[
        "default/primary"
    ]
    assert node["HOST"].count(",") == node["PORT"].count(",") == 1
    assert ask(node, "SELECT inet_server_port()") == parts.port


def test_the_users_target_session_attributes_choose_among_hosts(
    postgres: PostgresCluster,
) -> None:
    replica = urlsplit(postgres.replica_urls("postgres")[0])
    primary = urlsplit(postgres.url("postgres"))
    credentials = primary.netloc.rpartition("@")[0]
    hosts = ",".join(f"{one.hostname}:{one.port}" for one in (replica, primary))
    url = f"postgres://{credentials}@{hosts}/postgres?target_session_attrs=read-write"
    node = nodes(Cluster(url))["default/primary"]
    assert ask(node, "SELECT pg_is_in_recovery()") is False


def test_a_replica_that_gives_its_port_alone_is_reached(
    postgres: PostgresCluster,
) -> None:
    replica = urlsplit(postgres.replica_urls("postgres")[0])
    declared = Cluster(
        postgres.url("postgres"),
        replicas=[{"HOST": replica.hostname, "PORT": replica.port}],
    )
    found = nodes(declared)["default/replica1"]
    assert ask(found, "SELECT pg_is_in_recovery()") is True


def test_a_late_url_and_late_secrets_connect(postgres: PostgresCluster) -> None:
    url = postgres.url("postgres")
    parts = urlsplit(url)
    engine = "django.db.backends.postgresql"
    late_url = nodes(Cluster({"ENGINE": engine, "URL": lambda: url}))
    late_parts = nodes(
        Cluster(
            {
                "ENGINE": engine,
                "NAME": "postgres",
                "USER": lambda: parts.username or "",
                "PASSWORD": lambda: parts.password or "",
                "HOST": lambda: parts.hostname or "",
                "PORT": lambda: parts.port or 0,
            }
        )
    )
    for found in (late_url, late_parts):
        node = found["default/primary"]
        assert ask(node, "SELECT inet_server_port()") == parts.port


def test_an_unreachable_server_shows_no_password() -> None:
    url = f"postgres://app:tiger@127.0.0.1:{closed_port()}/shop"
    with pytest.raises(OperationalError) as raised:
        ask(nodes(Cluster(url))["default/primary"], "SELECT 1")
    assert "tiger" not in str(raised.value)
