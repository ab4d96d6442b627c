"""One node's settings: read as given, checked, completed by what it inherits.

Guards one invariant: after completion a node's dict has every key that Django
expects of an entry of ``DATABASES``, and shares no container with another node.

A value that a node does not give itself comes from, first found wins:

1. the entry around it: the shard's, then the alias's;
2. its cluster's primary, for a replica; the home primary, for a shard's primary;
3. Django's default.

``OPTIONS`` and ``TEST`` given by a node are merged over those of the entry. ``ZONE``
is never a primary's to give. A URL
says a whole address: HOST and PORT that it leaves out are the driver's defaults,
and a user without a password has none. A callable ``URL`` is inherited by nodes
that do not give an ``ENGINE``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dbfleet.errors import ConfigurationError
from dbfleet.topology.mistakes import Mistakes, unknown_name
from dbfleet.topology.secrets import CONNECTION_KEYS
from dbfleet.topology.urls import parse_url
from dbfleet.topology.values import thaw

BACKEND = "dbfleet.backend"

DEFAULTS: dict[str, Any] = {
    "ATOMIC_REQUESTS": False,
    "AUTOCOMMIT": True,
    "CONN_MAX_AGE": 0,
    "CONN_HEALTH_CHECKS": False,
    "OPTIONS": {},
    "TIME_ZONE": None,
    "NAME": "",
    "USER": "",
    "PASSWORD": "",
    "HOST": "",
    "PORT": "",
    "TEST": {},
}
TEST_DEFAULTS: dict[str, Any] = {
    "CHARSET": None,
    "COLLATION": None,
    "MIGRATE": True,
    "MIRROR": None,
    "NAME": None,
}
NODE_KEYS = frozenset(
    [*DEFAULTS, "ENGINE", "DISABLE_SERVER_SIDE_CURSORS", "URL", "ZONE"]
)

# Options that name the database in another way than NAME does.
_NAMING_OPTIONS = frozenset(
    ["service", "read_default_file", "database", "db", "dbname", "dsn"]
)

_is_bool = ("True or False", lambda v: isinstance(v, bool))
_is_dict = ("a dict", lambda v: isinstance(v, Mapping))
_is_text = ("text or a callable", lambda v: isinstance(v, str) or callable(v))
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "ATOMIC_REQUESTS": _is_bool,
    "AUTOCOMMIT": _is_bool,
    "CONN_HEALTH_CHECKS": _is_bool,
    "CONN_MAX_AGE": (
        "a number of seconds, 0 or more, or None",
        lambda v: v is None or (_is_number(v) and v >= 0),
    ),
    "DISABLE_SERVER_SIDE_CURSORS": _is_bool,
    "ENGINE": (
        "the dotted path of a backend",
        lambda v: isinstance(v, str) and v != "",
    ),
    "HOST": _is_text,
    "NAME": (
        "text, a path or a callable",
        lambda v: isinstance(v, str | Path) or callable(v),
    ),
    "OPTIONS": _is_dict,
    "PASSWORD": _is_text,
    "PORT": (
        "a number, text or a callable",
        lambda v: isinstance(v, str) or _is_number(v) or callable(v),
    ),
    "TEST": _is_dict,
    "TIME_ZONE": ("text or None", lambda v: v is None or isinstance(v, str)),
    "USER": _is_text,
    "ZONE": ("text, e.g. 'eu-1a'", lambda v: isinstance(v, str) and v != ""),
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_node(where: str, given: object, mistakes: Mistakes) -> dict[str, Any] | None:
    """The keys that a declared node gives itself; None when it cannot be read."""
    if isinstance(given, str):
        return _read_url(where, given, mistakes)
    if isinstance(given, Mapping):
        node: dict[str, Any] = thaw(given)
        check_keys(where, node, NODE_KEYS, mistakes)
        check_types(where, node, mistakes)
        if not all(isinstance(node.get(key, {}), dict) for key in ("OPTIONS", "TEST")):
            return None
        if "URL" in node:
            return _read_url_key(where, node, mistakes)
        return node
    if callable(given):
        return _with_late_url({"URL": given})
    mistakes.add(
        "E001",
        where,
        f"is {type(given).__name__}; give a URL, a dict like an entry of DATABASES, "
        f"or a callable that returns a URL",
    )
    return None


def _read_url(where: str, url: str, mistakes: Mistakes) -> dict[str, Any] | None:
    try:
        node = parse_url(url)
    except ConfigurationError as error:
        mistakes.add_error(where, error)
        return None
    node.setdefault("HOST", "")
    node.setdefault("PORT", "")
    if "USER" in node:
        node.setdefault("PASSWORD", "")
    check_types(where, node, mistakes)
    return node


def _read_url_key(
    where: str, node: dict[str, Any], mistakes: Mistakes
) -> dict[str, Any] | None:
    url = node["URL"]
    if isinstance(url, str):
        del node["URL"]
        said = _read_url(where, url, mistakes)
        if said is None:
            return None
        return merge_levels(said, node)
    if callable(url):
        return _with_late_url(node)
    mistakes.add("E004", where, "URL must be text or a callable that returns it")
    return None


def _with_late_url(node: dict[str, Any]) -> dict[str, Any]:
    # Inherited values would win over the URL when it is evaluated.
    return {**dict.fromkeys(CONNECTION_KEYS, ""), **node}


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """OPTIONS and TEST of two levels merged, where either gives them."""
    return {
        key: {**under.get(key, {}), **over.get(key, {})}
        for key in ("OPTIONS", "TEST")
        if isinstance(under.get(key, {}), Mapping)
        and isinstance(over.get(key, {}), Mapping)
        and (key in under or key in over)
    }


def merge_levels(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """What ``inner`` gives, over what ``outer`` gives."""
    return {**outer, **inner, **_merged(outer, inner)}


def check_keys(
    where: str,
    given: Mapping[str, Any],
    known: frozenset[str],
    mistakes: Mistakes,
) -> None:
    """Report unknown keys; a third-party engine may have keys of its own."""
    engine = str(given.get("ENGINE", "django."))
    is_strict = engine.startswith(("django.", "dbfleet."))
    for key in given:
        if key in known:
            continue
        text = unknown_name(key, known)
        if is_strict or "did you mean" in text:
            mistakes.add("E006", where, f"option {text}")


def check_types(where: str, given: Mapping[str, Any], mistakes: Mistakes) -> None:
    """Report values of Django's keys that have a wrong type."""
    for key, value in given.items():
        if key in _TYPES:
            expected, accepts = _TYPES[key]
            if not accepts(value):
                kind = type(value).__name__
                mistakes.add("E004", where, f"{key} must be {expected}, not {kind}")


def complete(
    own: Mapping[str, Any],
    entry: Mapping[str, Any],
    base: Mapping[str, Any],
) -> dict[str, Any]:
    """A node's complete dict out of its own keys, its entry's and its base's."""
    node = {**DEFAULTS, **base, **entry, **own}
    if not ("ZONE" in entry or "ZONE" in own):
        node.pop("ZONE", None)  # where the primary stands says nothing of others
    if "OPTIONS" in own or "OPTIONS" not in base:
        node.update(_merged(entry, own))
    else:
        node["OPTIONS"] = base["OPTIONS"]
    test = {**base.get("TEST", {}), **entry.get("TEST", {}), **own.get("TEST", {})}
    node["TEST"] = {**TEST_DEFAULTS, **test}
    if not callable(node["PORT"]):
        node["PORT"] = str(node["PORT"])
    if "HOST" in own and "PORT" not in own and "," in str(node["PORT"]):
        node["PORT"] = ""  # a list of ports belongs to its list of hosts
    if "ENGINE" in own and "URL" not in own:
        node.pop("URL", None)
    return {key: _own_copy(value) for key, value in node.items()}


def _own_copy(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, dict | list) else value


def check_node(where: str, node: Mapping[str, Any], mistakes: Mistakes) -> None:
    """Report what is wrong with a complete node on its own."""
    engine = node.get("ENGINE", "")
    options = node["OPTIONS"]
    if not engine:
        mistakes.add("E001", where, _no_engine(node))
    elif engine == BACKEND or engine.startswith(BACKEND + "."):
        mistakes.add(
            "E005",
            where,
            f"a node is not itself a fleet: its ENGINE must be the vendor's, e.g. "
            f"'django.db.backends.postgresql', not '{engine}'",
        )
    elif (
        engine.startswith("django.")
        and node["NAME"] in ("", None)
        and "URL" not in node
        and not _NAMING_OPTIONS.intersection(options)
    ):
        mistakes.add("E001", where, "has no NAME: say which database it is")
    if options.get("pool") and node["CONN_MAX_AGE"] != 0:
        mistakes.add(
            "E005",
            where,
            "OPTIONS['pool'] and CONN_MAX_AGE exclude each other: the pool keeps "
            "connections open; remove CONN_MAX_AGE",
        )


def _no_engine(node: Mapping[str, Any]) -> str:
    if "URL" in node:
        return (
            "its URL is a callable, so its engine cannot be known before it "
            "connects: give {'ENGINE': 'django.db.backends.…', 'URL': <callable>}"
        )
    return "has no ENGINE: give a vendor's, e.g. 'django.db.backends.postgresql'"
