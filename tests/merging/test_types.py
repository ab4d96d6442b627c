"""What the servers say of a column's type counts, not what the model says."""

from __future__ import annotations

import pytest

from tests.merging import scenarios
from tests.merging.fleet import MergingProject


@pytest.mark.parametrize("fleet", ["icu", "postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("check", scenarios.names("types"))
def test_types_and_depths(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("types", check)
