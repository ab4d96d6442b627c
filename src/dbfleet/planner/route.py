"""``Route``: the one value that says where a statement goes, and why.

Immutable. Everything that executes, explains or counts speaks it; only
``planner.plan`` makes it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: the cluster that holds an alias's local tables, its claims and its shard map
HOME = "home"


class Intent(enum.StrEnum):
    """Whether a statement may change rows."""

    READ = "read"
    WRITE = "write"


class Rung(enum.StrEnum):
    """How a statement is carried out, cheapest first."""

    NODE = "one node"
    MERGE = "stream merge"
    PARTIAL = "partial aggregate"
    SCATTER = "scatter"
    GATHER = "gather"


class Filter(NamedTuple):
    """Compiled SQL over a bare table with its parameters; ``""`` wants every row."""

    where: str
    params: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Fragment:
    """The rows of one table that a gather fetches, and from which clusters."""

    table: str
    model: str
    columns: tuple[str, ...]
    clusters: tuple[str, ...]
    where: str = ""
    params: tuple[Any, ...] = field(default=(), repr=False)
    #: (cluster, its filter) in place of that one, where key lists differ by cluster
    own: tuple[tuple[str, Filter], ...] = field(default=(), repr=False)
    order_by: str | None = None
    #: the home connection holds the table completely; nothing needs to travel
    is_native: bool = False
    locking: str = ""
    #: a primary key that the statement's GROUP BY may rely on
    key: tuple[str, ...] = ()
    #: about how many rows it has, where somebody asked and the servers have an idea
    rows: int | None = None

    def filter_at(self, cluster: str) -> Filter:
        """What one cluster is asked for."""
        return dict(self.own).get(cluster, Filter(self.where, self.params))

    def describe(self) -> str:
        filters = f" where {self.where}" if self.where else ", unfiltered"
        size = "" if self.rows is None else f", about {self.rows} rows"
        return (
            f"{self.table}({', '.join(self.columns) or '*'}) "
            f"from {', '.join(self.clusters)}{filters}{self.locking.lower()}{size}"
        )


class Link(NamedTuple):
    """Rows count only if ``column`` equals a fetched row's of another table."""

    column: str
    from_table: str
    from_column: str
    #: ``column`` refers to that row: only if some of those are left out, it says much
    follows_key: bool = False

    def describe(self) -> str:
        return f"{self.column} by {self.from_table}.{self.from_column}"


@dataclass(frozen=True, slots=True)
class Reduction:
    """What rows of other tables say of one that is to be fetched.

    Rows are left behind that have no link's value in any place of the table; in a
    place any of its links may be used, or several.
    """

    table: str
    places: tuple[tuple[Link, ...], ...]
    #: the field that tells a row's shard, if its values do
    key: tuple[Any, ...] = field(default=(), repr=False)

    def describe(self) -> str:
        """Its places, and for each the ways in which it can be reduced."""
        places = (
            " or ".join(link.describe() for link in links) for links in self.places
        )
        return f"{self.table}: {'; '.join(places)}"


class Source(NamedTuple):
    """Where a gather has its rows from, and why; see :mod:`dbfleet.planner.sources`."""

    #: "rows": this process loads them; "fdw": home reads foreign tables
    name: str
    reason: str
    #: after so many seconds a try by foreign tables is given up, where that is known
    limit_s: float | None = None
    #: both are right: costs are measured, and the other way is there to fall back to
    is_open: bool = False
    #: the statement that it is measured for
    text: str = ""
    #: tables whose rows home keeps while the statement runs
    spooled: frozenset[str] = frozenset()

    def describe(self) -> str:
        """The source and the reason in one line."""
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Route:
    """Where a statement goes.

    ``clusters`` are ``"home"`` or shard names; which server of a cluster serves a
    read is chosen when it runs, among those that have caught up.
    """

    alias: str
    intent: Intent
    rung: Rung
    clusters: tuple[str, ...]
    reason: str
    fragments: tuple[Fragment, ...] = ()
    #: fragments of which fewer rows are fetched once others are here
    reductions: tuple[Reduction, ...] = ()
    #: a replica may serve it
    replica_ok: bool = False
    #: how the shards' rows become the answer: a ``merging.Merge`` or
    #: ``partials.Partial``
    merge: Any = None
    #: servers that may serve it, where somebody asked
    nodes: tuple[str, ...] = ()
    #: ``lookups.Ask``: home's answers would leave fewer shards
    asks: tuple[Any, ...] = field(default=(), repr=False)
    #: the epoch of the shard map that it was decided under; None where the process
    #: had not read the map, because no key had to be placed
    epoch: int | None = None
    #: of a gather, where there is a choice
    source: Source | None = None

    def describe(self) -> str:
        """The route in lines for a person; no parameters are shown."""
        lines = [
            f"alias:    {self.alias}",
            f"intent:   {self.intent}",
            f"rung:     {self.rung}",
            f"clusters: {', '.join(self.clusters) or 'none'}",
            *([f"nodes:    {', '.join(self.nodes)}"] if self.nodes else []),
            f"reason:   {self.reason}",
            *([f"epoch:    {self.epoch}"] if self.epoch is not None else []),
        ]
        if self.merge is not None:
            lines.append(f"merge:    {self.merge.describe()}")
        if self.source is not None:
            lines.append(f"source:   {self.source.describe()}")
        lines += [f"fragment: {part.describe()}" for part in self.fragments]
        lines += [f"reduced:  {one.describe()}" for one in self.reductions]
        return "\n".join(lines)

    __str__ = describe
