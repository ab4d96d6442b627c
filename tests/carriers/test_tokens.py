"""A token goes from one process to another; what cannot be read is never caught up."""

from __future__ import annotations

import zlib

import pytest

from tests.carriers.conftest import Site

WRITE = """
sessions.forget()
{}
result = dbfleet.token()
sessions.forget()
"""


def written(fleet: Site, code: str = "Note.objects.create(text='new')") -> str:
    return str(fleet.one.run(WRITE.format(code)))


def seen(fleet: Site, token: str | None) -> list[object]:
    """What a session of the other process reads that goes on from a token."""
    return list(
        fleet.two.run(
            f"""
            with dbfleet.resume({token!r}, merge=False):
                result = texts(), where()
            """
        )
    )


def sealed(text: str) -> str:
    return f"{text}|{zlib.crc32(text.encode()):08x}"


def test_what_was_written_is_seen_elsewhere(fleet: Site) -> None:
    fleet.pause()
    token = written(fleet)
    assert seen(fleet, token) == [["new"], "primary"]
    assert seen(fleet, None)[0] == []
    assert seen(fleet, "")[1] in fleet.replicas
    fleet.resume()
    assert seen(fleet, token)[1] in fleet.replicas


def test_a_session_with_nothing_to_say_has_no_token(fleet: Site) -> None:
    assert fleet.one.ask("alone(dbfleet.token)") == ""


def test_it_is_short_and_fit_for_cookies_and_headers(fleet: Site) -> None:
    token = written(fleet, "Note.objects.create(text='new'); texts()")
    assert len(token) < 90
    assert not set(token) & set(' ",;\\')
    assert token.isascii()
    assert token.isprintable()
    for server in fleet.servers.servers:
        assert str(server.port) not in token
    assert "127.0.0.1" not in token


def test_making_and_taking_up_a_token_asks_nobody(fleet: Site) -> None:
    found = fleet.one.run(
        """
        connections.close_all()
        with dbfleet.session() as session:
            session.saw_unknown("default/home")
            token = dbfleet.token()
            with dbfleet.resume(token):
                opened = connection.connection is not None
                nodes = [n.alias for n in connection.nodes.opened() if n.connection]
        result = token, opened, nodes
        """
    )
    assert found[0].startswith("1|default:home!!!#|")
    assert found[1:] == [False, []]


def test_a_question_is_asked_by_whoever_goes_on(fleet: Site) -> None:
    fleet.pause()
    token = written(
        fleet,
        """
with dbfleet.consistency("strong"):
    alone(lambda: Note.objects.create(text='theirs'))
    assert texts() == ["theirs"]
""",
    )
    assert "#" in token
    assert seen(fleet, token) == [["theirs"], "primary"]


def test_monotonic_reads_go_on_at_the_same_replica(fleet: Site) -> None:
    for replica in fleet.replicas:
        token = fleet.one.run(
            f"""
            sessions.forget()
            while where() != {replica!r}:
                sessions.forget()
            result = dbfleet.token()
            """
        )
        for _ in range(4):
            assert seen(fleet, token)[1] == replica


def test_a_models_own_policy_is_kept(fleet: Site) -> None:
    """Where a session reads otherwise is no place for a model that has its own."""
    fleet.one.run("Note.objects.create(text='new')")
    fleet.servers.wait_until_caught_up()
    found = fleet.two.run(
        """
        from django.db.models.expressions import RawSQL

        def note_where():
            found = Note.objects.annotate(port=RawSQL("SELECT port FROM which", ()))
            return ROLES[found.values_list("port", flat=True)[0]]

        given = {
            "POLICIES": {"app.Note": "dbfleet.policies.First"},
            "WAIT_TIMEOUT_S": 10,
        }
        with override_settings(DBFLEET=given):
            token = ""
            while not token:
                with dbfleet.session():
                    if where() == "replica2":
                        token = dbfleet.token()
            with dbfleet.resume(token, merge=False):
                result = [note_where()]
                own = dbfleet.token()
            with dbfleet.resume(token, merge=False):
                result += [where(), note_where(), "#" in own]
        """
    )
    assert found == ["replica1", "replica2", "replica1", True]


def test_of_two_replicas_neither_is_trusted(fleet: Site) -> None:
    """Who saw two may have seen more than either has; the primary is asked."""
    found = fleet.two.run(
        """
        made = {}
        for n in range(100):
            with dbfleet.session():
                found = where()
                made[found] = dbfleet.token()
            if len(made) == 2:
                break
        one, two = made.values()
        with dbfleet.session() as session:
            dbfleet.resume(one)
            known = session.of("default/home").is_unknown
            dbfleet.resume(two)
            result = known, session.of("default/home").is_unknown
        """
    )
    assert found == [False, True]


def test_a_replica_that_is_not_known_here_is_not_trusted(fleet: Site) -> None:
    fleet.pause()
    fleet.one.run("alone(lambda: Note.objects.create(text='new'))")
    text = "1|default:home!!0000abcd"
    assert seen(fleet, sealed(text)) == [["new"], "primary"]


def test_tokens_are_merged_by_the_higher_position(fleet: Site) -> None:
    fleet.pause()
    tokens = [written(fleet, f"Note.objects.create(text='{n}')") for n in range(3)]
    for order in (tokens, tokens[::-1]):
        found = fleet.two.run(
            f"""
            with dbfleet.session():
                for token in {order!r}:
                    dbfleet.resume(token)
                result = texts(), dbfleet.token()
            """
        )
        assert found[0] == ["0", "1", "2"]
        floors = found[1].split("|")[1].split("!")[1]
        assert floors == tokens[2].split("|")[1].split("!")[1]


def test_merge_and_block(fleet: Site) -> None:
    fleet.pause()
    token = written(fleet)
    found = fleet.two.run(
        f"""
        token = {token!r}
        result = {{}}
        sessions.forget()
        with dbfleet.resume(token, merge=False) as session:
            result["inside"] = texts()
            result["is_declared"] = session.owner is None
        result["after the block"] = texts()
        sessions.forget()
        dbfleet.resume(token)
        result["merged"] = texts()
        with dbfleet.resume("", merge=False):
            result["anew"] = texts()
        result["again"] = texts()
        with dbfleet.session():
            Note.objects.create(text="own")
            dbfleet.resume(token, merge=False)
            result["replaced"] = sessions.peek().of("default/home").floors != ()
        async def go():
            async with dbfleet.resume(token):
                return dbfleet.token() == token
        result["async"] = asyncio.run(go())
        sessions.forget()
        """
    )
    assert found == {
        "inside": ["new"],
        "is_declared": True,
        "after the block": [],
        "merged": ["new"],
        "anew": [],
        "again": ["new"],
        "replaced": True,
        "async": True,
    }


def test_an_open_transaction_has_no_position_yet(fleet: Site) -> None:
    fleet.pause()
    token = written(
        fleet,
        """
with transaction.atomic():
    Note.objects.create(text='new')
    inside = dbfleet.token()
sessions.forget()
dbfleet.resume(inside)
""",
    )
    assert "#" in token
    assert seen(fleet, token) == [["new"], "primary"]


BAD = {
    "cut short": lambda token: token[:-12] + token[-9:],
    "changed": lambda token: token.replace("default", "defaulu"),
    "of another version": lambda token: sealed("2" + token.rpartition("|")[0][1:]),
    "no token at all": lambda token: "hello",
    "too long": lambda token: token + "|" * 2000,
    "a malformed part": lambda token: sealed("1|default:home!zz!x"),
    "half a part": lambda token: sealed("1|default:home"),
    "a strange position": lambda token: sealed("1|default:home!7.1.0x_1!"),
    "too many parts in a part": lambda token: sealed("1|default:home!!!!!"),
    "everything": lambda token: sealed("1|*"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_asks_the_primary(fleet: Site, what: str) -> None:
    fleet.pause()
    bad = BAD[what](written(fleet))  # type: ignore[no-untyped-call]
    assert seen(fleet, bad) == [["new"], "primary"]
    told = fleet.two.ask(f"observed(alone, dbfleet.resume, {bad!r})")
    expected = (
        []
        if what in ("everything", "half a part", "too many parts in a part")
        else ["token_refused"]
    )
    assert [name for name, _ in told] == expected
    assert bad not in str(told)


def test_an_alias_that_is_not_here_is_passed_over(fleet: Site) -> None:
    for key in ("elsewhere:home", "default:shard9", "%00:%2F", "home"):
        foreign = sealed(f"1|{key}!7.1.1!")
        assert seen(fleet, foreign)[1] in fleet.replicas
        told = fleet.two.ask(f"observed(dbfleet.resume, {foreign!r})")
        assert told[0][1]["reason"] == "alias"


def test_more_than_fits_becomes_a_question(fleet: Site) -> None:
    found = fleet.one.run(
        """
        from dbfleet.engines import Position
        with dbfleet.session() as session:
            many = [Position(2**60 + n, 2**30 + n, str(10**18)) for n in range(8)]
            session.demand("default/home", many, connection.engine.merge)
            whole = dbfleet.token()
            more = [Position(n, 2**20 + n, str(10**18)) for n in range(1)]
            session.demand("default/home", more, connection.engine.merge)
            cut = dbfleet.token()
        kept, tokens.MAX_CHARS = tokens.MAX_CHARS, 30
        with dbfleet.session() as session:
            session.demand("default/home", many, connection.engine.merge)
            short = dbfleet.token()
            tokens.MAX_CHARS = 10
            all_of_them = dbfleet.token()
        tokens.MAX_CHARS = kept
        result = whole, cut, short, all_of_them
        """
    )
    assert len(found[0]) < 1500
    assert "#" not in found[0]
    assert found[1].startswith("1|default:home!!!#|")
    assert found[2].startswith("1|default:home!!!#|")
    assert found[3].startswith("1|*|")
