"""A session goes on in the browser's next request, in whatever process it arrives."""

from __future__ import annotations

import pytest

from dbfleet.testing.rig.waiting import wait_until
from tests.carriers.conftest import Browser, Site

KINDS = ["wsgi", "asgi"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_request_sees_what_the_last_one_wrote(fleet: Site, kind: str) -> None:
    fleet.pause()
    writer, other = Browser(), Browser()
    writer.get(fleet.one, "apost?text=new" if kind == "asgi" else "post?text=new")
    found = writer.get(fleet.two, "read", kind=kind)["body"]
    assert found == {"texts": ["new"], "where": "primary"}
    stale = other.get(fleet.two, "read", kind=kind)["body"]
    assert stale["texts"] == []
    assert stale["where"] in fleet.replicas
    fleet.resume()

    def is_on_replica() -> bool:
        """It saw the primary last, whose log goes on by itself."""
        found = writer.get(fleet.two, "read", kind=kind)["body"]
        assert found["texts"] == ["new"]
        return found["where"] in fleet.replicas

    wait_until(is_on_replica, timeout_s=10, what="a replica serves the session again")


def test_reads_stay_on_the_replica_that_the_last_request_read(fleet: Site) -> None:
    """So an answer is never older than the one before, and nothing is asked."""
    for _ in range(4):
        browser = Browser()
        first = browser.get(fleet.one, "read")["body"]["where"]
        assert first in fleet.replicas
        where = [browser.get(fleet.two, "read")["body"]["where"] for _ in range(4)]
        assert where == [first] * 4


def test_a_cookie_is_set_only_if_there_is_something_new_to_say(fleet: Site) -> None:
    browser = Browser()
    assert browser.get(fleet.one, "nothing")["cookies"] == []
    written = browser.get(fleet.one, "post?text=1")
    (cookie,) = written["cookies"]
    assert "Secure" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Max-Age=3600" in cookie
    assert "private" in written["headers"]["cache-control"]
    assert "Cookie" in written["headers"]["vary"]
    browser.get(fleet.one, "read")
    # It holds what was written and the replica; the next ones add nothing.
    for process in (fleet.one, fleet.two):
        assert browser.get(process, "read")["cookies"] == []
        assert browser.get(process, "nothing")["cookies"] == []
    assert len(browser.tokens) == 1


def test_a_public_page_stays_one_unless_something_was_written(fleet: Site) -> None:
    browser = Browser()
    found = browser.get(fleet.one, "read?public")
    assert found["cookies"] == []
    assert found["headers"]["cache-control"] == "public, max-age=60"
    browser.get(fleet.one, "post?text=1")
    browser.get(fleet.one, "read")
    assert browser.get(fleet.one, "read?public")["cookies"] == []


@pytest.mark.parametrize("order", ["first", "last"])
def test_answers_that_cross_take_nothing_back(fleet: Site, order: str) -> None:
    """Two requests of one browser at once; either answer may arrive last."""
    fleet.pause()
    browser = Browser()
    browser.get(fleet.one, "post?text=0")
    write = browser.sent(fleet.one, "post?text=1")
    read = browser.sent(fleet.two, "read")
    also = browser.sent(fleet.two, "post?text=2")
    for answer in (write, read, also) if order == "first" else (also, read, write):
        browser.take(answer)
    assert browser.get(fleet.two, "read")["body"]["texts"] == ["0", "1", "2"]
    # What lay beside each other is one again.
    assert len(browser.tokens) == 1
    assert browser.get(fleet.one, "read")["body"]["texts"] == ["0", "1", "2"]


def test_more_cookies_than_there_may_be_ask_the_primary(fleet: Site) -> None:
    browser = Browser()
    answers = [browser.sent(fleet.one, f"post?text={n}") for n in range(16)]
    fleet.pause()
    answers += [browser.sent(fleet.one, f"post?text={n}") for n in range(16, 18)]
    for answer in answers:
        browser.take(answer)
    assert len(browser.tokens) == 18
    found = browser.get(fleet.two, "read")["body"]
    assert len(found["texts"]) == 18
    assert len(browser.tokens) == 1


def test_the_cookie_has_the_commit_of_atomic_requests(fleet: Site) -> None:
    setting = "connections.settings['default']['ATOMIC_REQUESTS'] = {}"
    fleet.pause()
    browser = Browser()
    fleet.one.run(setting.format(True))
    try:
        browser.get(fleet.one, "post?text=new")
        token = fleet.one.ask(
            "signed.unsign({!r}, 'cookie').token".format(*browser.cookies.values())
        )
    finally:
        fleet.one.run(setting.format(False))
    assert "#" not in token  # its position, not a question
    assert browser.get(fleet.two, "read")["body"]["texts"] == ["new"]


@pytest.mark.parametrize(("kind", "view"), [("wsgi", "stream"), ("asgi", "astream")])
def test_a_stream_is_in_the_session_but_not_in_its_cookie(
    fleet: Site, kind: str, view: str
) -> None:
    fleet.pause()
    browser = Browser()
    browser.get(fleet.one, "post?text=before")
    found = browser.get(fleet.two, view, kind=kind)
    assert found["body"] == "before streamed"
    assert found["cookies"] == []
    assert browser.get(fleet.two, "read")["body"]["texts"][0] == "before"


def test_tasks_of_a_request_share_its_session(fleet: Site) -> None:
    fleet.pause()
    browser = Browser()
    found = browser.get(fleet.one, "children", kind="asgi")["body"]
    expected = [f"child {n}" for n in range(4)]
    assert found == {"own": [True] * 4, "texts": expected}
    assert browser.get(fleet.two, "read")["body"]["texts"] == expected


def test_a_forged_cookie_demands_nothing_and_is_dropped(fleet: Site) -> None:
    browser = Browser()
    browser.get(fleet.one, "post?text=new")
    ((name, value),) = browser.cookies.items()
    fleet.pause()
    for forged in (value[:-1] + "?", value.replace("default", "defaulu"), "x", ""):
        liar = Browser()
        liar.cookies[name] = forged
        found = liar.get(fleet.two, "read")
        assert found["body"]["where"] in fleet.replicas
        assert liar.cookies.get(name) != forged
    told = fleet.two.ask("observed(signed.unsign, 'x', 'cookie')")
    assert told == [["token_refused", {"reason": "signature", "carrier": "cookie"}]]
    assert fleet.two.ask(f"signed.unsign({value!r}, 'header')") is None


def test_an_old_cookie_is_renewed_and_at_last_expires(fleet: Site) -> None:
    browser = Browser()
    browser.get(fleet.one, "post?text=new")
    browser.get(fleet.one, "read")
    aged = """
    from unittest import mock
    import time
    now = time.time()
    with mock.patch("time.time", lambda: now + {}):
        result = wsgi("read", cookie={!r})
    """
    ((name, value),) = browser.cookies.items()
    cookie = f"{name}={value}"
    assert fleet.one.run(aged.format(1700, cookie))["cookies"] == []
    (renewed,) = fleet.one.run(aged.format(1900, cookie))["cookies"]
    assert renewed.strip().startswith(f"{name}=")
    fleet.pause()
    late = Browser()
    late.get(fleet.one, "post?text=later")
    ((name, value),) = late.cookies.items()
    cookie = f"{name}={value}"
    assert fleet.one.run(aged.format(3500, cookie))["body"]["where"] == "primary"
    expired = fleet.one.run(aged.format(3700, cookie))
    assert expired["body"]["where"] in fleet.replicas


def test_header(fleet: Site) -> None:
    fleet.pause()
    written = fleet.one.ask("wsgi('post?text=new')")
    token = written["headers"]["x-dbfleet-token"]
    assert "X-Dbfleet-Token" in written["headers"]["vary"]
    assert "private" in written["headers"]["cache-control"]
    for kind in KINDS:
        found = fleet.two.ask(f"{kind}('read', x_dbfleet_token={token!r})")
        assert found["body"] == {"texts": ["new"], "where": "primary"}
    also = fleet.one.ask("wsgi('post?text=also')")["headers"]["x-dbfleet-token"]
    joined = f"{token}, {also}"
    found = fleet.two.ask(f"wsgi('read', x_dbfleet_token={joined!r})")
    assert found["body"]["texts"] == ["also", "new"]
    # Not signed, or signed as a cookie: not accepted.
    for value in ("plain", "cookie"):
        made = fleet.one.run(
            f"""
            with dbfleet.session():
                Note.objects.create(text="x")
                plain = dbfleet.token()
                cookie = signed.sign(plain, "cookie")
                result = {value}
            """
        )
        found = fleet.two.ask(f"wsgi('read', x_dbfleet_token={made!r})")
        assert found["body"]["where"] in fleet.replicas


def test_a_caller_that_is_trusted_need_not_sign(fleet: Site) -> None:
    fleet.pause()
    fleet.two.run("import sys; sys.modules['urls'].trusted = lambda request: True")
    plain = fleet.one.run(
        "Note.objects.create(text='new')\nresult = dbfleet.token()\nsessions.forget()"
    )
    found = fleet.two.run(
        f"""
        options = {{"HEADER": "X-Dbfleet-Token", "TRUSTED_CALLER": "urls.trusted"}}
        with override_settings(DBFLEET={{"CARRIERS": options}}):
            result = wsgi("read", x_dbfleet_token={plain!r})
        """
    )
    assert found["body"] == {"texts": ["new"], "where": "primary"}


def test_two_services_see_each_others_writes(fleet: Site) -> None:
    fleet.pause()
    sent = fleet.one.run(
        """
        assert headers.outgoing_headers() == {}
        Note.objects.create(text="ours")
        result = headers.outgoing_headers()
        """
    )
    answered = fleet.two.ask(
        f"wsgi('post?text=theirs', x_dbfleet_token={sent['X-Dbfleet-Token']!r})"
    )
    assert fleet.two.ask(f"wsgi('read', x_dbfleet_token={sent['X-Dbfleet-Token']!r})")[
        "body"
    ]["texts"] == ["ours", "theirs"]
    found = fleet.one.run(
        f"""
        sessions.forget()
        headers.resume_response({answered["headers"]!r})
        result = texts()
        """
    )
    assert found == ["ours", "theirs"]


VIEWS = {
    "strong_read": "wsgi",
    "strong_aread": "asgi",
    "async": "asgi",
    "get": "wsgi",
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_reads_at_its_own_level(fleet: Site, view: str) -> None:
    kind = VIEWS[view]
    assert Browser().get(fleet.one, view, kind=kind)["body"]["where"] == "primary"
    assert Browser().get(fleet.one, "read")["body"]["where"] in fleet.replicas


@pytest.mark.parametrize(
    ("view", "kind", "reads"),
    [
        ("strong_stream", "wsgi", 2),
        ("strong_astream", "asgi", 2),
        ("strong_template", "wsgi", 1),
        ("strong_template", "asgi", 1),
        ("list", "wsgi", 1),
    ],
)
def test_what_a_view_reads_later_is_at_its_level_as_well(
    fleet: Site, view: str, kind: str, reads: int
) -> None:
    found = Browser().get(fleet.one, view, kind=kind)["body"].split()
    assert found == [str(fleet.servers.primary.port)] * reads
    assert fleet.one.ask("sessions.chosen_level()") is None


def test_a_write_that_was_lost_is_not_demanded_for_ever(fleet: Site) -> None:
    browser = Browser()
    written = browser.get(fleet.one, "post?text=new")
    assert browser.tokens
    browser.get(fleet.one, "lost")
    assert browser.tokens == []
    token = written["headers"]["x-dbfleet-token"]
    found = fleet.one.ask(f"wsgi('lost', x_dbfleet_token={token!r})")
    assert found["headers"]["x-dbfleet-token"] == ""
    fleet.one.run(SHARED)
    try:
        fleet.one.run("caches_clear()")
        for path in ("login?user=a", "post?text=new", "lost", "nothing"):
            browser.get(fleet.one, path)
        found = fleet.one.run(
            """
            from django.contrib.auth.models import User
            result = shared.token_for(User.objects.get(username="a"))
            """
        )
        assert found == ""
    finally:
        fleet.one.run("override.disable()")


SHARED = """
from django.test import override_settings
override = override_settings(DBFLEET={"CARRIERS": {"SHARED": "user", "COOKIE": None}})
override.enable()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_another_device_of_the_user_sees_it(fleet: Site, kind: str) -> None:
    """Cookies carry nothing here: the cache of the one process does."""
    fleet.one.run(SHARED)
    try:
        phone, laptop, stranger = Browser(), Browser(), Browser()
        for browser, user in ((phone, "a"), (laptop, "a"), (stranger, "b")):
            browser.get(fleet.one, f"login?user={user}")
        fleet.one.run("caches_clear()")
        fleet.pause()
        phone.get(fleet.one, "post?text=new", kind=kind)
        assert laptop.get(fleet.one, "read", kind=kind)["body"] == {
            "texts": ["new"],
            "where": "primary",
        }
        stale = stranger.get(fleet.one, "read", kind=kind)["body"]
        assert stale["where"] in fleet.replicas
        assert Browser().get(fleet.one, "read")["body"]["where"] in fleet.replicas
    finally:
        fleet.one.run("override.disable()")


def test_a_cache_that_fails_sends_readers_to_the_primary(fleet: Site) -> None:
    fleet.one.run(SHARED)
    try:
        browser = Browser()
        browser.get(fleet.one, "login?user=a")
        fleet.one.run(
            """
            def fail(*args, **kwargs):
                raise ConnectionError("the cache is down")

            from django.core.cache.backends.locmem import LocMemCache
            kept = LocMemCache.get, LocMemCache.add
            LocMemCache.get = LocMemCache.add = fail
            """
        )
        fleet.pause()
        fleet.one.run("alone(lambda: Note.objects.create(text='new'))")
        assert browser.get(fleet.one, "read")["body"]["texts"] == ["new"]
        assert browser.get(fleet.one, "post?text=also")["status"] == 200
    finally:
        fleet.one.run("LocMemCache.get, LocMemCache.add = kept; override.disable()")
