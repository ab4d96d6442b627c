"""What is written for an object is required by another's read, through the cache."""

from __future__ import annotations

from tests.carriers.conftest import Site


def test_a_reader_of_an_object_sees_what_was_saved_for_it(fleet: Site) -> None:
    found = fleet.one.run("result = Note.objects.create(text='old').pk")
    fleet.pause()
    found = fleet.one.run(
        f"""
        def write():
            note = Note.objects.get(pk={found})
            note.text = "new"
            note.save()
            shared.save_token_for(note, ttl_s=60)

        def read(key):
            shared.require_token_for(key)
            return texts()

        alone(write)
        note = Note(pk={found})
        other = Note(pk={found} + 1)
        result = alone(read, note), alone(read, other), alone(read, "any text")
        """
    )
    assert found == [["new"], ["old"], ["old"]]


def test_two_writers_are_merged_and_the_token_is_plain(fleet: Site) -> None:
    fleet.pause()
    found = fleet.one.run(
        """
        made = []

        def write(text):
            Note.objects.create(text=text)
            made.append(dbfleet.token())
            return sessions.peek()

        def save(session):
            with dbfleet.session():
                sessions.restore(session)
                shared.save_token_for("key")

        first, second = alone(write, "first"), alone(write, "second")
        save(second)
        save(first)  # late
        token = shared.token_for("key")

        def read():
            dbfleet.resume(token)
            return texts()

        result = alone(read), token, made
        """
    )
    assert found[0] == ["first", "second"]
    position = [token.split("|")[1].split("!")[1] for token in (found[1], found[2][1])]
    assert position[0] == position[1]


def test_many_writers_at_once_lose_nothing(fleet: Site) -> None:
    """Every thread requires its own write of whoever reads next."""
    fleet.pause()
    found = fleet.one.run(
        """
        together, failed = threading.Barrier(8), []

        def write(n):
            try:
                together.wait(20)
                for turn in range(5):
                    Note.objects.create(text=f"{n}.{turn}")
                    shared.save_token_for("key")

                    def read():
                        shared.require_token_for("key")
                        return f"{n}.{turn}" in texts()

                    if not alone(read):
                        failed.append((n, turn))
            except BaseException as error:
                failed.append(repr(error))
            finally:
                connections.close_all()

        threads = [threading.Thread(target=write, args=[n]) for n in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
        result = failed
        """,
        timeout_s=90,
    )
    assert found == []


def test_a_lost_entry_asks_the_primary(fleet: Site) -> None:
    fleet.pause()
    found = fleet.one.run(
        """
        from django.core.cache import cache

        def write():
            Note.objects.create(text="new")
            shared.save_token_for("key")

        alone(write)
        key = shared._key("key")
        cache.delete(f"{key}:{cache.get(key)}")

        def read():
            shared.require_token_for("key")
            return texts()

        lost = alone(read)
        # Whoever saves next has not seen the lost one and says so.
        def save():
            sessions.current().demand("default/home", [], connection.engine.merge)
            dbfleet.resume(older)
            shared.save_token_for("key")

        with dbfleet.session():
            older = "1|default:home!7.1.1!"
            import zlib
            older += f"|{zlib.crc32(older.encode()):08x}"
        alone(save)
        result = lost, alone(read), "#" in shared.token_for("key")
        """
    )
    assert found == [["new"], ["new"], True]


def test_who_required_an_entry_replaces_it(fleet: Site) -> None:
    """So that a question that was answered is not asked for ever."""
    found = fleet.one.run(
        """
        def ask():
            sessions.current().saw_unknown("default/home")
            shared.save_token_for("key")

        def answer():
            shared.require_token_for("key")
            texts()
            shared.save_token_for("key")

        alone(ask)
        before = shared.token_for("key")
        alone(answer)
        result = before, shared.token_for("key")
        """
    )
    assert "#" in found[0]
    assert "#" not in found[1]


def test_what_a_session_remembers_is_bounded(fleet: Site) -> None:
    found = fleet.one.run(
        """
        def many():
            for n in range(100):
                shared.require_token_for(f"key {n}")
            return len(sessions.current().required)

        result = alone(many)
        """
    )
    assert found == 64


def test_which_replica_was_read_is_not_passed_on(fleet: Site) -> None:
    found = fleet.one.run(
        """
        def read_only():
            texts()
            shared.save_token_for("key")
            return shared.token_for("key")

        def write():
            Note.objects.create(text="new")
            texts()
            shared.save_token_for("key")
            return shared.token_for("key"), dbfleet.token()

        result = alone(read_only), alone(write)
        """
    )
    assert found[0] == ""
    token, whole = found[1]
    assert token.split("|")[1].endswith("!")
    assert token.split("|")[1] in whole


def test_what_has_no_key_and_a_cache_that_cannot_count(fleet: Site) -> None:
    found = fleet.one.run(
        """
        def refused(action, *args):
            try:
                action(*args)
            except Exception as error:
                return [type(error).__name__, str(error)]

        result = [refused(shared.require_token_for, Note(text="unsaved"))]
        with override_settings(DBFLEET={"CARRIERS": {"CACHE": "other"}}):
            result.append(refused(shared.token_for, "key"))
        """
    )
    assert found[0][0] == "ValueError"
    assert found[1][0] == "ConfigurationError"
    assert "cannot count" in found[1][1]
    assert "dbfleet.E004" in found[1][1]
