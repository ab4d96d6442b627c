"""The app ``catalogue``."""

from __future__ import annotations

from django.apps import AppConfig


class CatalogueConfig(AppConfig):
    name = "example.catalogue"
    verbose_name = "Catalogue, on default (primary and replicas)"
