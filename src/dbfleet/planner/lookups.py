"""Which values of declared lookups would tell the shards of a statement, or told.

A lookup is a unique column whose claims in home name the shard of each value. Pure:
home is asked by :mod:`dbfleet.sharding.lookups`, between two plans of the statement.
Sound before sharp: a lookup without an answer means every shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbfleet.planner.branches import Branch, Values
from dbfleet.planner.pruning import clusters_of
from dbfleet.planner.tables import Table

if TYPE_CHECKING:
    from dbfleet.planner.uses import Facts

#: (table, column) of a lookup -> value -> the shards that may have a row with it
Answers = Mapping[tuple[str, str], Mapping[Any, frozenset[str]]]

#: None means any
Shards = frozenset[str] | None

#: values for each shard that are worth asking for; more of them are everywhere
MOST_PER_SHARD = 2


@dataclass(frozen=True, slots=True)
class Ask:
    """Values of a lookup whose shards home knows."""

    table: Table
    field: Any
    values: frozenset[Any]

    @property
    def column(self) -> tuple[str, str]:
        return self.table.name, self.field.column

    @property
    def label(self) -> str:
        return f"{self.table.label} ({self.field.column})"


class Lookups:
    """The lookups of one statement.

    It is planned twice: first what home can be asked is collected in ``asks``, then
    the answers prune, those in ``used``.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.is_wanted = (
            facts.keeps_lookups
            and len(facts.shards) > 1
            and not (facts.only_gather or facts.only_scatter)
        )
        self.asks: dict[tuple[str, str], Ask] = {}
        self.used: dict[tuple[str, str], Ask] = {}

    def fields_of(self, table: Table) -> tuple[Any, ...]:
        return self.facts.lookup_fields(table) if self.is_wanted else ()

    def is_lookup(self, field: Any) -> bool:
        """Whether values of a column are worth keeping, however it compares."""
        if not self.is_wanted:
            return False
        opts = field.model._meta
        if opts.concrete_model is not None:
            opts = opts.concrete_model._meta
        return field in self.fields_of(self.facts.tables.of(opts))

    def clusters_of(self, table: Table, alias: str, values: Values) -> Shards:
        """The shards that may hold rows of one table occurrence; None means any."""
        fields = self.fields_of(table)
        if not fields:
            return None
        asks: list[Ask] = []
        found: set[str] = set()
        for branch in values:
            by_key = self._by_key(table, alias, branch)
            if by_key is not None:
                found |= by_key
                continue
            ask = self._ask(table, alias, branch, fields)
            if ask is None:
                return None
            asks.append(ask)
        if sum(len(ask.values) for ask in asks) > MOST_PER_SHARD * len(
            self.facts.shards
        ):
            return None
        answers = self.facts.answers
        if answers is None:
            for ask in asks:
                self._add(self.asks, ask)
            return None
        for ask in asks:
            if ask.column not in answers:
                return None
        for ask in asks:
            self._add(self.used, ask)
            found |= frozenset().union(*(answers[ask.column][v] for v in ask.values))
        return frozenset(found)

    def _by_key(self, table: Table, alias: str, branch: Branch) -> Shards:
        if not all(map(self.facts.is_exact, table.key_fields)):
            return None
        facts = self.facts
        return clusters_of(table, alias, (branch,), facts.places, facts.shards_in)

    def _ask(
        self, table: Table, alias: str, branch: Branch, fields: tuple[Any, ...]
    ) -> Ask | None:
        for field in fields:
            allowed = branch.get((alias, field.column))
            # Rows whose value is NULL claim nothing.
            if isinstance(allowed, frozenset) and None not in allowed:
                return Ask(table, field, frozenset(allowed))
        return None

    def _add(self, known: dict[tuple[str, str], Ask], ask: Ask) -> None:
        before = known.get(ask.column)
        values = ask.values | (before.values if before is not None else frozenset())
        known[ask.column] = Ask(ask.table, ask.field, values)
