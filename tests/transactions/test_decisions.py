"""The rows that say which commits over several nodes were decided."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.projects import Fleet


def test_old_decisions_are_forgotten_and_recent_ones_kept(
    sharded: Callable[..., Fleet],
) -> None:
    found = sharded().run(
        """
from dbfleet.transactions import two_phase as module

create_tables()
Account.objects.bulk_create([Account(id=n, balance=10) for n in range(1, 31)])


def count():
    sql = "SELECT count(*) FROM dbfleet_decision"
    return connection.engine.fetch(connection, sql)[0][0]


before = count()
connection.engine.run(
    connection,
    "INSERT INTO dbfleet_decision (gid, participants, decided_at) "
    "VALUES ('old', 'a b', %s)",
    ["2001-01-01 00:00:00"],
).close()
Account.objects.update(balance=11)
kept = count()
module.DECISIONS_BETWEEN_PRUNING = 1
Account.objects.update(balance=12)
result = [kept - before, count() - before]
"""
    )
    # Two updates decided; the planted old decision is there until it is pruned.
    assert found == [2, 2]
