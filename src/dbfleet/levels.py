"""Consistency levels: how old an answer may be."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from dbfleet.errors import ConfigurationError


class Level(NamedTuple):
    """One level; ``max_lag_s`` belongs to ``bounded`` alone."""

    name: str
    max_lag_s: float | None = None

    def __str__(self) -> str:
        if self.max_lag_s is None:
            return self.name
        return f"{self.name}(max_lag_s={self.max_lag_s:g})"


STRONG, SESSION, EVENTUAL = map(Level, ("strong", "session", "eventual"))
_NAMED = {level.name: level for level in (STRONG, SESSION, EVENTUAL)}
NAMES = (*_NAMED, "bounded(max_lag_s=…)")


def bounded(max_lag_s: float) -> Level:
    """Answers that miss at most the last ``max_lag_s`` seconds of commits.

    At most two round trips in half of that time, for all sessions of a process. Raises
    ConfigurationError for a bound that is not positive.
    """
    if not isinstance(max_lag_s, int | float) or not 0 < max_lag_s < float("inf"):
        raise ConfigurationError(
            "E004",
            f"bounded(max_lag_s=…) takes a positive number of seconds, got "
            f"{max_lag_s!r}; for no bound at all use 'eventual'",
        )
    return Level("bounded", float(max_lag_s))


def read_level(given: object) -> Level:
    """A level from its name or from :func:`bounded`; raises ConfigurationError."""
    if isinstance(given, Level):
        return given
    found = _NAMED.get(given) if isinstance(given, str) else None
    if found is None:
        near = difflib.get_close_matches(str(given), _NAMED, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it is {', '.join(NAMES)}"
        raise ConfigurationError("E004", f"consistency {given!r} is unknown; {hint}")
    return found
