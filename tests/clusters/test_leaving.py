"""A session that leaves its replica reads nothing older than what it has seen there."""

from __future__ import annotations

from tests.clusters.conftest import Fleet

SEEN = """
def seen():
    return sorted(Note.objects.using("first").values_list("text", flat=True))

def seen_where():
    return seen(), where(Which.objects.using("first"))
"""


def demand_one_and_see_two(fleet: Fleet) -> bool:
    """A session demands one row and has seen a second one, which replica2 lacks."""
    if len(fleet.replicas) < 2:
        return False
    fleet.run(SEEN)
    fleet.run('Note.objects.using("first").create(text="one")')
    fleet.servers.wait_until_caught_up()
    assert fleet.ask("seen_where()") == [["one"], "replica1"]
    fleet.servers.replicas[1].pause_replay()
    fleet.rows("INSERT INTO app_note (text) VALUES ('two')")
    fleet.servers.replicas[0].wait_until_caught_up()
    assert fleet.ask("seen_where()") == [["one", "two"], "replica1"]
    return True


def test_a_replica_that_tells_no_timeline_may_have_shown_more(fleet: Fleet) -> None:
    """It proves nothing, and is not behind for that: it may be far ahead."""
    if not demand_one_and_see_two(fleet):
        return
    first, primary = fleet.servers.replicas[0], fleet.servers.primary
    first.stop_receiving()
    try:
        # A connection of another thread forgets what is known of it.
        fleet.run(
            """
            from dbfleet.sessions import applied
            applied.forget("first/replica1")
            """
        )
        assert fleet.ask("seen()") == ["one", "two"]
        assert fleet.ask("seen()") == ["one", "two"]
    finally:
        first.follow(primary)


def test_what_another_thread_saw_during_a_move_is_not_forgotten(fleet: Fleet) -> None:
    """One thread moves the session while another one still reads where it was."""
    if not demand_one_and_see_two(fleet):
        return
    fleet.servers.replicas[1].resume_replay()
    fleet.servers.wait_until_caught_up()
    fleet.run(
        """
        wrapper = connections["first"]
        replicas, place = wrapper.nodes.replicas, wrapper.routing.place("home", None)
        own = replicas.usual(place)
        moving = replicas.choices(place, own, False)
        choice = next(moving)
        assert choice.name.endswith("replica2"), choice
        """
    )
    fleet.servers.replicas[1].pause_replay()
    fleet.rows("INSERT INTO app_note (text) VALUES ('three')")
    fleet.servers.replicas[0].wait_until_caught_up()
    found = fleet.run(
        """
        import threading
        answers = []
        context = contextvars.copy_context()
        other = threading.Thread(target=lambda: answers.append(context.run(seen)))
        other.start()
        other.join(20)
        replicas.served(place, choice)
        result = answers[0], seen()
        """
    )
    assert found == [["one", "three", "two"]] * 2


def test_a_thread_that_is_overtaken_by_a_move_is_not_forgotten(fleet: Fleet) -> None:
    """The other thread's answer comes once the session is elsewhere."""
    if not demand_one_and_see_two(fleet):
        return
    fleet.servers.replicas[1].resume_replay()
    fleet.servers.wait_until_caught_up()
    fleet.run(
        """
        wrapper = connections["first"]
        replicas, place = wrapper.nodes.replicas, wrapper.routing.place("home", None)
        own = replicas.usual(place)
        replicas.served(place, next(replicas.choices(place, own, False)))
        """
    )
    fleet.servers.replicas[1].pause_replay()
    fleet.rows("INSERT INTO app_note (text) VALUES ('three')")
    assert fleet.run("replicas.stayed(place, own); result = seen()") == [
        "one",
        "three",
        "two",
    ]
