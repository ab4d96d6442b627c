"""``topology.load``: nodes completed in place, once, and never stale."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from django.db.utils import ConnectionHandler

from dbfleet import Cluster, Sharded, databases
from dbfleet.errors import ConfigurationError
from dbfleet.policies import First, RoundRobin, zone_of
from dbfleet.topology import GatherLimits, load, load_all
from dbfleet.topology.snapshot import Topology

POSTGRESQL = "django.db.backends.postgresql"
SQLITE = "django.db.backends.sqlite3"


def nodes_of(**aliases: Any) -> dict[str, dict[str, Any]]:
    """Load declarations and return every node's settings by name."""
    entries = databases(**aliases)
    load_all(entries)
    return {
        name: node
        for entry in entries.values()
        for name, node in entry["NODES"].items()
    }


def sqlite(path: str) -> dict[str, Any]:
    return {"ENGINE": SQLITE, "NAME": path}


def test_names_and_shape_of_a_topology() -> None:
    entries = databases(
        default=Cluster(sqlite("p"), replicas=[sqlite("r1"), sqlite("r2")]),
        plain=sqlite("x"),
        sales=Sharded(
            home=sqlite("h"),
            shards={
                "a": Cluster(sqlite("a"), replicas=[sqlite("a1"), sqlite("a2")]),
                "b": sqlite("b"),
            },
            slots=12,
            gather={"MAX_ROWS": 5},
            commit="best_effort",
            policy=First,
            read_only=True,
        ),
    )
    found = load_all(entries)
    default, plain, sales = found["default"], found["plain"], found["sales"]

    assert default.home.primary == "default/primary"
    assert default.home.replicas == ("default/replica1", "default/replica2")
    assert not default.is_plain
    assert not default.is_sharded
    assert default.engine == SQLITE

    assert plain.is_plain
    assert plain.nodes == ("plain/primary",)

    assert sales.is_sharded
    assert not sales.is_plain
    assert sales.nodes == (
        "sales/home/primary",
        "sales/a/primary",
        "sales/a/replica1",
        "sales/a/replica2",
        "sales/b/primary",
    )
    assert [cluster.name for cluster in sales.clusters] == [
        "sales/home",
        "sales/a",
        "sales/b",
    ]
    assert list(sales.shards) == ["a", "b"]
    assert (sales.slots, sales.commit, sales.read_only) == (12, "best_effort", True)
    assert sales.gather == GatherLimits(max_rows=5)
    assert isinstance(sales.shards["a"].policy, First)
    assert set(entries["sales"]["NODES"]) == set(sales.nodes)


def test_every_node_has_every_key_that_django_expects() -> None:
    plain = ConnectionHandler({"default": sqlite("x")}).settings["default"]
    for node in nodes_of(
        default=Cluster(sqlite("p"), replicas=[{"NAME": "r"}]),
        sales=Sharded(home=sqlite("h"), shards={"a": sqlite("a")}),
    ).values():
        assert node == {**plain, "NAME": node["NAME"]}


def test_an_alias_reads_like_an_ordinary_entry() -> None:
    entry = databases(
        default=Cluster(
            "postgres://app:pw@db1:6543/shop?sslmode=require", ATOMIC_REQUESTS=True
        )
    )["default"]
    load("default", entry)
    assert entry["ENGINE"] == "dbfleet.backend"
    shown = ("NAME", "USER", "PASSWORD", "HOST", "PORT", "ATOMIC_REQUESTS", "OPTIONS")
    assert {key: entry[key] for key in shown} == {
        "NAME": "shop",
        "USER": "app",
        "PASSWORD": "pw",
        "HOST": "db1",
        "PORT": "6543",
        "ATOMIC_REQUESTS": True,
        "OPTIONS": {"sslmode": "require"},
    }
    assert entry["NODES"]["default/primary"]["ENGINE"] == POSTGRESQL


def test_a_replica_takes_what_it_does_not_say_from_its_primary() -> None:
    nodes = nodes_of(
        default=Cluster(
            "postgres://app:pw@db1:6543/shop?sslmode=require&conn_max_age=60",
            replicas=[
                {"HOST": "db2"},
                {"HOST": "db3", "PORT": 5432, "OPTIONS": {"sslmode": "disable"}},
                "postgres://db4/shop",
                "postgres://reader@db5",
            ],
        )
    )
    keys = ("HOST", "PORT", "NAME", "USER", "PASSWORD", "CONN_MAX_AGE", "OPTIONS")
    require = {"sslmode": "require"}
    assert [tuple(node[key] for key in keys) for node in nodes.values()] == [
        ("db1", "6543", "shop", "app", "pw", 60, require),
        ("db2", "6543", "shop", "app", "pw", 60, require),
        ("db3", "5432", "shop", "app", "pw", 60, {"sslmode": "disable"}),
        ("db4", "", "shop", "app", "pw", 60, require),
        ("db5", "", "shop", "reader", "", 60, require),
    ]


def test_a_shard_takes_what_it_does_not_say_from_home() -> None:
    nodes = nodes_of(
        sales=Sharded(
            home="postgres://app:pw@h1,h2:5433/sales",
            shards={
                "a": Cluster({"HOST": "a1"}, replicas=[{"HOST": "a2"}], USER="other"),
                "b": "postgres://b1/sales",
            },
            TEST={"NAME": "t", "CHARSET": "utf8"},
        )
    )
    keys = ("HOST", "PORT", "NAME", "USER")
    assert [tuple(node[key] for key in keys) for node in nodes.values()] == [
        ("h1,h2", ",5433", "sales", "app"),
        # the list of ports belongs to home's list of hosts
        ("a1", "", "sales", "other"),
        ("a2", "", "sales", "other"),
        ("b1", "", "sales", "app"),
    ]
    # one test database has the name that was given, the others their own
    assert [node["TEST"]["NAME"] for node in nodes.values()] == ["t", None, None, None]
    assert {node["TEST"]["CHARSET"] for node in nodes.values()} == {"utf8"}


def test_options_of_the_alias_are_merged_under_those_of_a_node() -> None:
    nodes = nodes_of(
        default=Cluster(
            "postgres://db1/shop?sslmode=require",
            replicas=["postgres://db2/shop?application_name=r", {"HOST": "db3"}],
            OPTIONS={"connect_timeout": 3, "sslmode": "prefer"},
        )
    )
    assert [node["OPTIONS"] for node in nodes.values()] == [
        {"connect_timeout": 3, "sslmode": "require"},
        {"connect_timeout": 3, "sslmode": "prefer", "application_name": "r"},
        {"connect_timeout": 3, "sslmode": "require"},
    ]


def test_a_zone_is_a_nodes_own_or_its_entrys_and_never_its_primarys() -> None:
    nodes = nodes_of(
        zoned=Cluster(
            "postgres://z1/shop?zone=a",
            replicas=[{"HOST": "z2", "ZONE": "b"}, {"HOST": "z3"}],
        ),
        whole=Cluster(
            "postgres://w1/shop", replicas=["postgres://w2/shop?zone=d"], ZONE="c"
        ),
        spread=Sharded(
            home="postgres://s1/shop?zone=e",
            shards={
                "a": Cluster({"HOST": "s2"}, replicas=[{"HOST": "s3"}], ZONE="f"),
                "b": {"HOST": "s4"},
            },
        ),
    )
    found = {name: zone_of(name) for name in nodes}
    assert found == {name: node.get("ZONE", "") for name, node in nodes.items()}
    assert list(found.values()) == ["a", "b", "", "c", "d", "e", "f", "f", ""]


def test_nodes_share_no_container() -> None:
    nodes = nodes_of(
        default=Cluster(
            "postgres://db1/shop",
            replicas=[{"HOST": "db2"}],
            OPTIONS={"pool": {"a": 1}},
        )
    )
    nodes["default/primary"]["OPTIONS"]["pool"]["a"] = 2
    nodes["default/primary"]["TEST"]["NAME"] = "t"
    assert nodes["default/replica1"]["OPTIONS"] == {"pool": {"a": 1}}
    assert nodes["default/replica1"]["TEST"]["NAME"] is None


def test_django_may_fill_in_its_defaults_first() -> None:
    written = {
        "default": {
            "ENGINE": "dbfleet.backend",
            "PRIMARY": {**sqlite("p"), "CONN_MAX_AGE": 60, "OPTIONS": {"timeout": 3}},
            "REPLICAS": [{"NAME": "r"}],
        }
    }
    early = copy.deepcopy(written)
    load("default", early["default"])
    late = ConnectionHandler(written).settings
    load("default", late["default"])
    assert late["default"]["NODES"] == early["default"]["NODES"]
    assert late["default"]["NODES"]["default/replica1"]["CONN_MAX_AGE"] == 60
    assert late["default"]["CONN_MAX_AGE"] == 60


def test_loading_again_changes_nothing_and_keeps_changed_names() -> None:
    entry = databases(default=Cluster(sqlite("p"), replicas=[sqlite("r")]))["default"]
    first = load("default", entry)
    nodes = entry["NODES"]
    nodes["default/primary"]["NAME"] = "test_p"
    assert load("default", entry) is first
    assert entry["NODES"] is nodes
    assert nodes["default/primary"]["NAME"] == "test_p"
    copied = copy.deepcopy(entry)
    assert load("default", copied) == first
    assert copied["NODES"]["default/primary"]["NAME"] == "test_p"


def test_a_loaded_entry_pickles_for_a_spawned_worker() -> None:
    entry = databases(
        default=Cluster(sqlite("p"), replicas=[sqlite("r")], policy=RoundRobin())
    )["default"]
    topology = load("default", entry)
    again = pickle.loads(pickle.dumps(entry))
    loaded = load("default", again)
    assert loaded.nodes == topology.nodes
    assert loaded.home.policy is not None
    assert sorted(loaded.home.policy.order(["x", "y"])) == ["x", "y"]
    assert again["NODES"] == entry["NODES"]


def test_threads_share_one_set_of_nodes() -> None:
    entry = databases(default=Cluster(sqlite("p"), replicas=[sqlite("r")]))["default"]
    start = threading.Barrier(8)
    seen: list[tuple[Topology, int]] = []

    def read() -> None:
        start.wait()
        topology = load("default", entry)
        seen.append((topology, id(entry["NODES"])))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({identity for _, identity in seen}) == 1
    assert len({id(topology) for topology, _ in seen}) == 1


def test_a_copy_under_another_alias_has_nodes_of_its_own() -> None:
    entry = databases(default=Cluster(sqlite("p"), replicas=[sqlite("r")]))["default"]
    load("default", entry)
    other = dict(entry)
    topology = load("other", other)
    assert topology.nodes == ("other/primary", "other/replica1")
    assert set(other["NODES"]) == set(topology.nodes)
    other["NODES"]["other/primary"]["NAME"] = "changed"
    assert entry["NODES"]["default/primary"]["NAME"] == "p"
    assert load("default", entry).nodes == ("default/primary", "default/replica1")


def test_a_changed_copy_of_one_node_is_another_database() -> None:
    entry = databases(default=sqlite("p"))["default"]
    load("default", entry)
    other = {**copy.deepcopy(entry), "NAME": "tenant"}
    load("tenant", other)
    assert other["NODES"]["tenant/primary"]["NAME"] == "tenant"
    assert entry["NODES"]["default/primary"]["NAME"] == "p"


def test_a_changed_copy_of_a_fleet_is_refused() -> None:
    entry = databases(default=Cluster(sqlite("p"), replicas=[sqlite("r")]))["default"]
    load("default", entry)
    with pytest.raises(ConfigurationError, match="its other nodes are still") as raised:
        load("tenant", {**copy.deepcopy(entry), "NAME": "tenant"})
    assert raised.value.code == "dbfleet.E005"


def test_no_password_stays_in_a_text_of_a_loaded_entry() -> None:
    entry: dict[str, Any] = {
        "ENGINE": "dbfleet.backend",
        "PRIMARY": "postgres://app:tiger@db1/shop",
        "REPLICAS": ["postgres://app:tiger@db2/shop"],
        "SHARDS": {"a": "postgres://app:tiger@db3/shop"},
    }
    topology = load("default", entry)
    assert "tiger" not in repr(topology)

    def texts(value: Any, key: str = "") -> list[tuple[str, str]]:
        if isinstance(value, dict):
            return [pair for k, v in value.items() for pair in texts(v, str(k))]
        if isinstance(value, list):
            return [pair for item in value for pair in texts(item, key)]
        return [(key, str(value))]

    # Django's own pages hide the values of keys with this name.
    assert {key for key, text in texts(entry) if "tiger" in text} == {"PASSWORD"}


def test_other_engines_are_left_alone() -> None:
    entries: dict[str, dict[str, Any]] = {
        "default": sqlite("x"),
        "fleet": databases(fleet=sqlite("y"))["fleet"],
    }
    before = copy.deepcopy(entries["default"])
    assert set(load_all(entries)) == {"fleet"}
    assert entries["default"] == before


def test_a_path_may_name_a_database() -> None:
    assert nodes_of(default=sqlite(Path("/srv/x.db")))["default/primary"]["NAME"] == (  # type: ignore[arg-type]
        Path("/srv/x.db")
    )


def test_any_engine_may_be_named_with_keys_of_its_own() -> None:
    nodes = nodes_of(
        default=Cluster(
            {"ENGINE": "acme.backend", "NAME": "x", "HOST": "h", "ACME_REGION": "eu"},
            replicas=[{"HOST": "r"}],
        )
    )
    assert nodes["default/replica1"]["ACME_REGION"] == "eu"
