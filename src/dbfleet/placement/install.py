"""``Meta.using``, ``shard_key``, ``shard_lookups``: Django is told to accept them.

Guards one invariant: neither ever becomes part of a migration. Django keeps the
names of a model's options in one tuple, which the migrations copy by name; the
models get a longer one, the migrations keep the original.
"""

from __future__ import annotations

from django.db.migrations import state
from django.db.models import options

META_NAMES = ("using", "shard_key", "shard_lookups")


def install() -> None:
    """Accept the options on every model class made from now on; idempotent.

    No model can be made before every app's ``apps.py`` was imported, so importing
    ``dbfleet.apps`` is early enough, wherever it stands in ``INSTALLED_APPS``.
    """
    if META_NAMES[0] in options.DEFAULT_NAMES:
        return
    original = options.DEFAULT_NAMES
    options.DEFAULT_NAMES = (*original, *META_NAMES)
    state.DEFAULT_NAMES = original  # type: ignore[attr-defined]
