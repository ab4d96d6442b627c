"""The app ``legacy``."""

from __future__ import annotations

from django.apps import AppConfig


class LegacyConfig(AppConfig):
    name = "example.legacy"
    verbose_name = "Old system, on legacy (read-only)"
