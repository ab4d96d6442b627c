"""The page of errors and the catalogue of codes say the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from dbfleet.errors import CATALOGUE
from tests.support.project import REPOSITORY

PAGE = REPOSITORY / "docs" / "reference" / "errors.md"


@dataclass(frozen=True)
class Entry:
    meaning: str
    cause: str
    way_out: str


def read_entries() -> dict[str, Entry]:
    """Read the page: a heading per code, its meaning, ``Cause`` and ``Way out``."""
    entries: dict[str, Entry] = {}
    for section in re.split(r"^(?=##)", PAGE.read_text(), flags=re.M):
        found = re.fullmatch(
            r"### ([EW]\d{3})\n\n(.+?)\n\nCause\n: (.+?)\n\nWay out\n: (.+?)\s*",
            section,
            flags=re.S,
        )
        if found:
            code, *parts = found.groups()
            assert code not in entries, f"{code} stands twice"
            entries[code] = Entry(*(" ".join(part.split()) for part in parts))
    return entries


def test_page_lists_every_code_in_order_and_no_other() -> None:
    headings = re.findall(r"^### ([EW]\d{3})$", PAGE.read_text(), flags=re.M)
    assert headings == list(CATALOGUE)


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_entry_explains_its_code(code: str) -> None:
    entry = read_entries().get(code)
    assert entry is not None, f"{code} lacks its meaning, Cause or Way out"
    assert entry.meaning == CATALOGUE[code]


def test_every_code_is_raised_or_reported_somewhere() -> None:
    """A code that nothing raises would document an error nobody can meet."""
    source = "\n".join(
        path.read_text()
        for path in (REPOSITORY / "src" / "dbfleet").rglob("*.py")
        if path.name != "errors.py"
    )
    unused = [code for code in CATALOGUE if not re.search(rf"\b{code}\b", source)]
    assert unused == []
