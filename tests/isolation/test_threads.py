"""Threads share nothing of a fleet, and take their connections with them."""

from __future__ import annotations

from collections.abc import Callable

from tests.isolation.fleet import Fleet

#: default and a replica, sales' home, a and b, and the run-time database
NODES = 6


def test_threads_share_no_connection_and_no_transaction(
    fleet: Callable[..., Fleet],
) -> None:
    found, mine = fleet().run(
        """
        import threading

        together = threading.Barrier(4)
        found, errors = [], []

        def work(number):
            try:
                for seen, used in touch(f"open {number}"):
                    together.wait(20)  # all of them are inside their transactions
                    found.append((seen, used))
            except BaseException as error:
                together.abort()
                errors.append(repr(error))

        threads = [threading.Thread(target=work, args=[n]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        result = found, pids()
        """
    )
    assert mine == {}
    assert len(found) == 4
    pids = [tuple(one.items()) for _, used in found for one in [used]]
    assert all(seen == [0, 0, 0] for seen, _ in found), found
    assert all(len(used) == NODES for _, used in found), found
    assert len({pid for used in pids for _, pid in used}) == 4 * NODES


def test_threads_share_no_consistency_state(fleet: Callable[..., Fleet]) -> None:
    states = fleet().run(
        """
        import threading

        states = []
        with dbfleet.pin("primary"), dbfleet.on_shard("sales", "a"):
            Note.objects.create(text="mine")
            thread = threading.Thread(target=lambda: states.append(state()))
            thread.start()
            thread.join()
            states.append(state())
        result = states
        """
    )
    theirs, mine = states
    assert (theirs["floors"], theirs["level"], theirs["shard"]) == ([], None, None)
    assert (mine["floors"], mine["level"]) == (["default/home"], "strong")
    assert mine["shard"] == "a"


def test_connections_of_finished_threads_are_closed(
    fleet: Callable[..., Fleet],
) -> None:
    while_it_runs, mine = fleet(django="CONN_MAX_AGE=None").run(
        """
        import gc, threading

        gc.disable()  # the end of a thread closes, not a collection
        counts = []

        def work():
            for seen, used in touch("open thread"):
                counts.append(len(server_sessions()))

        Note.objects.create(text="mine")
        mine = pids()
        for _ in range(3):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        until(lambda: len(server_sessions()) == len(mine))
        assert pids() == mine
        Note.objects.create(text="still mine")
        result = counts, len(mine)
        """
    )
    assert mine == 1
    assert while_it_runs[0] == NODES + mine
    assert max(while_it_runs) <= 2 * NODES + mine  # the server may still be closing


def test_thread_that_shares_its_connection_leaves_it_open(
    fleet: Callable[..., Fleet],
) -> None:
    """As Django's live server tests, which hand connections to another thread."""
    before, after = fleet().run(
        """
        import threading

        shared = []

        def work():
            connections["default"].inc_thread_sharing()
            connections["default"].ensure_connection()
            shared.append(connections["default"])
            shared.append(pids())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with shared[0].cursor() as cursor:
            cursor.execute("SELECT 1")
        result = shared[1]["default"], shared[0].connection.info.backend_pid
        shared[0].close()
        """
    )
    assert before == after
