"""Fetches less of a gather: rows of one fragment tell which rows of another matter.

Guards one invariant: values come from rows that are complete and over which the
statement will run, so what they leave out cannot matter
(:mod:`dbfleet.planner.reducing`).

Rounds. First every fragment is asked for so many rows that it is seen whether it is
small: a gather of small fragments ends there. What is complete reduces others, which
are read again under ``column IN (values)``; what is complete then reduces further ones.
What is left over is read whole, what may reduce others first.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from dbfleet.engines import Budget, FragmentSpec, Overflow, Portion
from dbfleet.planner.pruning import family_of
from dbfleet.planner.route import HOME, Link, Reduction

#: rows that every cluster is asked for at first
PROBE_ROWS = 1000
#: more rows than these seldom have few values
WORTH_ROWS = 20_000
#: values, and bytes of them, that are worth sending to a shard
MAX_VALUES = 1000
MAX_VALUE_BYTES = 2**16

#: table -> what each cluster is asked for
Wanted = dict[str, dict[str, FragmentSpec]]
#: different values of a column, in the order of their rows
Values = dict[Any, None]


class Reducer:
    """One gather with reductions; ``fetcher`` reads."""

    def __init__(self, fetcher: Any, home: Any, wanted: Wanted) -> None:
        self.fetcher, self.home = fetcher, home
        self.engine = fetcher.wrapper.engine
        self._wanted = wanted
        self.pending = dict(wanted)
        self.found: dict[str, tuple[Portion, ...]] = {}
        self.reductions = {one.table: one for one in fetcher.route.reductions}
        #: tables of which rows were left behind
        self.reduced: set[str] = set()
        limits = fetcher.limits
        self.left = Budget(limits.max_rows, limits.max_bytes)
        self.probe_rows = min(PROBE_ROWS, limits.max_rows)
        #: about how many rows tables have that are not small; None: nobody knows
        self._sizes: dict[str, int | None] = {}
        self._values: dict[tuple[str, str], Values | None] = {}
        #: tables whose values decided what was fetched of others
        self._used: set[str] = set()

    def run(self) -> dict[str, tuple[Portion, ...]]:
        """The portions of every table, those of home's that helped among them.

        Raises :class:`Overflow`.
        """
        self._probe()
        has_asked_home = False
        while self.pending:
            ready = self._ready()
            if not ready and not has_asked_home:
                has_asked_home = True
                self._ask_home()
                continue
            if not ready and self._reopen():
                continue
            self._read(ready or self._next())
        return self.found

    # -- rounds -----------------------------------------------------------------------

    def _probe(self) -> None:
        for table, portions in self._small(self.pending, self.left.max_bytes).items():
            self._take(table, portions)
        if self.left.is_over:
            raise Overflow(self.left.largest, is_rows=self.left.is_over_rows)

    def _small(self, wanted: Wanted, max_bytes: int) -> dict[str, tuple[Portion, ...]]:
        """The tables of which a few rows of each cluster are all."""
        most = self.probe_rows
        rows = (most + 1) * sum(map(len, wanted.values()))
        budget = Budget(rows, max_bytes)
        found = self.fetcher.read(wanted, most + 1, budget)
        if budget.is_over:
            return {}  # some rows were dropped
        return {
            table: portions
            for table, portions in found.items()
            if all(len(portion) <= most for portion in portions)
        }

    def _read(self, wanted: Wanted) -> None:
        left = self.left
        budget = Budget(left.max_rows - left.rows, left.max_bytes - left.bytes)
        found = self.fetcher.read(wanted, budget.max_rows + 1, budget)
        if budget.is_over:
            raise Overflow(budget.largest, is_rows=budget.is_over_rows)
        for table, portions in found.items():
            self._take(table, portions)

    def _take(self, table: str, portions: tuple[Portion, ...]) -> None:
        for portion in portions:
            self.left.spend(table, len(portion), portion.size)
        self.found[table] = portions
        del self.pending[table]

    def _next(self) -> Wanted:
        """What is read whole: first, and alone, the smallest table that may reduce
        others, if it is not too large to have few values; without one, everything.

        The servers are asked how large they take such tables to be: by now none of
        them is small. Where a server has no idea, a filter counts as one.
        """
        sources = {
            link.from_table
            for table in self.pending
            for link in self._links(table)
            if not link.follows_key or self._is_selective(link.from_table)
        }
        wanted = {
            table: self.pending[table] for table in self.pending if table in sources
        }
        if wanted and len(self.pending) > 1:
            unknown = {t: parts for t, parts in wanted.items() if t not in self._sizes}
            self._sizes |= self.fetcher.sizes(unknown)
            table = min(wanted, key=self._guess)
            if self._guess(table) <= WORTH_ROWS:
                return {table: wanted[table]}
        return dict(self.pending)

    def _guess(self, table: str) -> float:
        size = self._sizes[table]
        if size is None:
            return WORTH_ROWS if self._is_selective(table) else math.inf
        return size

    def _reopen(self) -> bool:
        """Read a small table again, to be reduced: rows of it that do not matter would
        keep it from reducing others. Not once its values were used: other rows may be
        there by now."""
        for table in self._unselective():
            if self._usable(self.reductions[table]) is None:
                continue
            portions = self.found.pop(table)
            for portion in portions:
                self.left.spend(table, -len(portion), -portion.size)
            self._values = {k: v for k, v in self._values.items() if k[0] != table}
            self.pending[table] = self._wanted[table]
            return True
        return False

    def _unselective(self) -> list[str]:
        """Complete tables that would reduce others if fewer of their rows were here."""
        return [
            link.from_table
            for table in self.pending
            for link in self._links(table)
            if link.follows_key
            and link.from_table in self.found
            and link.from_table in self.reductions
            and link.from_table not in self._used
            and not self._is_selective(link.from_table)
        ]

    def _ask_home(self) -> None:
        """Fetch small tables of home's that would reduce what is left; from then on
        the statement runs over those rows. A round trip for each, none if none would.
        """
        natives = {p.table: p for p in self.fetcher.route.fragments if p.is_native}
        helpful = {
            link.from_table
            for table in (*self.pending, *self._unselective())
            for link in self._links(table)
            if link.from_table in natives
            and (natives[link.from_table].where or not link.follows_key)
        }
        if not helpful:
            return
        wanted = self.fetcher.wanted(self.home, [natives[table] for table in helpful])
        # Home has them anyway, so they count for no limit.
        self.found |= self._small(wanted, self.left.max_bytes)

    def _links(self, table: str) -> Iterable[Link]:
        reduction = self.reductions.get(table)
        for links in reduction.places if reduction is not None else ():
            yield from links

    def _is_selective(self, table: str) -> bool:
        """Whether rows of a table are left out."""
        part = self.fetcher.fragments[table]
        shards = self.fetcher.routing.topology.holders
        is_limited = not part.is_native and len(part.clusters) < len(shards)
        return bool(part.where) or table in self.reduced or is_limited

    # -- filters ----------------------------------------------------------------------

    def _ready(self) -> Wanted:
        """The pending tables that can be reduced, with their filters."""
        ready = {}
        for table, parts in self.pending.items():
            reduction = self.reductions.get(table)
            places = reduction and self._usable(reduction)
            if reduction is not None and places:
                ready[table] = self._reduced(reduction, places, parts)
                self._used |= {link.from_table for usable in places for link in usable}
        self.reduced |= ready.keys()
        return ready

    def _usable(self, reduction: Reduction) -> list[dict[Link, Values]] | None:
        """For each place the links that have values; None if one has none."""
        places = []
        for links in reduction.places:
            usable = {}
            for link in links:
                if link.follows_key and not (
                    link.from_table in self.found
                    and self._is_selective(link.from_table)
                ):
                    continue
                values = self._values_of(link)
                if values is not None and self._compares(reduction.table, link):
                    usable[link] = values
            if not usable:
                return None
            places.append(usable)
        return places

    def _compares(self, table: str, link: Link) -> bool:
        source = link.from_table, link.from_column
        return bool(self.engine.compares(self.home, (table, link.column), source))

    def _values_of(self, link: Link) -> Values | None:
        known = link.from_table, link.from_column
        if link.from_table not in self.found:
            return None
        if known not in self._values:
            self._values[known] = self._distinct(*known)
        return self._values[known]

    def _distinct(self, table: str, column: str) -> Values | None:
        columns = self.fetcher.columns[table]
        if column not in columns:
            return None
        at, values, size = columns.index(column), Values(), 0
        for portion in self.found[table]:
            for row in portion.rows():
                value = row[at]
                if value is None or value in values:
                    continue
                if not isinstance(value, (int, str)):
                    return None
                values[value] = None
                size += len(str(value))
                if len(values) > MAX_VALUES or size > MAX_VALUE_BYTES:
                    return None
        return values

    def _reduced(
        self,
        reduction: Reduction,
        places: list[dict[Link, Values]],
        parts: Mapping[str, FragmentSpec],
    ) -> dict[str, FragmentSpec]:
        """What each cluster is asked for; clusters that can have nothing are not."""
        spread = [
            {
                link: self._spread(reduction, link, values, parts)
                for link, values in p.items()
            }
            for p in places
        ]
        found = {}
        for cluster, spec in parts.items():
            conditions: list[str] = []
            params: list[Any] = []
            for usable in spread:
                if all(usable[link][cluster] for link in usable):
                    sql, values = self._condition(
                        reduction.table,
                        {link: usable[link][cluster] for link in usable},
                    )
                    conditions.append(sql)
                    params += values
            if not conditions:
                continue
            where = " OR ".join(conditions)
            if spec.where:
                where = f"({spec.where}) AND ({where})"
            params = [*spec.params, *params]
            found[cluster] = spec._replace(where=where, params=tuple(params))
        return found

    def _spread(
        self,
        reduction: Reduction,
        link: Link,
        values: Values,
        clusters: Iterable[str],
    ) -> dict[str, list[Any]]:
        """Cluster -> the values that its rows may have."""
        key, everything = reduction.key, [*values]
        whole = dict.fromkeys(clusters, everything)
        kind = _KINDS.get(family_of(key[0])) if key else None
        if kind is None or key[0].column != link.column or HOME in whole:
            return whole
        try:
            typed = {value: (kind(str(value)),) for value in values}
        except ValueError:
            return whole
        shards = self.fetcher.routing.find_shards(key, [*typed.values()])
        found: dict[str, list[Any]] = {cluster: [] for cluster in clusters}
        for value, shard in zip(typed, shards, strict=True):
            if shard in found:
                found[shard].append(value)
        return found

    def _condition(
        self, table: str, lists: Mapping[Link, list[Any]]
    ) -> tuple[str, list[Any]]:
        parts, params = [], []
        for link, values in lists.items():
            source = link.from_table, link.from_column
            parts.append(
                self.engine.membership(
                    self.home, (table, link.column), source, len(values)
                )
            )
            params += values
        return f"({' AND '.join(parts)})", params


#: family of a key -> what its values are when they are placed
_KINDS: dict[str, Any] = {"int": int, "text": str, "uuid": uuid.UUID}
