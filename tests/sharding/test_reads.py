"""Reads of a sharded alias: what one database would return, raw SQL included."""

from __future__ import annotations

import pytest

from tests.sharding import scenarios
from tests.sharding.fleet import ShardedProject


@pytest.mark.parametrize("check", scenarios.names("reads"))
def test_in_a_fleet(fleet: ShardedProject, check: str) -> None:
    fleet.pass_or_fail("reads", check)
