"""A session never misses its own write, however far the replicas are behind."""

from __future__ import annotations

import pytest

from tests.clusters.conftest import Fleet

WRITES = {
    "create": 'Note.objects.create(text="new")',
    "bulk_create": 'Note.objects.bulk_create([Note(text="new")])',
    "in a transaction": """
        with transaction.atomic():
            Note.objects.create(text="new")
        """,
    "raw": "raw(\"INSERT INTO app_note (text) VALUES ('new')\")",
    "many at once": """
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO app_note (text) VALUES (%s)", [["new"]])
        """,
    "by a function": 'raw("SELECT mark()"); Note.objects.update(text="new")',
    "get_or_create": 'Note.objects.get_or_create(text="new")',
}


def pause_all(fleet: Fleet) -> None:
    for replica in fleet.servers.replicas:
        replica.pause_replay()


@pytest.mark.parametrize("what", WRITES)
def test_a_write_is_seen_while_every_replica_is_behind(fleet: Fleet, what: str) -> None:
    assert fleet.ask("where()") in fleet.replicas
    pause_all(fleet)
    fleet.run(WRITES[what])
    for _ in range(2):
        assert fleet.ask("texts(), where()") == [["new"], "primary"]
        assert fleet.ask('raw("SELECT text FROM app_note")') == [["new"]]


def test_a_table_that_replicas_lack_is_read_on_the_primary(fleet: Fleet) -> None:
    """An error of a replica that has something to prove says nothing of the query."""
    assert fleet.ask("where()") in fleet.replicas
    pause_all(fleet)
    fleet.run('raw("CREATE TABLE newer (text varchar(9))")')
    fleet.run("raw(\"INSERT INTO newer VALUES ('new')\")")
    for _ in range(2):
        assert fleet.ask('raw("SELECT text FROM newer")') == [["new"]]
    fleet.run('raw("ALTER TABLE app_note ADD COLUMN more varchar(9)")')
    assert fleet.ask('raw("SELECT more FROM app_note")') == []
    found = fleet.run(
        """
        try:
            raw("SELECT missing FROM newer")
        except Exception as error:
            result = "missing" in str(error)
        """
    )
    assert found is True
    for replica in fleet.servers.replicas:
        replica.resume_replay()
    fleet.servers.wait_until_caught_up()
    assert fleet.ask('raw("SELECT text FROM newer")') == [["new"]]


def test_updates_and_deletes_are_seen_as_well(fleet: Fleet) -> None:
    fleet.run("Note.objects.bulk_create(Note(text=str(n)) for n in range(3))")
    fleet.servers.wait_until_caught_up()
    pause_all(fleet)
    for n in range(6):
        fleet.run(f'Note.objects.filter(text__startswith="0").update(text="0 {n}")')
        assert fleet.ask("texts()[0]") == f"0 {n}"
    fleet.run('Note.objects.filter(text="1").delete()')
    assert fleet.ask("texts()") == ["0 5", "2"]


def test_a_replica_that_has_caught_up_serves_again(fleet: Fleet) -> None:
    pause_all(fleet)
    fleet.run('Note.objects.create(text="new")')
    assert fleet.ask("where()") == "primary"
    for replica in fleet.servers.replicas:
        replica.resume_replay()
    fleet.servers.wait_until_caught_up()
    assert set(fleet.ask("turns(4)")) == set(fleet.replicas)
    assert fleet.ask("[texts() for _ in range(4)]") == [["new"]] * 4


def test_the_replica_that_is_not_behind_serves(fleet: Fleet) -> None:
    if len(fleet.replicas) < 2:
        return
    fleet.servers.replicas[0].pause_replay()
    fleet.run('Note.objects.create(text="new")')
    fleet.servers.replicas[1].wait_until_caught_up()
    found = fleet.ask("[(texts(), where()) for _ in range(4)]")
    assert found == [[["new"], "replica2"]] * 4


def test_what_is_required_is_each_sessions_own(fleet: Fleet) -> None:
    pause_all(fleet)
    found = fleet.run(
        """
        Note.objects.create(text="mine")
        fresh = contextvars.Context()
        theirs = fresh.run(lambda: (texts(), where()))
        result = theirs, (texts(), where())
        """
    )
    assert found[1] == [["mine"], "primary"]
    assert found[0][0] == []
    assert found[0][1] in fleet.replicas
    # A session goes on in a task or thread that copies its context.
    copied = fleet.run(
        """
        import threading
        seen = []
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: seen.append(context.run(texts)))
        thread.start()
        thread.join(20)
        result = seen
        """
    )
    assert copied == [["mine"]]


def test_what_a_rolled_back_transaction_saw_is_not_forgotten(fleet: Fleet) -> None:
    """Reads inside saw the primary; later ones must not see less."""
    pause_all(fleet)
    found = fleet.run(
        """
        before = texts()
        contextvars.Context().run(lambda: Note.objects.create(text="theirs"))
        with transaction.atomic():
            inside = texts()
            transaction.set_rollback(True)
        result = before, inside, texts(), where()
        """
    )
    assert found == [[], ["theirs"], ["theirs"], "primary"]


def test_what_runs_on_commit_sees_the_commit(fleet: Fleet) -> None:
    pause_all(fleet)
    found = fleet.run(
        """
        seen = []
        with transaction.atomic():
            Note.objects.create(text="new")
            transaction.on_commit(lambda: seen.append((texts(), where())))
        result = seen
        """
    )
    assert found == [[["new"], "primary"]]


def test_eventual_reads_ask_for_no_freshness(fleet: Fleet) -> None:
    pause_all(fleet)
    found = fleet.run(
        """
        Note.objects.create(text="new")
        with dbfleet.consistency("eventual"):
            stale = texts(), where()
        with dbfleet.consistency("strong"):
            strong = texts(), where()
        with dbfleet.consistency("session"):
            own = texts(), where()
        result = stale, strong, own
        """
    )
    assert found[0][0] == []
    assert found[0][1] in fleet.replicas
    assert found[1:] == [[["new"], "primary"]] * 2


def test_another_aliass_writes_are_not_this_ones(fleet: Fleet) -> None:
    """Two aliases are two databases, even where they are one."""
    pause_all(fleet)
    found = fleet.run(
        """
        Note.objects.using("rest").create(text="there")
        result = where(), where(Which.objects.using("rest"))
        """
    )
    assert found[0] in fleet.replicas
    assert found[1] == "primary"


COUNTED = """
asked = []
engine = type(connection.engine)
names = ("position", "applied", "read_at", "wait")
methods = {name: getattr(engine, name) for name in names}

def counting(name):
    def method(self, *args):
        asked.append(name)
        return methods[name](self, *args)
    return method

for name in names:
    setattr(engine, name, counting(name))
"""


def test_what_freshness_costs(fleet: Fleet) -> None:
    """A write tells its position, the first read proves it, later ones know."""
    fleet.run("connection.ensure_connection()")
    fleet.run(COUNTED)
    try:
        assert fleet.run("for _ in range(4): texts()\nresult = asked") == []
        fleet.run('Note.objects.create(text="new")')
        fleet.servers.wait_until_caught_up()
        for _ in range(6):
            assert fleet.ask("texts()") == ["new"]
        found = fleet.ask("asked")
        # MariaDB tells nothing with rows: of INSERT ... RETURNING, among others.
        assert found.count("position") == (1 if fleet.engine == "mariadb" else 0)
        assert found.count("read_at") == 1
        is_asked_apart = fleet.engine != "postgresql"
        assert found.count("applied") == (1 if is_asked_apart else 0)  # in its read_at
        # What one session learned every other one knows.
        fleet.run("asked.clear()")
        fleet.run(
            """
            with dbfleet.session() as other:
                other.demand("default/home", floors, connection.engine.merge)
                texts()
            """.replace("floors", "sessions.peek().of('default/home').floors")
        )
        assert fleet.ask("asked").count("read_at") <= 1
    finally:
        fleet.run("for name in names: setattr(engine, name, methods[name])")


def test_a_commit_tells_its_position(fleet: Fleet) -> None:
    """Without a question, and never the position before it."""
    found = fleet.run(
        """
        told = []
        engine = connection.engine

        def state():
            return sessions.current().of("default/home")

        Note.objects.bulk_create([Note(text=str(n)) for n in range(3)])
        writes = {
            "update": lambda: Note.objects.update(text="new"),
            "delete": lambda: Note.objects.filter(text="new").delete(),
            "atomic": lambda: atomic_create(),
        }

        def atomic_create():
            with transaction.atomic():
                Note.objects.create(text="new")

        for name in ("update", "atomic", "delete"):
            before = engine.position(connection.nodes.primary("home"))
            with dbfleet.session():
                writes[name]()
                there = engine.position(connection.nodes.primary("home"))
                is_told = bool(state().floors) and not state().is_unknown
                told.append([is_told, engine.covers(there, state().floors)])
                told[-1].append(engine.covers(before, state().floors))
                told[-1].append(engine.covers(state().floors[0], [there]))
        result = told
        """
    )
    # Nobody else writes, so the position told is the primary's own; of MySQL's sets it
    # is the last transaction.
    is_whole = fleet.engine != "mysql"
    assert found == [[True, True, False, is_whole]] * 3


def test_a_position_of_another_system_asks_the_primary(fleet: Fleet) -> None:
    """A token from before a restore can be compared with nothing."""
    if fleet.engine != "postgresql":
        return
    found = fleet.run(
        """
        from dbfleet.engines import Position
        texts()
        contextvars.Context().run(lambda: Note.objects.create(text="new"))
        session = sessions.current()
        elsewhere = Position(value=2**60, timeline=9, system="1")
        session.demand("default/home", [elsewhere], connection.engine.merge)
        result = texts(), texts(), list(map(list, session.of("default/home").floors))
        """
    )
    assert found[0] == found[1] == ["new"]
    assert all(system != "1" for _, _, system in found[2])
