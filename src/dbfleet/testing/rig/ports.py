"""Free TCP ports on the loopback interface.

Guards two invariants: one process never hands out a port twice, and every port
lies below the range from which kernels pick ports for outgoing connections. A
client that retries a dead server on a port of that range may connect to itself,
and the server may find its port taken when it comes back.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading

from dbfleet.testing.rig.errors import RigError

HOST = "127.0.0.1"
FIRST_PORT = 20_000
PORTS = 10_000
ATTEMPTS = 200

_lock = threading.Lock()  # protects _given
_given: set[int] = set()


def free_port() -> int:
    """Return a port of ``127.0.0.1`` that nobody listens on and nobody was given.

    Another process may still take it before it is used: who listens on it must be
    ready to ask again. Raises ``RigError`` when no port is found.
    """
    for _ in range(ATTEMPTS):
        # The module random would repeat itself in runs that share a seed.
        port = FIRST_PORT + secrets.randbelow(PORTS)
        with _lock:
            if port in _given or not _can_bind(port):
                continue
            _given.add(port)
            return port
    raise RigError(
        f"no free TCP port found on {HOST} from {FIRST_PORT} to "
        f"{FIRST_PORT + PORTS - 1}: stop servers that are no longer used"
    )


def give_back(port: int) -> None:
    """Let ``port`` be handed out again."""
    with _lock:
        _given.discard(port)


def _can_bind(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        # As servers do: a port whose old connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
