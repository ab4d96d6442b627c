"""Asking home which shards may have a row with some value of a lookup.

Invariant: a shard that is left out shows no row with the value, on any of its servers.
Home's primary is asked, never a replica, and before the shards are. It names

- the shard of the row that claims the value, taken in the row's own transaction and
  seen here before COMMIT PREPARED lets anybody see the row;
- each shard that had such a row lately (``dbfleet_left``): a commit that is decided
  may not be carried out there yet, and replicas may be older.

No answer, and so every shard, where that is not certain: the lookup was not built,
or a transaction's own snapshots may be older than what home shows.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dbfleet.errors import NodeUnavailable
from dbfleet.planner.lookups import Answers, Ask
from dbfleet.planner.route import HOME, Route
from dbfleet.planner.uses import Facts
from dbfleet.sharding.claims import Rule, counted, digest

#: every row has its claim
READY = "ready"
#: how long a process does not ask again for a lookup that is not built
UNBUILT_S = 5.0

_TEXTS = {
    "unbuilt": "the lookup of {} was not used: manage.py fleet lookups --build",
    "isolated": (
        "no lookup was used: this transaction may read snapshots that are older than "
        "home's claims"
    ),
    "away": "no lookup was used: home cannot be asked",
}

#: (alias, home's database, table, constraint) -> when to ask again
_unbuilt: dict[tuple[str, str, str, str], float] = {}


def forget() -> None:
    """Ask again for lookups that were not built."""
    _unbuilt.clear()


class LookupReader:
    """Prunes the statements of one alias wrapper by what home answers."""

    def __init__(self, routing: Any) -> None:
        self.routing = routing

    def pruned(
        self, route: Route, facts: Facts, plan: Callable[[Facts], Route]
    ) -> Route:
        """The route with the answers to its ``asks``.

        One round trip to home's primary; none where it is known to be of no use.
        """
        answers, why = self._ask(route.asks)
        if answers:
            route = plan(replace(facts, answers=answers))
        if not why:
            return replace(route, asks=())
        return replace(route, asks=(), reason="; ".join([route.reason, *why]))

    def _ask(self, asks: Sequence[Ask]) -> tuple[Answers, list[str]]:
        if not self._shows_commits():
            return {}, [_TEXTS["isolated"]]
        questions, why = [], []
        for ask in asks:
            question = self._question(ask)
            if question is None:
                continue
            if time.monotonic() < _unbuilt.get(self._key(question), 0.0):
                why.append(_TEXTS["unbuilt"].format(ask.label))
            else:
                questions.append(question)
        if not questions:
            return {}, why
        try:
            rows = self._fetch(questions)
        except NodeUnavailable:
            if self.routing.wrapper.transaction.is_open:
                raise
            return {}, [_TEXTS["away"]]
        return self._answers(questions, rows, why)

    def _shows_commits(self) -> bool:
        """Whether no snapshot of the open transaction is older than this statement."""
        wrapper = self.routing.wrapper
        transaction = wrapper.transaction
        if not transaction.is_open:
            return True
        nodes = [part.node for part in transaction.enlisted.values()]
        wrapper.ensure_connection()
        return all(map(wrapper.engine.shows_commits, [wrapper, *nodes]))

    def _key(self, question: _Question) -> tuple[str, str, str, str]:
        wrapper = self.routing.wrapper
        name = str(wrapper.settings_dict["NAME"])
        return wrapper.alias, name, question.ask.table.name, question.rule.name

    def _question(self, ask: Ask) -> _Question | None:
        rule = rule_of(self.routing.claim_rules(ask.table), ask.field)
        if rule is None:
            return None  # its own shard key decides, or none could be kept
        wrapper = self.routing.wrapper
        sent = {}
        for value in ask.values:
            stored = ask.field.get_db_prep_value(value, wrapper, prepared=True)
            if not isinstance(stored, (str, int, uuid.UUID)):
                return None
            sent[value] = str(stored) if isinstance(stored, str) else stored
        return _Question(ask, rule, sent)

    def _fetch(self, questions: Sequence[_Question]) -> list[tuple[int, str]]:
        wrapper = self.routing.wrapper
        parts: list[str] = []
        params: list[Any] = []
        if wrapper.transaction.is_open and wrapper.engine.isolation_sql:
            parts.append(f"SELECT {_ISOLATION} AS n, {wrapper.engine.isolation_sql}")
        at = 0
        for number, question in enumerate(questions):
            parts.append(
                f"SELECT {-1 - number} AS n, state FROM dbfleet_lookup "
                "WHERE table_name = %s AND constraint_name = %s"
            )
            params += [question.ask.table.name, question.rule.name]
            for stored in question.sent.values():
                sql, values = self._claim(question, stored)
                for table in ("dbfleet_unique", "dbfleet_left"):
                    parts.append(
                        f"SELECT {at} AS n, shard FROM {table} WHERE claim = {sql}"
                    )
                    params += values
                at += 1
        node = self.routing.node(HOME, is_write=False)
        return list(wrapper.engine.fetch(node, " UNION ALL ".join(parts), params))

    def _claim(self, question: _Question, stored: Any) -> tuple[str, list[Any]]:
        """SQL of the claim of a value, which the server spells if Python cannot."""
        engine, field = self.routing.wrapper.engine, question.ask.field
        target = field
        while target.remote_field:
            target = target.target_field
        collation = getattr(target, "db_collation", None)
        names = question.ask.table.name, question.rule.name
        text = engine.known_text(stored, collation)
        if text is not None:
            return "%s", [digest(*names, "v" + text)]
        sql = value_sql(self.routing.wrapper, question.ask.table, field)
        kind = target.db_type(self.routing.wrapper)
        claim = engine.claim_sql(engine.canonical_text("v.x", kind, collation))
        return f"(SELECT {claim} FROM {sql} v)", ["".join(map(counted, names)), stored]

    def _answers(
        self,
        questions: Sequence[_Question],
        rows: Sequence[tuple[int, str]],
        why: list[str],
    ) -> tuple[Answers, list[str]]:
        found: dict[int, set[str]] = {}
        for number, text in rows:
            found.setdefault(int(number), set()).add(text)
        if found.get(_ISOLATION, {"read committed"}) != {"read committed"}:
            return {}, [_TEXTS["isolated"]]
        answers: dict[tuple[str, str], dict[Any, frozenset[str]]] = {}
        at = 0
        for number, question in enumerate(questions):
            shards = {
                value: frozenset(found.get(at + n, ()))
                for n, value in enumerate(question.sent)
            }
            at += len(question.sent)
            if not frozenset().union(*shards.values()) <= set(
                self.routing.topology.shards
            ):
                continue  # a shard that the settings lack
            if found.get(-1 - number) == {READY}:
                answers[question.ask.column] = shards
            else:
                _unbuilt[self._key(question)] = time.monotonic() + UNBUILT_S
                why.append(_TEXTS["unbuilt"].format(question.ask.label))
        return answers, why


#: what numbers the row that tells a transaction's isolation
_ISOLATION = -1_000_000


class _Question:
    """An ask, the constraint whose claims answer it, its values as they are sent."""

    def __init__(self, ask: Ask, rule: Rule, sent: dict[Any, Any]) -> None:
        self.ask, self.rule, self.sent = ask, rule, sent


def rule_of(rules: Sequence[Rule], field: Any) -> Rule | None:
    """The constraint that makes a lookup unique; None where a shard keeps it alone."""
    return next((rule for rule in rules if rule.only_column == field.column), None)


def value_sql(wrapper: Any, table: Any, field: Any) -> str:
    """A table of one row with one parameter, ``x``, which compares as the column does.

    In a UNION a constant takes the column's type and collation.
    """
    quote = wrapper.ops.quote_name
    return (
        f"(SELECT {quote(field.column)} AS x FROM {quote(table.name)} WHERE 1 = 0 "
        "UNION ALL SELECT %s)"
    )
