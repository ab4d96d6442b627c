"""How a session goes on elsewhere: another thread, task or process.

Each process puts what it hands over into one mail that all of them read: a token, and
what its session was promised.
"""

from __future__ import annotations

import contextlib
import queue
from typing import Any

import dbfleet
from tests.faults.replicas.operations import Client

MAIL = 200


def post(client: Client, mail: Any) -> None:
    """Hand the client's session over; nothing is handed over where mail is full."""
    if not HAS_TOKENS:
        return
    parcel = dbfleet.token(), client.promises.least, client.promises.lines
    with contextlib.suppress(queue.Full):
        mail.put_nowait(parcel)


def take(client: Client, mail: Any) -> bool:
    """Go on with a session that was handed over, if there is one."""
    if not HAS_TOKENS:
        return False
    try:
        token, least, lines = mail.get_nowait()
    except queue.Empty:
        return False
    dbfleet.resume(token)
    client.promises.add(least, lines)
    return True


HAS_TOKENS = hasattr(dbfleet, "token") and hasattr(dbfleet, "resume")
