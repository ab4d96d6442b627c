"""The errors of the rig.

Guards one invariant: an error says in its first line what to do, and quotes the
server's own last words when a server was involved. No message holds a password.
"""

from __future__ import annotations


class RigError(Exception):
    """Base of every error of the rig."""


class ServerUnavailable(RigError):
    """A program or a driver that the rig needs is not on this machine.

    The message is one line that says how to get it; a test may skip with it.
    """


class ServerFailed(RigError):
    """A server or one of its tools did not do what it was told, or not in time."""


class DeadlineExceeded(RigError, TimeoutError):
    """A condition did not come true before its deadline."""
