"""Connections of nodes age, break and are pooled as Django's own are."""

from __future__ import annotations

from collections.abc import Callable

from tests.isolation.fleet import Fleet

#: default and both replicas, sales' home, a and b
NODES = 6

USES = """
from django.core.signals import request_finished, request_started

def request(work):
    '''Run as a server would; what the view raised is its answer.'''
    request_started.send(sender=object, environ={})
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        request_finished.send(sender=object)

def read_replicas():
    for _ in range(12):
        with dbfleet.session():
            found = Note.objects.count()
    return found

def write_home():
    return Note.objects.create(text="again").text

def write_shards():
    return len(Order.objects.bulk_create(Order(text="again") for _ in range(8)))

def gather():
    return len(Order.objects.filter(text="again").order_by("text")[:8])

def transact():
    with transaction.atomic("sales"):
        return Order.objects.filter(text="again").update(text="again") >= 8

def update():
    return Order.objects.update(text="again") >= 8

WORK = [read_replicas, write_home, write_shards, gather, transact, update]

def all_together():
    return [work() for work in WORK]

def terminate(nodes="default"):
    '''End every session of the fleet on these servers, as their restart would.'''
    for name, node in connections["default"].settings_dict["NODES"].items():
        if not name.startswith(nodes):
            continue
        with psycopg.connect(host=node["HOST"], port=node["PORT"], user=node["USER"],
                             dbname="postgres", autocommit=True) as watch:
            watch.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = %s", [settings.NAMED["application_name"]])
    until(lambda: nodes != "default" or not server_sessions())

def settle_breaker():
    from dbfleet.health import breaker
    until(lambda: not any(map(breaker.is_open, connections["default"].topology.nodes)))

import psycopg
"""


def test_health_checks_replace_dead_connections_unseen(
    fleet: Callable[..., Fleet],
) -> None:
    answers, counts = fleet(django="CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True").run(
        USES
        + """
request(all_together)
counts = [len(server_sessions())]
answers = {}
for work in WORK:
    terminate()
    settle_breaker()
    answers[work.__name__] = request(work)
    assert isinstance(request(all_together), list)
request(read_replicas)
counts.append(len(server_sessions()))
result = answers, counts
"""
    )
    assert isinstance(answers.pop("read_replicas"), int)
    assert answers == {
        "write_home": "again",
        "write_shards": 8,
        "gather": 8,
        "transact": True,
        "update": True,
    }
    assert counts == [NODES, NODES]


def test_without_checks_the_next_request_is_served(
    fleet: Callable[..., Fleet],
) -> None:
    failed, served = fleet(django="CONN_MAX_AGE=None").run(
        USES
        + """
request(all_together)
failed, served = {}, {}
for work in WORK:
    terminate("default/replica" if work is read_replicas else "default")
    failed[work.__name__] = request(work)
    settle_breaker()
    served[work.__name__] = request(work)
    until(lambda: isinstance(request(all_together), list))
    assert len(server_sessions()) >= 4
from dbfleet.health import breaker
assert not breaker._failed, breaker  # a replica that came back starts afresh
result = failed, served
"""
    )
    # A lost replica is replaced before its first row, so nobody sees it.
    assert isinstance(failed.pop("read_replicas"), int)
    assert isinstance(served.pop("read_replicas"), int)
    assert "(dbfleet.E602)" in str(failed.pop("write_home"))  # it may have happened
    for name, answer in failed.items():
        assert "(dbfleet.E204)" in str(answer), (name, answer)
    assert served == {
        "write_home": "again",
        "write_shards": 8,
        "gather": 8,
        "transact": True,
        "update": True,
    }


def test_age_closes_every_node(fleet: Callable[..., Fleet]) -> None:
    at_once, kept, aged, alone = fleet(django="CONN_MAX_AGE=0").run(
        USES
        + """
assert request(all_together)[1:] == ["again", 8, 8, True, True]
until(lambda: not server_sessions())
at_once = pids()

def replicas_alone():
    '''Home is not connected, and its closing closes no node.'''
    import threading
    def work():
        alone.append(request(lambda: read_replicas() and sorted(pids())))
        alone.append(pids())
    alone = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return alone

alone = replicas_alone()
for wrapper in connections.all():
    for node in (wrapper, *wrapper.nodes.opened()):
        node.settings_dict["CONN_MAX_AGE"] = 1
request(all_together)
kept = len(server_sessions())
until(lambda: request(lambda: not pids()))
until(lambda: not server_sessions())
result = at_once, kept, pids(), alone
"""
    )
    assert alone == [["default/replica1", "default/replica2"], {}]
    assert at_once == aged == {}
    assert kept == NODES


def test_failed_request_leaves_no_transaction_on_a_node(
    fleet: Callable[..., Fleet],
) -> None:
    in_transaction, answer = fleet(django="CONN_MAX_AGE=None").run(
        USES
        + """
def fails():
    with transaction.atomic("sales"):
        Order.objects.bulk_create(Order(text="never") for _ in range(8))
        raise RuntimeError("a view failed")

def idle():
    found = []
    for name in ("home", "a", "b"):
        node = connections["sales"].settings_dict["NODES"][f"sales/{name}/primary"]
        with psycopg.connect(host=node["HOST"], port=node["PORT"], user=node["USER"],
                             dbname=node["NAME"], autocommit=True) as watch:
            found += watch.execute(
                "SELECT state FROM pg_stat_activity WHERE application_name = %s "
                "AND datname = current_database()",
                [settings.NAMED["application_name"]]).fetchall()
    return sorted(state for (state,) in found)

answer = request(fails)
until(lambda: set(idle()) == {"idle"})
result = idle(), answer
assert not Order.objects.filter(text="never").exists()
"""
    )
    assert in_transaction == ["idle"] * 3
    assert answer == "RuntimeError: a view failed"


POOLS = """
def pools():
    found = {}
    for wrapper in connections.all():
        found.update(wrapper._connection_pools)
    return found

def checked_out():
    '''What requests have in their hands, by node.'''
    found = {}
    for name, pool in pools().items():
        stats = pool.get_stats()
        found[name] = stats["pool_size"] - stats["pool_available"]
    return {name: count for name, count in found.items() if count}

def terminate_some():
    '''Pools replace what they lost at once, so nobody can wait for none.'''
    terminate("default/primary")
    terminate("default/replica")

def close_pools():
    for wrapper in connections.all():
        for node in (wrapper, *wrapper.nodes.opened()):
            node.close()
            node.close_pool()
"""
POOLED = '{"pool": {"min_size": 1, "max_size": 3, "timeout": 8}}'


def test_pools_belong_to_nodes_and_get_all_back(fleet: Callable[..., Fleet]) -> None:
    names, addresses, left, seen = fleet(options=POOLED).run(
        USES
        + POOLS
        + """
import threading

def fails():
    all_together()
    with transaction.atomic("sales"), transaction.atomic():
        Note.objects.create(text="never")
        Order.objects.bulk_create(Order(text="never") for _ in range(8))
        Note.objects.raw("SELECT nonsense")[0]

left = []
for work in (all_together, fails, all_together):
    request(work)
    left.append(checked_out())

# A thread that ends without a request gives back what it has.
def work():
    for _ in range(3):
        all_together()

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
left.append(checked_out())
names = sorted(pools())
addresses = sorted(
    (str(pool.kwargs["port"]), pool.kwargs["dbname"])
    for name, pool in pools().items() if name != "sales/home/control")
declared = sorted(
    (node["PORT"], node["NAME"])
    for wrapper in connections.all()
    for node in wrapper.settings_dict["NODES"].values())
assert len(server_sessions()) <= 3 * len(names)
result = names, addresses == declared, left, len(names)
close_pools()
until(lambda: not server_sessions())
"""
    )
    assert names == [
        "default",
        "default/replica1",
        "default/replica2",
        "sales",
        "sales/a/primary",
        "sales/b/primary",
        "sales/home/control",  # takes ids outside the caller's transaction
    ]
    assert addresses
    assert left == [{}] * 4
    assert seen == NODES + 1


def test_dead_pooled_connections_are_replaced(fleet: Callable[..., Fleet]) -> None:
    answers, left = fleet(options=POOLED, django="CONN_HEALTH_CHECKS=True").run(
        USES
        + POOLS
        + """
request(all_together)
terminate_some()
result = request(all_together)[1:], checked_out()
close_pools()
"""
    )
    assert answers == ["again", 8, 8, True, True]
    assert left == {}


def test_copy_of_a_connection_keeps_its_own_options(
    fleet: Callable[..., Fleet],
) -> None:
    """connection.copy(alias), whose settings its caller changed."""
    pool = fleet().run(
        """
        import copy

        copied = connections["default"].copy("copied")
        copied.settings_dict = copy.deepcopy(connections["default"].settings_dict)
        copied.settings_dict["OPTIONS"]["pool"] = {"max_size": 2}
        result = copied.copy().settings_dict["OPTIONS"]["pool"]
        """
    )
    assert pool == {"max_size": 2}
