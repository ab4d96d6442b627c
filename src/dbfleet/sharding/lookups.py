"""Asking the keepers of claims which shards may have a row with some value of a lookup.

Invariant: a shard that is left out shows no row with the value, on any of its servers.
A keeper's primary is asked, never a replica, and before the shards are. It names

- the shard of the row that claims the value, taken in the row's own transaction and
  seen here before COMMIT PREPARED lets anybody see the row;
- each shard that had such a row lately (``dbfleet_left``): a commit that is decided
  may not be carried out there yet, and replicas may be older.

No answer, and so every shard, where that is not certain: the lookup was not built,
or a transaction's own snapshots may be older than what its keeper shows.
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
from dbfleet.sharding import ledger
from dbfleet.sharding.claims import Rule, counted, digest
from dbfleet.sharding.keepers import Keepers, keeper_of

#: every row has its claim
READY = "ready"
#: how long a process does not ask again for a lookup that is not built
UNBUILT_S = 5.0

_TEXTS = {
    "unbuilt": "the lookup of {} was not used: manage.py fleet lookups --build",
    "isolated": (
        "no lookup was used: this transaction may read snapshots that are older than "
        "the claims"
    ),
    "away": "no lookup was used: {} cannot be asked",
}

#: (alias, home's database, table, constraint) -> when to ask again
_unbuilt: dict[tuple[str, str, str, str], float] = {}


def forget() -> None:
    """Ask again for lookups that were not built."""
    _unbuilt.clear()


class LookupReader:
    """Prunes the statements of one alias wrapper by what keepers answer."""

    def __init__(self, routing: Any) -> None:
        self.routing = routing

    def pruned(
        self, route: Route, facts: Facts, plan: Callable[[Facts], Route]
    ) -> Route:
        """The route with the answers to its ``asks``.

        One round trip to home's primary; none where it is known to be of no use. Where
        shards keep claims, one to the shard of each value, and one more for values that
        only a server can spell.
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
        keepers = ledger.keepers(self.routing.wrapper)
        try:
            rows = self._fetch(questions, keepers)
        except NodeUnavailable:
            if self.routing.wrapper.transaction.is_open:
                raise
            who = "home" if keepers == (HOME,) else "a shard that keeps its claims"
            return {}, [_TEXTS["away"].format(who)]
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

    def _fetch(
        self, questions: Sequence[_Question], keepers: Keepers
    ) -> list[tuple[int, str]]:
        claims = [
            (number, *self._claim(question, stored))
            for number, question in enumerate(questions)
            for stored in question.sent.values()
        ]
        wrapper = self.routing.wrapper
        has_level = wrapper.transaction.is_open and wrapper.engine.isolation_sql
        level = f"SELECT {_ISOLATION} AS n, {wrapper.engine.isolation_sql}"
        if keepers == (HOME,):
            asked = {HOME: _Asked([level] if has_level else [])}
        else:
            # A statement's own transaction has no snapshot before it reads a shard.
            is_new = (
                wrapper.transaction.is_internal and not wrapper.transaction.enlisted
            )
            has_level = has_level and not is_new
            asked = {HOME: _Asked([level])} if has_level else {}
            claims = self._spelled(claims, keepers)
        for at, (number, sql, values) in enumerate(claims):
            keeper = HOME if keepers == (HOME,) else keeper_of(values[0], keepers)
            one = asked.setdefault(keeper, _Asked([]))
            one.add_state(number, questions[number])
            for table in ("dbfleet_unique", "dbfleet_left"):
                one.add(f"SELECT {at} AS n, shard FROM {table} WHERE claim = {sql}")
                one.params += values
        rows: list[tuple[int, str]] = []
        for keeper in (HOME, *self.routing.topology.shards):
            if keeper in asked:
                node = self.routing.keeper(keeper, is_write=False)
                one = asked[keeper]
                rows += wrapper.engine.fetch(node, one.sql, one.params)
        return rows

    def _spelled(self, claims: Sequence[_Claimed], keepers: Keepers) -> list[_Claimed]:
        """The same claims, their digests known: one round trip where Python does not
        know some, to a keeper that other values have others of."""
        parts = [
            (f"SELECT {at} AS n, {sql} AS claim", values)
            for at, (_, sql, values) in enumerate(claims)
            if sql != "%s"
        ]
        known: dict[int, str] = {}
        if parts:
            params = [value for _, values in parts for value in values]
            one = keeper_of(digest(*map(str, params)), keepers)
            node = self.routing.keeper(one, is_write=False)
            text = " UNION ALL ".join(sql for sql, _ in parts)
            known = dict(self.routing.wrapper.engine.fetch(node, text, params))
        return [
            (number, "%s", [known[at]] if at in known else values)
            for at, (number, _, values) in enumerate(claims)
        ]

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

#: (number of its question, SQL of its digest, the SQL's parameters)
_Claimed = tuple[int, str, list[Any]]


class _Asked:
    """What one keeper is asked in one statement."""

    def __init__(self, parts: list[str]) -> None:
        self._parts, self._numbers = parts, set[int]()
        self.params: list[Any] = []

    @property
    def sql(self) -> str:
        return " UNION ALL ".join(self._parts)

    def add(self, sql: str) -> None:
        self._parts.append(sql)

    def add_state(self, number: int, question: _Question) -> None:
        """The state of a lookup, once; empty where the keeper knows none."""
        if number in self._numbers:
            return
        self._numbers.add(number)
        self.add(
            f"SELECT {-1 - number} AS n, COALESCE((SELECT state FROM dbfleet_lookup "
            "WHERE table_name = %s AND constraint_name = %s), '') AS state"
        )
        self.params += [question.ask.table.name, question.rule.name]


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
