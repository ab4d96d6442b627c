"""Policies choose among replicas: as a setting, for an alias, for a model."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from tests.clusters.conftest import Fleet

READS = 80


def places(fleet: Fleet, alias: str) -> Counter[str]:
    expression = f"turns({READS}, lambda: where(Which.objects.using({alias!r})))"
    return Counter(fleet.ask(expression))


def test_round_robin_takes_turns(fleet: Fleet) -> None:
    found = fleet.ask("turns(9)")
    count = len(fleet.replicas)
    assert all(found[n] == found[n % count] for n in range(9))
    assert set(found) == set(fleet.replicas)


def test_first_takes_the_first_until_it_fails(fleet: Fleet) -> None:
    assert places(fleet, "first") == {"replica1": READS}
    fleet.servers.replicas[0].kill()
    following = (*fleet.replicas, "primary")[1]
    assert places(fleet, "first") == {following: READS}


def test_weighted_follows_its_weights(fleet: Fleet) -> None:
    found = places(fleet, "weighted")
    assert sum(found.values()) == READS
    if len(fleet.replicas) == 2:
        # Three to one, from a seeded source: 60 of 80 are expected.
        assert 50 <= found["replica1"] <= 70, found


def test_the_setting_is_the_policy_of_every_other_alias(fleet: Fleet) -> None:
    found = places(fleet, "rest")
    assert sum(found.values()) == READS
    if len(fleet.replicas) == 2:
        # Random from a seeded source: about half, and not in turns.
        assert 25 <= found["replica1"] <= 55, found
        order = fleet.ask("turns(20, lambda: where(Which.objects.using('rest')))")
        turns = [one != other for one, other in pairwise(order)]
        assert not all(turns)
        assert any(turns)


def test_a_model_may_have_a_policy_of_its_own(fleet: Fleet) -> None:
    fleet.run('Tag.objects.create(word="x")')
    fleet.servers.wait_until_caught_up()
    fleet.run("sessions.forget()")
    assert set(fleet.ask("turns(6, tag_where)")) == {"replica1"}
    assert set(fleet.ask("turns(6)")) == set(fleet.replicas)
