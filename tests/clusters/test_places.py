"""Which server of a cluster serves what."""

from __future__ import annotations

import pytest

from tests.clusters.conftest import Fleet


def test_reads_are_spread_over_the_replicas(fleet: Fleet) -> None:
    found = fleet.ask("turns(6)")
    assert sorted(set(found)) == fleet.replicas
    assert all(found.count(name) == 6 // len(fleet.replicas) for name in fleet.replicas)


def test_transactions_writes_and_locks_are_the_primarys(fleet: Fleet) -> None:
    found = fleet.run(
        """
        with transaction.atomic():
            first = where()
            Note.objects.create(text="one")
            with transaction.atomic():
                second = where()
        sessions.forget()
        after = where()
        with transaction.atomic():
            locked = ROLES[
                Note.objects.select_for_update()
                .annotate(port=RawSQL("SELECT port FROM which", ()))
                .values_list("port", flat=True)
                .get()
            ]
        transaction.set_autocommit(False)
        manual = where()
        transaction.rollback()
        transaction.set_autocommit(True)
        result = [first, second, locked, manual], after
        """
    )
    assert found[0] == ["primary"] * 4
    assert found[1] in fleet.replicas
    assert fleet.rows("SELECT text FROM app_note") == [("one",)]


def test_a_block_may_ask_for_more_or_less(fleet: Fleet) -> None:
    found = fleet.run(
        """
        with dbfleet.pin("primary"):
            pinned = where()
        with dbfleet.consistency("strong"):
            strong = where()
            with dbfleet.consistency("eventual"):
                inner = where()
            again = where()
        result = [pinned, strong, again], [inner, where()]
        """
    )
    assert found[0] == ["primary"] * 3
    assert set(found[1]) <= set(fleet.replicas)
    routes = fleet.run(
        """
        free = Note.objects.explain_route()
        with transaction.atomic():
            inside = Note.objects.explain_route()
        result = [[route.nodes, route.reason] for route in (free, inside)]
        """
    )
    assert routes[0][0] == [f"default/{name}" for name in fleet.replicas]
    assert "caught up" in routes[0][1]
    assert routes[1][0] == ["default/primary"]
    assert "transaction" in routes[1][1]


def test_replicas_are_opened_read_only(fleet: Fleet) -> None:
    found = fleet.run(
        """
        where()
        result = []
        for name, node in connection.nodes._open.items():
            if "replica" in name and node.connection is not None:
                write = "INSERT INTO app_note (text) VALUES ('x')"
                result.append(refused(connection.engine.run, node, write))
        """
    )
    assert found
    assert all("read" in error[2].lower() for error in found), found


# -- raw SQL ------------------------------------------------------------------------


def test_plain_raw_reads_are_the_replicas(fleet: Fleet) -> None:
    statements = [
        "SELECT port FROM which",
        "SELECT port, 'DELETE FROM t' FROM which -- FOR UPDATE",
        "WITH x AS (SELECT port FROM which) SELECT port FROM x",
        "SELECT MAX(port) FROM which WHERE port > 1",
    ]
    found = [fleet.ask(f"raw_where({sql!r})") for sql in statements]
    assert set(found) <= set(fleet.replicas), dict(zip(statements, found, strict=True))


def test_what_may_write_is_the_primarys(fleet: Fleet) -> None:
    statements = [
        "SELECT port, mark() FROM which",
        "WITH x AS (SELECT port FROM which), y AS (SELECT mark()) "
        "SELECT port FROM x, y",
    ]
    if fleet.engine == "postgresql":
        statements += [
            "WITH y AS (INSERT INTO app_note (text) VALUES ('mark') RETURNING 1) "
            "SELECT port FROM which",
            "SELECT port, pg_advisory_xact_lock(1) FROM which",
        ]
    else:
        statements += ["SELECT port, GET_LOCK('x', 1) FROM which"]
    found = [fleet.ask(f"raw_where({sql!r})") for sql in statements]
    assert found == ["primary"] * len(statements)
    marks = len(statements) - 1
    assert fleet.rows("SELECT COUNT(*) FROM app_note WHERE text = 'mark'") == [(marks,)]


@pytest.mark.parametrize(
    "read", ["Sneaky.objects.get().n", "raw('SELECT n FROM sneaky')"]
)
def test_a_read_that_writes_unseen_is_the_primarys_in_the_end(
    fleet: Fleet, read: str
) -> None:
    """A view hides the function that writes: a replica refuses it, the primary runs
    it, once."""
    for replica in fleet.servers.replicas:
        replica.pause_replay()
    assert fleet.ask(read) in (1, [[1]])
    assert fleet.rows("SELECT COUNT(*) FROM app_note") == [(1,)]
    # It was a write, so this session sees it; and no replica has failed.
    assert fleet.ask("texts()") == ["mark"]
    fleet.run("sessions.forget()")
    assert set(fleet.ask("turns(4)")) == set(fleet.replicas)


def test_what_sets_a_state_keeps_its_connection(fleet: Fleet) -> None:
    """SET, a temporary table, a transaction by hand: it holds for one connection."""
    temporary = "CREATE TEMPORARY TABLE mine AS SELECT 42 AS n"
    found = fleet.run(
        f"""
        raw({temporary!r})
        result = [raw("SELECT n FROM mine"), where()]
        result.append(raw_where("SELECT port FROM which"))
        connection.close()
        result.append(where() != "primary")  # it went with its connection
        """
    )
    assert found == [[[42]], "primary", "primary", True]
    show = {
        "postgresql": ("SET search_path TO pg_catalog, public", "SHOW search_path"),
    }.get(fleet.engine, ("SET @mine = 5", "SELECT @mine"))
    found = fleet.run(f"start()\nraw({show[0]!r})\nresult = raw({show[1]!r}), where()")
    assert str(found[0][0][0]).startswith(
        {"postgresql": "pg_cat"}.get(fleet.engine, "5")
    )
    assert found[1] == "primary"


def test_a_setting_made_by_a_function_keeps_its_connection(fleet: Fleet) -> None:
    """As row security by ``set_config`` has it, which a replica's connection lacks."""
    if fleet.engine != "postgresql":
        return
    found = fleet.run(
        """
        raw("SELECT set_config('app.tenant', '7', false)")
        result = [raw("SELECT current_setting('app.tenant', true), 1"), where(),
                  raw_where("SELECT port FROM which")]
        """
    )
    assert found == [[["7", 1]], "primary", "primary"]


def test_a_transaction_by_hand_is_read_where_it_writes(fleet: Fleet) -> None:
    found = fleet.run(
        """
        raw("BEGIN")
        raw("INSERT INTO app_note (text) VALUES ('by hand')")
        inside = raw("SELECT text FROM app_note"), texts()
        raw("ROLLBACK")
        result = inside, texts()
        """
    )
    assert found == [[[["by hand"]], ["by hand"]], []]


# -- read-only ----------------------------------------------------------------------


def test_a_read_only_alias_refuses_every_write(fleet: Fleet) -> None:
    found = fleet.run(
        """
        from django.core.management import call_command
        Note.objects.create(text="old")
        notes = Note.objects.using("reader")
        old = Note.objects.get()
        insert = "INSERT INTO app_note (text) VALUES ('x')"
        result = {
            "create": refused(notes.create, text="x"),
            "bulk_create": refused(notes.bulk_create, [Note(text="x")]),
            "update": refused(notes.update, text="x"),
            "delete": refused(notes.all().delete),
            "save": refused(old.save, using="reader"),
            "raw": refused(raw, insert, using="reader"),
            "ddl": refused(raw, "DROP TABLE app_tag", using="reader"),
            "in a transaction": None,
        }
        with transaction.atomic("reader"):
            result["in a transaction"] = refused(notes.create, text="x")
        """
    )
    for what, error in found.items():
        assert error, f"{what} was not refused"
        assert error[:2] == ["ReadOnlyAlias", "dbfleet.E205"], (what, error)
        assert "'reader'" in error[2]
    assert fleet.rows("SELECT text FROM app_note") == [("old",)]
    assert fleet.rows("SELECT COUNT(*) FROM app_tag") == [(0,)]
    fleet.servers.wait_until_caught_up()
    read = fleet.run(
        """
        result = [
            [note.text for note in Note.objects.using("reader")],
            raw("SELECT text FROM app_note", using="reader"),
        ]
        """
    )
    assert read == [["old"], [["old"]]]
