"""The ``DBFLEET`` setting: read once, all its mistakes in one error."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings

from dbfleet import conf, databases
from dbfleet.errors import ConfigurationError
from dbfleet.policies import First, Random, RoundRobin
from dbfleet.topology import load
from dbfleet.topology.snapshot import FanoutLimits


def test_defaults() -> None:
    with override_settings(DBFLEET={}):
        settings = conf.settings()
    assert settings.consistency.name == "session"
    assert isinstance(settings.policy, Random)
    assert not settings.placement
    assert not settings.shard_rules


def test_it_is_read_once_and_again_after_a_change() -> None:
    with override_settings(DBFLEET={"PLACEMENT": {"auth.USER": "db1"}}):
        first = conf.settings()
        assert conf.settings() is first
        assert first.placement == {"auth.user": "db1"}
        with override_settings(DBFLEET={"CONSISTENCY": "strong"}):
            assert conf.settings().consistency.name == "strong"
            assert not conf.settings().placement
    assert conf.settings() is not first


def test_all_that_may_be_set() -> None:
    policy = Random(["db1", "db2"])
    given: dict[str, Any] = {
        "PLACEMENT": {"auth": "db1", "auth.User": policy},
        "SHARD_KEYS": {"a.Line": "order__customer", "a.Pair": ("x", "y")},
        "REFERENCE": ["a.Country", "geo"],
        "LOCAL": ("a.Log",),
        "POLICY": "dbfleet.policies.RoundRobin",
        "POLICIES": {"auth.User": First},
        "CONSISTENCY": "eventual",
        "GATHER": {"MAX_ROWS": 5},
    }
    with override_settings(DBFLEET=given):
        settings = conf.settings()
    assert settings.placement == {"auth": "db1", "auth.user": policy}
    assert settings.shard_rules == {
        "a.line": ("order__customer",),
        "a.pair": ("x", "y"),
        "a.country": "reference",
        "geo": "reference",
        "a.log": "local",
    }
    assert isinstance(settings.policy, RoundRobin)
    assert isinstance(settings.policies["auth.user"], First)


def test_limits_of_an_alias_come_before_the_general_ones() -> None:
    def node(name: str) -> dict[str, str]:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": name}

    entry = databases(
        sales={
            "ENGINE": "dbfleet.backend",
            "PRIMARY": node("h"),
            "SHARDS": {"a": node("a")},
            "GATHER": {"MAX_ROWS": 100_000},
        }
    )["sales"]
    topology = load("sales", entry)
    general = {"MAX_ROWS": 7, "INLINE_ROWS": 0}
    with override_settings(DBFLEET={"GATHER": general}):
        limits = conf.settings().gather_for(topology)
    assert (limits.max_rows, limits.inline_rows) == (100_000, 0)
    assert limits.max_bytes == 64 * 2**20


def test_the_most_specific_policy_wins() -> None:
    def node(name: str) -> dict[str, str]:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": name}

    entries = databases(
        own={"ENGINE": "dbfleet.backend", "PRIMARY": node("x"), "POLICY": First},
        none=node("y"),
    )
    own = load("own", entries["own"]).home
    none = load("none", entries["none"]).home
    given = {"POLICY": Random, "POLICIES": {"a": RoundRobin, "a.X": First()}}
    with override_settings(DBFLEET=given):
        choose = conf.settings().policy_for
        found = [
            choose(own, "b", "x"),
            choose(none, "b", "x"),
            choose(own, "a", "y"),
            choose(none, "a", "x"),
            choose(own),
        ]
    assert [type(one) for one in found] == [First, Random, RoundRobin, First, First]


WRONG: list[tuple[str, Any, str]] = [
    ("E004", [], "DBFLEET: must be a dict, not list"),
    ("E006", {"PLACEMENTS": {}}, "did you mean 'PLACEMENT'?"),
    ("E004", {"PLACEMENT": []}, "DBFLEET['PLACEMENT']: must be a dict"),
    ("E004", {"PLACEMENT": {"a.b.c": "x"}}, "'a.b.c' is not 'app.Model'"),
    ("E004", {"PLACEMENT": {5: "x"}}, "5 is not 'app.Model' or 'app'"),
    ("E004", {"PLACEMENT": {"a": 5}}, "must be an alias or a policy"),
    ("E004", {"PLACEMENT": {"a": Random}}, "must be an alias or a policy"),
    ("E007", {"PLACEMENT": {"a": Random()}}, "has no aliases to choose from"),
    ("E005", {"PLACEMENT": {"a.B": "x", "a.b": "y"}}, "is given twice"),
    ("E004", {"SHARD_KEYS": {"a": "x"}}, "'a' is an app; name a model"),
    ("E004", {"SHARD_KEYS": {"a.B": 5}}, "a shard key is a field's name"),
    ("E004", {"SHARD_KEYS": {"a.B": ()}}, "a shard key is a field's name"),
    ("E004", {"SHARD_KEYS": {"a.B": ""}}, "a shard key is a field's name"),
    ("E004", {"REFERENCE": "a.B"}, "must be a list"),
    ("E005", {"SHARD_KEYS": {"a.B": "x"}, "REFERENCE": ["a.b"]}, "is also in"),
    ("E005", {"LOCAL": ["a.B"], "REFERENCE": ["a.B"]}, "is also in"),
    ("E004", {"CONSISTENCY": "sesion"}, "did you mean 'session'?"),
    ("E004", {"CONSISTENCY": ["session"]}, "is unknown"),
    ("E004", {"PROBE_AFTER_S": 0}, "must be more than 0 and at most 60 seconds"),
    ("E004", {"PROBE_AFTER_S": "1"}, "or None for never, not '1'"),
    ("E007", {"POLICY": "dbfleet.policies.Rand"}, "cannot be imported"),
    ("E007", {"POLICY": None}, "names no policy"),
    ("E007", {"POLICIES": {"a": 5}}, "has no method order"),
    ("E006", {"GATHER": {"MAX_ROW": 5}}, "did you mean 'MAX_ROWS'?"),
    ("E004", {"GATHER": {"MAX_ROWS": 0}}, "must be a positive int"),
    ("E004", {"FANOUT": 16}, "DBFLEET['FANOUT']: must be a dict"),
    ("E006", {"FANOUT": {"MAX_PARALEL": 5}}, "did you mean 'MAX_PARALLEL'?"),
    ("E004", {"FANOUT": {"MAX_PARALLEL": 0}}, "MAX_PARALLEL must be a positive int"),
    ("E004", {"FANOUT": {"MAX_PARALLEL": None}}, "MAX_PARALLEL must be a positive"),
    ("E004", {"FANOUT": {"MAX_THREADS": 2.5}}, "MAX_THREADS must be a positive int"),
    ("E004", {"FANOUT": {"PARALLEL_WRITES": 1}}, "PARALLEL_WRITES must be a bool"),
    ("E004", {"FANOUT": {"DEADLINE_S": 0}}, "must be a positive number of seconds"),
    ("E004", {"FANOUT": {"DEADLINE_S": True}}, "or None for never, not True"),
    ("E004", {"FANOUT": {"DEADLINE_S": "60"}}, "or None for never, not '60'"),
    ("E004", {"FANOUT": {"DEADLINE_S": float("nan")}}, "must be a positive number"),
]


def test_limits_of_a_fan_out() -> None:
    with override_settings(DBFLEET={}):
        assert conf.settings().fanout == FanoutLimits(16, 64, 60.0)
    with override_settings(DBFLEET={"FANOUT": {"MAX_PARALLEL": 3, "DEADLINE_S": None}}):
        assert conf.settings().fanout == FanoutLimits(3, 64, None)


@pytest.mark.parametrize(("code", "given", "text"), WRONG, ids=lambda v: str(v)[:40])
def test_a_mistake_is_named(code: str, given: Any, text: str) -> None:
    with override_settings(DBFLEET=given):
        with pytest.raises(ConfigurationError) as raised:
            conf.settings()
        assert raised.value.code == f"dbfleet.{code}"
        assert text in str(raised.value)
        with pytest.raises(ConfigurationError):
            conf.settings()


def test_all_mistakes_are_in_one_error() -> None:
    given = {"PLACEMENTS": {}, "CONSISTENCY": "x", "GATHER": {"ROWS": 1}, "POLICY": 1}
    with (
        override_settings(DBFLEET=given),
        pytest.raises(ConfigurationError, match="4 mistakes") as raised,
    ):
        conf.settings()
    for key in ("PLACEMENTS", "CONSISTENCY", "ROWS", "POLICY"):
        assert key in str(raised.value)
