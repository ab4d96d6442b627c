"""The Django app.

Guards one invariant: importing this module is enough for models to be declared
with ``Meta.using`` and ``Meta.shard_key``, wherever ``"dbfleet"`` stands in
``INSTALLED_APPS``.
"""

from django.apps import AppConfig

from dbfleet import explain, runtime
from dbfleet.placement.install import install

install()
runtime.install()
explain.install()


class FleetConfig(AppConfig):
    """Registers the system checks; opens no connection."""

    name = "dbfleet"
    label = "dbfleet"
    verbose_name = "Database fleet"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from dbfleet import checks
        from dbfleet.relations import guard

        checks.register()
        if guard.is_needed():
            guard.install()
