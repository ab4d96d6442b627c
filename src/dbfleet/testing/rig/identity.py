"""The operating-system user that servers run as.

Guards one invariant: no database server runs as root. PostgreSQL and MariaDB
refuse to, so root hands each server to an existing unprivileged user; anybody
else runs servers as themselves. No user is ever created.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbfleet.testing.rig.errors import ServerFailed, ServerUnavailable

TOOL_TIMEOUT_S = 120.0
QUOTED_LINES = 15
BASE_PREFIX = "dbfleet-rig-"


@dataclass(frozen=True)
class Identity:
    """A user to run programs as; ``uid`` is None for the current user."""

    name: str
    uid: int | None
    gid: int | None

    def popen_options(self) -> dict[str, Any]:
        """Return the options of ``subprocess`` that drop to this user."""
        if self.uid is None:
            return {"umask": 0o077}
        return {
            "user": self.uid,
            "group": self.gid,
            "extra_groups": [],
            "umask": 0o077,
        }

    def own(self, path: Path) -> None:
        """Give ``path`` and all below it to this user."""
        if self.uid is None or self.gid is None:
            return
        os.chown(path, self.uid, self.gid)
        for directory, names, files in os.walk(path):
            for name in (*names, *files):
                os.chown(
                    Path(directory, name), self.uid, self.gid, follow_symlinks=False
                )

    def can_execute(self, program: Path) -> bool:
        """Tell whether this user may run ``program``, by running it once."""
        try:
            done = subprocess.run(
                [program, "--version"],
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TOOL_TIMEOUT_S,
                check=False,
                **self.popen_options(),
            )
        except OSError:
            return False
        return done.returncode == 0

    def can_enter(self, directory: Path) -> bool:
        """Tell whether this user may open files below ``directory``."""
        if self.uid is None:
            return os.access(directory, os.X_OK)
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", 'cd "$1"', "sh", directory],
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TOOL_TIMEOUT_S,
                check=False,
                **self.popen_options(),
            )
        except OSError:
            return False
        return done.returncode == 0


def unprivileged(*preferred: str) -> Identity:
    """Return who to run a server as: the current user unless that is root.

    For root, the first user of ``preferred`` that exists, else ``nobody``. Raises
    ``ServerUnavailable`` when there is none.
    """
    if os.geteuid() != 0:
        return Identity(pwd.getpwuid(os.geteuid()).pw_name, None, None)
    for name in (*preferred, "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(name, entry.pw_uid, entry.pw_gid)
    raise ServerUnavailable(
        "a database server cannot run as root and there is no user "
        f"{' or '.join((*preferred, 'nobody'))}: run as an ordinary user"
    )


def make_base_directory(wanted: Path | None, identities: list[Identity]) -> Path:
    """Make a fresh directory that every one of ``identities`` can enter.

    It lies in ``wanted`` where that is given and they can enter it, else in the
    directory for temporary files. Raises ``ServerUnavailable`` when that is closed
    to them too.
    """
    parents = [Path(tempfile.gettempdir())]
    if wanted is not None:
        # Open even where the caller's umask is not: only its owner lists it.
        if not wanted.exists():
            wanted.mkdir(parents=True)
            wanted.chmod(0o711)
        parents.insert(0, wanted.resolve())
    for parent in parents:
        if all(identity.can_enter(parent) for identity in identities):
            made = Path(tempfile.mkdtemp(prefix=BASE_PREFIX, dir=parent))
            made.chmod(0o711)
            return made
    names = ", ".join(sorted({identity.name for identity in identities}))
    raise ServerUnavailable(
        f"user {names}, who runs the servers, cannot enter {parents[-1]}: "
        "set TMPDIR to a directory that every user may enter"
    )


def run_tool(
    argv: list[str | Path],
    *,
    identity: Identity,
    directory: Path,
    environment: dict[str, str] | None = None,
    timeout_s: float = TOOL_TIMEOUT_S,
) -> str:
    """Run a program to its end as ``identity`` and return what it printed.

    Raises ``ServerFailed`` quoting its last lines when it fails or takes longer
    than ``timeout_s``. Secrets belong in ``environment`` or a file, never in
    ``argv``, which every user of the machine can read.
    """
    program = Path(argv[0]).name
    try:
        done = subprocess.run(
            argv,
            cwd=directory,
            env=server_environment(directory) | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            **identity.popen_options(),
        )
    except subprocess.TimeoutExpired:
        raise ServerFailed(f"{program} did not end after {timeout_s:g} s") from None
    except OSError as error:
        raise ServerFailed(
            f"{program} cannot be run as {identity.name}: {error.strerror}"
        ) from error
    if done.returncode:
        raise ServerFailed(
            f"{program} failed with exit status {done.returncode}; it said:\n"
            + last_lines(done.stdout)
        )
    return str(done.stdout)


def server_environment(directory: Path) -> dict[str, str]:
    """Return the environment of a server: the caller's PG* and MYSQL* left out."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "MYSQL", "MARIADB"))
    }
    return kept | {"HOME": str(directory), "LC_ALL": "C", "TZ": "UTC"}


def last_lines(text: str, count: int = QUOTED_LINES) -> str:
    """Return the last lines of ``text``, indented, for an error."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[-count:]) or "    (nothing)"
