"""A cluster, and two processes of a project on it, joined by nothing but tokens."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any

import django
import pytest

from dbfleet.testing.rig import PostgresCluster
from tests.carriers import site
from tests.clusters.console import Console
from tests.support.project import Project

# django.tasks came with Django 6.0.
collect_ignore = [] if django.VERSION >= (6, 0) else ["test_tasks.py"]


class Browser:
    """Keeps cookies, and talks to any process of the site."""

    def __init__(self) -> None:
        self.cookies: dict[str, str] = {}

    def get(self, process: Console, path: str, *, kind: str = "wsgi") -> Any:
        """The answer to a request; its cookies are kept."""
        found = self.sent(process, path, kind=kind)
        self.take(found)
        return found

    def sent(self, process: Console, path: str, *, kind: str = "wsgi") -> Any:
        """The answer, before its cookies arrive."""
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        found = process.ask(f"{kind}({path!r}, cookie={cookie!r})")
        assert found["status"] == 200, found
        return found

    def take(self, answer: Any) -> None:
        for text in answer["cookies"]:
            for name, morsel in SimpleCookie(text).items():
                if morsel["max-age"] == 0 or morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value

    @property
    def tokens(self) -> list[str]:
        """The names of the cookies that carry a session."""
        return sorted(name for name in self.cookies if name.startswith("dbfleet-"))


@dataclass
class Site:
    """The project and its processes."""

    servers: PostgresCluster
    project: Project
    one: Console
    two: Console

    @property
    def replicas(self) -> list[str]:
        return [f"replica{n}" for n, _ in enumerate(self.servers.replicas, 1)]

    def pause(self) -> None:
        """Nothing that is written from now on reaches a replica."""
        self.servers.wait_until_caught_up()
        for replica in self.servers.replicas:
            replica.pause_replay()

    def resume(self) -> None:
        for replica in self.servers.replicas:
            replica.resume_replay()
        self.servers.wait_until_caught_up()


@pytest.fixture(scope="package")
def started(
    postgres: PostgresCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The site with its processes, for all tests here."""
    database = f"test_{secrets.token_hex(6)}"
    postgres.create_database(database)
    project = Project(
        tmp_path_factory.mktemp("carriers") / "project",
        databases=site.DATABASES.format(
            url=postgres.url(database), replicas=postgres.replica_urls(database)
        ),
        models=site.MODELS,
        apps=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.sessions",
        ],
    )
    project.write("urls.py", site.VIEWS)
    try:
        project.manage("migrate", "--run-syncdb", "--verbosity=0")
        postgres.primary.execute(
            "CREATE VIEW which AS SELECT inet_server_port() AS port", dbname=database
        )
        roles = {postgres.primary.port: "primary"}
        for number, replica in enumerate(postgres.replicas, 1):
            roles[replica.port] = f"replica{number}"
        one, two = Console(project), Console(project)
        try:
            for process in (one, two):
                process.run(site.PRELUDE.format(roles=roles))
            yield Site(postgres, project, one, two)
        finally:
            one.close()
            two.close()
    finally:
        project.close()
        postgres.drop_database(database)


@pytest.fixture
def fleet(started: Site) -> Iterator[Site]:
    """The site, healthy and empty."""
    started.one.run("Note.objects.all().delete(); start()")
    started.two.run("start()")
    started.servers.wait_until_caught_up()
    try:
        yield started
    finally:
        started.resume()
