"""Database URLs: what they say, and what they must not show."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from dbfleet import Cluster, databases
from dbfleet.errors import ConfigurationError
from dbfleet.topology.urls import parse_url
from dbfleet.topology.values import masked_url
from tests.support.project import REPOSITORY

POSTGRESQL = "django.db.backends.postgresql"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "postgres://app:p%40ss@db1:6543/shop",
            {"USER": "app", "PASSWORD": "p@ss", "HOST": "db1", "PORT": "6543"},
        ),
        ("postgres:///shop", {}),
        ("postgres://%2Fvar%2Frun/shop", {"HOST": "/var/run"}),
        (
            "postgres://u:p@h1:5432,h2:5433/shop",
            {"USER": "u", "PASSWORD": "p", "HOST": "h1,h2", "PORT": "5432,5433"},
        ),
        ("postgres://h1,h2/shop", {"HOST": "h1,h2"}),
        ("postgres://h1,h2:5433/shop", {"HOST": "h1,h2", "PORT": ",5433"}),
        (
            "postgresql://[::1]:5432,[fe80::1]:5433/shop",
            {"HOST": "::1,fe80::1", "PORT": "5432,5433"},
        ),
        (
            "postgres://u:a,b@h1,h2/shop?target_session_attrs=read-write",
            {
                "USER": "u",
                "PASSWORD": "a,b",
                "HOST": "h1,h2",
                "OPTIONS": {"target_session_attrs": "read-write"},
            },
        ),
        (
            "postgres://h/shop?sslmode=require&pool=true&connect_timeout=3",
            {
                "HOST": "h",
                "OPTIONS": {"sslmode": "require", "pool": True, "connect_timeout": 3},
            },
        ),
        (
            "postgres://h/shop?conn_max_age=60&CONN_HEALTH_CHECKS=true",
            {"HOST": "h", "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True},
        ),
        ("postgres://h/shop?conn_max_age=None", {"HOST": "h", "CONN_MAX_AGE": None}),
        ("postgres://h/shop?zone=eu-1a", {"HOST": "h", "ZONE": "eu-1a"}),
        ("postgres://h/shop?zone=1", {"HOST": "h", "ZONE": "1"}),
        ("postgres://h/shop?engine=my.engine", {"HOST": "h", "ENGINE": "my.engine"}),
    ],
)
def test_a_url_says_no_more_than_is_in_it(url: str, said: dict[str, Any]) -> None:
    assert parse_url(url) == {"ENGINE": POSTGRESQL, "NAME": "shop", **said}


def test_sqlite_urls() -> None:
    engine = "django.db.backends.sqlite3"
    assert parse_url("sqlite:////srv/shop.db") == {
        "ENGINE": engine,
        "NAME": "/srv/shop.db",
    }
    assert parse_url("sqlite://:memory:") == {"ENGINE": engine, "NAME": ":memory:"}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://u:tiger@a,b/shop", "takes one host; declare the others as replicas"),
        ("pgsq://u:tiger@h/shop", "'pgsq://' is unknown"),
        ("postgres://u:ti/ger@h/shop", "not a valid url"),
        ("postgres://u:tiger@h:port/shop", "not a valid url"),
        ("postgres://u:tiger@h1,/shop", "'' is not a host"),
        ("postgres://u:tiger@h1:x,h2/shop", "'h1:x' is not a host"),
        ("tiger", "no scheme"),
        ("u:tiger@h/shop", "no scheme"),
        ("postgres://u:tiger@[::1/shop", "not a valid url"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        databases(default=Cluster(url))
    text = str(raised.value)
    assert raised.value.code == "dbfleet.E002"
    assert text.startswith("default/primary: ")
    assert reason in text
    assert "tiger" not in text
    assert "ti/ger" not in text
    assert raised.value.__cause__ is None or "tiger" not in str(raised.value.__cause__)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://u:tiger@h/n", "postgres://u:***@h/n"),
        ("postgres://u@h/n", "postgres://u@h/n"),
        ("postgres://h/n", "postgres://h/n"),
        (
            "postgres://u:tiger@h/n?a=1&password=tiger",
            "postgres://u:***@h/n?a=1&password=***",
        ),
        ("postgres://u:ti@ger@h/n", "postgres://u:***@h/n"),
        ("postgres://u:1/tiger@h/n", "postgres://u:***@h/n"),
        ("sqlite:////srv/x.db", "sqlite:////srv/x.db"),
        ("tiger", "***"),
        ("u:tiger@h?x=a://b", "***"),
    ],
)
def test_masked_url(url: str, shown: str) -> None:
    assert masked_url(url) == shown


def test_without_the_extra_the_error_names_it() -> None:
    code = """
import sys
sys.modules["dj_database_url"] = None  # as if it were not installed
from dbfleet import databases
from dbfleet.errors import ConfigurationError
databases(plain={"ENGINE": "django.db.backends.sqlite3", "NAME": "x.db"})
try:
    databases(default="postgres://u:tiger@h/n", other="sqlite:///x")
except ConfigurationError as error:
    print(error.code, error)
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "dbfleet.E002 2 mistakes" in run.stdout, run.stderr
    assert "pip install 'django-dbfleet[url]'" in run.stdout
    assert "tiger" not in run.stdout
