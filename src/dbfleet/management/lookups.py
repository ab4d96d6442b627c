"""Shows, builds and repairs the lookups of sharded models.

Without an option it only says which lookups reads may use. A build takes the claims
that are missing, in batches, beside writers, and goes on where it was stopped. To
verify is to compare claims and rows both ways: after a crash, or after home was lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import apps
from django.core.management.base import CommandError, CommandParser
from django.db import router

from dbfleet.management import aliases
from dbfleet.planner.route import HOME
from dbfleet.sharding import ledger
from dbfleet.sharding.lookup_builds import BUILDING, Counts, LookupBuild, builds
from dbfleet.sharding.lookups import READY

HELP = "show, build or repair the lookups of sharded models"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("models", nargs="*", metavar="app.Model", help="only of these")
    parser.add_argument("--database", default="default", help="a sharded alias")
    group = parser.add_mutually_exclusive_group()
    for name, text in (
        ("--build", "take missing claims and let reads use the lookups"),
        ("--verify", "compare claims and rows, both ways"),
        ("--repair", "the same, and repair what differs"),
    ):
        group.add_argument(name, action="store_true", help=text)


def run(
    stdout: Any,
    *,
    database: str,
    models: Sequence[str],
    build: bool,
    verify: bool,
    repair: bool,
    **options: Any,
) -> None:
    """One line for each lookup; raises CommandError for what differs and was not
    repaired, for models without lookups and aliases without shards."""
    wrapper = aliases.sharded(database, "has no lookups")
    wanted = [label.lower() for label in models]
    found = list(_builds(wrapper, wanted))
    missing = set(wanted) - {one.table.opts.label_lower for one in found}
    if missing:
        names = ", ".join(sorted(missing))
        raise CommandError(f"no lookup of {names} can be used on {database!r}")
    if not found:
        stdout.write(f"no lookup can be used on {database!r}")
    differing = 0
    for one in found:
        if build:
            counts = one.build()
            differing += counts.conflicts
        elif verify or repair:
            counts = one.verify(repairs=repair)
            differing += counts.conflicts
            differing += 0 if repair else counts.missing + counts.orphans
        else:
            stdout.write(f"{one.label}: {_state(one)}{_place(one)}")
            continue
        stdout.write(f"{one.label}: {_told(counts)}; {_state(one)}{_place(one)}")
    if differing:
        raise CommandError(
            f"{differing} differ. Claims of rows that are gone, and rows without "
            "claims: --repair. Rows with a value that another row claims: change or "
            "delete one of each, then --repair and --build"
        )


def _builds(wrapper: Any, wanted: Sequence[str]) -> Iterator[LookupBuild]:
    for model in apps.get_models(include_auto_created=True):
        opts = model._meta
        if (
            opts.proxy
            or not opts.managed
            or (wanted and opts.label_lower not in wanted)
        ):
            continue
        if not router.allow_migrate_model(wrapper.alias, model):
            continue
        table = wrapper.routing.table_of(opts)
        if table.is_sharded:
            yield from builds(wrapper.routing, table)


def _state(one: LookupBuild) -> str:
    state, _ = one.state()
    return {
        READY: "reads use it",
        BUILDING: "not complete: reads ask every shard, build it",
    }.get(state, "not built: reads ask every shard")


def _place(one: LookupBuild) -> str:
    keepers = ledger.keepers(one.wrapper)
    return "" if keepers == (HOME,) else f"; claims on {', '.join(keepers)}"


def _told(counts: Counts) -> str:
    return (
        f"{counts.rows} rows, {counts.missing} without a claim, "
        f"{counts.conflicts} of them with a value of another row, "
        f"{counts.orphans} claims without a row"
    )
