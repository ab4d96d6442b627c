"""The app of the scenarios."""

from __future__ import annotations

from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "tests.sharding.shop"
    label = "shop"
    default_auto_field = "django.db.models.BigAutoField"
