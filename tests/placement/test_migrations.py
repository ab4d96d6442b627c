"""``Meta.using`` and ``Meta.shard_key`` never become part of a migration."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.project import Project

MODELS = """
import dbfleet
from dbfleet.policies import Random

class Placed(models.Model):
    name = models.CharField(max_length=9)

    class Meta:
        using = "db1"
        ordering = ["name"]

class Anywhere(models.Model):
    class Meta:
        using = Random(["db1", "db2"])

class Keyed(models.Model):
    placed = models.ForeignKey(Placed, models.CASCADE)
    tags = models.ManyToManyField(Anywhere)

    class Meta:
        using = "sales"
        shard_key = "placed"

class Everywhere(models.Model):
    class Meta:
        shard_key = dbfleet.REFERENCE

class Base(models.Model):
    class Meta:
        abstract = True
        using = "sales"
        shard_key = "id"

class Child(Base):
    pass

class Proxy(Child):
    class Meta:
        proxy = True
"""

# Django's contenttypes imports the migrations while its apps.py is imported.
ORDERS = [
    ["dbfleet", "django.contrib.contenttypes", "app"],
    ["django.contrib.contenttypes", "app", "dbfleet"],
    ["app", "dbfleet"],
    ["dbfleet.apps.FleetConfig", "app", "django.contrib.contenttypes"],
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[0])
def test_migrations_say_nothing_of_placement(
    fleet: Callable[..., Project], order: list[str]
) -> None:
    project = fleet(MODELS, f"INSTALLED_APPS = {order!r}")
    project.manage("makemigrations", "app")
    written = (project.root / "app/migrations/0001_initial.py").read_text()
    assert "'ordering': ['name']" in written
    for word in ("using", "shard_key", "dbfleet", "db1", "Random"):
        assert word not in written
    assert project.manage("makemigrations", "--check", "--dry-run").returncode == 0

    state = project.run(
        """
        from django.apps import apps
        from django.db.migrations.state import ProjectState
        from django.db.models import options
        from dbfleet.placement import install

        install()
        install()
        state = ProjectState.from_apps(apps)
        result = {
            "options": sorted({
                name for model in state.models.values() for name in model.options
            }),
            "names": options.DEFAULT_NAMES.count("using"),
            "historical": hasattr(state.apps.get_model("app", "Placed")._meta, "using"),
            "today": apps.get_model("app", "Placed")._meta.using,
        }
        """
    )
    assert state["names"] == 1
    assert state["today"] == "db1"
    assert state["historical"] is False
    assert not {"using", "shard_key"} & set(state["options"])


def test_a_changed_placement_needs_no_migration(
    fleet: Callable[..., Project],
) -> None:
    project = fleet(MODELS)
    project.manage("makemigrations", "app")
    models = (project.root / "app/models.py").read_text()
    for old, new in (
        ('using = "db1"', 'using = "db2"'),
        ('shard_key = "placed"', 'shard_key = ("id",)'),
        ('        using = "sales"\n        shard_key = "id"\n', "        pass\n"),
    ):
        models = models.replace(old, new)
    project.write("app/models.py", models)
    done = project.manage("makemigrations", "--check", "--dry-run", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_migration_runs_the_same_without_dbfleet(
    fleet: Callable[..., Project],
) -> None:
    project = fleet(MODELS)
    project.manage("makemigrations", "app")
    project.write(
        "plain_settings.py",
        f"""
        SECRET_KEY = "not a secret: tests only"
        INSTALLED_APPS = ["app"]
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        DATABASES = {{"default": {{
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "{project.root}/plain.db",
        }}}}
        """,
    )
    project.write(
        "app/models.py",
        """
        from django.db import models

        class Placed(models.Model):
            name = models.CharField(max_length=9)

            class Meta:
                ordering = ["name"]

        class Anywhere(models.Model):
            pass

        class Keyed(models.Model):
            placed = models.ForeignKey(Placed, models.CASCADE)
            tags = models.ManyToManyField(Anywhere)

        class Everywhere(models.Model):
            pass

        class Child(models.Model):
            pass

        class Proxy(Child):
            class Meta:
                proxy = True
        """,
    )
    env = {"DJANGO_SETTINGS_MODULE": "plain_settings"}
    project.manage("migrate", env=env)
    done = project.manage(
        "makemigrations", "--check", "--dry-run", check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    project.python(
        "-c",
        "import django, sys; django.setup();"
        "from app.models import Placed; Placed.objects.create(name='x');"
        "assert not [m for m in sys.modules if m.startswith('dbfleet')]",
        env=env,
    )


def test_each_table_is_made_where_its_model_lives(
    fleet: Callable[..., Project],
) -> None:
    # Plain engines: the router alone decides where tables are made.
    databases = """
    DATABASES = {
        alias: {
            "ENGINE": "django.db.backends.sqlite3", "NAME": f"{BASE_DIR}/{alias}.db"
        }
        for alias in ("default", "db1", "db2", "sales")
    }
    DATABASE_ROUTERS = ["dbfleet.PlacementRouter"]
    """
    project = fleet(MODELS, databases=databases)
    project.manage("makemigrations", "app")
    project.write(
        "app/migrations/0002_rows.py",
        """
        from django.db import migrations, router

        def fill(apps, schema_editor):
            alias = schema_editor.connection.alias
            for name in ("Placed", "Anywhere", "Child"):
                model = apps.get_model("app", name)
                # historical models go where today's go
                if router.allow_migrate_model(alias, model):
                    assert alias in ("db1", "db2", "sales")
                    model.objects.using(alias).create()
            assert router.db_for_write(apps.get_model("app", "Placed")) == "db1"
            assert router.db_for_write(apps.get_model("app", "Child")) == "sales"

        class Migration(migrations.Migration):
            dependencies = [("app", "0001_initial")]
            operations = [migrations.RunPython(fill)]
        """,
    )
    aliases = ("default", "db1", "db2", "sales")
    for alias in aliases:
        project.manage("migrate", "--database", alias)
    found = project.run(
        f"""
        from django.db import connections
        from app.models import Placed
        result = {{
            alias: sorted(
                name for name in connections[alias].introspection.table_names()
                if name.startswith("app_") and name != "app_everywhere"
            )
            for alias in {aliases!r}
        }}
        result["rows"] = Placed.objects.count()
        """
    )
    assert found == {
        "default": [],
        "db1": ["app_anywhere", "app_placed"],
        "db2": ["app_anywhere"],
        "sales": ["app_child", "app_keyed", "app_keyed_tags"],
        "rows": 1,
    }
