"""How old an answer may be: by queryset, block, model, alias and setting."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clusters.conftest import Fleet


def pause_all(fleet: Fleet) -> None:
    for replica in fleet.servers.replicas:
        replica.pause_replay()


def test_a_queryset_says_its_own_level(fleet: Fleet) -> None:
    found = fleet.run(
        """
        one = Which.objects.consistency("strong")
        two = Which.objects.filter(port__gt=0).consistency("strong").order_by("port")
        with dbfleet.consistency("strong"):
            inside = where(Which.objects.consistency("eventual"))
        result = where(one), where(two), inside, where()
        """
    )
    assert found[:2] == ["primary", "primary"]
    assert found[2] in fleet.replicas
    assert found[3] in fleet.replicas


def test_a_queryset_without_it_is_not_touched(fleet: Fleet) -> None:
    found = fleet.run(
        """
        plain = Note.objects.filter(text="x")
        strong = plain.consistency("strong")
        copied = strong.exclude(text="y").all()
        result = [
            getattr(one.query, "fleet_level", None) is not None
            for one in (plain, strong, copied)
        ]
        """
    )
    assert found == [False, True, True]


@pytest.mark.parametrize("level", ["strongest", "", None, 5])
def test_an_unknown_level_is_refused(fleet: Fleet, level: Any) -> None:
    found = fleet.ask(f"refused(Note.objects.consistency, {level!r})")
    assert found[:2] == ["ConfigurationError", "dbfleet.E004"]


@pytest.mark.parametrize("bound", [0, -1, "5", float("inf")])
def test_a_bound_is_a_number_of_seconds(fleet: Fleet, bound: Any) -> None:
    source = f"float({str(bound)!r})" if bound == float("inf") else repr(bound)
    found = fleet.ask(f"refused(dbfleet.bounded, {source})")
    assert found[:2] == ["ConfigurationError", "dbfleet.E004"]


def test_levels_of_models_aliases_and_the_setting(fleet: Fleet) -> None:
    found = fleet.run(
        """
        from django.test import override_settings
        from dbfleet import bounded

        def asked(**settings):
            with override_settings(DBFLEET=settings):
                return where(), tag_where()

        Tag.objects.create(word="x")
        result = (
            asked(CONSISTENCY="strong"),
            asked(CONSISTENCIES={"app.Which": "strong", "app.Tag": "eventual"}),
            asked(CONSISTENCY="strong", CONSISTENCIES={"app": "eventual"}),
            str(connection.routing.level()),
        )
        """
    )
    assert found[0] == ["primary", "primary"]
    assert found[1][0] == "primary"
    assert found[2][0] in fleet.replicas
    assert found[3] == "session"


def test_a_bounded_read_leaves_a_replica_that_stopped(fleet: Fleet) -> None:
    """What a replica lacks is young at first, and then it is too old."""
    fleet.run("from dbfleet.sessions import lag; lag.forget()")
    near = "with dbfleet.consistency(dbfleet.bounded(max_lag_s=0.5)):\n"
    assert fleet.run(f"{near}    result = where()") in fleet.replicas
    pause_all(fleet)
    fleet.run('contextvars.Context().run(lambda: Note.objects.create(text="new"))')
    fleet.console.until(
        "contextvars.Context().run(lambda: bounded_where(0.5))",
        "primary",
        timeout_s=10,
    )
    assert fleet.ask("bounded_where(3600)") in fleet.replicas


def test_an_idle_primary_does_not_look_late(fleet: Fleet) -> None:
    """Nothing is written for longer than the bound."""
    fleet.run(
        """
        import time
        from dbfleet.sessions import lag
        lag.forget()
        began = time.monotonic()
        """
    )
    fleet.console.until("time.monotonic() - began > 1.2", True, timeout_s=10)
    found = fleet.run("result = [bounded_where(0.3) for _ in range(20)]")
    assert set(found) <= set(fleet.replicas)
