"""iterator() over the rows of all shards, in order, in portions."""

from __future__ import annotations

import pytest

from tests.merging import scenarios
from tests.merging.fleet import MergingProject


@pytest.mark.parametrize("fleet", ["icu", "postgresql"], indirect=True)
@pytest.mark.parametrize("check", scenarios.names("streams"))
def test_rows_in_portions(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("streams", check)
