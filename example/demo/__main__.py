"""``python -m example.demo``: open the store, ask, lose servers, compare, close.

``--serve`` keeps the store open with the admin instead. ``FLEET=sqlite`` needs no
server; ``CHINOOK=path`` takes the rows of the real Chinook database.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

from example.demo.opening import CannotOpen, open_store
from example.demo.report import Report
from example.manage import DESCRIPTION


def main() -> int:
    """Run the demo; 1 if any answer differs from the single database's."""
    parser = argparse.ArgumentParser(prog="python -m example.demo")
    parser.add_argument("--serve", action="store_true", help="keep the store open")
    parser.add_argument("--port", type=int, default=8000, help="of the admin")
    parser.add_argument(
        "--description",
        type=Path,
        default=DESCRIPTION,
        help="file that tells example.manage where the servers are",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, end_politely)
    report = Report()
    try:
        if options.serve:
            require_port(options.port)
            # Whoever looks around wants to read what was refused, and why.
            os.environ["EXAMPLE_DEBUG"] = "1"
        with open_store(report) as servers:
            # Imported now: the project's settings need the servers.
            from example.demo import serving, showing

            if options.serve:
                serving.serve(servers, options.port, options.description)
            showing.show(report, servers)
    except CannotOpen as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nclosed: every server is stopped, every file deleted")
        return 0 if options.serve else 130
    report.summary()
    return 1 if report.different else 0


def end_politely(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that the servers are stopped on the way out."""
    raise KeyboardInterrupt


def require_port(port: int) -> None:
    """Raise ``CannotOpen`` if somebody listens there, before anything is started."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise CannotOpen(f"port {port} is taken: make serve PORT={port + 1}")


if __name__ == "__main__":
    sys.exit(main())
