"""Celery: a task goes on from the session that published it.

Guards two invariants: a task sees what its publisher had committed and seen; nothing
of one task's session reaches the next task of the worker. A task that is run eagerly
is part of its caller's session and leaves it alone.

Source: Celery manual, "Signals" and "Message Protocol" (version 2: the message's
headers become attributes of the task's request).
"""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import before_task_publish, task_postrun, task_prerun
from django.db import connections

from dbfleet import sessions
from dbfleet.observe import events
from dbfleet.sessions import pins, tokens

logger = logging.getLogger("dbfleet.carriers")

HEADER = "dbfleet_token"


def install() -> None:
    """Carry sessions with every task that this process publishes or runs; idempotent.

    Call it where the project makes its Celery app. No round trips. Anybody who can
    publish to the broker is trusted with tokens, as with tasks.
    """
    before_task_publish.connect(_publish, weak=False, dispatch_uid="dbfleet.publish")
    task_prerun.connect(_begin, weak=False, dispatch_uid="dbfleet.prerun")
    task_postrun.connect(_end, weak=False, dispatch_uid="dbfleet.postrun")


def _publish(
    sender: Any = None, headers: dict[str, Any] | None = None, **kwargs: Any
) -> None:
    if headers is None:
        return
    headers[HEADER] = tokens.token()
    for alias in _open_transactions():
        # What it wrote is not committed and may be rolled back.
        events.emit("published_in_transaction", alias=alias, task=str(sender))
        logger.warning(
            "task %s was published inside a transaction on %r and may run before its "
            "commit, without its rows; publish it with delay_on_commit() or from "
            "transaction.on_commit()",
            sender,
            alias,
        )


def _open_transactions() -> list[str]:
    """Fleets inside an ``atomic()`` that is not a ``TestCase``'s."""
    return [
        one.alias
        for one in connections.all(initialized_only=True)
        if getattr(one, "topology", None) is not None
        and any(
            not getattr(block, "_from_testcase", False) for block in one.atomic_blocks
        )
    ]


def _begin(task: Any = None, **kwargs: Any) -> None:
    if task.request.is_eager:
        return
    pins.forget()
    sessions.forget()
    tokens.apply(getattr(task.request, HEADER, None), sessions.begin())


def _end(task: Any = None, **kwargs: Any) -> None:
    if not task.request.is_eager:
        pins.forget()
        sessions.forget()
