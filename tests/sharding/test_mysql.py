"""Shards of MySQL, which is not MariaDB: it opens a temporary table once in a
statement, infers what is grouped by, tells no keys of rows inserted together, and
counts trailing blanks."""

from __future__ import annotations

import pytest

from tests.sharding import scenarios
from tests.sharding.fleet import ShardedProject

#: these look at the keys of rows inserted together
_NEED_KEYS = {
    "check_ids_are_unique_in_threads",
    "check_explicit_ids_are_respected",
    "check_bulk_create_keeps_the_order_of_its_objects",
    "check_conflicts_update_the_row_where_it_is",
}
CHECKS = [
    (module, check)
    for module in (
        "reads",
        "gather",
        "lookups",
        "unique",
        "races",
        "inserts",
        "updates",
    )
    for check in scenarios.names(module)
    if check not in _NEED_KEYS
]


@pytest.mark.parametrize(("module", "check"), CHECKS)
def test_in_a_fleet(mysql_fleet: ShardedProject, module: str, check: str) -> None:
    mysql_fleet.pass_or_fail(module, check)
