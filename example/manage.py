"""Django's commands for the store, while ``make serve`` keeps it open.

build/venv/bin/python -m example.manage shell
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: where ``make serve`` says which servers run
DESCRIPTION = Path(__file__).resolve().parent.parent / "build" / "example-servers.json"


def main() -> int:
    """Run one command on the servers that are described."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
    if "EXAMPLE_SERVERS" not in os.environ:
        if not DESCRIPTION.exists():
            print("the store is closed: run `make serve` and leave it running")
            return 1
        os.environ["EXAMPLE_SERVERS"] = DESCRIPTION.read_text()
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
