"""Drained nodes: what an operator stored is known to every process in seconds."""

from __future__ import annotations

import pytest

from dbfleet.health import drain
from dbfleet.health.drain import REFRESH_S
from tests.health.cluster import Clock


def test_exactly_the_given_are_drained() -> None:
    drain.set_drained(["shop/replica1", "crm/replica2"])
    assert drain.is_drained("shop/replica1")
    assert not drain.is_drained("shop/replica2")
    assert drain.drained("shop") == {"shop/replica1"}
    drain.set_drained(["shop/replica2"])
    assert not drain.is_drained("shop/replica1")


def test_a_cluster_may_be_set_alone() -> None:
    drain.set_drained(["shop/replica1", "shop2/replica1"])
    drain.set_drained(["shop/replica2"], "shop")
    assert drain.current == {"shop/replica2", "shop2/replica1"}
    drain.forget("shop2")
    assert drain.current == {"shop/replica2"}


def test_what_is_stored_is_read_at_most_once_in_an_interval() -> None:
    clock, stored, calls = Clock(), ["shop/replica1"], []

    def loader() -> list[str]:
        calls.append(clock.now)
        return stored

    assert drain.drained("shop", loader, clock=clock) == {"shop/replica1"}
    stored = []
    for _ in range(10):
        assert drain.drained("shop", loader, clock=clock) == {"shop/replica1"}
    clock.pass_(REFRESH_S * 1.21)
    assert drain.drained("shop", loader, clock=clock) == frozenset()
    assert len(calls) == 2


def test_a_loader_that_fails_changes_nothing() -> None:
    clock = Clock()

    def broken() -> list[str]:
        raise ConnectionError

    drain.set_drained(["shop/replica1"])
    with pytest.raises(ConnectionError):
        drain.drained("shop", broken, clock=clock)
    # Nor is it asked again by each read.
    assert drain.drained("shop", broken, clock=clock) == {"shop/replica1"}
