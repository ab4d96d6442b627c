"""Shows and steers the directory that says on which shard a key's rows are.

Without a key it counts the keys of each shard. With a key it tells its shard, and with
a shard as well it places a key there that has none yet. ``--repair`` reads every key of
every shard and adds those that the directory lacks, after home was restored from a
backup.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.core.management.base import CommandError, CommandParser

from dbfleet.management.aliases import check_known
from dbfleet.sharding.directory import PARSERS, directory_of, place
from dbfleet.sharding.directory_repair import Repair

HELP = "show and steer the directory of a sharded alias"


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("key", nargs="?", help="a key, as text")
    parser.add_argument("shard", nargs="?", help="where to place it")
    parser.add_argument("--database", default="default", help="a sharded alias")
    parser.add_argument(
        "--repair", action="store_true", help="add the keys of rows that are there"
    )


def run(
    stdout: Any,
    *,
    database: str,
    key: str | None,
    shard: str | None,
    repair: bool,
    **options: Any,
) -> None:
    """Raises CommandError for what cannot be read, placed, or is on two shards."""
    check_known(database)
    wrapper, directory = directory_of(database)
    if repair:
        if key is not None:
            raise CommandError("--repair looks at all keys: leave the key out")
        _repair(stdout, wrapper)
    elif key is None:
        counts = Counter(directory.counts(wrapper))
        for name in wrapper.topology.shards:
            stdout.write(f"{name}: {counts[name]} keys")
    else:
        value = _parsed(key, wrapper.topology.map.key_type)
        if shard is not None:
            place(database, value, shard)
        now = directory.find([value], wrapper).get(value)
        stdout.write(f"{value}: {now or 'on no shard yet'}")


def _parsed(text: str, kind: type) -> Any:
    try:
        return PARSERS[kind](text)
    except ValueError:
        raise CommandError(
            f"{text!r} is no key of the directory: it is of the type {kind.__name__}"
        ) from None


def _repair(stdout: Any, wrapper: Any) -> None:
    found = Repair(wrapper).run()
    stdout.write(f"{found.added} keys were added to the directory")
    if found.torn:
        shown = "; ".join(found.torn[:20])
        raise CommandError(
            f"{len(found.torn)} keys have rows on another shard than the directory "
            f"says ({shown}): they are not found by their key. Move them by hand"
        )
