"""Which alias a model lives on, and what ``PlacementRouter`` answers."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.project import Project

MODELS = """
from dbfleet.policies import First, Random

class Placed(models.Model):
    class Meta:
        using = "db1"

class Base(models.Model):
    class Meta:
        abstract = True
        using = "db2"

class FromAbstract(Base):
    pass

class Proxy(Placed):
    class Meta:
        proxy = True
        using = "sales"  # a proxy has no table to place

class Child(Placed):
    class Meta:
        using = "sales"  # lives with its parent

class GrandChild(Child):
    tags = models.ManyToManyField("Unplaced")

class Unplaced(models.Model):
    placed = models.ManyToManyField(Placed)

class Replicated(models.Model):
    class Meta:
        using = First(["db2", "db1"])

class Moved(models.Model):
    class Meta:
        using = "db1"
"""

SETTINGS = """
DBFLEET = {"PLACEMENT": {"app.Moved": "db2", "auth": "db2", "auth.Group": "db1"}}
INSTALLED_APPS += ["django.contrib.contenttypes", "django.contrib.auth"]
"""


def test_every_kind_of_model_has_its_place(fleet: Callable[..., Project]) -> None:
    found = fleet(MODELS, SETTINGS).run(
        """
        from django.apps import apps
        from django.db import router
        from dbfleet.placement import alias_for, aliases_of

        def where(label):
            model = apps.get_model(label)
            return [router.db_for_read(model), router.db_for_write(model)]

        result = {
            label: where(label)
            for label in [
                "app.Placed", "app.FromAbstract", "app.Proxy", "app.Child",
                "app.GrandChild", "app.GrandChild_tags", "app.Unplaced",
                "app.Unplaced_placed", "app.Replicated", "app.Moved", "auth.User",
                "auth.Group", "auth.User_groups", "auth.Group_permissions",
                "contenttypes.ContentType",
            ]
        }
        result["policy"] = aliases_of(alias_for("app", "replicated"))
        result["unknown"] = [alias_for("app", "nothing"), alias_for("auth", "gone")]
        """
    )
    assert found == {
        "app.Placed": ["db1", "db1"],
        "app.FromAbstract": ["db2", "db2"],
        "app.Proxy": ["db1", "db1"],
        "app.Child": ["db1", "db1"],
        "app.GrandChild": ["db1", "db1"],
        "app.GrandChild_tags": ["db1", "db1"],
        "app.Unplaced": ["default", "default"],
        "app.Unplaced_placed": ["default", "default"],
        "app.Replicated": ["db2", "db2"],
        "app.Moved": ["db2", "db2"],
        "auth.User": ["db2", "db2"],
        "auth.Group": ["db1", "db1"],
        "auth.User_groups": ["db2", "db2"],
        "auth.Group_permissions": ["db1", "db1"],
        "contenttypes.ContentType": ["default", "default"],
        "policy": ["db2", "db1"],
        "unknown": [None, "db2"],
    }


def test_a_policys_row_is_followed_where_it_is(fleet: Callable[..., Project]) -> None:
    found = fleet(MODELS, SETTINGS).run(
        """
        from django.db import router
        from app.models import Placed, Replicated, Unplaced

        def at(alias, model=Replicated):
            one = model()
            one._state.db = alias
            return one

        both = [router.db_for_write, router.db_for_read]
        result = {
            "on db1": [ask(Replicated, instance=at("db1")) for ask in both],
            "elsewhere": [ask(Replicated, instance=at("sales")) for ask in both],
            "new": [ask(Replicated, instance=Replicated()) for ask in both],
            "placed": [ask(Placed, instance=at("sales")) for ask in both],
            "unplaced": [ask(Unplaced, instance=at("db2", Placed)) for ask in both],
        }
        """
    )
    assert found == {
        "on db1": ["db1", "db1"],
        "elsewhere": ["db2", "db2"],
        "new": ["db2", "db2"],
        "placed": ["db1", "db1"],
        "unplaced": ["db2", "db2"],
    }


def test_relations(fleet: Callable[..., Project]) -> None:
    found = fleet(MODELS, SETTINGS).run(
        """
        from django.db import router
        from app.models import FromAbstract, Moved, Placed, Replicated, Unplaced

        def at(alias, model):
            one = model()
            one._state.db = alias
            return one

        result = [
            router.allow_relation(at("db1", Placed), at("db2", Moved)),
            router.allow_relation(Placed(), Moved()),
            router.allow_relation(at("default", Unplaced), at("db1", Placed)),
            router.allow_relation(at("db1", Unplaced), at("db1", Placed)),
            router.allow_relation(at("db1", Replicated), at("db1", Replicated)),
            router.allow_relation(at("db1", Replicated), at("db2", Replicated)),
        ]
        """
    )
    assert found == [True, True, True, True, True, False]


def test_migration_of_placed_models(fleet: Callable[..., Project]) -> None:
    found = fleet(MODELS, SETTINGS).run(
        """
        from django.apps import apps
        from django.db import router

        aliases = ["default", "db1", "db2", "sales", "erp"]

        def allowed(app, name=None):
            ask = router.allow_migrate
            return [db for db in aliases if ask(db, app, model_name=name)]

        def allowed_model(label):
            model = apps.get_model(label)
            return [db for db in aliases if router.allow_migrate_model(db, model)]

        result = {
            "placed": allowed("app", "placed"),
            "in capitals": allowed("app", "Placed"),
            "policy": allowed("app", "replicated"),
            "unplaced": allowed("app", "unplaced"),
            "through": allowed("app", "GrandChild_tags"),
            "child": allowed_model("app.GrandChild"),
            "gone": allowed("auth", "gone"),
            "mixed app": allowed("app"),
            "placed app": allowed("auth"),
            "unplaced app": allowed("contenttypes"),
            "no such app": allowed("nothing"),
        }
        """
    )
    writable = ["default", "db1", "db2", "sales"]
    assert found == {
        "placed": ["db1"],
        "in capitals": ["db1"],
        "policy": ["db1", "db2"],
        "unplaced": writable,
        "through": ["db1"],
        "child": ["db1"],
        "gone": ["db2"],
        "mixed app": writable,
        "placed app": ["db1", "db2"],
        "unplaced app": writable,
        "no such app": writable,
    }


def test_the_users_own_routers_keep_their_say(fleet: Callable[..., Project]) -> None:
    project = fleet(
        MODELS,
        SETTINGS
        + """
DATABASE_ROUTERS = ["dbfleet.PlacementRouter", "own.AuthRouter", "own.Replicas"]
DBFLEET = {}
""",
    )
    project.write(
        "own.py",
        '''
        class AuthRouter:
            """Pins the auth app, as in Django's documentation."""

            def db_for_read(self, model, **hints):
                return "db2" if model._meta.app_label == "auth" else None

            db_for_write = db_for_read

            def allow_migrate(self, db, app_label, model_name=None, **hints):
                return db == "db2" if app_label == "auth" else None

        class Replicas:
            def db_for_read(self, model, **hints):
                return "erp"

            def db_for_write(self, model, **hints):
                return "default"

            def allow_relation(self, first, second, **hints):
                return True
        ''',
    )
    found = project.run(
        """
        from django.contrib.auth.models import User
        from django.db import router
        from app.models import Placed, Unplaced

        aliases = ["default", "db1", "db2", "erp"]
        user = {"app_label": "auth", "model_name": "user"}
        result = {
            "auth": [router.db_for_read(User), router.db_for_write(User)],
            "placed": [router.db_for_read(Placed), router.db_for_write(Placed)],
            "other": [router.db_for_read(Unplaced), router.db_for_write(Unplaced)],
            "relation": router.allow_relation(Unplaced(), Placed()),
            "migrate": [a for a in aliases if router.allow_migrate(a, **user)],
        }
        """
    )
    assert found == {
        "auth": ["db2", "db2"],
        "placed": ["db1", "db1"],
        "other": ["erp", "default"],
        "relation": True,
        "migrate": ["db2"],
    }


def test_answers_follow_settings_that_a_test_changes(
    fleet: Callable[..., Project],
) -> None:
    found = fleet(MODELS, SETTINGS).run(
        """
        from django.db import models, router
        from django.test import override_settings
        from app.models import Moved, Unplaced

        def where():
            return [router.db_for_read(model) for model in (Moved, Unplaced)]

        result = [where()]
        with override_settings(DBFLEET={"PLACEMENT": {"app": "sales"}}):
            result.append(where())
        result.append(where())
        with override_settings(DBFLEET={}):
            result.append(where())

        from dbfleet.placement import alias_for
        before = alias_for("app", "late")
        class Late(models.Model):
            class Meta:
                app_label = "app"
                using = "db2"
        result.append([before, alias_for("app", "late")])
        """
    )
    assert found == [
        ["db2", "default"],
        ["sales", "sales"],
        ["db2", "default"],
        ["db1", "default"],
        [None, "db2"],
    ]
