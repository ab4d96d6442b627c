"""Sources of replicas as they are declared, and what they find as nodes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from dbfleet import Cluster, Sharded, databases
from dbfleet.checks import check_settings
from dbfleet.errors import ConfigurationError
from dbfleet.replicas import Call, Dns, File, Source, SourceFailed, Srv
from dbfleet.topology import load, read_found

PG = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": "shop",
    "HOST": "db1",
    "USER": "app",
    "PASSWORD": "hush",
    "OPTIONS": {"sslmode": "require"},
}
LITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/x.db"}


def found(given: list[Any], **keys: Any) -> dict[str, dict[str, Any]]:
    entry = databases(default=Cluster(PG, replicas=File("/x"), **keys))["default"]
    topology = load("default", entry)
    return read_found(topology.home, entry, given)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (Dns("replicas.internal:6432"), {"DNS": "replicas.internal:6432"}),
        (
            Dns({"HOST": "r"}, every_s=3, timeout_s=1),
            {"DNS": {"HOST": "r"}, "EVERY_S": 3, "TIMEOUT_S": 1},
        ),
        (File("/etc/shop/replicas.json"), {"FILE": "/etc/shop/replicas.json"}),
        (Call("shop.fleet.replicas"), {"CALL": "shop.fleet.replicas"}),
        (
            Srv("_db._tcp.internal", nameservers=["10.0.0.2:8600"]),
            {"SRV": "_db._tcp.internal", "NAMESERVERS": ["10.0.0.2:8600"]},
        ),
    ],
)
def test_a_plain_dict_says_the_same(given: Source, plain: dict[str, Any]) -> None:
    if isinstance(given, Srv):
        pytest.importorskip("dns", reason="dnspython is not installed")
    for one in (given, plain):
        entry = databases(default=Cluster(PG, replicas=one))["default"]
        assert entry["REPLICAS"] == given
        topology = load("default", entry)
        assert topology.home.source == given
        assert topology.home.replicas == ()
        assert topology.home.is_replicated
        assert not topology.is_plain
        assert copy.deepcopy(entry)["REPLICAS"] == given
    entry = {"ENGINE": "dbfleet.backend", "PRIMARY": PG, "REPLICAS": plain}
    assert load("default", entry).home.source == given


def test_a_callable_is_a_source() -> None:
    def replicas() -> list[str]:
        return []

    entry = databases(default=Cluster(PG, replicas=replicas))["default"]
    assert load("default", entry).home.source == Call(replicas)


def test_shards_have_sources_of_their_own() -> None:
    entry = databases(
        default=Sharded(
            home=Cluster(LITE, replicas=File("/h")),
            shards={"a": Cluster({"NAME": "/srv/a.db"}, replicas=File("/a"))},
        )
    )["default"]
    topology = load("default", entry)
    assert topology.home.source == File("/h")
    assert topology.shards["a"].source == File("/a")
    nodes = read_found(topology.shards["a"], entry, [{"NAME": "/srv/a1.db"}])
    ((name, node),) = nodes.items()
    assert name.startswith("default/a/a1.db-")
    assert node["ENGINE"] == LITE["ENGINE"]


MISTAKES: list[tuple[str, Any, str]] = [
    ("E004", {}, "REPLICAS must be a list of nodes, or one of DNS, SRV, FILE, CALL"),
    ("E004", {"DNS": "r", "FILE": "/x"}, "or one of"),
    ("E004", "postgres://db2/shop", "REPLICAS must be a list of nodes"),
    ("E006", {"FILE": "/x", "EVERY": 3}, "did you mean 'EVERY_S'?"),
    ("E006", {"DNS": "r", "NODE": {}}, "'NODE' is unknown"),
    ("E004", {"FILE": 3}, "FILE must be a path"),
    ("E004", File("/x", every_s=0), "EVERY_S must be more than 0"),
    ("E004", File("/x", timeout_s=True), "TIMEOUT_S must be more than 0"),
    ("E004", File("/x", every_s="5"), "EVERY_S must be"),  # type: ignore[arg-type]
    ("E004", Dns("two words"), "names no host and no URL"),
    ("E004", Dns({"PORT": 5433}), "needs one host name"),
    ("E002", Dns("postgres://app:hush@db2:x/shop"), "cannot be read"),
    ("E006", Dns({"HOST": "r", "PASSWORT": "hush"}), "did you mean 'PASSWORD'?"),
    ("E008", Dns("mysql://app:hush@replicas/shop"), "REPLICAS finds nodes of"),
    ("E004", Call("replicas"), "a function or its dotted path"),
    ("E004", Call(7), "a function or its dotted path"),  # type: ignore[arg-type]
    ("E004", Srv("db"), "SRV must be a name such as"),
    ("E004", Srv("_db._tcp.x", nameservers="10.0.0.2"), "NAMESERVERS must be a list"),
]


@pytest.mark.parametrize(("code", "given", "text"), MISTAKES)
def test_a_wrong_source_is_told_at_start(code: str, given: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        databases(x=Cluster(PG, replicas=given))
    assert f"dbfleet.{code}" in str(caught.value)
    assert text in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_path_to_nothing_is_told_by_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = databases(
        default=Cluster(PG, replicas=Call("json.no_such")),
        other=Cluster(PG, replicas=Call("json.loads")),
    )
    monkeypatch.setattr(settings, "DATABASES", entries)
    messages = [one for one in check_settings() if "REPLICAS" in one.msg]
    assert [(one.id, one.obj) for one in messages] == [("dbfleet.E004", "default")]
    assert "no_such" in messages[0].msg


def test_no_password_in_its_text() -> None:
    source = Dns("postgres://app:hush@replicas.internal/shop")
    assert "hush" not in repr(source)
    assert "hush" not in repr(Cluster(PG, replicas=source))
    assert "replicas.internal" in repr(source)
    secret = Srv("_db._tcp.x", node={"USER": "app", "PASSWORD": "hush"})
    assert "hush" not in repr(secret)


def test_names_are_made_of_addresses() -> None:
    nodes = found(
        [
            "postgres://app@10.0.0.7/shop",
            {"HOST": "10.0.0.8", "PORT": 6432},
            {"HOST": "::1"},
            {"HOST": "db4", "NAME": "copy"},
            {"HOST": "/run/one two"},
            {"HOST": "10.0.0.7"},
        ]
    )
    assert list(nodes)[:4] == [
        "default/10.0.0.7:5432",
        "default/10.0.0.8:6432",
        "default/[::1]:5432",
        "default/db4:5432:copy",
    ]
    assert list(nodes)[4].startswith("default/_run_one_two:5432-")
    assert len(nodes) == 5  # the same server once
    assert all(name.count("/") == 1 for name in nodes)


def test_what_is_found_inherits_as_a_replica_does() -> None:
    nodes = found([{"HOST": "10.0.0.7", "OPTIONS": {"connect_timeout": 3}}], ZONE="a")
    node = nodes["default/10.0.0.7:5432"]
    assert node["USER"] == "app"
    assert node["PASSWORD"] == "hush"
    assert node["OPTIONS"] == {"connect_timeout": 3}
    assert node["ZONE"] == "a"


def test_the_primary_is_left_out() -> None:
    assert list(found([{"HOST": "DB1"}, {"HOST": "db2"}])) == ["default/db2:5432"]


def test_a_test_run_reads_test_databases() -> None:
    entry = databases(default=Cluster(PG, replicas=File("/x")))["default"]
    topology = load("default", entry)
    primary = entry["NODES"]["default/primary"]
    primary["DECLARED_NAME"], primary["NAME"] = "shop", "test_shop"
    nodes = read_found(topology.home, entry, ["postgres://app@10.0.0.7/shop"])
    assert [node["NAME"] for node in nodes.values()] == ["test_shop"]


def test_a_file_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "replicas"
    path.write_text("# ours\npostgres://app@db2/shop\n\n  postgres://app@db3/shop\n")
    urls = ["postgres://app@db2/shop", "postgres://app@db3/shop"]
    assert File(path).find() == urls
    path.write_text(json.dumps([*urls, {"HOST": "db4"}]))
    assert File(path).find() == [*urls, {"HOST": "db4"}]
    path.write_text("[]")
    assert File(path).find() == []
    path.write_text(" \n")
    with pytest.raises(SourceFailed, match="is empty"):
        File(path).find()


def test_an_address_keeps_the_name_that_a_certificate_has() -> None:
    source = Dns({"HOST": "localhost", "OPTIONS": {"sslmode": "verify-full"}})
    one = source.find()[0]
    assert one["HOST"] == "localhost"
    assert one["OPTIONS"]["hostaddr"] in {"127.0.0.1", "::1"}
    names = list(found([one]))
    assert names[0] in {"default/127.0.0.1:5432", "default/[::1]:5432"}
