"""The settings that the type checker reads: every model of the repository.

Guards one invariant: as in ``tests.settings``, nothing here needs a server.
"""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as OF_TESTS

INSTALLED_APPS = [
    *OF_TESTS,
    "django.contrib.admin",
    "example.catalogue",
    "example.sales",
    "example.legacy",
]
