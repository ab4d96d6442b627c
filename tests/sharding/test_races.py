"""Writers that meet on several servers: no cycle of waiting, no half of a commit."""

from __future__ import annotations

import pytest

from tests.sharding import scenarios
from tests.sharding.fleet import ShardedProject


@pytest.mark.parametrize("check", scenarios.names("races"))
def test_in_a_fleet(fleet: ShardedProject, check: str) -> None:
    fleet.pass_or_fail("races", check)
