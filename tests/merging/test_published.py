"""Wrong answers that other systems were reported to give, asked of a fleet and of one
database of the same vendor: the answers are the same."""

from __future__ import annotations

import pytest

from tests.merging import scenarios
from tests.merging.fleet import MergingProject


@pytest.mark.parametrize("check", scenarios.names("published"))
def test_numbers_and_places(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("published", check)


@pytest.mark.parametrize("check", scenarios.names("pitfalls"))
def test_pitfalls(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("pitfalls", check)


@pytest.mark.parametrize("check", scenarios.names("texts"))
def test_texts(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("texts", check)


@pytest.mark.parametrize("check", scenarios.names("finals"))
def test_what_is_asked_of_aggregates(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("finals", check)


@pytest.mark.parametrize("check", scenarios.names("unions"))
def test_unions(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("unions", check)


@pytest.mark.parametrize("check", scenarios.names("finish"))
def test_what_a_server_is_handed(fleet: MergingProject, check: str) -> None:
    fleet.pass_or_fail("finish", check)
