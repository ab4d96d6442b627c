"""Claims: unique constraints that no shard can check alone.

For each stored row and each such constraint home holds one row whose primary key is a
digest of the constrained values, as the row's own database spells them. Written in
the transaction of the row itself, so it is there exactly when the row is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import FullResultSet
from django.db.models import UniqueConstraint
from django.db.models.constants import OnConflict
from django.db.models.sql import Query
from django.db.utils import IntegrityError

from dbfleet.planner.plan import Facts
from dbfleet.planner.tables import Table

#: claims in one statement
BATCH = 500

_COLUMNS = ("claim", "table_name", "row_key", "constraint_name", "shard")


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


@dataclass(frozen=True, slots=True)
class Claim:
    """One row's hold on the values of one constraint."""

    claim: str
    row_key: str
    rule: str


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
    """A fixed-length name of some texts; different texts, different names."""
    state = hashlib.blake2b(digest_size=32)
    for part in parts:
        data = part.encode(errors="surrogatepass")
        state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


class Claims:
    """Reads and writes the claims of one table for one statement."""

    def __init__(
        self, facts: Facts, table: Table, rules: Sequence[Rule], wrapper: Any
    ) -> None:
        self.facts, self.table, self.rules = facts, table, rules
        self.wrapper, self.engine = wrapper, wrapper.engine
        self._quote = wrapper.ops.quote_name

    def of_rows(self, node: Any, where: str, params: Sequence[Any]) -> list[Claim]:
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
        return [claim for row in rows for claim in self._of_row(row, len(keys))]

    def _of_row(self, row: Sequence[Any], keys: int) -> Iterable[Claim]:
        row_key = digest(*map(_as_text, row[:keys]))
        at = keys
        for rule in self.rules:
            applies, texts = row[at], row[at + 1 : at + 1 + len(rule.parts)]
            at += 1 + len(rule.parts)
            if not applies or (rule.nulls_distinct and None in texts):
                continue
            parts = ("n" if t is None else "v" + _as_text(t) for t in texts)
            yield Claim(digest(self.table.name, rule.name, *parts), row_key, rule.name)

    def hold(self, claims: Sequence[Claim], shard: str) -> None:
        """Take claims; raises IntegrityError when another row holds one."""
        for start in range(0, len(claims), BATCH):
            batch = claims[start : start + BATCH]
            try:
                self._insert(batch, shard, "INSERT INTO", "")
            except IntegrityError as error:
                raise self._violated(batch, error) from error

    def hold_free(self, claims: Sequence[Claim], shard: str) -> frozenset[str]:
        """Take those claims that nobody holds; return the keys of rows that lost."""
        ops = self.wrapper.ops
        ignore = OnConflict.IGNORE
        lost: set[str] = set()
        for start in range(0, len(claims), BATCH):
            batch = claims[start : start + BATCH]
            suffix = ops.on_conflict_suffix_sql([], ignore, [], [])
            self._insert(batch, shard, ops.insert_statement(ignore), suffix)
            marks = ", ".join(["%s"] * len(batch))
            owners = {
                claim: (row_key, owner)
                for claim, row_key, owner in self.engine.fetch(
                    self.wrapper,
                    "SELECT claim, row_key, shard FROM dbfleet_unique "
                    f"WHERE claim IN ({marks})",
                    [claim.claim for claim in batch],
                )
            }
            # A row of another shard may have the same primary key, and so row key.
            lost |= {
                c.row_key for c in batch if owners.get(c.claim) != (c.row_key, shard)
            }
        if lost:
            self.release(lost, shard=shard)
        return frozenset(lost)

    def _insert(
        self, batch: Sequence[Claim], shard: str, verb: str, suffix: str
    ) -> None:
        one = "(" + ", ".join(["%s"] * len(_COLUMNS)) + ")"
        values: list[Any] = []
        for claim in batch:
            values += [claim.claim, self.table.name, claim.row_key, claim.rule, shard]
        self.engine.run(
            self.wrapper,
            f"{verb} dbfleet_unique ({', '.join(_COLUMNS)}) VALUES "
            f"{', '.join([one] * len(batch))} {suffix}",
            values,
        ).close()

    def release(
        self, row_keys: Iterable[str], rules: Iterable[Rule] = (), shard: str = ""
    ) -> None:
        """Let go of what rows claim: of some constraints or all, of a shard or all."""
        keys = list(dict.fromkeys(row_keys))
        names = [rule.name for rule in rules]
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            sql = (
                "DELETE FROM dbfleet_unique WHERE table_name = %s AND row_key IN "
                f"({', '.join(['%s'] * len(batch))})"
            )
            if names:
                sql += f" AND constraint_name IN ({', '.join(['%s'] * len(names))})"
            params = [self.table.name, *batch, *names]
            if shard:
                sql += " AND shard = %s"
                params.append(shard)
            self.engine.run(self.wrapper, sql, params).close()

    def _violated(
        self, batch: Sequence[Claim], error: IntegrityError
    ) -> IntegrityError:
        names = ", ".join(sorted({f'"{claim.rule}"' for claim in batch}))
        return IntegrityError(
            f"duplicate key value violates unique constraint {names} of "
            f"{self.table.label} (UNIQUE constraint failed: {self.table.name}; "
            "enforced over all shards)"
        )


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
