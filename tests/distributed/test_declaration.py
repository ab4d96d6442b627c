"""``Sharded(engine="citus")``: what is declared, refused and checked, without I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dbfleet import Cluster, Sharded, databases
from dbfleet.errors import ConfigurationError
from dbfleet.topology import load
from tests.support.project import Project

COORDINATOR = "postgres://app@db1/shop"


def test_a_declaration_is_a_plain_entry() -> None:
    entry = databases(default=Sharded(home=COORDINATOR, engine="citus"))["default"]
    assert entry["DISTRIBUTED_BY"] == "citus"
    assert "SHARDS" not in entry
    topology = load("default", entry)
    assert topology.distributed_by == "citus"
    assert not topology.is_sharded
    assert topology.holders == ("home",)
    assert topology.nodes == ("default/primary",)


def test_a_coordinator_may_have_replicas_and_limits() -> None:
    declared = Sharded(
        home=Cluster(COORDINATOR, replicas=["postgres://app@db2/shop"]),
        engine="citus",
        gather={"MAX_ROWS": 10},
    )
    topology = load("default", databases(default=declared)["default"])
    assert topology.nodes == ("default/primary", "default/replica1")
    assert topology.gather.max_rows == 10


@pytest.mark.parametrize(
    ("declared", "code", "text"),
    [
        (
            Sharded(home=COORDINATOR, engine="citus", shards={"a": "postgres://b/c"}),
            "E005",
            "SHARDS contradicts DISTRIBUTED_BY",
        ),
        (
            Sharded(home=COORDINATOR, engine="citrus"),
            "E004",
            "DISTRIBUTED_BY 'citrus' is unknown; did you mean 'citus'?",
        ),
        (
            Sharded(home="mysql://app@db1/shop", engine="citus"),
            "E005",
            "an extension of PostgreSQL, and PRIMARY is django.db.backends.mysql",
        ),
        (
            Sharded(home=COORDINATOR, engine="citus", slots=12),
            "E005",
            "SLOTS is about shards, but there are no SHARDS",
        ),
        (Sharded(home=COORDINATOR), "E004", "SHARDS must be a dict of name to node"),
    ],
)
def test_what_contradicts_is_told_at_start_up(
    declared: Sharded, code: str, text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        databases(default=declared)
    assert text in str(caught.value)
    assert caught.value.code == f"dbfleet.{code}"


def test_keys_that_cannot_spread_rows_are_told_by_check(
    project: Callable[..., Project],
) -> None:
    built = project(
        databases=f"""
            from dbfleet import Sharded, databases

            DATABASES = databases(
                default=Sharded(home={COORDINATOR!r}, engine="citus")
            )
        """,
        models="""
            class Order(models.Model):
                customer = models.IntegerField()
                class Meta:
                    shard_key = "customer"

            class Line(models.Model):
                order = models.ForeignKey(Order, models.CASCADE)
                class Meta:
                    shard_key = "order__customer"

            class Pair(models.Model):
                left = models.IntegerField()
                right = models.IntegerField()
                class Meta:
                    shard_key = ("left", "right")

            class Special(Order):
                pass
        """,
    )
    said: Any = built.manage("check", check=False)
    assert said.returncode == 1
    assert said.stderr.count("(dbfleet.E112)") == 3
    assert "app.Line" in said.stderr
    assert "add a column that holds the key and name it" in said.stderr
    assert "its key has the columns left, right, and rows are spread by one" in (
        said.stderr
    )
    assert "app.Special" in said.stderr
