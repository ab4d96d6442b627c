"""Claims: unique constraints that no shard can check alone.

For each stored row and each such constraint its keeper, home or the shard that the
claim names, holds one row whose primary key is a digest of the constrained values, as
the row's own database spells them. Written in the transaction of the row itself, so it
is there exactly when the row is.

Locks are taken in one order: rows on shards first, claims last, sorted, and so keeper
by keeper. A statement that waits for a claim waits for one that no longer waits for any
row, nor for an earlier claim, and no cycle of waiting runs over two servers, where none
of them would see it.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import FullResultSet
from django.db.models import UniqueConstraint
from django.db.models.constants import OnConflict
from django.db.models.sql import Query
from django.db.utils import IntegrityError

from dbfleet.planner.tables import Table
from dbfleet.planner.uses import Facts
from dbfleet.sharding import ledger, settling
from dbfleet.sharding.keepers import by_keeper

#: claims in one statement
BATCH = 500
#: how long it is known where a value was; a prepared transaction is settled by then
LEFT_KEPT = datetime.timedelta(days=8)
LEFT_BETWEEN_PRUNING = 1000
_leavings = itertools.count(1)

_COLUMNS = ("claim", "row_key", "table_name", "constraint_name", "shard", "gid")
#: a name that is itself in quotes, on every server
_is_bare = re.compile(r"[A-Za-z0-9_]*").fullmatch


@dataclass(frozen=True, slots=True)
class Rule:
    """A unique constraint to be enforced over all shards."""

    name: str
    columns: frozenset[str]
    #: SQL of each part's canonical text, and of the condition, over the bare table
    parts: tuple[tuple[str, tuple[Any, ...]], ...]
    condition: tuple[str, tuple[Any, ...]] | None
    nulls_distinct: bool = True
    #: expressions or a condition decide, which only the database can evaluate
    is_computed: bool = False

    @property
    def only_column(self) -> str | None:
        """The column whose every value it makes unique; None if it says more."""
        is_plain = len(self.columns) == 1 and not (self.condition or self.is_computed)
        return next(iter(self.columns)) if is_plain else None


@dataclass(frozen=True, slots=True)
class Claim:
    """One row's hold on the values of one constraint."""

    claim: str
    row_key: str
    rule: str
    #: where the row is
    shard: str = ""


def rules_of(facts: Facts, table: Table, connection: Any) -> tuple[Rule, ...]:
    """The constraints of ``table`` that one shard cannot enforce by itself."""
    if not table.is_sharded:
        return ()
    opts = table.opts
    found: list[Rule] = []
    for field in opts.local_concrete_fields:
        if field.unique:
            found += _fields_rule(facts, table, connection, [field], f"{field.column}")
    if opts.is_composite_pk:
        found += _fields_rule(facts, table, connection, list(opts.pk_fields), "pk")
    for names in opts.unique_together:
        fields = [opts.get_field(name) for name in names]
        label = "_".join(field.column for field in fields)
        found += _fields_rule(facts, table, connection, fields, f"{label}_uniq")
    for constraint in opts.constraints:
        if isinstance(constraint, UniqueConstraint):
            found += _constraint_rule(facts, table, connection, constraint)
    return tuple(found)


def _is_local(facts: Facts, table: Table, fields: Iterable[Any]) -> bool:
    """Whether equal rows always meet on one shard, whose own index refuses them."""
    columns = {field.column for field in fields}
    key = table.key_fields
    return bool(key) and all(
        field.column in columns and facts.is_exact(field) for field in key
    )


def _fields_rule(
    facts: Facts, table: Table, connection: Any, fields: list[Any], name: str
) -> list[Rule]:
    if _is_local(facts, table, fields):
        return []
    parts = tuple((_text(facts, connection, f), ()) for f in fields)
    columns = frozenset(field.column for field in fields)
    return [Rule(f"{table.name}_{name}", columns, parts, None)]


def _text(facts: Facts, connection: Any, field: Any) -> str:
    column = connection.ops.quote_name(field.column)
    while field.remote_field:
        field = field.target_field
    kind, collation = field.db_type(connection), getattr(field, "db_collation", None)
    return facts.engine.canonical_text(column, kind, collation)


def _constraint_rule(
    facts: Facts, table: Table, connection: Any, constraint: UniqueConstraint
) -> list[Rule]:
    if not connection.SchemaEditorClass(connection)._unique_supported(
        condition=constraint.condition,
        deferrable=constraint.deferrable,
        include=getattr(constraint, "include", ()),
        expressions=constraint.expressions,
        nulls_distinct=constraint.nulls_distinct,
    ):
        return []  # one database of this vendor would not have it either
    fields = [table.opts.get_field(name) for name in constraint.fields]
    if fields and _is_local(facts, table, fields):
        return []
    query = Query(table.opts.model, alias_cols=False)
    compiler = query.get_compiler(connection=connection)
    parts: list[tuple[str, tuple[Any, ...]]] = [
        (_text(facts, connection, field), ()) for field in fields
    ]
    columns = {field.column for field in fields}
    for expression in constraint.expressions:
        resolved: Any = expression.resolve_expression(query)  # type: ignore[union-attr]
        columns |= {ref.target.column for ref in _columns_in(resolved)}
        resolved = getattr(resolved, "expression", resolved)  # OrderBy
        sql, params = compiler.compile(resolved)
        kind = resolved.output_field.db_type(connection)
        text = facts.engine.canonical_text(f"({sql})", kind, _collation_of(resolved))
        # SQL that is repeated needs its parameters as often.
        times = text.count(f"({sql})")
        parts.append((text, tuple(params) * times))
    condition = None
    if constraint.condition is not None:
        where = query.build_where(constraint.condition)
        columns |= {ref.target.column for ref in _columns_in(where)}
        try:
            sql, params = compiler.compile(where)
            condition = (sql, tuple(params))
        except FullResultSet:
            pass
    distinct = constraint.nulls_distinct is not False
    name = constraint.name
    is_computed = bool(constraint.expressions or condition)
    return [
        Rule(name, frozenset(columns), tuple(parts), condition, distinct, is_computed)
    ]


def _collation_of(expression: Any) -> str | None:
    """The collation that an expression's text is compared by, if one is named."""
    for part in expression.flatten():
        for named in (part, getattr(part, "target", None)):
            found = getattr(named, "collation", getattr(named, "db_collation", None))
            if found:
                return str(found)
    return None


def _columns_in(node: Any) -> Iterable[Any]:
    if hasattr(node, "target"):
        yield node
    children = getattr(node, "children", None) or (
        node.get_source_expressions() if hasattr(node, "get_source_expressions") else ()
    )
    for child in children:
        if child is not None:
            yield from _columns_in(child)


def row_key_sql(facts: Facts, table: Table, connection: Any) -> list[str]:
    """SQL of the texts that identify a row."""
    return [_text(facts, connection, field) for field in table.pk_fields]


def digest(*parts: str) -> str:
    """A fixed-length name of some texts; different texts, different names.

    Servers compute it too (:meth:`Engine.claim_sql`), so it cannot change.
    """
    text = "".join(map(counted, parts))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def counted(part: str) -> str:
    """A text that ends where it says, so that several can follow each other."""
    return f"{len(part)}:{part}"


class Claims:
    """Reads and writes the claims of one table for one statement."""

    def __init__(
        self, facts: Facts, table: Table, rules: Sequence[Rule], wrapper: Any
    ) -> None:
        self.facts, self.table, self.rules = facts, table, rules
        self.wrapper, self.engine = wrapper, wrapper.engine
        self._quote = wrapper.ops.quote_name
        columns = facts.lookup_columns(table)
        self._looked_up = {r.name for r in rules if r.only_column in columns}
        self._nodes: dict[str, Any] = {}

    def _node(self, keeper: str) -> Any:
        """A keeper's node, in this statement as a writer."""
        node = self._nodes.get(keeper)
        if node is None:
            node = self.wrapper.routing.keeper(keeper, is_write=True)
            self._nodes[keeper] = node
        return node

    def _batches(
        self, claims: Collection[Claim]
    ) -> Iterable[tuple[str, Any, list[Claim]]]:
        """(keeper, its node, claims), in one order everywhere, so that two writers do
        not wait for each other."""
        if not claims:
            return
        keepers = ledger.keepers(self.wrapper)
        for keeper, ordered in by_keeper([*claims], lambda c: c.claim, keepers):
            for start in range(0, len(ordered), BATCH):
                yield keeper, self._node(keeper), ordered[start : start + BATCH]

    def of_rows(
        self, node: Any, where: str, params: Sequence[Any], shard: str = ""
    ) -> list[Claim]:
        """What the stored rows that ``where`` finds claim; one round trip."""
        keys = row_key_sql(self.facts, self.table, self.wrapper)
        columns: list[str] = list(keys)
        values: list[Any] = []
        for rule in self.rules:
            if rule.condition is None:
                columns.append("1")
            else:
                columns.append(f"CASE WHEN {rule.condition[0]} THEN 1 ELSE 0 END")
                values += rule.condition[1]
            for sql, part_params in rule.parts:
                columns.append(sql)
                values += part_params
        sql = (
            f"SELECT {', '.join(columns)} FROM {self._quote(self.table.name)} "
            f"WHERE {where}"
        )
        rows = self.engine.fetch(node, sql, [*values, *params])
        return [c for row in rows for c in self._of_row(row, len(keys), shard)]

    def _of_row(self, row: Sequence[Any], keys: int, shard: str) -> Iterable[Claim]:
        row_key = digest(*map(_as_text, row[:keys]))
        at = keys
        for rule in self.rules:
            applies, texts = row[at], row[at + 1 : at + 1 + len(rule.parts)]
            at += 1 + len(rule.parts)
            if not applies or (rule.nulls_distinct and None in texts):
                continue
            parts = ("n" if t is None else "v" + _as_text(t) for t in texts)
            claim = digest(self.table.name, rule.name, *parts)
            yield Claim(claim, row_key, rule.name, shard)

    def change(self, before: Iterable[Claim], after: Iterable[Claim]) -> None:
        """Make claims follow rows that were just written.

        ``before`` is what the rows claimed while they were locked and not yet
        written. The last step of a statement, since from here on it holds locks of
        keepers; nothing at all where nothing changed, otherwise, for each keeper, up to
        one round trip for BEGIN, one for each 500 claims let go of (two for those of
        lookups) and one for each 500 taken. Raises IntegrityError, see :meth:`hold`.
        """
        before, after = set(before), set(after)
        if before == after:
            return
        self.release(before - after)
        self._leave(before - after)
        self.hold(after - before)

    def hold(self, claims: Collection[Claim]) -> None:
        """Take claims; raises IntegrityError when another row holds one.

        By then that row can be read on its shard, as one database has it, or its
        commit has taken longer than ``settling.TIMEOUT_S``, which the message tells.
        """
        for keeper, node, batch in self._batches(claims):
            try:
                self._insert(node, batch, "INSERT INTO", "")
            except IntegrityError as error:
                names = [claim.claim for claim in batch]
                holders = settling.holders(self.wrapper, keeper, names)
                pending = settling.wait(self.wrapper, holders)
                raise self._violated(batch, pending) from error

    def hold_free(self, claims: Collection[Claim]) -> frozenset[tuple[str, str]]:
        """Take those claims that nobody holds; (shard, key) of the rows that lost."""
        ops = self.wrapper.ops
        ignore = OnConflict.IGNORE
        lost: set[tuple[str, str]] = set()
        for _, node, batch in self._batches(claims):
            suffix = ops.on_conflict_suffix_sql([], ignore, [], [])
            self._insert(node, batch, ops.insert_statement(ignore), suffix)
            owners = {
                claim: (shard, row_key, gid)
                for claim, shard, row_key, gid in self.engine.fetch(
                    node,
                    "SELECT claim, shard, row_key, gid FROM dbfleet_unique "
                    f"WHERE claim IN ({_marks(batch)})",
                    [claim.claim for claim in batch],
                )
            }
            # A row of another shard may have the same primary key, and so row key.
            taken = [
                c for c in batch if owners.get(c.claim, ())[:2] != (c.shard, c.row_key)
            ]
            lost |= {(c.shard, c.row_key) for c in taken}
            others = [owners[c.claim] for c in taken if c.claim in owners]
            settling.wait(self.wrapper, [(shard, gid) for shard, _, gid in others])
        self.release([c for c in claims if (c.shard, c.row_key) in lost])
        return frozenset(lost)

    def _insert(
        self, node: Any, batch: Sequence[Claim], verb: str, suffix: str
    ) -> None:
        gid_of = self.wrapper.transaction.gid_of
        rows: list[str] = []
        params: list[str] = []
        for c in batch:
            # Digests need no quoting, and parameters take a driver long to put in.
            digests = f"'{c.claim}', '{c.row_key}'"
            names = [self.table.name, c.rule, c.shard, gid_of(c.shard)]
            texts = [f"'{name}'" if _is_bare(name) else "%s" for name in names]
            params += [name for name in names if not _is_bare(name)]
            rows.append(f"({digests}, {', '.join(texts)})")
        self.engine.run(
            node,
            f"{verb} dbfleet_unique ({', '.join(_COLUMNS)}) VALUES "
            f"{', '.join(rows)} {suffix}",
            params or None,
        ).close()

    def release(self, claims: Collection[Claim]) -> None:
        """Let go of claims, except those that another row holds."""
        for _, node, batch in self._batches(claims):
            # By primary key: a scan would wait for claims that are not concerned. A
            # row of another shard may have the same row key.
            one = "(claim = %s AND row_key = %s AND shard = %s)"
            self.engine.run(
                node,
                f"DELETE FROM dbfleet_unique WHERE claim IN ({_marks(batch)}) "
                f"AND ({' OR '.join([one] * len(batch))})",
                [
                    *(claim.claim for claim in batch),
                    *(v for c in batch for v in (c.claim, c.row_key, c.shard)),
                ],
            ).close()

    def _leave(self, claims: Collection[Claim]) -> None:
        """Note where values of lookups were.

        A keeper's commit lets go of a claim before COMMIT PREPARED changes its row,
        and a replica may show the row even later: readers go on to ask that shard.
        """
        left = [claim for claim in claims if claim.rule in self._looked_up]
        ops, ignore = self.wrapper.ops, OnConflict.IGNORE
        suffix = ops.on_conflict_suffix_sql([], ignore, [], [])
        gid_of = self.wrapper.transaction.gid_of
        one = "(%s, %s, %s, CURRENT_TIMESTAMP)"
        for _, node, batch in self._batches(left):
            self.engine.run(
                node,
                f"{ops.insert_statement(ignore)} dbfleet_left "
                "(claim, shard, gid, left_at) VALUES "
                f"{', '.join([one] * len(batch))} {suffix}",
                [v for c in batch for v in (c.claim, c.shard, gid_of(c.shard))],
            ).close()
            if next(_leavings) % LEFT_BETWEEN_PRUNING == 0:
                self._prune(node)

    def _prune(self, node: Any) -> None:
        """Forget some of what was left long ago.

        Found by a read, so that no lock is waited for but those of the rows found.
        """
        old = datetime.datetime.now(datetime.UTC) - LEFT_KEPT
        found = self.engine.fetch(
            node,
            "SELECT claim, shard, gid FROM dbfleet_left WHERE left_at < %s "
            f"LIMIT {2 * LEFT_BETWEEN_PRUNING}",
            [old.strftime("%Y-%m-%d %H:%M:%S")],
        )
        one = "(claim = %s AND shard = %s AND gid = %s)"
        for start in range(0, len(found), BATCH):
            batch = sorted(found)[start : start + BATCH]
            self.engine.run(
                node,
                f"DELETE FROM dbfleet_left WHERE {' OR '.join([one] * len(batch))}",
                [value for row in batch for value in row],
            ).close()

    def _violated(self, batch: Sequence[Claim], pending: list[str]) -> IntegrityError:
        names = ", ".join(sorted({f'"{claim.rule}"' for claim in batch}))
        hint = "".join(
            f"; still prepared after {settling.TIMEOUT_S} s, settle it: {one}"
            for one in pending
        )
        return IntegrityError(
            f"duplicate key value violates unique constraint {names} of "
            f"{self.table.label} (UNIQUE constraint failed: {self.table.name}; "
            f"enforced over all shards){hint}"
        )


def _marks(values: Collection[Any]) -> str:
    return ", ".join(["%s"] * len(values))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
