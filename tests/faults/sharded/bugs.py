"""Bugs that a run can be given, to prove that the checkers see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dbfleet.transactions.transaction import FleetTransaction
from dbfleet.transactions.two_phase import Participant


def skip_prepare() -> None:
    """Commit one node after another, as nested ``atomic`` blocks would."""
    FleetTransaction._is_two_phase = lambda self: False  # type: ignore[method-assign]


def commit_early() -> None:
    """Finish the prepared ones before home has decided."""

    def commit(
        self: Any, writers: list[Participant], commit_home: Callable[[], Any]
    ) -> None:
        for part in writers:
            self._prepare(part)
            del self.enlisted[part.key]
        self._write_decision(writers, None)
        for part in writers:
            self.engine.commit_prepared(part.node, part.gid)
        commit_home()

    FleetTransaction._commit_prepared = commit  # type: ignore[method-assign]


def ignore_floor() -> None:
    """Read from any replica, whatever it has replayed."""
    from dbfleet.engines.mysql import MySQLEngine
    from dbfleet.engines.postgresql import PostgreSQLEngine

    for engine in (MySQLEngine, PostgreSQLEngine):
        engine.covers = lambda self, have, wants: True  # type: ignore[method-assign]


BUGS = {
    "skip-prepare": skip_prepare,
    "commit-early": commit_early,
    "ignore-floor": ignore_floor,
}
