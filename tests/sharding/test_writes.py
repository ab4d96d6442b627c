"""Writes to a sharded alias end as on one database, whatever nodes they touch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.sharding import scenarios
from tests.sharding.fleet import ShardedProject

CHECKS = [
    (module, check)
    for module in ("inserts", "updates")
    for check in scenarios.names(module)
]


@pytest.mark.parametrize(("module", "check"), CHECKS)
def test_in_a_fleet(fleet: ShardedProject, module: str, check: str) -> None:
    fleet.pass_or_fail(module, check)


MAKE_TAGS = """
from tests.sharding.shop.models import Tag

one_by_one = [Tag.objects.create(word="x").pk for _ in range(20)]
many = [tag.pk for tag in Tag.objects.bulk_create([Tag(word="y") for _ in range(40)])]
result = one_by_one + many
"""


def test_ids_are_unique_in_processes_and_after_them(fleet: ShardedProject) -> None:
    fleet.run("from tests.sharding.scenarios import empty\nempty()")
    # A file has one writer at a time, who turns the others away.
    together = 1 if fleet.engine == "sqlite" else 2
    with ThreadPoolExecutor(together) as pool:
        found = list(pool.map(lambda _: fleet.run(MAKE_TAGS), range(2)))
    found.append(fleet.run(MAKE_TAGS))
    pks = [pk for one in found for pk in one]
    assert len(set(pks)) == len(pks) == 180
    stored = [
        pk
        for shard in fleet.shards
        for (pk,) in fleet.rows(shard, "SELECT id FROM shop_tag")
    ]
    assert sorted(stored) == sorted(pks)
    assert max(pks) - min(pks) < 1_000  # integers stay small
