"""A gather answers as one database would, whichever way its rows travelled."""

from __future__ import annotations

import pytest

from tests.sharding import scenarios
from tests.sharding.fleet import ShardedProject


@pytest.mark.parametrize("check", scenarios.names("gather"))
def test_in_a_fleet(fleet: ShardedProject, check: str) -> None:
    fleet.pass_or_fail("gather", check)
