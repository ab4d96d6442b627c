"""The page of wrong answers names tests that exist."""

from __future__ import annotations

import re

from tests.merging import scenarios
from tests.support.project import REPOSITORY

PAGE = REPOSITORY / "docs" / "explanation" / "wrong-answers.md"
MODULES = ("published", "texts", "pitfalls", "streams", "failing")


def test_each_line_names_its_tests() -> None:
    known = {
        name.removeprefix("check_")
        for module in MODULES
        for name in scenarios.names(module)
    }
    lines = [
        line
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
        and not re.match(r"\| (---|What was|Refused|Pitf)", line)
    ]
    assert len(lines) > 30
    for line in lines:
        named = re.findall(r"`(\w+)`", line.split(" | ")[-1])
        assert named, line
        assert set(named) <= known, line
