"""A gather that fetches less answers as one database does."""

from __future__ import annotations

import pytest

from tests.merging import scenarios
from tests.merging.fleet import MergingProject


@pytest.mark.parametrize("fleet", ["postgresql", "mariadb", "sqlite"], indirect=True)
@pytest.mark.parametrize("check", scenarios.names("reductions"))
def test_reductions(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("reductions", check)
