"""Database URLs, read by dj-database-url into Django's dict.

Guards one invariant: no message about a URL contains its password.

Beyond what dj-database-url does: several hosts in one URL (libpq's way), and
Django's own settings in the query string (``?conn_max_age=60``).
"""

from __future__ import annotations

import re
from typing import Any

from dbfleet.errors import ConfigurationError
from dbfleet.topology.values import masked_url

#: Schemes whose drivers hand the hosts to libpq, which tries one after another.
LIBPQ_SCHEMES = frozenset(
    [
        "cockroach",
        "pgsql",
        "postgis",
        "postgres",
        "postgresql",
        "redshift",
        "timescale",
        "timescalegis",
    ]
)

# dj-database-url always fills these in; they would hide what a node inherits.
_FILLED_IN = ("CONN_MAX_AGE", "CONN_HEALTH_CHECKS", "DISABLE_SERVER_SIDE_CURSORS")

_QUERY_SETTINGS = (
    "ATOMIC_REQUESTS",
    "CONN_HEALTH_CHECKS",
    "CONN_MAX_AGE",
    "DISABLE_SERVER_SIDE_CURSORS",
    "ENGINE",
    "TIME_ZONE",
    "ZONE",
)

_HOST = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>\d*))?")


def parse_url(url: str) -> dict[str, Any]:
    """The Django settings that a URL says; what it does not say is absent.

    Costs no round trip. Raises ``ConfigurationError`` E002 when the URL cannot be
    read, names several hosts for a driver that takes one, or when
    dj-database-url is not installed.
    """
    try:
        import dj_database_url
    except ImportError as error:
        raise ConfigurationError(
            "E002",
            "a database URL needs dj-database-url: "
            "pip install 'django-dbfleet[url]', or give a dict with ENGINE, NAME, …",
        ) from error
    scheme = url.partition("://")[0]
    single, host, port = _split_hosts(url, scheme)
    try:
        parsed: dict[str, Any] = dict(dj_database_url.parse(single))
    except ValueError as error:
        # The error of an unknown scheme quotes it. What stands before the colon of
        # a text that is no URL at all may be anything, so it is not quoted.
        reason = str(error) if "://" in url else "it has no scheme://"
        raise _unreadable(url, reason) from None
    for key in _FILLED_IN:
        parsed.pop(key, None)
    if host is not None:
        parsed["HOST"], parsed["PORT"] = host, port
    if "PORT" in parsed:
        parsed["PORT"] = str(parsed["PORT"] or "")
    said = {key: value for key, value in parsed.items() if value not in ("", {})}
    _lift_settings(said)
    return said


def _split_hosts(url: str, scheme: str) -> tuple[str, str | None, str | None]:
    """The URL with its first host alone, and libpq's HOST and PORT if several."""
    head, mark, rest = url.partition("://")
    end = min((i for i in map(rest.find, "/?#") if i >= 0), default=len(rest))
    credentials, at, location = rest[:end].rpartition("@")
    if "," not in location:
        return url, None, None
    if scheme not in LIBPQ_SCHEMES:
        raise _unreadable(
            url,
            f"a {scheme} URL takes one host; declare the others as replicas, "
            f"Cluster(primary, replicas=[...]), or give the address of a proxy",
        )
    hosts, ports = [], []
    for part in location.split(","):
        match = _HOST.fullmatch(part)
        if match is None or not match["host"]:
            raise _unreadable(url, f"'{part}' is not a host or host:port")
        hosts.append(match["host"].strip("[]"))
        ports.append(match["port"] or "")
    port = ",".join(ports) if any(ports) else ""
    single = f"{head}{mark}{credentials}{at}several.invalid{rest[end:]}"
    return single, ",".join(hosts), port


def _lift_settings(parsed: dict[str, Any]) -> None:
    """Move Django's own settings from the query string to where Django reads them."""
    options = parsed.get("OPTIONS", {})
    for name in list(options):
        key = name.upper()
        if key in _QUERY_SETTINGS:
            value = options.pop(name)
            value = None if value in ("None", "none") else value
            # dj-database-url makes numbers of digits.
            parsed[key] = str(value) if key == "ZONE" and value is not None else value
    if not options:
        parsed.pop("OPTIONS", None)


def _unreadable(url: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        "E002", f"the URL {masked_url(url)} cannot be read: {reason}"
    )
