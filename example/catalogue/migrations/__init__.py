"""Migrations of ``catalogue``."""
