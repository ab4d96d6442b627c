"""``Cluster``, ``Sharded`` and ``databases()``: immutable, safe to print, plain."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import subprocess
import sys

import pytest

from dbfleet import Cluster, Sharded, databases
from dbfleet.errors import ConfigurationError
from dbfleet.topology import GatherLimits, load
from tests.support.project import REPOSITORY

PRIMARY = "postgres://app:tiger@db1/shop"


def password() -> str:
    return "tiger"


def declared() -> Sharded:
    return Sharded(
        home={"ENGINE": "django.db.backends.postgresql", "NAME": "s", "HOST": "h"},
        shards={
            "a": Cluster("postgres://app@db5/s", replicas=["postgres://app@db6/s"]),
            "b": "postgres://app@db7/s",
        },
        OPTIONS={"pool": {"min_size": 2}, "hosts": ["x", "y"]},
    )


def test_equal_declarations_are_equal_and_hash_alike() -> None:
    assert declared() == declared()
    assert hash(declared()) == hash(declared())
    assert len({declared(), declared(), Cluster(PRIMARY), Cluster(PRIMARY)}) == 2
    assert Cluster(PRIMARY) != Cluster(PRIMARY, read_only=True)
    assert Cluster(PRIMARY, replicas=[PRIMARY]) == Cluster(PRIMARY, replicas=(PRIMARY,))


def test_a_declaration_cannot_change() -> None:
    options = {"pool": True}
    node = {"ENGINE": "x", "OPTIONS": options}
    cluster = Cluster(node)
    before = hash(cluster)
    options["pool"] = False
    node["NAME"] = "other"
    assert hash(cluster) == before
    assert cluster == Cluster({"ENGINE": "x", "OPTIONS": {"pool": True}})
    with pytest.raises(AttributeError):
        cluster.read_only = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        cluster.primary["NAME"] = "other"


def test_a_declaration_pickles() -> None:
    for value in (declared(), Cluster(password, replicas=[{"HOST": "h"}])):
        again = pickle.loads(pickle.dumps(value))
        assert again == value
        assert hash(again) == hash(value)
        assert copy.deepcopy(value) == value


@pytest.mark.parametrize(
    "value",
    [
        Cluster(PRIMARY),
        Cluster("postgres://app:ti/ger@db1/shop"),
        Cluster("postgres://app:tiger@db1/shop@x"),
        Cluster("postgres://app:ti?ger#tiger@db1/shop"),
        Cluster("postgres://db1/shop?password=tiger&sslmode=require"),
        Cluster("postgres://db1/shop?sslpassword=tiger"),
        Cluster("tiger:tiger@db1/shop?x=a://b"),
        Cluster({"ENGINE": "x", "PASSWORD": "tiger"}),
        Cluster({"ENGINE": "x", "OPTIONS": {"passwd": "tiger"}}),
        Cluster({"ENGINE": "x", "OPTIONS": {"nested": [{"api_token": "tiger"}]}}),
        Cluster({"ENGINE": "x", "URL": PRIMARY}),
        Cluster({"PASSWORD": functools.partial(str, "tiger")}),
        Cluster(PRIMARY, PASSWORD="tiger"),
        Cluster(PRIMARY, replicas=[PRIMARY, {"PASSWORD": "tiger"}]),
        Sharded(home=PRIMARY, shards={"a": PRIMARY, "b": Cluster(PRIMARY)}),
    ],
)
def test_no_password_is_shown(value: object) -> None:
    for text in (repr(value), str(value), f"{value}", repr([value])):
        assert "tiger" not in text
        assert "ti/ger" not in text
        assert "***" in text or "partial" in text


def test_a_representation_still_says_what_is_declared() -> None:
    assert repr(Cluster(PRIMARY, replicas=["postgres://db2/shop"], read_only=True)) == (
        "Cluster(primary='postgres://app:***@db1/shop', "
        "replicas=('postgres://db2/shop',), read_only=True)"
    )
    assert repr(Cluster({"ENGINE": "x", "PASSWORD": password}, CONN_MAX_AGE=60)) == (
        "Cluster(primary={'ENGINE': 'x', 'PASSWORD': '***'}, CONN_MAX_AGE=60)"
    )


def test_databases_is_the_plain_dict_one_may_write_by_hand() -> None:
    written = databases(
        default=Cluster(
            "postgres://app@db1/shop",
            replicas=["postgres://app@db2/shop", {"HOST": "db3"}],
            read_only=True,
            policy="dbfleet.policies.RoundRobin",
            ATOMIC_REQUESTS=True,
        ),
        sales=Sharded(
            home={"ENGINE": "django.db.backends.sqlite3", "NAME": "h.db"},
            shards={"a": {"NAME": "a.db"}, "b": Cluster({"NAME": "b.db"})},
            slots=12,
            gather=GatherLimits(max_rows=10),
            commit="best_effort",
        ),
        legacy={"ENGINE": "django.db.backends.sqlite3", "NAME": "legacy.db"},
        empty={},
    )
    postgres = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}
    account = {"USER": "app", "PASSWORD": "", "PORT": ""}
    assert written == {
        "default": {
            "ENGINE": "dbfleet.backend",
            "PRIMARY": {**postgres, **account, "HOST": "db1"},
            "REPLICAS": [{**postgres, **account, "HOST": "db2"}, {"HOST": "db3"}],
            "READ_ONLY": True,
            "POLICY": "dbfleet.policies.RoundRobin",
            "ATOMIC_REQUESTS": True,
        },
        "sales": {
            "ENGINE": "dbfleet.backend",
            "PRIMARY": {"ENGINE": "django.db.backends.sqlite3", "NAME": "h.db"},
            "SHARDS": {"a": {"NAME": "a.db"}, "b": {"PRIMARY": {"NAME": "b.db"}}},
            "SLOTS": 12,
            "GATHER": {
                "MAX_ROWS": 10,
                "MAX_BYTES": 64 * 2**20,
                "INLINE_ROWS": 200,
                "SOURCE": "auto",
                "FDW_HOSTS": {},
            },
            "COMMIT": "best_effort",
        },
        "legacy": {
            "ENGINE": "dbfleet.backend",
            "PRIMARY": {"ENGINE": "django.db.backends.sqlite3", "NAME": "legacy.db"},
        },
        "empty": {},
    }
    assert json.loads(json.dumps(written)) == written


def test_an_entry_written_by_hand_passes_unchanged_but_for_its_urls() -> None:
    entry = {
        "ENGINE": "dbfleet.backend",
        "PRIMARY": PRIMARY,
        "REPLICAS": ["postgres://db2/shop"],
        "CONN_MAX_AGE": 60,
    }
    passed = databases(default=entry)["default"]
    assert passed["PRIMARY"]["PASSWORD"] == "tiger"
    assert "://" not in str(passed)
    assert passed["CONN_MAX_AGE"] == 60
    assert entry["PRIMARY"] == PRIMARY


def test_home_may_be_a_cluster_of_its_own() -> None:
    sharded = Sharded(
        home=Cluster("postgres://h1/s", replicas=["postgres://h2/s"]),
        shards={"a": "postgres://a1/s"},
    )
    topology = load("sales", databases(sales=sharded)["sales"])
    assert topology.home.nodes == ("sales/home/primary", "sales/home/replica1")


@pytest.mark.parametrize(
    "home",
    [
        Cluster("postgres://h1/s", read_only=True),
        Cluster("postgres://h1/s", policy="dbfleet.policies.First"),
    ],
)
def test_what_concerns_the_whole_alias_is_refused_at_home(home: Cluster) -> None:
    with pytest.raises(ConfigurationError, match=r"sales/home: .*E005") as raised:
        databases(sales=Sharded(home=home, shards={"a": "postgres://a1/s"}))
    assert raised.value.code == "dbfleet.E005"


def test_settings_can_import_it_before_settings_exist() -> None:
    code = """
import sys
from dbfleet import Cluster, Sharded, databases
databases(default=Cluster({"ENGINE": "django.db.backends.postgresql", "NAME": "x"}))
heavy = [name for name in sys.modules if name.startswith(
    ("django.db.models", "django.db.migrations", "dj_database_url", "psycopg"))]
assert not heavy, heavy
from django.conf import settings
assert not settings.configured
import dbfleet
assert dbfleet.REFERENCE is not dbfleet.LOCAL
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
