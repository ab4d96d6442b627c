"""Migrations of ``sales``."""
