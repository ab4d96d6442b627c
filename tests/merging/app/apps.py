"""The app of the scenarios."""

from __future__ import annotations

from django.apps import AppConfig


class MergingConfig(AppConfig):
    name = "tests.merging.app"
    label = "merging"
    default_auto_field = "django.db.models.BigAutoField"
