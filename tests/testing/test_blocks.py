"""The helpers for tests of projects, used by the tests of a project."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.project import REPOSITORY, Project
from tests.testing import sample

SQLITE = """
    from dbfleet import Cluster, databases

    def lite(name):
        return {{"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / name}}

    DATABASES = databases(
        default=Cluster(lite("p"), replicas=[lite("r1"), lite("r2")]{test}),
    )
"""


PAGE = REPOSITORY / "docs" / "how-to" / "test.md"
PYMYSQL = "import pymysql; pymysql.install_as_MySQLdb()"


@pytest.fixture
def built(project: Callable[..., Project]) -> Callable[..., Project]:
    def build(databases: str, tests: str, settings: str = "") -> Project:
        one = project(databases=databases, models=sample.MODELS, settings=settings)
        one.write("app/views.py", sample.VIEWS)
        one.write("urls.py", sample.URLS)
        one.write("app/tests.py", sample.HEAD + tests)
        return one

    return build


def server_databases(url: str, replicas: list[str], test: str = "") -> str:
    return f"""
        {PYMYSQL if url.startswith("mysql") else ""}
        from dbfleet import Cluster, databases

        DATABASES = databases(
            default=Cluster({url!r}, replicas={replicas!r}{test}),
        )
    """


def passed(project: Project, *labels: str) -> None:
    """Every test of the project passes, and there are some."""
    found = project.manage("test", *labels, timeout_s=110)
    assert "OK" in found.stderr, found.stderr
    assert "Ran 0 tests" not in found.stderr


def nowhere(url: str) -> list[str]:
    """Replicas on ports where nobody listens; a test run must not even try."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return [
        parts._replace(netloc=f"{user}@127.0.0.1:{port}").geturl() for port in (1, 2)
    ]


@pytest.mark.parametrize("test", ["", ', TEST={"NAME": BASE_DIR / "t"}'])
def test_helpers_on_sqlite(built: Callable[..., Project], test: str) -> None:
    passed(built(SQLITE.format(test=test), sample.COMMON))


def test_helpers_on_postgresql(
    built: Callable[..., Project], postgres: Any, new_database: Any
) -> None:
    url = postgres.primary.url(new_database(postgres))
    passed(built(server_databases(url, nowhere(url)), sample.COMMON))


def test_helpers_on_mariadb(
    built: Callable[..., Project], mariadb: Any, new_database: Any
) -> None:
    url = mariadb.primary.url(new_database(mariadb))
    passed(built(server_databases(url, nowhere(url)), sample.COMMON))


MIDDLEWARE = """
    MIDDLEWARE = ["dbfleet.carriers.middleware.SessionMiddleware"]
"""


def documented_example() -> str:
    """The test that the manual shows."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return next(one for one in blocks if "class AddingAnAuthor(" in one)


def test_a_lost_token_is_found_by_a_plain_test_case(
    built: Callable[..., Project],
) -> None:
    """A page that redirects to what it wrote, with and without what carries on."""
    tests = documented_example() + sample.STALE
    broken = built(SQLITE.format(test=""), tests)
    found = broken.manage("test", check=False)
    assert found.returncode == 1
    assert "404 != 200" in found.stderr, found.stderr
    assert "FAILED (failures=2)" in found.stderr, found.stderr

    passed(built(SQLITE.format(test=""), tests, MIDDLEWARE))


def test_helpers_under_pytest_django(built: Callable[..., Project]) -> None:
    one = built(SQLITE.format(test=""), "")
    one.write("app/test_it.py", sample.PYTEST)
    found = one.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "app/test_it.py")
    assert "5 passed" in found.stdout, found.stdout


def test_parallel_workers_leave_replicas_out(
    built: Callable[..., Project], postgres: Any, new_database: Any
) -> None:
    url = postgres.primary.url(new_database(postgres))
    one = built(server_databases(url, nowhere(url)), sample.COMMON)
    passed(one, "--parallel", "2", "-k", "test_without_helpers", "-k", "test_levels")


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_replicas_that_are_asked_for(
    built: Callable[..., Project],
    request: pytest.FixtureRequest,
    new_database: Any,
    kind: str,
) -> None:
    cluster = request.getfixturevalue(kind)
    name = new_database(cluster)
    urls = [replica.url(name) for replica in cluster.replicas]
    asked = ', TEST={"REPLICAS": True}'
    databases = server_databases(cluster.primary.url(name), urls, asked)
    passed(built(databases, sample.LIVE))


def test_mirrors(
    built: Callable[..., Project], postgres: Any, new_database: Any
) -> None:
    name, other = new_database(postgres), new_database(postgres)
    url, copy = postgres.primary.url(name), postgres.primary.url(other)
    plain = {**postgres.primary.settings(other), "TEST": {"MIRROR": "default"}}
    databases = f"""
        from dbfleet import Cluster, databases

        DATABASES = databases(
            default=Cluster({url!r}, replicas={nowhere(url)!r}),
            copy=Cluster(
                {copy!r}, replicas={nowhere(copy)!r}, TEST={{"MIRROR": "default"}}
            ),
        )
        DATABASES["plain"] = {plain!r}
    """
    passed(built(databases, sample.MIRROR))


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
def test_helpers_on_shards(
    project: Callable[..., Project],
    request: pytest.FixtureRequest,
    new_database: Any,
    kind: str,
) -> None:
    clusters = "{name: Cluster(lite(name), replicas=[lite(name + 'r')])"
    clusters += " for name in ('home', 'a', 'b')}"
    if kind != "sqlite":
        server = request.getfixturevalue(kind)
        urls = [server.primary.url(new_database(server)) for _ in range(3)]
        found = {
            name: (url, nowhere(url)[:1])
            for name, url in zip(("home", "a", "b"), urls, strict=True)
        }
        clusters = f"{{n: Cluster(u, replicas=r) for n, (u, r) in {found!r}.items()}}"
    one = project(
        databases=f"""
        {PYMYSQL if kind == "mariadb" else ""}
        from dbfleet import Cluster, Sharded, databases

        def lite(name):
            return {{"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / name}}

        clusters = {clusters}
        DATABASES = databases(
            default=Sharded(
                home=clusters["home"],
                shards={{"a": clusters["a"], "b": clusters["b"]}},
                gather={{"INLINE_ROWS": 5}},
            ),
        )
        SILENCED_SYSTEM_CHECKS = ["dbfleet.W105"]
        """,
        models=sample.SHARDED_MODELS,
    )
    one.write("app/tests.py", sample.SHARDED)
    passed(one)
