from __future__ import annotations

from tests.faults.fixtures import cluster, engine, lone_servers, sharded

__all__ = ["cluster", "engine", "lone_servers", "sharded"]
