"""Selection policies: they order what they are given, and only that."""

from __future__ import annotations

import collections
import copy
import multiprocessing
import pickle
import random
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest

from dbfleet import policies
from dbfleet.errors import ConfigurationError
from dbfleet.health import load
from dbfleet.policies import (
    First,
    LeastConnections,
    LeastLatency,
    Named,
    Policy,
    Random,
    RoundRobin,
    SameZone,
    Weighted,
    place,
    read_policy,
)

NODES = ("x/replica1", "x/replica2", "x/replica3")

POLICIES = [
    First(),
    LeastConnections(),
    LeastLatency(),
    Random(),
    RoundRobin(),
    SameZone(),
    SameZone(RoundRobin(), zone="a"),
    Weighted({"replica1": 5, "replica2": 0}),
]


class Measured:
    """What a test says of each node: reads in flight, latency."""

    def __init__(self, **nodes: tuple[int, float]) -> None:
        self.nodes = {f"x/{name}": found for name, found in nodes.items()}

    def in_flight(self, node: str) -> int:
        return self.nodes[node][0]

    def latency_s(self, node: str) -> float:
        return self.nodes[node][1]


@pytest.fixture
def zones() -> Iterator[None]:
    """replica1 and replica3 stand in zone a, replica2 in b."""
    place({"x/replica1": "a", "x/replica2": "b", "x/replica3": "a"})
    yield
    place(dict.fromkeys(NODES, ""))


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


def test_fewest_reads_in_flight_come_first() -> None:
    loads = Measured(replica1=(2, 0.0), replica2=(0, 9.0), replica3=(1, 0.0))
    policy = LeastConnections(loads=loads)
    order = ["x/replica2", "x/replica3", "x/replica1"]
    assert all(policy.order(NODES) == order for _ in range(20))


def test_equally_busy_ones_take_equal_parts() -> None:
    seed = 20
    loads = Measured(replica1=(1, 0.0), replica2=(1, 0.0), replica3=(2, 0.0))
    policy = LeastConnections(rng=random.Random(seed), loads=loads)
    firsts = collections.Counter(policy.order(NODES)[0] for _ in range(2000))
    assert set(firsts) == set(NODES[:2])
    assert all(900 < count < 1100 for count in firsts.values()), (seed, firsts)


def test_the_slowest_of_three_is_never_first_and_no_one_has_all() -> None:
    seed = 20
    loads = Measured(replica1=(0, 0.010), replica2=(0, 0.002), replica3=(0, 0.003))
    policy = LeastLatency(rng=random.Random(seed), loads=loads)
    firsts = collections.Counter(policy.order(NODES)[0] for _ in range(3000))
    # Of two drawn at random the best wins: pairs with replica2 are two in three.
    assert set(firsts) == {"x/replica2", "x/replica3"}
    assert 1900 < firsts["x/replica2"] < 2100, (seed, firsts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 0.002), (0, 0.003)),
        ((0, 0.003), (1, 0.002)),  # 3 ms beside 4 ms
        ((0, 0.0), (0, 0.001)),  # never asked: find out
        ((0, 0.5), (1, 0.0)),  # the first read is not answered yet: wait for it
    ],
)
def test_the_cheaper_of_two_comes_first(
    one: tuple[int, float], other: tuple[int, float]
) -> None:
    policy = LeastLatency(loads=Measured(replica1=one, replica2=other))
    assert all(list(policy.order(NODES[:2])) == [*NODES[:2]] for _ in range(20))


def test_policies_go_by_what_this_process_measured() -> None:
    starts = [(name, load.started(name)) for name in (NODES[0], NODES[2])]
    try:
        assert LeastConnections().order(NODES)[0] == NODES[1]
        assert LeastLatency().order(NODES[:2])[0] == NODES[1]
    finally:
        for name, start in starts:
            load.finished(name, start)
            load.loads.forget(name)
        load.loads.forget(NODES[1])


@pytest.mark.usefixtures("zones")
def test_the_own_zone_comes_first() -> None:
    policy = SameZone(First, zone="a")
    assert list(policy.order(NODES)) == ["x/replica1", "x/replica3", "x/replica2"]
    assert SameZone(First, zone="b").order(NODES)[0] == "x/replica2"
    assert list(policy.order(NODES[1:2])) == ["x/replica2"]


@pytest.mark.usefixtures("zones")
def test_each_zone_is_ordered_by_the_inner_policy() -> None:
    seed = 20
    policy = SameZone(Random(rng=random.Random(seed)), zone="a")
    orders = [policy.order(NODES) for _ in range(1000)]
    assert {order[2] for order in orders} == {"x/replica2"}
    firsts = collections.Counter(order[0] for order in orders)
    assert all(430 < count < 570 for count in firsts.values()), (seed, firsts)


@pytest.mark.usefixtures("zones")
@pytest.mark.parametrize("zone", ["", "c"])
def test_where_nobody_is_near_all_are_alike(zone: str) -> None:
    assert list(SameZone(First(), zone=zone).order(NODES)) == list(NODES)


@pytest.mark.usefixtures("zones")
def test_the_own_zone_is_a_setting_or_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = SameZone("dbfleet.policies.First")
    monkeypatch.delenv("DBFLEET_ZONE", raising=False)
    assert policy.order(NODES)[0] == "x/replica1"
    monkeypatch.setenv("DBFLEET_ZONE", "b")
    assert policy.order(NODES)[0] == "x/replica2"
    monkeypatch.setattr(
        policies,
        "django_settings",
        SimpleNamespace(configured=True, DBFLEET={"ZONE": "a"}),
    )
    assert policy.order(NODES)[0] == "x/replica1"


def test_policies_carry_aliases() -> None:
    assert SameZone(Random(["db1", "db2"])).aliases == ("db1", "db2")
    assert LeastLatency(["db1", "db2"]).aliases == ("db1", "db2")
    assert Random(["db1", "db2"]).aliases == ("db1", "db2")
    assert First("db1").aliases == ("db1",)
    assert Weighted({"db1": 1, "db2": 2}).aliases == ("db1", "db2")
    assert RoundRobin().aliases == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Random(["db1", "db1"]),
        lambda: Random([1, 2]),  # type: ignore[list-item]
        lambda: SameZone("no_dot"),
        lambda: SameZone(zone=5),  # type: ignore[arg-type]
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
