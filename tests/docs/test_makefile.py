"""The commands that the pages name exist, and every target says what it does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.project import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()
TARGETS = set(re.findall(r"^\.PHONY: (\S+)$", MAKEFILE, flags=re.M))


PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])


def named_targets(text: str) -> set[str]:
    """Targets in code: ``make name`` in backticks or at the start of a line."""
    return set(re.findall(r"(?:`|^(?:\$ )?)make ([a-z-]+)", text, flags=re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_targets_exist(page: Path) -> None:
    assert named_targets(page.read_text()) <= TARGETS


def test_readme_opens_with_demo_and_test() -> None:
    opening = (REPOSITORY / "README.md").read_text()[:1000]
    assert {"demo", "test"} <= named_targets(opening)


def test_help_lists_every_target() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    assert set(re.findall(r"^  make (\S+)", listed, flags=re.M)) == TARGETS


def test_ci_calls_targets_that_exist() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text()
    called = set(re.findall(r"^\s*make ([a-z-]+)", script, flags=re.M))
    assert {"lint", "test", "conformance", "differential"} <= called <= TARGETS
