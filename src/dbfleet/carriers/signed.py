"""Tokens under a signature, as cookies and headers hold them.

Guards one invariant: what this project did not sign, or signed too long ago, demands
nothing. A signed token can be read by its holder; it cannot be made or changed.

A forged demand is dropped rather than looked up at the primary, since whoever sends
forgeries would else choose where the site reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from django.core.signing import (
    BadSignature,
    SignatureExpired,
    TimestampSigner,
    b62_decode,
)

from dbfleet import conf
from dbfleet.observe import events
from dbfleet.sessions import Session, tokens

COOKIE, HEADER = "cookie", "header"
#: tokens of one request; the parallel responses whose cookies a browser may hold
MAX_TOKENS = 16
_MAX_CHARS = tokens.MAX_CHARS + 100


class Arrived(NamedTuple):
    """A token that was signed here, and whether half of its life is over."""

    token: str
    is_old: bool


def sign(token: str, kind: str) -> str:
    """The token with a time stamp and a signature."""
    return _signer(kind).sign(token)


def unsign(value: str, kind: str) -> Arrived | None:
    """The token in a signed text; None, and an event, if it is not to be trusted."""
    max_age_s = conf.settings().carriers.max_age_s
    reason = "length"
    if len(value) <= _MAX_CHARS:
        try:
            token = _signer(kind).unsign(value, max_age=max_age_s)
            return Arrived(token, _age_s(value) > max_age_s / 2)
        except SignatureExpired:
            reason = "expired"
        except BadSignature:
            reason = "signature"
    events.emit("token_refused", reason=reason, carrier=kind)
    return None


def take_up(values: Iterable[str], kind: str, session: Session) -> list[Arrived]:
    """Hold a session to signed tokens; returns those that are to be trusted.

    Of more than :data:`MAX_TOKENS` the rest is not read; every primary is asked.
    """
    found = []
    for number, value in enumerate(values):
        if number == MAX_TOKENS:
            events.emit("token_refused", reason="number", carrier=kind)
            tokens.ask_all(session)
            break
        arrived = unsign(value, kind)
        if arrived is not None:
            tokens.apply(arrived.token, session)
            found.append(arrived)
    return found


def _age_s(value: str) -> float:
    """The age of a text whose signature is right."""
    return time.time() - b62_decode(value.rsplit(":", 2)[1])


def _signer(kind: str) -> TimestampSigner:
    keys = conf.settings().carriers.header_keys if kind == HEADER else ()
    salt = f"dbfleet.carriers.{kind}"
    if not keys:
        return TimestampSigner(salt=salt)
    return TimestampSigner(key=keys[0], fallback_keys=list(keys[1:]), salt=salt)
