"""Requests that the project sends to its other services.

Guards one invariant: both ways count; a service that was called may have written.
"""

from __future__ import annotations

from collections.abc import Mapping

from dbfleet import conf, sessions
from dbfleet.carriers import signed
from dbfleet.errors import ConfigurationError
from dbfleet.sessions import tokens


def outgoing_headers() -> dict[str, str]:
    """What to add to a request to another service, so that it sees what this session
    wrote and saw; empty if that is nothing.

    Both services need the same ``HEADER`` and ``HEADER_KEYS``, and an alias of the same
    name has to be the same database in both. No round trips. Raises ConfigurationError
    without a ``HEADER``.
    """
    name, found = _name(), tokens.token()
    return {name: signed.sign(found, signed.HEADER)} if found else {}


def resume_response(headers: Mapping[str, str]) -> None:
    """Hold the running session to what a service answered that it wrote and saw.

    ``headers`` are the response's, found whatever the case of their letters. No round
    trips. Raises ConfigurationError without a ``HEADER``; a token that cannot be
    trusted is dropped and told by an event.
    """
    name = _name().lower()
    values = [value for key, value in headers.items() if key.lower() == name]
    signed.take_up(split(",".join(values)), signed.HEADER, sessions.current())


def split(value: str) -> list[str]:
    """The tokens of a header, which proxies join by commas."""
    return [one.strip() for one in value.split(",") if one.strip()]


def _name() -> str:
    name = conf.settings().carriers.header
    if name is None:
        raise ConfigurationError(
            "E004",
            "DBFLEET['CARRIERS']['HEADER'] is not set; name the header that carries "
            'sessions between services, for instance "X-Dbfleet-Token"',
        )
    return name
