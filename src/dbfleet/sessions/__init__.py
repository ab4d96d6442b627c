"""Sessions: what the running context saw and wrote, so that it never misses it.

A session is a request, a job or a :func:`session` block; where nothing declares one, it
is the running context (contextvars). A declared session is shared by every task and
thread that copies its context. One that nobody declared is copied by the first task or
thread that changes it, so two of them share nothing that either does later.
"""

from __future__ import annotations

from dbfleet.levels import Level, bounded
from dbfleet.sessions.blocks import Consistency, _level, chosen_level, consistency
from dbfleet.sessions.context import (
    begin,
    current,
    forget,
    lend,
    peek,
    restore,
    session,
)
from dbfleet.sessions.state import PRIMARY, ClusterState, Era, Session

__all__ = [
    "PRIMARY",
    "ClusterState",
    "Consistency",
    "Era",
    "Level",
    "Session",
    "_level",
    "begin",
    "bounded",
    "chosen_level",
    "consistency",
    "current",
    "forget",
    "lend",
    "peek",
    "restore",
    "session",
]
