"""Callables in settings: evaluated when a connection opens, and never kept."""

from __future__ import annotations

from typing import Any

import pytest

from dbfleet import Cluster, databases
from dbfleet.errors import ConfigurationError
from dbfleet.topology import load, resolve

POSTGRESQL = "django.db.backends.postgresql"


def nodes(declared: Any) -> dict[str, dict[str, Any]]:
    entry = databases(default=declared)["default"]
    load("default", entry)
    return {"": entry, **entry["NODES"]}


def test_nothing_to_evaluate_costs_nothing() -> None:
    node = nodes(Cluster("postgres://u:p@h/n"))["default/primary"]
    assert resolve(node) is node


def test_a_callable_is_asked_at_each_connection_and_not_before() -> None:
    answers = iter(["one", "two"])
    declared = Cluster(
        {
            "ENGINE": POSTGRESQL,
            "NAME": "n",
            "HOST": lambda: "h",
            "PORT": lambda: 5433,
            "PASSWORD": lambda: next(answers),
        },
        replicas=[{"HOST": "r"}],
    )
    found = nodes(declared)
    primary, replica = found["default/primary"], found["default/replica1"]
    first = resolve(primary)
    assert (first["HOST"], first["PORT"], first["PASSWORD"]) == ("h", "5433", "one")
    # a replica inherits the callable, not what it once returned
    assert resolve(replica)["PASSWORD"] == "two"
    assert callable(primary["PASSWORD"])
    assert callable(found[""]["PASSWORD"])


def test_a_whole_url_may_be_a_callable_beside_its_engine() -> None:
    found = nodes(
        Cluster(
            {
                "ENGINE": POSTGRESQL,
                "URL": lambda: "postgres://u:p@h1,h2:5433/n?sslmode=require&a=1",
                "OPTIONS": {"a": 2},
            },
            replicas=[{"HOST": "r"}, lambda: "postgres://x:y@z/other"],
        )
    )
    keys = ("HOST", "PORT", "NAME", "USER", "PASSWORD", "OPTIONS")
    options = {"sslmode": "require", "a": 2}

    def said(name: str) -> tuple[Any, ...]:
        resolved = resolve(found[name])
        assert "URL" not in resolved
        return tuple(resolved[key] for key in keys)

    assert said("default/primary") == ("h1,h2", ",5433", "n", "u", "p", options)
    assert said("") == said("default/primary")
    assert said("default/replica1") == ("r", "", "n", "u", "p", options)
    assert said("default/replica2") == ("z", "", "other", "x", "y", {"a": 2})


def test_a_test_database_wins_over_a_late_url() -> None:
    node = nodes({"ENGINE": POSTGRESQL, "URL": lambda: "postgres://h/production"})[
        "default/primary"
    ]
    node["NAME"] = "test_shop"
    assert resolve(node)["NAME"] == "test_shop"
    node["NAME"] = None  # Django's way to connect to no database
    assert resolve(node)["NAME"] is None


def test_a_late_url_of_another_engine_is_refused() -> None:
    node = nodes({"ENGINE": POSTGRESQL, "URL": lambda: "sqlite:///tiger"})
    with pytest.raises(ConfigurationError) as raised:
        resolve(node["default/primary"], "default/primary")
    assert raised.value.code == "dbfleet.E008"
    assert str(raised.value).startswith("default/primary: ")
    assert "tiger" not in str(raised.value)


@pytest.mark.parametrize("value", [None, 5, b"tiger", ["tiger"]])
def test_a_callable_must_return_text(value: object) -> None:
    node = {"ENGINE": POSTGRESQL, "PASSWORD": lambda: value}
    with pytest.raises(ConfigurationError, match="callable for PASSWORD") as raised:
        resolve(node, "default/primary")
    assert raised.value.code == "dbfleet.E004"
    assert "tiger" not in str(raised.value)


def test_what_a_callable_raises_passes_through() -> None:
    def locked() -> str:
        raise PermissionError("the vault is locked")

    with pytest.raises(PermissionError, match="the vault is locked"):
        resolve({"ENGINE": POSTGRESQL, "PASSWORD": locked})


def test_callables_among_options_belong_to_the_driver() -> None:
    node = {"ENGINE": POSTGRESQL, "OPTIONS": {"cursor_factory": dict}}
    assert resolve(node) is node
