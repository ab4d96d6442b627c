"""A project on a sharded alias of each engine, migrated once for all tests here."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.fixtures import cluster, engine, lone_servers, sharded
from tests.sharding.fleet import ENGINES, SHARDS, ShardedProject

__all__ = ["cluster", "engine", "lone_servers", "sharded"]


@pytest.fixture(scope="session", params=ENGINES)
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShardedProject]:
    """The fleet of the engine at hand: home and three shards on one server."""
    yield from _fleet(request, tmp_path_factory, str(request.param))


@pytest.fixture(scope="session")
def mysql_fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShardedProject]:
    """The same on MySQL."""
    yield from _fleet(request, tmp_path_factory, "mysql")


@pytest.fixture(scope="session", params=ENGINES[:2])
def spread_fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShardedProject]:
    """The same with claims on the shards, where servers can prepare a transaction."""
    engine = str(request.param)
    yield from _fleet(request, tmp_path_factory, engine, 'claims="shards",')


def _fleet(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    engine: str,
    more: str = "",
) -> Iterator[ShardedProject]:
    if engine == "sqlite":
        server: Any = request.getfixturevalue("rig").sqlite()
    else:
        server = request.getfixturevalue(
            "postgres" if engine == "postgresql" else engine
        )
    run = secrets.token_hex(4)
    names = {node: f"test_{run}_{node}" for node in ("home", *SHARDS)}
    for name in names.values():
        server.create_database(name)
    root = tmp_path_factory.mktemp(engine) / "project"
    built = ShardedProject(root, server, names, more)
    try:
        yield built
    finally:
        built.project.close()
        for name in names.values():
            server.drop_database(name)
