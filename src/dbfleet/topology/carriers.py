"""``DBFLEET["CARRIERS"]``: how a session travels to the next request and elsewhere.

Guards one invariant: a name that can be no cookie, header, cache or path is refused at
start-up. Whether a path can be imported is found out by the middleware that uses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dbfleet.topology.mistakes import Mistakes, unknown_name

_WHERE = "DBFLEET['CARRIERS']"
#: a token (RFC 9110): what names of cookies and headers are made of
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
#: seconds, 30 days
MAX_AGE_S = 30 * 24 * 3600


class CarrierSettings(NamedTuple):
    """``DBFLEET["CARRIERS"]`` as read."""

    cookie: str | None = "dbfleet"
    header: str | None = None
    header_keys: tuple[str, ...] = ()
    trusted_caller: str | None = None
    max_age_s: int = 3600
    shared: str | None = None
    shared_ttl_s: int = 3600
    cache: str = "default"

    def __repr__(self) -> str:
        shown = self._replace(header_keys=("***",) * len(self.header_keys))
        fields = zip(self._fields, tuple(shown), strict=True)
        return f"CarrierSettings({', '.join(f'{k}={v!r}' for k, v in fields)})"


KEYS = tuple(name.upper() for name in CarrierSettings._fields)


def read_carriers(given: object, mistakes: Mistakes) -> CarrierSettings:
    """Read the dict; what is wrong goes to ``mistakes`` and keeps its default."""
    if not isinstance(given, Mapping):
        mistakes.add("E004", _WHERE, f"must be a dict, not {type(given).__name__}")
        return CarrierSettings()
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key not in KEYS:
            mistakes.add("E006", _WHERE, f"option {unknown_name(key, KEYS)}")
            continue
        wanted = _refused(key, value)
        if wanted:
            mistakes.add("E004", f"{_WHERE}[{key!r}]", f"must be {wanted}")
        else:
            found[key.lower()] = tuple(value) if key == "HEADER_KEYS" else value
    read = CarrierSettings(**found)
    for key in ("HEADER_KEYS", "TRUSTED_CALLER"):
        if found.get(key.lower()) and read.header is None:
            mistakes.add("E005", f"{_WHERE}[{key!r}]", "needs a HEADER to be for")
    return read


def _refused(key: str, value: object) -> str | None:
    """What a value has to be, if it is not; keys of a signature are never shown."""
    if key in ("COOKIE", "HEADER"):
        is_right = value is None or (
            isinstance(value, str) and bool(_NAME.fullmatch(value))
        )
        return None if is_right else f"a name or None, not {value!r}"
    if key == "HEADER_KEYS":
        is_right = isinstance(value, list | tuple) and all(
            isinstance(one, str) and len(one) >= 16 for one in value
        )
        return None if is_right else "a list of keys of at least 16 characters"
    if key in ("MAX_AGE_S", "SHARED_TTL_S"):
        is_right = type(value) is int and 0 < value <= MAX_AGE_S
        return None if is_right else f"seconds, 1 to {MAX_AGE_S}, not {value!r}"
    if key == "CACHE":
        is_right = isinstance(value, str) and bool(value)
        return None if is_right else f"an alias of CACHES, not {value!r}"
    is_path = isinstance(value, str) and bool(_PATH.fullmatch(value))
    if value is None or is_path or (key == "SHARED" and value == "user"):
        return None
    also = '"user", ' if key == "SHARED" else ""
    return f"{also}the dotted path of a function or None, not {value!r}"
