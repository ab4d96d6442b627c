"""One project for every kind of fleet, migrated once, with eyes on each node."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dbfleet.testing.rig import MariaDBCluster, PostgresCluster, SQLiteDirectory
from tests.support.project import Project

KINDS = (
    "cluster-postgresql",
    "cluster-mariadb",
    "sharded-postgresql",
    "sharded-mariadb",
    "sharded-sqlite",
)
SHARDS = ("a", "b", "c")
APPS = (
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
)

SETTINGS = """
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
CACHES = {"default": {
    "BACKEND": "django.core.cache.backends.db.DatabaseCache",
    "LOCATION": "cache_entries",
}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""

MODELS = """
class NamedQuerySet(models.QuerySet):
    def get_by_natural_key(self, name):
        return self.get(name=name)


class Author(models.Model):
    name = models.CharField(max_length=50, unique=True)

    objects = NamedQuerySet.as_manager()

    def natural_key(self):
        return (self.name,)


class Tag(models.Model):
    word = models.CharField(max_length=20)


class Article(models.Model):
    title = models.CharField(max_length=50)
    author = models.ForeignKey(Author, models.CASCADE)
    tags = models.ManyToManyField(Tag)


class Place(models.Model):
    name = models.CharField(max_length=50)


class Restaurant(Place):
    stars = models.IntegerField(default=0)
"""

ADMIN = """
from django.contrib import admin

from app.models import Article, Author, Tag


class ArticleInline(admin.TabularInline):
    model = Article


@admin.register(Author)
class AuthorAdmin(admin.ModelAdmin):
    search_fields = ["name"]
    inlines = [ArticleInline]


@admin.register(Article)
class ArticleAdmin(admin.ModelAdmin):
    list_display = ["title", "author"]
    list_filter = ["author"]


admin.site.register(Tag)
"""

URLS = """
from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
"""


@dataclass
class FleetProject:
    """A project on a fleet; ``nodes`` maps each primary's cluster to a look at it."""

    kind: str
    project: Project
    nodes: dict[str, Callable[[str], list[tuple[Any, ...]]]]
    #: the database's name on each cluster's primary
    names: dict[str, str] = field(default_factory=dict)

    @property
    def engine(self) -> str:
        return self.kind.partition("-")[2]

    @property
    def is_sharded(self) -> bool:
        return self.kind.startswith("sharded")

    def call(self, *args: str, **options: Any) -> str:
        """Call a command in a process of the project; returns its output."""
        return str(
            self.project.run(
                f"""
                import io
                from django.core.management import call_command
                out = io.StringIO()
                call_command(*{args!r}, stdout=out, **{options!r})
                result = out.getvalue()
                """
            )
        )

    def tables(self) -> dict[str, set[str]]:
        """The tables on each node, dbfleet's own left out."""
        sql = {
            "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
            "mariadb": "SELECT table_name FROM information_schema.tables "
            "WHERE table_schema = DATABASE()",
            "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' "
            "AND name NOT LIKE 'sqlite_%'",
        }[self.engine]
        return {
            name: {row[0] for row in look(sql) if not row[0].startswith("dbfleet_")}
            for name, look in self.nodes.items()
        }

    def count(self, table: str) -> dict[str, int]:
        """Rows of a table on each node."""
        return {
            name: look(f"SELECT COUNT(*) FROM {table}")[0][0]
            for name, look in self.nodes.items()
        }


class Databases:
    """Databases of one kind of server, made on demand and dropped together."""

    def __init__(self, servers: Any, engine: str) -> None:
        self.servers, self.engine = servers, engine
        self.created: list[str] = []

    def create(self) -> str:
        name = f"test_{secrets.token_hex(6)}"
        self.servers.create_database(name)
        self.created.append(name)
        return name

    def url(self, name: str) -> str:
        return str(self.servers.url(name))

    def look(self, name: str) -> Callable[[str], list[tuple[Any, ...]]]:
        servers = self.servers if self.engine == "sqlite" else self.servers.primary
        return lambda sql: servers.execute(sql, dbname=name)

    def drop(self) -> None:
        for name in self.created:
            self.servers.drop_database(name)


def declaration(kind: str, databases: Databases) -> tuple[str, dict[str, str]]:
    """Source that binds DATABASES for a kind of fleet, and its databases' names."""
    names = {"home": databases.create()}
    home = databases.url(names["home"])
    if kind.startswith("sharded"):
        names |= {shard: databases.create() for shard in SHARDS}
        shards = {shard: databases.url(names[shard]) for shard in SHARDS}
        value = f"Sharded(home={home!r}, shards={shards!r})"
    else:
        replicas = databases.servers.replica_urls(names["home"])
        value = f"Cluster({home!r}, replicas={replicas!r})"
    source = (
        "from dbfleet import Cluster, Sharded, databases\n"
        f"DATABASES = databases(default={value})\n"
        'DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]\n'
    )
    if databases.engine == "mariadb":
        source = "import pymysql\npymysql.install_as_MySQLdb()\n" + source
    return source, names


def build(root: Path, kind: str, databases: Databases) -> FleetProject:
    """A project whose tables are not made yet."""
    source, names = declaration(kind, databases)
    project = Project(
        root, databases=source, models=MODELS, settings=SETTINGS, apps=APPS
    )
    project.write("app/admin.py", ADMIN)
    project.write("urls.py", URLS)
    project.write("app/migrations/__init__.py", "")
    looks = {cluster: databases.look(name) for cluster, name in names.items()}
    return FleetProject(kind, project, looks, names)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Callable[[str], Databases]:
    """Databases on the servers of an engine."""

    def of(engine: str) -> Databases:
        if engine == "sqlite":
            files: SQLiteDirectory = request.getfixturevalue("rig").sqlite()
            return Databases(files, engine)
        name = "postgres" if engine == "postgresql" else "mariadb"
        cluster: PostgresCluster | MariaDBCluster = request.getfixturevalue(name)
        return Databases(cluster, engine)

    return of


@pytest.fixture
def make_fleet(
    tmp_path: Path, servers: Callable[[str], Databases]
) -> Iterator[Callable[[str], FleetProject]]:
    """Make projects of a kind whose tables are not there yet."""
    made: list[tuple[Databases, FleetProject]] = []

    def make(kind: str) -> FleetProject:
        databases = servers(kind.partition("-")[2])
        built = build(tmp_path / f"project{len(made)}", kind, databases)
        made.append((databases, built))
        return built

    yield make
    for databases, built in made:
        built.project.close()
        databases.drop()


@pytest.fixture(scope="module", params=KINDS)
def fleet(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    servers: Callable[[str], Databases],
) -> Iterator[FleetProject]:
    """A migrated project of each kind of fleet, shared by the tests of a module."""
    databases = servers(request.param.partition("-")[2])
    root = tmp_path_factory.mktemp("management") / "project"
    built = build(root, request.param, databases)
    built.project.manage("makemigrations", "app", "-v0")
    built.project.manage("migrate", "-v0")
    yield built
    built.project.close()
    databases.drop()
