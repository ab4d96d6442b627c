"""Where a gather has its rows from: loaded by this process, or read by home itself.

``rows``: the process reads fragments and sends them to home. ``fdw``: home reads them
through foreign tables (``postgres_fdw``). Guards one invariant: foreign tables are read
only where they show what the process would have read itself, which is outside a
transaction, without locks, with nothing that asks a real table for its key.

Which one costs less is not computed but measured, for each text of a statement, and
what was measured is forgotten after :data:`~dbfleet.executor.costs.MAX_AGE_S`. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dbfleet.planner.route import Fragment, Source
from dbfleet.topology.snapshot import GatherSource

if TYPE_CHECKING:
    from dbfleet.planner.uses import Facts, Statement, Use

ROWS, FDW = "rows", "fdw"
#: a gather of fewer rows is one or two round trips, which nothing can undercut much
WORTH_ROWS = 1000
#: how much longer than by rows a first try by foreign tables may take
TRIAL_FACTOR, TRIAL_S = 4, 1.0


class Measure(NamedTuple):
    """What a statement cost lately, in seconds; None was not tried."""

    #: rows that the process fetched
    rows: int = 0
    by_rows_s: float | None = None
    #: infinite where the last one failed
    by_fdw_s: float | None = None
    #: by rows it passed the limits
    is_too_large: bool = False


class Sources(NamedTuple):
    """The setting, and what the process has learned so far."""

    setting: GatherSource = "rows"
    #: text of a statement -> its measure
    measured: Callable[[str], Measure] = lambda text: Measure()
    #: why foreign tables were of no use a moment ago, if they were not
    fault: Callable[[], str | None] = lambda: None
    #: hand-written SQL gave home's connection a state of its own
    is_kept: bool = False


NO_CHOICE = Sources()


def source_of(
    facts: Facts,
    statement: Statement,
    uses: Sequence[Use],
    fragments: Sequence[Fragment],
    replica_ok: bool,
) -> Source | None:
    """The source of one gather; None where there is nothing to choose."""
    known = facts.sources
    can_choose = facts.engine.has_foreign_tables and facts.topology.is_sharded
    if known.setting == ROWS or not can_choose:
        return None
    obstacle = _obstacle(facts, statement, fragments)
    if obstacle:
        return Source(ROWS, obstacle)
    spooled = frozenset(_read_once(statement, uses))
    if known.setting == FDW:
        return Source(FDW, "the setting says so", spooled=spooled)
    clusters = {c for part in fragments if not part.is_native for c in part.clusters}
    if replica_ok and any(_has_replicas(facts, cluster) for cluster in clusters):
        return Source(ROWS, "foreign tables would read primaries, not replicas")
    fault = known.fault()
    if fault:
        return Source(ROWS, fault)
    return _cheaper(known.measured(statement.sql))._replace(
        text=statement.sql, spooled=spooled
    )


def _obstacle(facts: Facts, statement: Statement, fragments: Sequence[Fragment]) -> str:
    """Why foreign tables would not show the same rows, or the same tables."""
    if facts.in_transaction:
        return "a transaction sees its own rows through its own connections alone"
    if facts.sources.is_kept:
        return "SET gave the connections a state that home's own to the shards have not"
    if statement.locking:
        return "it locks rows"
    if any(part.key for part in fragments):
        return "it relies on a table's primary key, which a foreign table has not"
    return ""


def _has_replicas(facts: Facts, cluster: str) -> bool:
    declared = facts.topology.shards.get(cluster)
    return declared is not None and declared.is_replicated


def _read_once(statement: Statement, uses: Sequence[Use]) -> list[str]:
    """Tables of nested blocks: home keeps their rows while the statement runs, since a
    subquery that depends on a row around it would be sent again for each."""
    return [
        use.table.name
        for use in uses
        if not use.is_hidden
        and any(block.compiler is not statement.outer for block, _, _ in use.places)
    ]


def _cheaper(known: Measure) -> Source:
    """By what was measured."""
    if known.is_too_large:
        if known.by_fdw_s == float("inf"):
            return Source(ROWS, "fdw failed of late", is_open=True)
        return Source(FDW, "by rows it passed a limit", is_open=True)
    if known.by_rows_s is None:
        return Source(ROWS, "not measured yet", is_open=True)
    told = f"by rows {known.by_rows_s * 1000:.0f} ms for {known.rows} rows"
    if known.rows < WORTH_ROWS:
        return Source(ROWS, told, is_open=True)
    if known.by_fdw_s is None:
        limit_s = max(TRIAL_S, TRIAL_FACTOR * known.by_rows_s)
        return Source(FDW, f"{told}, fdw is to be tried", limit_s, is_open=True)
    if known.by_fdw_s == float("inf"):
        return Source(ROWS, f"{told}, fdw failed of late", is_open=True)
    told += f", by fdw {known.by_fdw_s * 1000:.0f} ms"
    if known.by_fdw_s < known.by_rows_s:
        limit_s = max(TRIAL_S, TRIAL_FACTOR * known.by_rows_s)
        return Source(FDW, told, limit_s, is_open=True)
    return Source(ROWS, told, is_open=True)
