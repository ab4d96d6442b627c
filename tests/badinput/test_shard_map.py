"""A shard map in home that disagrees with the settings: refused, nothing moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.projects import MODELS, SETTINGS, Fleet, sharded_source
from tests.support.project import Project

Sharded = Callable[..., Fleet]


@pytest.fixture
def written(sharded: Sharded) -> Fleet:
    """A fleet of three shards with rows on each."""
    fleet = sharded(("home", "a", "b", "c"))
    fleet.run(
        "create_tables()\n"
        "Account.objects.bulk_create([Account(id=n) for n in range(30)])\n"
    )
    return fleet


def again(
    project: Callable[..., Project], fleet: Fleet, nodes: list[str], **options: Any
) -> Fleet:
    """The same databases under other settings."""
    urls = {node: fleet.cluster.url(fleet.databases[node]) for node in nodes}
    source = sharded_source(urls, **options)
    built = project(databases=source, models=MODELS, settings=SETTINGS)
    return Fleet(built, fleet.cluster, fleet.databases)


TRY = """
result = [
    refused(balances),
    refused(Account.objects.create, id=500),
    refused(Account.objects.update, balance=1),
    refused(lambda: Account.objects.all().delete()),
    refused(create_tables),
]
"""


def test_a_shard_that_settings_forgot(
    written: Fleet, project: Callable[..., Project]
) -> None:
    for error in again(project, written, ["home", "a", "b"]).run(TRY):
        assert error["type"] == "ConfigurationError"
        assert error["code"] == "dbfleet.E403"
        assert "alias 'default'" in error["text"]
        assert "places rows on c" in error["text"]
    assert (
        again(project, written, ["home", "a", "b", "c"]).run(
            "result = Account.objects.count()"
        )
        == 30
    )


def test_a_changed_number_of_slots(
    written: Fleet, project: Callable[..., Project]
) -> None:
    nodes = ["home", "a", "b", "c"]
    for slots in (100, 10_000):
        fleet = again(project, written, nodes, more={"SLOTS": slots})
        for error in fleet.run(TRY):
            assert error["code"] == "dbfleet.E403"
            assert f"SLOTS is {slots}" in error["text"]
            assert "5040" in error["text"]
