"""Unique constraints hold over all shards, also against writers at the same time."""

from __future__ import annotations

import pytest

from tests.sharding import scenarios
from tests.sharding.fleet import ShardedProject


@pytest.mark.parametrize("check", scenarios.names("unique"))
def test_in_a_fleet(fleet: ShardedProject, check: str) -> None:
    fleet.pass_or_fail("unique", check)
