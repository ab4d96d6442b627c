"""Immutable values for declarations, and their text without secrets.

Guards two invariants: what a user declared cannot change after it was hashed,
and no password is part of any text made from a declaration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

MASK = "***"

# The names that Django's own error page hides, plus files that hold secrets.
SECRET_NAME = re.compile(
    "api|auth|token|key|secret|pass|pwd|signature|credential", re.IGNORECASE
)


class FrozenDict(Mapping[str, Any]):
    """A mapping that cannot change; hashable when its values are."""

    __slots__ = ("_items",)
    _items: dict[str, Any]

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        object.__setattr__(self, "_items", dict(items or {}))

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __repr__(self) -> str:
        return masked(self)

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[str, Any]]]:
        return type(self), (self._items,)


class FrozenList(tuple[Any, ...]):
    """A list as declared; kept apart from a tuple so that it thaws to a list."""

    __slots__ = ()


def freeze(value: Any) -> Any:
    """Copy containers into their immutable counterparts, all the way down."""
    if isinstance(value, Mapping):
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    if isinstance(value, list | FrozenList):
        return FrozenList(freeze(item) for item in value)
    if type(value) is tuple:
        return tuple(freeze(item) for item in value)
    if isinstance(value, set):
        return frozenset(value)
    return value


def thaw(value: Any) -> Any:
    """Undo :func:`freeze`: a fresh, mutable copy of every container."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | FrozenList):
        return [thaw(item) for item in value]
    if type(value) is tuple:
        return tuple(thaw(item) for item in value)
    return value


def masked(value: Any) -> str:
    """``repr(value)`` without the values of secret keys and of URLs' passwords."""
    if isinstance(value, Mapping):
        pairs = (
            f"{key!r}: {_masked_item(str(key), item)}" for key, item in value.items()
        )
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | FrozenList):
        return "[" + ", ".join(masked(item) for item in value) + "]"
    if isinstance(value, tuple):
        inner = ", ".join(masked(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, str):
        return repr(masked_url(value) if "://" in value else value)
    if callable(value):
        return _masked_callable(value)
    return repr(value)


def masked_url(url: str) -> str:
    """The URL with its password and secret query values replaced by ``***``."""
    scheme, mark, rest = url.partition("://")
    if not mark or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return MASK
    try:
        parts = urlsplit(url)
        tail = parts.path + parts.query + parts.fragment
    except ValueError:
        tail = "@"
    if "@" in tail:
        # An unquoted '/', '?' or '#' in a password moves the rest of it out of
        # the network location: hide everything up to the last '@'.
        credentials, at, rest = rest.rpartition("@")
        tail_text = _masked_query(rest)
    else:
        netloc_end = min(
            (i for i in map(rest.find, "/?#") if i >= 0), default=len(rest)
        )
        credentials, at, host = rest[:netloc_end].rpartition("@")
        tail_text = host + _masked_query(rest[netloc_end:])
    user, colon, _ = credentials.partition(":")
    secret = f":{MASK}" if colon else ""
    return f"{scheme}://{user}{secret}{at}{tail_text}"


def _masked_query(text: str) -> str:
    path, mark, query = text.partition("?")
    pairs = []
    for pair in query.split("&") if query else []:
        name, equals, _ = pair.partition("=")
        pairs.append(f"{name}={MASK}" if equals and SECRET_NAME.search(name) else pair)
    return path + mark + "&".join(pairs)


def _masked_item(key: str, value: Any) -> str:
    if SECRET_NAME.search(key) and not isinstance(value, Mapping):
        return repr(MASK) if value else repr(value)
    return masked(value)


def _masked_callable(value: Callable[..., Any]) -> str:
    # functools.partial and bound methods show their arguments in repr().
    name = getattr(value, "__qualname__", type(value).__name__)
    return f"<callable {name}>"
