"""The app of the differential runs."""

from __future__ import annotations

from django.apps import AppConfig


class DifferentialConfig(AppConfig):
    name = "tests.differential"
    label = "differential"
    default_auto_field = "django.db.models.BigAutoField"
