"""How a statement uses its tables, and on which shards each use can find rows.

What every decision of :mod:`dbfleet.planner.plan` rests on. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import Field
from django.db.models.sql.constants import INNER

from dbfleet import lexer
from dbfleet.engines import Engine
from dbfleet.placement import Hop
from dbfleet.planner.blocks import Block, Occurrence
from dbfleet.planner.branches import Values
from dbfleet.planner.lookups import Answers, Lookups
from dbfleet.planner.nested import Scopes
from dbfleet.planner.pruning import Places, ShardsIn, clusters_of
from dbfleet.planner.sources import NO_CHOICE, Sources
from dbfleet.planner.tables import Table, Tables
from dbfleet.topology import Topology

#: clusters that one table's rows can be on; None means every shard
Clusters = frozenset[str] | None


#: kinds of fields whose columns compare as text
_TEXT_KINDS = lexer.word_set("""
    CharField TextField SlugField EmailField URLField FilePathField FileField
    GenericIPAddressField
""")
#: kinds of fields whose columns compare as the values that Python has
_EXACT_KINDS = lexer.word_set("""
    AutoField BigAutoField SmallAutoField IntegerField BigIntegerField
    SmallIntegerField PositiveIntegerField PositiveBigIntegerField
    PositiveSmallIntegerField BooleanField DecimalField FloatField DateField
    DateTimeField TimeField DurationField UUIDField BinaryField
""")


def _no_fields(table: Table) -> tuple[Any, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a decision may depend on."""

    topology: Topology
    engine: Engine
    tables: Tables
    #: for rows that are written: raises where no shard may hold the key
    shard_of: Callable[[tuple[Any, ...], tuple[Any, ...]], str]
    in_transaction: bool
    #: every statement over several shards is gathered, to compare with other rungs
    only_gather: bool = False
    #: the declared lookups of a table
    lookup_fields: Callable[[Table], tuple[Any, ...]] = _no_fields
    #: what home said of them, once it was asked
    answers: Answers | None = None
    #: for rows that are looked for; None: ``shard_of``, where every key has a shard
    find_shards: Places | None = None
    shards_in: ShardsIn | None = None
    #: the epoch of the shard map, None while it was not needed
    read_epoch: Callable[[], int | None] = lambda: None
    #: a SELECT asks every shard, to compare with those that its filters leave
    only_scatter: bool = False
    #: where a gather may have its rows from, and what is known of the ways
    sources: Sources = NO_CHOICE

    @property
    def epoch(self) -> int | None:
        return self.read_epoch()

    @property
    def alias(self) -> str:
        return self.topology.alias

    @property
    def shards(self) -> tuple[str, ...]:
        return self.topology.holders

    def places(
        self, fields: tuple[Any, ...], given: list[tuple[Any, ...]]
    ) -> list[str | None]:
        """The shards of keys that are looked for, in order; None where no row is."""
        if self.find_shards is not None:
            return self.find_shards(fields, given)
        return [self.shard_of(fields, values) for values in given]

    def in_order(self, clusters: Clusters) -> tuple[str, ...]:
        """Shards in the order of their declaration; never none at all."""
        if clusters is None:
            return self.shards
        return tuple(s for s in self.shards if s in clusters) or self.shards[:1]

    def is_exact(self, field: Any) -> bool:
        """Whether equal in the database means equal here, for a column."""
        while field.remote_field:
            field = field.target_field
        if type(field).db_type is not Field.db_type:
            return False  # a column type that a project chose, such as citext
        kind = field.get_internal_type()
        if kind in _TEXT_KINDS:
            return self.engine.has_binary_text_equality and self.is_plain_text(field)
        return kind in _EXACT_KINDS

    def is_plain_text(self, field: Any) -> bool:
        """Whether a column is text in the database's own collation."""
        while field.remote_field:
            field = field.target_field
        return bool(
            type(field).db_type is Field.db_type
            and field.get_internal_type() in _TEXT_KINDS
            and not getattr(field, "db_collation", None)
        )

    @property
    def keeps_lookups(self) -> bool:
        """Whether home's claims name every shard that shows a row.

        Not where nodes commit one after the other: what dies in between leaves rows
        without claims.
        """
        return bool(self.engine.can_prepare and self.topology.commit == "two_phase")

    def lookup_columns(self, table: Table) -> frozenset[str]:
        """The columns by which claims of a table are looked up."""
        if not self.keeps_lookups:
            return frozenset()
        return frozenset(field.column for field in self.lookup_fields(table))


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL as it will be sent, and what is known of where it came from."""

    sql: str
    blocks: tuple[Block, ...]
    registry: Any
    is_raw: bool = False
    #: compiler of the outermost block, and its locking clause
    outer: Any = None
    locking: str = ""
    #: (sql, params) as the outermost compiler made them
    outer_sql: tuple[str, Any] | None = None


@dataclass(slots=True)
class Use:
    """How a statement uses one table."""

    table: Table
    places: list[tuple[Block, Occurrence, Clusters]]
    #: seen in the text but in no block: raw SQL, of which nothing is known
    is_hidden: bool = False

    @property
    def clusters(self) -> Clusters:
        if self.is_hidden or any(found is None for _, _, found in self.places):
            return None
        return frozenset().union(*(found or () for _, _, found in self.places))

    def unpruned(self) -> Use:
        """The same use, its rows looked for on every shard."""
        places = [(block, occurrence, None) for block, occurrence, _ in self.places]
        return Use(self.table, [*places], self.is_hidden)


def uses_of(
    facts: Facts, statement: Statement, lookups: Lookups | None = None
) -> list[Use]:
    """Every known table of the statement, with the clusters of each occurrence."""
    known = facts.tables.all(statement.registry)
    uses: dict[str, Use] = {}
    lookups = lookups or Lookups(facts)
    scopes = Scopes(statement.blocks, facts.is_exact, lookups.is_lookup)
    for block in statement.blocks:
        _add_block(facts, block, known, uses, scopes, lookups)
    vendor = facts.engine.vendor
    for table, times in facts.tables.named_in(
        statement.sql, vendor, statement.registry
    ):
        use = uses.get(table.name)
        if use is None or times > len(use.places):
            uses.setdefault(table.name, Use(table, [])).is_hidden = True
    return list(uses.values())


def _add_block(
    facts: Facts,
    block: Block,
    known: dict[str, Table],
    uses: dict[str, Use],
    scopes: Scopes,
    lookups: Lookups,
) -> None:
    opts = block.opts
    for occurrence in block.occurrences:
        name = occurrence.table
        table = known.get(name)
        if table is None:
            if opts is None or name != opts.db_table:
                continue
            table = facts.tables.of(opts.concrete_model._meta)
        clusters = None
        if table.is_sharded:
            values = scopes.values(block)
            clusters = _place(block, occurrence.alias, table, values, known, lookups)
        use = uses.setdefault(name, Use(table, []))
        use.places.append((block, occurrence, clusters))


def _place(
    block: Block,
    alias: str,
    table: Table,
    values: Values,
    known: dict[str, Table],
    lookups: Lookups,
) -> Clusters:
    facts, found = lookups.facts, None
    is_exact = all(map(facts.is_exact, table.key_fields))
    if not values or (is_exact and not table.key_path):
        found = clusters_of(table, alias, values, facts.places, facts.shards_in)
    if found is None and table.key_path:
        hop = table.key_path[0]
        for joined in _parents_of(block, alias, hop):
            parent = known.get(block.query.alias_map[joined].table_name)
            if parent is not None and parent.is_sharded and parent.name == hop.table:
                found = _place(block, joined, parent, values, known, lookups)
                break
    if found is None and values:
        found = lookups.clusters_of(table, alias, values)
    return found


def _parents_of(block: Block, alias: str, hop: Hop) -> list[str]:
    """Occurrences that are joined to ``alias`` over its foreign key ``hop``."""
    edge = (hop.target_column, hop.column)
    found = []
    for join in block.joins:
        is_up = edge[::-1] in join.join_cols and join.join_type == INNER
        if join.table_alias == alias and edge in join.join_cols:
            found.append(join.parent_alias)
        elif join.parent_alias == alias and is_up:
            found.append(join.table_alias)
    return found
