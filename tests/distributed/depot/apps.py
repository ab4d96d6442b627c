"""The app of these tests."""

from __future__ import annotations

from django.apps import AppConfig


class DepotConfig(AppConfig):
    name = "tests.distributed.depot"
    label = "depot"
    default_auto_field = "django.db.models.BigAutoField"
