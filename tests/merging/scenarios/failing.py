"""A shard is slow, stuck or broken while several are read."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from django.db import ProgrammingError, connection, transaction
from django.db.models import Count
from django.db.utils import Error
from django.test import override_settings

from dbfleet.errors import FanoutTimeout, NodeUnavailable
from dbfleet.planner.forced import gathering
from dbfleet.testing.rig.waiting import wait_until
from tests.merging import scenarios
from tests.merging.app.models import Item
from tests.merging.scenarios import refused, same
from tests.merging.scenarios.streams import open_cursors
from tests.sharding.scenarios import on_node

WITHIN_S = 15
#: statements that read items on a database's connections
READERS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND state = 'active' AND query LIKE '%%merging_item%%'"
    " AND pid <> pg_backend_pid()",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = DATABASE()"
    " AND info LIKE '%%merging_item%%' AND id <> CONNECTION_ID()",
}


def _limits(**limits: float | None) -> Any:
    return override_settings(DBFLEET={"FANOUT": limits})


@contextlib.contextmanager
def _locked(shard: str) -> Iterator[None]:
    """Reading the shard's items waits until the block ends."""
    if scenarios.kind == "postgresql":
        on_node(shard, "BEGIN")
        on_node(shard, "LOCK TABLE merging_item IN ACCESS EXCLUSIVE MODE")
    else:
        on_node(shard, "LOCK TABLES merging_item WRITE")
    try:
        yield
    finally:
        ends = "ROLLBACK" if scenarios.kind == "postgresql" else "UNLOCK TABLES"
        on_node(shard, ends)


@contextlib.contextmanager
def _sleeping(shard: str) -> Iterator[None]:
    """Reading the shard's items takes a minute of its server's time."""
    if scenarios.kind == "postgresql":
        sleep = "(SELECT pg_sleep(60) IS NULL AS s) AS w WHERE NOT w.s"
    else:
        sleep = "(SELECT SLEEP(60) AS s) AS w WHERE w.s = 0"
    on_node(shard, "ALTER TABLE merging_item RENAME TO item_rows")
    try:
        view = f"CREATE VIEW merging_item AS SELECT i.* FROM item_rows i, {sleep}"
        on_node(shard, view)
        yield
        on_node(shard, "DROP VIEW merging_item")
    finally:
        on_node(shard, "ALTER TABLE item_rows RENAME TO merging_item")


@contextlib.contextmanager
def _missing(shard: str) -> Iterator[None]:
    """Reading the shard's items fails at once."""
    on_node(shard, "ALTER TABLE merging_item RENAME TO item_rows")
    try:
        yield
    finally:
        on_node(shard, "ALTER TABLE item_rows RENAME TO merging_item")


def _nobody_reads(shard: str) -> None:
    wait_until(
        lambda: on_node(shard, READERS[scenarios.kind]) == [],
        timeout_s=WITHIN_S,
        what="the end of what was cancelled",
    )


def _everything() -> list[int]:
    return list(Item.objects.order_by("id").values_list("id", flat=True))


ALL = list(range(1, 201))


def check_a_slow_shard_is_named_and_its_statement_ended() -> None:
    same(_everything(), ALL)
    for slow in (_locked, _sleeping):
        with slow("b"), _limits(DEADLINE_S=1):
            for query in (
                Item.objects.order_by("id"),
                Item.objects.values("flag").annotate(n=Count("id")),
            ):
                with refused(FanoutTimeout, "shard b of alias 'default'") as caught:
                    list(query)
                same(caught[0].code, "dbfleet.E505")
            _nobody_reads("b")
        same(_everything(), ALL)


def check_the_first_failure_ends_the_statements_of_the_others() -> None:
    same(_everything(), ALL)
    for slow in (_locked, _sleeping):
        with _missing("c"), slow("a"):
            with refused(ProgrammingError):
                _everything()
            _nobody_reads("a")
        same(_everything(), ALL)


def check_a_gather_reads_its_shards_at_once() -> None:
    with gathering():
        same(_everything(), ALL)
        for slow in (_locked, _sleeping):
            # In turn, the first shard would be waited for.
            with _missing("c"), slow("a"):
                with refused(ProgrammingError):
                    _everything()
                _nobody_reads("a")
            same(_everything(), ALL)


def check_a_slow_shard_of_a_gather_is_named() -> None:
    with gathering():
        for slow in (_locked, _sleeping):
            with slow("b"), _limits(DEADLINE_S=1):
                with refused(FanoutTimeout, "shard b of alias 'default'"):
                    _everything()
                _nobody_reads("b")
            same(_everything(), ALL)


def check_a_cancellation_that_comes_too_late_ends_nothing() -> None:
    for shard in ("a", "b"):
        node = connection.nodes.primary(shard)
        for _ in range(5):
            connection.engine.cancel(node, 2.0)
            same(len(list(Item.objects.order_by("id"))), len(ALL))


def check_a_transaction_after_a_failure_is_as_on_one_server() -> None:
    with _limits(DEADLINE_S=1):
        try:
            with transaction.atomic():
                Item.objects.filter(owner=2).update(score=77)
                with _locked("b"), refused(FanoutTimeout, "shard b"):
                    _everything()
                Item.objects.filter(owner=2).update(score=78)
        except Error:
            aborts = scenarios.kind == "postgresql"  # MariaDB undoes the statement
            same(aborts, True)
            same(Item.objects.filter(score__in=[77, 78]).count(), 0)
        else:
            same(Item.objects.filter(score=77).count(), 0)
    same(_everything(), ALL)


def stop(shard: str) -> int:
    """Stop the server's process that serves the shard; it does not even hear of a
    cancellation."""
    pid = int(connection.nodes.primary(shard).connection.info.backend_pid)
    os.kill(pid, signal.SIGSTOP)
    return pid


def check_a_connection_whose_server_is_stopped_is_not_used_again() -> None:
    same(_everything(), ALL)
    pid = stop("b")
    try:
        with _limits(DEADLINE_S=0.5), refused(FanoutTimeout, "shard b"):
            _everything()
        same(_everything(), ALL)
        now = connection.nodes.primary("b").connection.info.backend_pid
        same(now == pid, False)
    finally:
        os.kill(pid, signal.SIGCONT)
    same(_everything(), ALL)


def check_a_transaction_on_a_stopped_server_can_only_be_rolled_back() -> None:
    same(_everything(), ALL)
    owner = Item.objects.using("plain").filter(owner__gt=1)[0].owner_id
    shard = Item.objects.filter(owner=owner).explain_route().clusters[0]
    pid = 0
    try:
        with (
            _limits(DEADLINE_S=0.5),
            refused(NodeUnavailable, "rolled back"),
            transaction.atomic(),
        ):
            Item.objects.filter(owner=owner).update(score=99)
            pid = stop(shard)
            with refused(FanoutTimeout, f"shard {shard}"):
                _everything()
            Item.objects.filter(owner=owner).update(score=98)
    finally:
        os.kill(pid, signal.SIGCONT)
    same(_everything(), ALL)
    wait_until(
        lambda: Item.objects.filter(score__in=[98, 99]).count() == 0,
        timeout_s=WITHIN_S,
        what="the end of the transaction that was given up",
    )


def check_an_iterator_of_a_slow_shard_ends_as_well() -> None:
    with _locked("c"), _limits(DEADLINE_S=1):
        with refused(FanoutTimeout, "shard c"):
            for _ in Item.objects.order_by("id").iterator(10):
                raise AssertionError("nothing is certain while a shard is silent")
        _nobody_reads("c")
    found = [one.id for one in Item.objects.order_by("id").iterator(10)]
    same(found, ALL)


def check_an_iterator_of_a_stopped_server_leaves_no_cursor_on_the_others() -> None:
    rows = Item.objects.order_by("id").iterator(10)
    same([next(rows).id for _ in range(3)], [1, 2, 3])
    pid = stop("b")
    try:
        with _limits(DEADLINE_S=0.5), refused(FanoutTimeout, "shard b of"):
            list(rows)
        same(open_cursors(), [0, 0, 0])
        same(_everything(), ALL)
    finally:
        os.kill(pid, signal.SIGCONT)
