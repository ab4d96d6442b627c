"""The smallest Django settings: for the type checker and for tests without servers.

Guards one invariant: nothing here needs a server, so importing any room of dbfleet
under these settings opens no connection.
"""

from __future__ import annotations

SECRET_KEY = "not a secret: tests only"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "dbfleet",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
