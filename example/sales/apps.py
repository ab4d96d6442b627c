"""The app ``sales``."""

from __future__ import annotations

from django.apps import AppConfig


class SalesConfig(AppConfig):
    name = "example.sales"
    verbose_name = "Sales, on sales (three shards)"
