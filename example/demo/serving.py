"""The store, kept open with its admin until Ctrl-C.

Guards one invariant: it listens on 127.0.0.1 alone, for its password is on the
screen.
"""

from __future__ import annotations

import os
from pathlib import Path

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.servers.basehttp import get_internal_wsgi_application, run

from example.demo import counter
from example.demo.servers import Servers

HOST = "127.0.0.1"
USER = PASSWORD = "admin"


def serve(servers: Servers, port: int, description: Path) -> None:
    """Serve the admin until Ctrl-C, which arrives as ``KeyboardInterrupt``.

    Meanwhile ``description`` tells ``example.manage`` where the servers are.
    """
    counter.open_counter(PASSWORD)
    describe(servers, description)
    application = StaticFilesHandler(get_internal_wsgi_application())
    try:
        run(HOST, port, application, threading=True, on_bind=announce)
    finally:
        description.unlink(missing_ok=True)


def describe(servers: Servers, path: Path) -> None:
    """Write the servers' addresses for this user's eyes alone: they hold passwords."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(servers.environment())


def announce(port: object) -> None:
    """Say where to look."""
    print(
        f"""
The store is open:   http://{HOST}:{port}/admin/   user {USER}, password {PASSWORD}
In another terminal: build/venv/bin/python -m example.manage shell
                     build/venv/bin/python -m example.manage fleet status
Ctrl-C closes it and deletes everything. Requests follow.
""",
        flush=True,
    )
