"""The Django app.

Guards one invariant: importing this module is enough for models to be declared
with ``Meta.using`` and ``Meta.shard_key``, wherever ``"dbfleet"`` stands in
``INSTALLED_APPS``.
"""

from typing import Any

from django.apps import AppConfig
from django.core import checks

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
        from dbfleet.relations import guard

        checks.register(_check_settings, "dbfleet")
        checks.register(_check_models, "dbfleet")
        if guard.is_needed():
            guard.install()


# The checks are read by the commands that run them, not by every process.


def _check_settings(**kwargs: Any) -> list[checks.CheckMessage]:
    from dbfleet.checks import check_settings

    return check_settings(**kwargs)


def _check_models(**kwargs: Any) -> list[checks.CheckMessage]:
    from dbfleet.checks import check_models

    return check_models(**kwargs)
