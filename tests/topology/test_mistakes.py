"""Wrong declarations: each mistake named, all of them in one error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dbfleet import Cluster, DirectoryMap, ListMap, RangeMap, Sharded, databases
from dbfleet.errors import ConfigurationError
from dbfleet.policies import Weighted
from dbfleet.topology import find_mistakes, load, load_all

PG = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop", "HOST": "db1"}
LITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "x.db"}
MYSQL = {"ENGINE": "django.db.backends.mysql", "NAME": "shop", "HOST": "db1"}


def sharded(**options: Any) -> Sharded:
    options = {"home": LITE, "shards": {"a": {"NAME": "a.db"}}, **options}
    return Sharded(**options)


def ranges(*rows: tuple[Any, Any, str]) -> Sharded:
    shards = {"a": {"NAME": "a.db"}, "b": {"NAME": "b.db"}}
    return sharded(map=RangeMap(rows), shards=shards)


def entry(**keys: Any) -> dict[str, Any]:
    return {"ENGINE": "dbfleet.backend", "PRIMARY": LITE, **keys}


CASES: list[tuple[str, Any, str, str]] = [
    ("E001", 5, "x/primary", "is int; give a URL"),
    ("E001", {"ENGINE": "dbfleet.backend"}, "x", "has no PRIMARY"),
    ("E001", {"NAME": "shop"}, "x/primary", "has no ENGINE"),
    ("E001", {**PG, "NAME": ""}, "x/primary", "has no NAME"),
    ("E001", Cluster(lambda: "postgres://h/n"), "x/primary", "its URL is a callable"),
    ("E001", Cluster(PG, replicas=[None]), "x/replica1", "is NoneType"),  # type: ignore[list-item]
    ("E001", sharded(shards={"a": {"REPLICAS": []}}), "x/a", "has no PRIMARY"),
    ("E003", Cluster(PG, replicas=[{}]), "x/replica1", "as x/primary"),
    ("E003", Cluster(PG, replicas=[{"PORT": 5432}]), "x/replica1", "as x/primary"),
    ("E003", Cluster(PG, replicas=[{"HOST": "DB1"}]), "x/replica1", "as x/primary"),
    (
        "E003",
        Cluster(MYSQL, replicas=[{"PORT": "3306"}]),
        "x/replica1",
        "same database",
    ),
    ("E003", Cluster(LITE, replicas=[{"NAME": "./x.db"}]), "x/replica1", "same"),
    ("E003", sharded(shards={"a": LITE}), "x/a/primary", "as x/home/primary"),
    (
        "E003",
        sharded(shards={"a": {"NAME": "a.db"}, "b": {"NAME": "a.db"}}),
        "x/b/primary",
        "as x/a/primary",
    ),
    (
        "E004",
        {**PG, "CONN_MAX_AGE": "60"},
        "x/primary",
        "CONN_MAX_AGE must be a number",
    ),
    ("E004", {**PG, "ZONE": 1}, "x/primary", "ZONE must be text"),
    ("E004", Cluster(PG, ZONE=""), "x", "ZONE must be text"),
    ("E004", {**PG, "OPTIONS": "sslmode"}, "x/primary", "OPTIONS must be a dict"),
    ("E004", {**PG, "ATOMIC_REQUESTS": 1}, "x/primary", "must be True or False"),
    ("E004", {**PG, "PASSWORD": None}, "x/primary", "PASSWORD must be text"),
    ("E004", {**PG, "PORT": True}, "x/primary", "PORT must be a number"),
    ("E004", {"ENGINE": "x", "URL": 5}, "x/primary", "URL must be text"),
    ("E004", entry(OPTIONS=[]), "x", "OPTIONS must be a dict"),
    ("E004", entry(REPLICAS="postgres://h/n"), "x", "REPLICAS must be a list"),
    ("E004", Cluster(PG, replicas="postgres://h/n"), "x", "REPLICAS must be a list"),
    ("E004", entry(READ_ONLY="no"), "x", "READ_ONLY must be True or False"),
    ("E004", sharded(slots=0), "x", "SLOTS must be a positive int, not 0"),
    ("E004", sharded(slots=True), "x", "SLOTS must be a positive int"),
    ("E004", sharded(slots="12"), "x", "SLOTS must be a positive int"),
    ("E004", sharded(shards={}), "x", "with one shard at least"),
    ("E004", sharded(shards=["a"]), "x", "SHARDS must be a dict"),
    ("E004", sharded(shards={"a/b": LITE}), "x", "'a/b' is no name for a shard"),
    ("E004", sharded(shards={1: LITE}), "x", "1 is no name for a shard"),
    ("E004", sharded(gather=7), "x", "GATHER must be a dict"),
    ("E004", sharded(gather={"max_rows": -1}), "x", "MAX_ROWS must be a positive"),
    ("E004", sharded(gather={"source": "fwd"}), "x", "SOURCE 'fwd' is unknown"),
    ("E004", sharded(gather={"fdw_hosts": {"a": 5}}), "x", "FDW_HOSTS must be a dict"),
    ("E004", sharded(commit="maybe"), "x", "COMMIT 'maybe' is unknown"),
    ("E004", sharded(claims="a"), "x", "CLAIMS 'a' is unknown"),
    (
        "E005",
        sharded(claims="shards", commit="best_effort"),
        "x",
        "CLAIMS = 'shards' needs COMMIT = 'two_phase'",
    ),
    ("E005", entry(CLAIMS="home"), "x", "CLAIMS is about shards"),
    ("E005", {**LITE, "ENGINE": "dbfleet.backend.base"}, "x/primary", "not itself"),
    ("E005", Cluster({**PG, "ENGINE": "dbfleet.backend"}), "x/primary", "not itself"),
    ("E005", entry(NAME="other.db"), "x", "NAME differs from PRIMARY's"),
    ("E005", entry(SLOTS=12), "x", "SLOTS is about shards, but there are no SHARDS"),
    ("E005", entry(GATHER={}), "x", "GATHER is about shards"),
    (
        "E005",
        sharded(slots=1, shards={"a": {"NAME": "a"}, "b": {"NAME": "b"}}),
        "x",
        "fewer than the 2",
    ),
    ("E005", sharded(shards={"home": LITE}), "x", "'home' is the home's name"),
    (
        "E005",
        sharded(shards={"a": Cluster({"NAME": "a"}, read_only=True)}),
        "x/a",
        "READ_ONLY is a matter of the whole alias",
    ),
    (
        "E005",
        sharded(TEST={"MIRROR": "y"}),
        "x/home/primary",
        "TEST MIRROR contradicts",
    ),
    (
        "E005",
        Cluster(LITE, replicas=[{"NAME": "r", "TEST": {"NAME": "t"}}]),
        "x/replica1",
        "its test database is its primary's",
    ),
    (
        "E005",
        Cluster({**PG, "OPTIONS": {"pool": True}, "CONN_MAX_AGE": 60}),
        "x/primary",
        "exclude each other",
    ),
    ("E006", {**PG, "PASWORD": "tiger"}, "x/primary", "did you mean 'PASSWORD'?"),
    ("E006", {**PG, "ENGINE": "acme", "PASWORD": "x"}, "x/primary", "mean 'PASSWORD'?"),
    ("E006", {**PG, "REGION": "eu"}, "x/primary", "'REGION' is unknown"),
    ("E006", entry(REPLICA=[]), "x", "did you mean 'REPLICAS'?"),
    ("E006", Cluster(PG, replcas=[]), "x", "did you mean 'replicas'?"),  # type: ignore[call-arg]
    ("E006", Cluster(PG, conn_max_age=5), "x", "did you mean 'CONN_MAX_AGE'?"),  # type: ignore[call-arg]
    ("E006", sharded(gather={"rows": 1}), "x", "did you mean 'MAX_ROWS'?"),
    ("E007", Cluster(PG, policy="Randm"), "x", "is not a dotted path"),
    ("E007", Cluster(PG, policy="dbfleet.policies.Randm"), "x", "cannot be imported"),
    ("E007", Cluster(PG, policy="dbfleet.policies.Weighted"), "x", "needs arguments"),
    ("E007", Cluster(PG, policy=object()), "x", "has no method order"),  # type: ignore[arg-type]
    ("E007", Cluster(PG, policy=Weighted), "x", "needs arguments"),
    ("E004", sharded(map=7), "x", "MAP must be a ListMap, a RangeMap, a Dir"),
    ("E004", sharded(map={}), "x", "MAP must be a ListMap"),
    ("E004", sharded(map={"LIST": ["a"]}), "x", "MAP LIST must be a dict"),
    ("E004", sharded(map=ListMap({})), "x", "MAP LIST is empty"),
    (
        "E004",
        sharded(map=DirectoryMap(float)),
        "x",
        "DIRECTORY has KEYS <class 'float'>",
    ),
    (
        "E004",
        sharded(map=DirectoryMap("big")),
        "x",
        "has KEYS 'big'; it is one of int,",
    ),
    ("E004", sharded(map=DirectoryMap(int, "z")), "x", "places new keys on 'z' is unk"),
    ("E004", sharded(map={"DIRECTORY": "int"}), "x", "MAP DIRECTORY must be a dict"),
    ("E004", sharded(map={"DIRECTORY": {}}), "x", "MAP DIRECTORY must be a dict"),
    ("E004", sharded(map=ListMap({1: "z"})), "x", "MAP places keys on 'z' is unknown"),
    ("E004", sharded(map=ListMap({1.5: "a"})), "x", "has the key 1.5; keys are of"),
    ("E004", sharded(map=ListMap({True: "a"})), "x", "has the key True"),
    ("E004", sharded(map=ListMap({1: "a", "1": "a"})), "x", "keys of several types"),
    ("E004", sharded(map={"RANGE": [(1, "a")]}), "x", "MAP RANGE must be a list of"),
    ("E004", sharded(map={"RANGE": {1: "a"}}), "x", "MAP RANGE must be a list of"),
    ("E004", sharded(map=RangeMap([([1], 2, "a")])), "x", "has the key [1]"),
    ("E004", sharded(map=RangeMap([(1, "2", "a")])), "x", "keys of several types"),
    ("E004", sharded(map=RangeMap([(2, 2, "a")])), "x", "(2, 2, 'a') is empty"),
    ("E004", sharded(map=RangeMap([(None, None, "a")])), "x", "has no bound"),
    ("E004", ranges((0, 5, "a"), (4, 9, "b")), "x", "(4, 9, 'b') overlap"),
    ("E004", ranges((0, None, "a"), (4, 9, "b")), "x", "(4, 9, 'b') overlap"),
    ("E004", ranges((None, 5, "a"), (None, 9, "b")), "x", "'b') overlap"),
    ("E004", ranges((0, 5, "a"), (6, 9, "b")), "x", "(6, 9, 'b') leave a gap"),
    ("E005", entry(MAP={"LIST": {1: "a"}}), "x", "MAP is about shards"),
    ("E005", sharded(slots=7, map=ListMap({1: "a"})), "x", "exclude each other"),
    ("E006", sharded(map={"LISTS": {1: "a"}}), "x", "did you mean 'LIST'?"),
    ("E008", Cluster(PG, replicas=[LITE]), "x", "x/replica1 is django.db.backends.sql"),
    ("E008", sharded(shards={"a": PG}), "x", "declare the others as aliases"),
]


@pytest.mark.parametrize(
    ("code", "declared", "where", "text"),
    CASES,
    ids=[f"{code}-{text[:30]}" for code, _, _, text in CASES],
)
def test_a_mistake_is_named(code: str, declared: Any, where: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        databases(x=declared)
    message = str(raised.value)
    assert raised.value.code == f"dbfleet.{code}", message
    assert message.startswith(f"{where}: "), message
    assert text in message
    assert message.endswith(f"(dbfleet.{code})")
    assert "tiger" not in message


def test_all_mistakes_of_all_aliases_are_in_one_error() -> None:
    entries: dict[str, Any] = {
        "default": entry(REPLICAS=[{"NAM": "r"}, 7], READ_ONLY=3),
        "sales": entry(SHARDS={"a": {"NAME": "x.db"}, "b": PG}, SLOTS=0),
        "fine": entry(),
    }
    with pytest.raises(ConfigurationError) as raised:
        load_all(entries)
    message = str(raised.value)
    for expected in (
        "default/replica1: option 'NAM' is unknown; did you mean 'NAME'?",
        "default/replica1: is the same database as default/primary; remove",
        "default/replica2: is int;",
        "default: READ_ONLY must be",
        "sales/a/primary: is the same database as sales/home/primary",
        "sales: its nodes are of different engines (sales/home/primary is",
        "sales: SLOTS must be",
    ):
        assert expected in message
    assert message.startswith("7 mistakes in the settings:")
    assert "fine" not in message
    assert "NODES" not in entries["fine"]


def test_finding_mistakes_changes_nothing() -> None:
    entries = {"default": entry(REPLICAS=[{"NAME": "r"}]), "x": entry(SLOT=3)}
    before = repr(entries)
    assert [mistake.code for mistake in find_mistakes(entries)] == ["E006"]
    assert repr(entries) == before


def test_one_alias_tells_its_own_mistakes() -> None:
    with pytest.raises(ConfigurationError, match=r"default: option 'SLOT'"):
        load("default", entry(SLOT=3))


def test_a_primary_needs_our_engine() -> None:
    found = find_mistakes({"default": {**LITE, "PRIMARY": LITE}})
    assert [(m.code, m.where) for m in found] == [("E001", "default")]
    assert "ENGINE must be 'dbfleet.backend'" in found[0].text


@pytest.mark.parametrize(
    "declared",
    [
        Cluster({"ENGINE": LITE["ENGINE"], "NAME": ":memory:"}, replicas=[{}, {}]),
        Cluster(
            {"ENGINE": PG["ENGINE"], "OPTIONS": {"service": "one"}},
            replicas=[{"OPTIONS": {"service": "two"}}],
        ),
        Cluster(PG, replicas=[{"PORT": 5433}]),
        Cluster(PG, replicas=[{"NAME": "other"}]),
        Cluster({**PG, "HOST": lambda: "a"}, replicas=[{"HOST": lambda: "b"}]),
    ],
)
def test_nodes_that_may_differ_are_not_called_the_same(declared: Cluster) -> None:
    assert databases(default=declared)


def test_one_file_by_two_paths_is_one_database(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    os.symlink(real, link)
    with pytest.raises(ConfigurationError, match="same database"):
        databases(
            default=Cluster(
                {**LITE, "NAME": real / "x.db"}, replicas=[{"NAME": link / "x.db"}]
            )
        )


def test_two_aliases_may_share_a_database() -> None:
    assert set(databases(default=LITE, reports=Cluster(LITE, read_only=True))) == {
        "default",
        "reports",
    }
