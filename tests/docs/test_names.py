"""Names of the code that the pages mention exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.support.project import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "ARCHITECTURE.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]


def named_objects(text: str) -> set[str]:
    """Dotted names in code that begin with ``dbfleet.``, without error codes."""
    names = re.findall(r"\bdbfleet(?:\.[A-Za-z_]\w*)+", text)
    return {name for name in names if not re.fullmatch(r"dbfleet\.[EW]\d{3}", name)}


def exists(name: str) -> bool:
    """Import the longest module of a dotted name, then walk its attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(target, part):
                return False
            target = getattr(target, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_objects_exist(page: Path) -> None:
    missing = sorted(
        name for name in named_objects(page.read_text()) if not exists(name)
    )
    assert missing == []
