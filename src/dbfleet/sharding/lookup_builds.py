"""Bringing claims in line with the rows of a table, so that lookups may rely on them.

Safe beside writers: each writer keeps the claims of its own rows; here only what is
missing is taken, by the same locks in the same order (row, then claim), and only what
no row holds any more is let go. Every step is bounded, and a build that was stopped
goes on behind its last batch. Invariant: a lookup is ``ready`` only after every row was
found to have its claim, and after the transactions ended that were prepared then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dbfleet.errors import ConfigurationError
from dbfleet.planner.route import HOME
from dbfleet.sharding import ledger, lookups
from dbfleet.sharding.claims import Claim, Claims, Rule
from dbfleet.sharding.keepers import by_keeper, keeper_of
from dbfleet.sharding.writer import Writer

#: rows in one batch
BATCH = 1000
#: claims that are compared with all rows at once
COMPARED = 250_000
#: how long the end of prepared transactions is waited for
SETTLED_S = 10.0
#: texts that collations tell apart, or not
_PROBES = ("a", "A", "a ", "\u00e4", "ss", "\u00df", "\ufb01", "-b", "1", "")

BUILDING = "building"


@dataclass(slots=True)
class Counts:
    """What was found of one lookup, and what was done."""

    rows: int = 0
    #: rows whose claim was missing; taken, unless only verified
    missing: int = 0
    #: of these, rows whose value another row claims
    conflicts: int = 0
    #: claims of rows that are not there; let go, unless only verified
    orphans: int = 0


class LookupBuild(Writer):
    """Compares the claims of one lookup with the rows, and repairs them."""

    def __init__(self, routing: Any, table: Any, field: Any, rule: Rule) -> None:
        super().__init__(routing, table)
        self.field, self.rule = field, rule
        self.engine = self.wrapper.engine

    @property
    def label(self) -> str:
        return f"{self.table.label} ({self.field.column})"

    def state(self) -> tuple[str, str]:
        """What home says of the lookup: its state, and how far a build came."""
        rows = self._ask(
            HOME,
            "SELECT state, progress FROM dbfleet_lookup "
            "WHERE table_name = %s AND constraint_name = %s",
            *self._names,
        )
        return (rows[0][0], rows[0][1]) if rows else ("", "")

    def build(self) -> Counts:
        """Take the claims that are missing, and open the lookup to reads.

        Four round trips or so for each 1000 rows. Goes on where it was stopped.
        Raises ConfigurationError where nodes compare the column differently.
        """
        self.check_nodes()
        state, progress = self.state()
        done: dict[str, Any] = json.loads(progress) if state == BUILDING else {}
        self._save(BUILDING, done)
        counts = Counts()
        for shard in self.facts.shards:
            if done.get(shard) == "done":
                continue
            for last in self._pass(shard, counts, done.get(shard), repairs=True):
                done[shard] = last
                self._save(BUILDING, done)
            done[shard] = "done"
        if counts.conflicts:
            self._save(BUILDING, {})  # from the start, once they are resolved
        else:
            self._wait_for_prepared()
            self._save(lookups.READY, {})
        lookups.forget()
        return counts

    def verify(self, *, repairs: bool) -> Counts:
        """Compare all claims with all rows, both ways; as many round trips as a build.

        A lookup that turns out to lack rows is closed, unless they are repaired.
        """
        counts = Counts()
        self._compare_claims(counts, repairs=repairs)
        for shard in self.facts.shards:
            for _ in self._pass(shard, counts, None, repairs=repairs):
                pass
        if counts.conflicts or (counts.missing and not repairs):
            self._save(BUILDING, {})
        return counts

    # -- rows without claims -------------------------------------------------------

    def _pass(
        self, shard: str, counts: Counts, last: Any, *, repairs: bool
    ) -> Iterator[list[str]]:
        """Look at the rows of a shard in batches; yields the last key of each."""
        for keys in self._batches(shard, last):
            claims = self._claims_of(shard, keys)
            counts.rows += len(keys)
            if self._missing(claims):
                self._settle(shard, keys, counts, repairs=repairs)
            yield [str(part) for part in keys[-1]]

    def _batches(self, shard: str, last: Any) -> Iterator[list[tuple[Any, ...]]]:
        quote = self.wrapper.ops.quote_name
        columns = ", ".join(quote(field.column) for field in self.table.pk_fields)
        marks = ", ".join(["%s"] * len(self.table.pk_fields))
        name = quote(self.table.name)
        while True:
            where = f"WHERE ({columns}) > ({marks}) " if last else ""
            rows = self.engine.fetch(
                self.routing.node(shard, is_write=False),
                f"SELECT {columns} FROM {name} {where}ORDER BY {columns} LIMIT {BATCH}",
                list(last or ()),
            )
            if rows:
                yield [tuple(row) for row in rows]
            if len(rows) < BATCH:
                return
            last = rows[-1]

    def _claims_of(
        self, shard: str, keys: Sequence[tuple[Any, ...]], *, locks: bool = False
    ) -> list[Claim]:
        where, params = self._by_raw(keys)
        if locks and self.wrapper.features.has_select_for_update:
            where = f"({where}) {self.wrapper.ops.for_update_sql()}"
        node = self.routing.node(shard, is_write=locks)
        return self._claims().of_rows(node, where, params, shard)

    def _by_raw(self, keys: Sequence[tuple[Any, ...]]) -> tuple[str, list[Any]]:
        """``WHERE`` text for keys as the driver gave them."""
        quote = self.wrapper.ops.quote_name
        fields = self.table.pk_fields
        if len(fields) == 1:
            marks = ", ".join(["%s"] * len(keys))
            return f"{quote(fields[0].column)} IN ({marks})", [k[0] for k in keys]
        one = "(" + " AND ".join(f"{quote(f.column)} = %s" for f in fields) + ")"
        return " OR ".join([one] * len(keys)), [part for key in keys for part in key]

    def _claims(self) -> Claims:
        return self.claims([self.rule])

    def _missing(self, claims: Sequence[Claim]) -> list[Claim]:
        held = self._holders([claim.claim for claim in claims])
        return [c for c in claims if held.get(c.claim) != (c.row_key, c.shard)]

    def _holders(self, claims: Sequence[str]) -> dict[str, tuple[str, str]]:
        held: dict[str, tuple[str, str]] = {}
        for keeper, some in by_keeper(claims, str, self._keepers):
            marks = ", ".join(["%s"] * len(some))
            rows = self._ask(
                keeper,
                "SELECT claim, row_key, shard FROM dbfleet_unique "
                f"WHERE claim IN ({marks})",
                *some,
            )
            held |= {claim: (row_key, shard) for claim, row_key, shard in rows}
        return held

    def _settle(
        self, shard: str, keys: Sequence[Any], counts: Counts, *, repairs: bool
    ) -> None:
        """Look again at rows that are locked: now their claims are what they are.

        What is missing is taken as their writers would."""
        with self.transaction.statement():
            missing = self._missing(self._claims_of(shard, keys, locks=True))
            counts.missing += len(missing)
            if missing and repairs:
                counts.conflicts += len(self._claims().hold_free(missing))
            elif missing:
                taken = self._holders([claim.claim for claim in missing])
                counts.conflicts += len(taken)

    # -- claims without rows -------------------------------------------------------

    def _compare_claims(self, counts: Counts, *, repairs: bool) -> None:
        held: dict[str, tuple[str, ...]] = {}
        for rows in self._held():
            held |= {row[0]: tuple(row[1:]) for row in rows}
            if len(held) >= COMPARED:
                self._compare(held, counts, repairs)
                held = {}
        if held:
            self._compare(held, counts, repairs)

    def _held(self) -> Iterator[list[Any]]:
        """All claims, keeper by keeper."""
        for keeper in self._keepers:
            after, is_more = "", True
            while is_more:
                rows = self._ask(
                    keeper,
                    "SELECT claim, row_key, shard, gid FROM dbfleet_unique WHERE "
                    "table_name = %s AND constraint_name = %s AND claim > %s "
                    f"ORDER BY claim LIMIT {COMPARED}",
                    *self._names,
                    after,
                )
                yield rows
                after, is_more = rows[-1][0] if rows else "", len(rows) == COMPARED

    def _compare(
        self, held: dict[str, tuple[str, ...]], counts: Counts, repairs: bool
    ) -> None:
        # Asked before the rows are read: a claim that is not of these was committed,
        # and its row can be seen for as long as the claim has the same id.
        prepared = {gid for shard in self.facts.shards for gid in self._prepared(shard)}
        for shard in self.facts.shards:
            for keys in self._batches(shard, None):
                for claim in self._claims_of(shard, keys):
                    found = held.get(claim.claim)
                    if found is not None and found[:2] == (claim.row_key, shard):
                        del held[claim.claim]
        for name, (row_key, shard, gid) in held.items():
            if gid in prepared:
                continue
            gone = 1
            if repairs:
                where = "claim = %s AND row_key = %s AND shard = %s AND gid = %s"
                gone = self._run(
                    keeper_of(name, self._keepers),
                    f"DELETE FROM dbfleet_unique WHERE {where}",
                    [name, row_key, shard, gid],
                )
            counts.orphans += gone

    # -- nodes ---------------------------------------------------------------------

    def check_nodes(self) -> None:
        """Refuse a column that home compares otherwise than a shard does."""
        target = self.field
        while target.remote_field:
            target = target.target_field
        collation = getattr(target, "db_collation", None)
        kind = target.db_type(self.wrapper)
        text = self.engine.canonical_text("v.x", kind, collation)
        sql = lookups.value_sql(self.wrapper, self.table, self.field)
        probes: Sequence[Any] = _PROBES
        if target.get_internal_type() == "UUIDField":
            value = "00c0ffee-00aa-4bbb-8ccc-0123456789ab"
            stored = target.get_db_prep_value(target.to_python(value), self.wrapper)
            probes = [stored]
        elif not isinstance(target.get_prep_value("1"), str):
            probes = [1, -20]
        for probe in probes:
            known = self.engine.known_text(probe, collation)
            texts: dict[str, Any] = {} if known is None else {"Python": known}
            for cluster in ("home", *self.facts.shards):
                node = self.routing.node(cluster, is_write=False)
                [[texts[cluster]]] = self.engine.fetch(
                    node, f"SELECT {text} FROM {sql} v", [probe]
                )
            if len(set(texts.values())) > 1:
                shown = ", ".join(f"{name}: {one}" for name, one in texts.items())
                raise ConfigurationError(
                    "E111",
                    f"{self.label} cannot be a lookup: nodes of "
                    f"{self.wrapper.alias!r} compare it differently ({shown} for "
                    f"{probe!r}). Give the column the same collation on every node",
                )

    def _prepared(self, shard: str) -> set[str]:
        if not self.engine.can_prepare:
            return set()
        node = self.routing.node(shard, is_write=False)
        return {g for g in self.engine.prepared(node) if g.startswith("dbfleet_")}

    def _wait_for_prepared(self) -> None:
        """Wait for those that are prepared now: the processes that began them may not
        have known of the lookup, and note what they let go."""
        deadline = time.monotonic() + SETTLED_S
        for number, shard in enumerate(self.facts.shards):
            own = f"_{number}"  # a server may have several shards
            left = {gid for gid in self._prepared(shard) if gid.endswith(own)}
            while left and time.monotonic() < deadline:
                time.sleep(0.02)
                left &= self._prepared(shard)
            if left:
                raise ConfigurationError(
                    "E111",
                    f"{self.label} is built but not opened: {', '.join(sorted(left))} "
                    f"is prepared on shard {shard!r} of {self.wrapper.alias!r}. Settle "
                    "it as its error said, then build again",
                )

    # -- home and keepers ----------------------------------------------------------

    @property
    def _names(self) -> tuple[str, str]:
        return self.table.name, self.rule.name

    @property
    def _keepers(self) -> tuple[str, ...]:
        return ledger.keepers(self.wrapper)

    def _ask(self, keeper: str, sql: str, *params: Any) -> list[Any]:
        node = self.routing.keeper(keeper, is_write=False)
        return list(self.engine.fetch(node, sql, list(params)))

    def _run(self, keeper: str, sql: str, params: Sequence[Any]) -> int:
        node = self.routing.keeper(keeper, is_write=True)
        cursor = self.engine.run(node, sql, params)
        try:
            return int(cursor.rowcount)
        finally:
            cursor.close()

    def _save(self, state: str, progress: dict[str, Any]) -> None:
        if state == BUILDING and progress:  # it was closed before
            note(self.routing, HOME, self._names, state, json.dumps(progress))
        else:
            save(self.routing, self._names, state)


def save(
    routing: Any, names: tuple[str, str], state: str, progress: str = "{}"
) -> None:
    """Write the state of a lookup, in home and on every keeper at once; two round trips
    for each."""
    with routing.wrapper.transaction.statement():
        for keeper in dict.fromkeys((HOME, *ledger.keepers(routing.wrapper))):
            note(routing, keeper, names, state, progress)


def note(
    routing: Any, keeper: str, names: tuple[str, str], state: str, progress: str
) -> None:
    """Write the state of a lookup on one keeper; two round trips."""
    engine, node = routing.wrapper.engine, routing.keeper(keeper, is_write=True)
    set_state = engine.run(
        node,
        "UPDATE dbfleet_lookup SET state = %s, progress = %s "
        "WHERE table_name = %s AND constraint_name = %s",
        [state, progress, *names],
    )
    is_there = set_state.rowcount
    set_state.close()
    if not is_there:
        engine.run(
            node,
            "INSERT INTO dbfleet_lookup (state, progress, table_name, constraint_name) "
            "VALUES (%s, %s, %s, %s)",
            [state, progress, *names],
        ).close()


def builds(routing: Any, table: Any) -> list[LookupBuild]:
    """The declared lookups of a table that claims can answer; no I/O."""
    found = []
    for field in routing.lookup_fields(table):
        rule = lookups.rule_of(routing.claim_rules(table), field)
        if rule is not None and routing.facts().keeps_lookups:
            found.append(LookupBuild(routing, table, field, rule))
    return found
