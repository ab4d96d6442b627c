"""``manage.py fleet <subcommand>``: each subcommand is a module beside this package."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from dbfleet.errors import FleetError
from dbfleet.management import (
    drain,
    gather,
    ids,
    lookups,
    place,
    route,
    status,
    undrain,
)

SUBCOMMANDS = {
    "status": status,
    "route": route,
    "drain": drain,
    "undrain": undrain,
    "gather": gather,
    "ids": ids,
    "lookups": lookups,
    "place": place,
}


class Command(BaseCommand):
    help = "Looks at and steers the databases behind the aliases of this project."
    # A fleet that a check complains about is when one wants to look.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parsers = parser.add_subparsers(dest="subcommand", required=True)
        for name, module in SUBCOMMANDS.items():
            added = parsers.add_parser(
                name, help=module.HELP, description=module.__doc__
            )
            module.add_arguments(added)

    def handle(self, *args: Any, subcommand: str, **options: Any) -> None:
        options.pop("stdout", None)  # of call_command(), and self.stdout by now
        try:
            SUBCOMMANDS[subcommand].run(self.stdout, **options)
        except FleetError as error:
            raise CommandError(str(error)) from error
