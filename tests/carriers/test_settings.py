"""``DBFLEET["CARRIERS"]``: every mistake is an error at start-up."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import override_settings

from dbfleet import conf
from dbfleet.carriers.headers import outgoing_headers
from dbfleet.carriers.middleware import SessionMiddleware
from dbfleet.errors import ConfigurationError


def read(**given: Any) -> conf.FleetSettings:
    with override_settings(DBFLEET={"CARRIERS": given}):
        return conf.settings()


def test_defaults() -> None:
    found = read().carriers
    assert found == conf.FleetSettings().carriers
    assert found.cookie == "dbfleet"
    assert found.header is None
    assert found.shared is None


def test_all_that_may_be_set() -> None:
    found = read(
        COOKIE=None,
        HEADER="X-Dbfleet-Token",
        HEADER_KEYS=["k" * 16],
        TRUSTED_CALLER="a.b",
        MAX_AGE_S=60,
        SHARED="user",
        SHARED_TTL_S=60,
        CACHE="fast",
    ).carriers
    assert found.header_keys == ("k" * 16,)
    assert "kkk" not in repr(found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"COKIE": "x"}, "did you mean 'COOKIE'?"),
        ({"COOKIE": "a b"}, "a name or None, not 'a b'"),
        ({"HEADER": 3}, "a name or None, not 3"),
        ({"HEADER": "A", "HEADER_KEYS": "k" * 20}, "a list of keys"),
        ({"HEADER": "A", "HEADER_KEYS": ["geheim"]}, "at least 16 characters"),
        ({"HEADER_KEYS": ["k" * 16]}, "needs a HEADER"),
        ({"TRUSTED_CALLER": "a.b"}, "needs a HEADER"),
        ({"HEADER": "A", "TRUSTED_CALLER": "ab"}, "dotted path"),
        ({"MAX_AGE_S": 0}, "seconds, 1 to"),
        ({"MAX_AGE_S": True}, "seconds, 1 to"),
        ({"SHARED": "users"}, '"user", the dotted path'),
        ({"SHARED_TTL_S": 1e9}, "seconds, 1 to"),
        ({"CACHE": None}, "an alias of CACHES"),
    ],
)
def test_mistakes(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)) as error:
        read(**given)
    assert "geheim" not in str(error.value)
    assert "DBFLEET['CARRIERS']" in str(error.value)


def test_one_error_tells_all_mistakes() -> None:
    with pytest.raises(ConfigurationError) as error:
        read(COOKIE=1, MAX_AGE_S=-1)
    assert "2 mistakes" in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"SHARED": "tests.carriers.nowhere.key"},
        {"SHARED": "tests.carriers.test_settings.re.I"},
        {"HEADER": "X", "TRUSTED_CALLER": "os.nowhere"},
        {"HEADER": "X", "TRUSTED_CALLER": "os.sep"},
    ],
)
def test_functions_that_are_not_there(given: dict[str, Any]) -> None:
    with (
        override_settings(DBFLEET={"CARRIERS": given}),
        pytest.raises(ConfigurationError, match=r"DBFLEET\['CARRIERS'\]"),
    ):
        SessionMiddleware(lambda request: None)


def test_headers_without_a_name_for_them() -> None:
    with (
        override_settings(DBFLEET={}),
        pytest.raises(ConfigurationError, match="X-Dbfleet-Token"),
    ):
        outgoing_headers()
