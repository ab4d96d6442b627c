"""Claims follow the schema: a migration that changes what is unique changes them.

Claims are made anew from the stored rows, over all shards, inside the migration's own
transaction where the server has one. A duplicate that is stored already makes the
migration fail, as it would on one database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.utils import Error, IntegrityError

from dbfleet.planner.route import HOME
from dbfleet.sharding import ledger
from dbfleet.sharding.claims import Claim, Claims, Rule
from dbfleet.sharding.lookup_builds import LookupBuild, builds, save
from dbfleet.sharding.lookups import READY, forget

#: operations that are given a model which has changed already
_FORCED = frozenset(
    {"add_constraint", "remove_constraint", "alter_unique_together", "alter_db_table"}
)
_COMPARED = frozenset({"add_field", "alter_field", "remove_field"})


@dataclass(slots=True)
class Change:
    """What an editor did to one table."""

    opts: Any
    names: set[str]
    removed: set[str] = field(default_factory=set)
    has_changed: bool = False


class Reclaim:
    """Collects the changes of one schema editor and brings claims up to date."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.routing = connection, connection.routing
        self._changes: dict[str, Change] = {}
        self._dropped: set[str] = set()
        self._created: dict[str, Any] = {}

    def note(self, operation: str, model: Any, args: Sequence[Any]) -> None:
        """An operation is about to change ``model``; checks duplicates beforehand
        where the server could not take its DDL back."""
        opts = model._meta
        table = self.routing.table_of(opts)
        if not table.is_sharded:
            return
        if operation == "create_model":
            self._created[opts.db_table] = opts
        elif operation == "delete_model":
            self._dropped.add(opts.db_table)
            self._changes.pop(opts.db_table, None)
            self._created.pop(opts.db_table, None)
        elif operation in _FORCED or operation in _COMPARED:
            self._note_change(operation, opts, args)

    def _note_change(self, operation: str, opts: Any, args: Sequence[Any]) -> None:
        old_name = args[0] if operation == "alter_db_table" else opts.db_table
        new_name = args[1] if operation == "alter_db_table" else opts.db_table
        change = self._changes.pop(old_name, None) or Change(opts, {old_name})
        change.names.add(new_name)
        self._changes[new_name] = change
        before = self._rules(opts, set())
        change.opts = _opts_after(opts, args)
        if operation == "remove_field":
            change.removed.add(args[0].column)
        after = self._rules(change.opts, change.removed)
        if operation in _FORCED or set(before) != set(after):
            change.has_changed = True
            if not self.connection.features.can_rollback_ddl:
                self._check_beforehand(change.opts, after)

    def _rules(self, opts: Any, removed: set[str]) -> list[Rule]:
        rules = self.routing.claim_rules(self.routing.table_of(opts))
        return [rule for rule in rules if not rule.columns & removed]

    def _claims(self, opts: Any, rules: Sequence[Rule]) -> Claims:
        table = self.routing.table_of(opts)
        return Claims(self.routing.facts(), table, rules, self.connection)

    def _check_beforehand(self, opts: Any, rules: Sequence[Rule]) -> None:
        seen: dict[str, tuple[str, str]] = {}
        claims = self._claims(opts, rules)
        for shard in self.routing.topology.holders:
            node = self.routing.node(shard, is_write=False)
            try:
                found = claims.of_rows(node, "1 = 1", [])
            except Error:
                return  # the columns come with the change itself
            for claim in found:
                owner = seen.setdefault(claim.claim, (shard, claim.row_key))
                if owner != (shard, claim.row_key):
                    raise self._duplicate(opts, claim)

    def _duplicate(self, opts: Any, claim: Claim) -> IntegrityError:
        return IntegrityError(
            f"could not create unique constraint {claim.rule!r} of {opts.label}: two "
            "rows on different shards have the same values; nothing was changed"
        )

    def finish(self) -> None:
        """Make the claims of every changed table anew; bounded by its rows."""
        changed = {n: c for n, c in self._changes.items() if c.has_changed}
        created = [o for o in self._created.values() if self._lookups_of(o)]
        if not changed and not self._dropped and not created:
            return
        # Where the change locks the tables, nobody writes until its commit.
        is_locked = (
            self.connection.features.can_rollback_ddl
            and self.connection.in_atomic_block
        )
        with self.connection.transaction.statement():
            for name in sorted(self._dropped):
                self._forget(name)
            for change in changed.values():
                for name in sorted(change.names):
                    self._forget(name)
                self._hold(change)
                if is_locked:
                    self._open(change.opts)
            for opts in created:
                if opts.db_table not in changed:
                    self._open(opts)

    def _forget(self, name: str) -> None:
        known = ledger.keepers(self.connection)
        for keeper in dict.fromkeys((HOME, *known)):
            node = self.routing.keeper(keeper, is_write=True)
            tables = ["dbfleet_unique"] if keeper in known else []
            for table in (*tables, "dbfleet_lookup"):
                sql = f"DELETE FROM {table} WHERE table_name = %s"
                self.connection.engine.run(node, sql, [name]).close()

    def _lookups_of(self, opts: Any) -> list[LookupBuild]:
        return builds(self.routing, self.routing.table_of(opts))

    def _open(self, opts: Any) -> None:
        """Let reads use the lookups of a table whose every row has its claims."""
        for one in self._lookups_of(opts):
            save(self.routing, (one.table.name, one.rule.name), READY)
        forget()

    def _hold(self, change: Change) -> None:
        rules = self._rules(change.opts, change.removed)
        if not rules:
            return
        claims = self._claims(change.opts, rules)
        for shard in self.routing.topology.holders:
            node = self.routing.node(shard, is_write=False)
            claims.hold(claims.of_rows(node, "1 = 1", [], shard))


def _opts_after(opts: Any, args: Sequence[Any]) -> Any:
    """The model as it will be: a field knows the model it is changed into."""
    for arg in reversed(args):
        model = getattr(arg, "model", None)
        is_field = hasattr(arg, "remote_field")
        if is_field and model is not None and model._meta.db_table == opts.db_table:
            return model._meta
    return opts
