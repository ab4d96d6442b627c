"""Mistakes found in settings, gathered so that one error tells all of them.

Guards one invariant: a user who fixes what the error says does not meet the next
mistake only at the next start.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from dbfleet.errors import CATALOGUE, ConfigurationError


class Mistake(NamedTuple):
    """One mistake: its code, the setting or node it is in, and what to do."""

    code: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class Mistakes(list[Mistake]):
    """A growing list of mistakes."""

    def add(self, code: str, where: str, text: str) -> None:
        assert code in CATALOGUE, code
        self.append(Mistake(code, where, text))

    def add_error(self, where: str, error: ConfigurationError) -> None:
        """Keep a mistake that was found by raising."""
        text = str(error).removesuffix(f" ({error.code})")
        self.add(error.code.removeprefix("dbfleet."), where, text)

    def raise_any(self) -> None:
        """Raise one :class:`ConfigurationError` that tells every mistake.

        Its code is that of the first one; each line ends with its own.
        """
        if not self:
            return
        first = self[0]
        if len(self) == 1:
            raise ConfigurationError(first.code, str(first))
        lines = "".join(f"\n  {m} (dbfleet.{m.code})" for m in self)
        raise ConfigurationError(
            first.code, f"{len(self)} mistakes in the settings:{lines}\n "
        )


def unknown_name(name: object, known: Iterable[str]) -> str:
    """Say that a name is unknown, and which known one was probably meant."""
    choices = sorted(known)
    by_folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(str(name).casefold(), by_folded, n=1, cutoff=0.6)
    if close:
        return f"{name!r} is unknown; did you mean {by_folded[close[0]]!r}?"
    listed = ", ".join(choices) or "none"
    return f"{name!r} is unknown; known are: {listed}"
