"""The same on PostgreSQL 19, whose replicas wait for a position by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbfleet.testing.rig.identity import unprivileged
from dbfleet.testing.rig.postgresql_binaries import postgresql_in
from tests.conftest import start_or_skip
from tests.failover.test_promotion import (  # noqa: F401
    fleet,
    test_a_lost_write_is_told_before_the_new_primary_is_used,
    test_a_lost_write_is_told_once,
    test_what_was_replicated_before_the_fork_is_not_lost,
    test_writes_follow_the_promoted_replica,
)
from tests.support import newer


@pytest.fixture
def programs(request: pytest.FixtureRequest) -> Path:
    """The PostgreSQL of ``tools/newer_servers``."""
    found = start_or_skip(
        request,
        "PostgreSQL 19",
        lambda: postgresql_in(newer.POSTGRESQL, unprivileged("postgres")),
        is_newer=True,
    )
    return found.directory
