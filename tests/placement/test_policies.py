"""Selection policies: they order what they are given, and only that."""

from __future__ import annotations

import collections
import copy
import multiprocessing
import pickle
import random
import threading
from collections.abc import Sequence

import pytest

from dbfleet.errors import ConfigurationError
from dbfleet.policies import (
    First,
    Named,
    Policy,
    Random,
    RoundRobin,
    Weighted,
    read_policy,
)

NODES = ("x/replica1", "x/replica2", "x/replica3")

POLICIES = [First(), Random(), RoundRobin(), Weighted({"replica1": 5, "replica2": 0})]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("candidates", [NODES, list(NODES), NODES[:1], ()])
def test_no_candidate_is_lost_or_added(
    policy: Policy, candidates: Sequence[str]
) -> None:
    before = list(candidates)
    for _ in range(20):
        assert sorted(policy.order(candidates)) == sorted(candidates)
    assert list(candidates) == before


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_policy_survives_settings_being_copied(policy: Policy) -> None:
    assert copy.deepcopy(policy) is policy
    again = pickle.loads(pickle.dumps(policy))
    assert sorted(again.order(NODES)) == sorted(NODES)


def test_first_keeps_the_order() -> None:
    assert all(list(First().order(NODES)) == list(NODES) for _ in range(5))


def test_random_prefers_none() -> None:
    seed = 20
    policy = Random(rng=random.Random(seed))
    firsts = collections.Counter(policy.order(NODES)[0] for _ in range(3000))
    assert set(firsts) == set(NODES)
    assert all(850 < count < 1150 for count in firsts.values()), (seed, firsts)


def test_randomness_is_injected() -> None:
    def run() -> list[Sequence[str]]:
        policy = Random(rng=random.Random(7))
        return [policy.order(NODES) for _ in range(10)]

    assert run() == run()


def test_round_robin_takes_turns_and_ends_with_all() -> None:
    policy = RoundRobin(rng=random.Random(1))
    firsts = [policy.order(NODES)[0] for _ in range(9)]
    assert firsts[:3] == firsts[3:6] == firsts[6:]
    assert set(firsts) == set(NODES)
    later = policy.order(NODES)
    assert NODES.index(later[1]) == (NODES.index(later[0]) + 1) % 3


def test_round_robin_is_even_over_threads() -> None:
    policy = RoundRobin()
    policy.order(NODES)  # the first turn of a process may repeat
    firsts: list[str] = []

    def read() -> None:
        firsts.extend(policy.order(NODES)[0] for _ in range(300))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = collections.Counter(firsts)
    assert set(counts.values()) == {600}, counts


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork here"
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_do_not_walk_in_step() -> None:
    candidates = [f"n{number}" for number in range(1000)]
    policy = RoundRobin()
    policy.order(candidates)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    workers = [
        context.Process(target=lambda: answers.put(policy.order(candidates)[0]))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    firsts = [answers.get() for _ in workers]
    for worker in workers:
        worker.join(10)
    # Four workers that start at random all agree once in 10**9 runs.
    assert len(set(firsts)) > 1, firsts


def test_weights_are_shares_of_the_first_place() -> None:
    seed = 20
    policy = Weighted(
        {"x/replica1": 6, "replica2": 3, "replica9": 100}, rng=random.Random(seed)
    )
    firsts = collections.Counter(policy.order(NODES)[0] for _ in range(5000))
    # replica3 is not named and weighs 1
    assert [round(firsts[node] / 500) for node in NODES] == [6, 3, 1], (seed, firsts)


def test_weight_zero_comes_last() -> None:
    policy = Weighted({"replica2": 0})
    assert all(policy.order(NODES)[-1] == "x/replica2" for _ in range(50))
    assert policy.order(["x/replica2"]) == ["x/replica2"]


def test_policies_carry_aliases() -> None:
    assert Random(["db1", "db2"]).aliases == ("db1", "db2")
    assert First("db1").aliases == ("db1",)
    assert Weighted({"db1": 1, "db2": 2}).aliases == ("db1", "db2")
    assert RoundRobin().aliases == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Random(["db1", "db1"]),
        lambda: Random([1, 2]),  # type: ignore[list-item]
        lambda: Weighted({}),
        lambda: Weighted(["db1"]),  # type: ignore[arg-type]
        lambda: Weighted({"db1": -1}),
        lambda: Weighted({"db1": float("nan")}),
        lambda: Weighted({"db1": float("inf")}),
        lambda: Weighted({"db1": "1"}),  # type: ignore[dict-item]
        lambda: Weighted({"db1": True}),
        lambda: read_policy("no_such_module.Policy").order(NODES),  # type: ignore[union-attr]
        lambda: read_policy("collections.OrderedDict").order(NODES),  # type: ignore[union-attr]
        lambda: read_policy(5),
    ],
)
def test_a_wrong_policy_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ConfigurationError) as raised:
        make()
    assert raised.value.code == "dbfleet.E007"


def test_a_path_a_class_and_an_instance_are_alike() -> None:
    assert isinstance(read_policy("dbfleet.policies.RoundRobin"), RoundRobin)
    assert isinstance(read_policy(First), First)
    own = Random()
    assert read_policy(own) is own
    assert read_policy(None) is None


def test_a_projects_own_module_is_imported_at_the_first_choice() -> None:
    policy = read_policy("tests.settings.no_such_policy")
    assert isinstance(policy, Named)
    with pytest.raises(ConfigurationError, match="no_such_policy"):
        policy.order(NODES)
    assert Named("dbfleet.policies.First").order(NODES) == NODES
