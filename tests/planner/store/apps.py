"""The app of the planner's tests."""

from __future__ import annotations

from django.apps import AppConfig


class PlannerStoreConfig(AppConfig):
    name = "tests.planner.store"
    label = "planner_store"
    default_auto_field = "django.db.models.BigAutoField"
