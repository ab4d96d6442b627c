"""A Python with the wanted Django, and that Django's own tests.

The tests come from the source distribution of exactly the version that the child
process will import, and are never modified.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
MINIMUM_PYTHON = {"5.2": "3.11", "6.1": "3.12"}
DRIVERS = ("psycopg[binary,pool]>=3.2", "PyMySQL>=1.1.1", "dj-database-url>=2.2")
INSTALL_TIMEOUT_S = 900.0
PROBE_TIMEOUT_S = 30.0


class CannotRun(Exception):
    """The run cannot begin: no Python, no Django's tests, no server. Says the cure."""


@dataclass(frozen=True)
class Source:
    """A Python, the Django version it imports, and that version's tests."""

    python: Path
    version: str
    tests_path: Path


def find_source(series: str, python: str | None, django_source: str | None) -> Source:
    """The source to run for a Django series such as ``5.2``.

    Without ``python`` this interpreter is used if it has that series, else an
    environment is made under ``build/venvs`` (network needed once). Without
    ``django_source`` the source distribution is downloaded (network needed once).
    """
    interpreter = Path(python) if python else environment_for(series)
    version = django_version(interpreter)
    if version is None or series_of(version) != series:
        raise CannotRun(
            f"{interpreter} has Django {version or 'not installed'}, "
            f"but Django {series} was asked for."
        )
    if django_source is None:
        tree = download(interpreter, version)
    else:
        tree = Path(django_source).resolve()
    if not (tree / "tests" / "runtests.py").is_file():
        raise CannotRun(f"{tree} is no Django source tree: no tests/runtests.py.")
    if (shipped := version_of_tree(tree)) != version:
        raise CannotRun(
            f"{tree} holds the tests of Django {shipped}, not of {version}."
        )
    return Source(interpreter, version, tree / "tests")


def series_of(version: str) -> str:
    return ".".join(version.split(".")[:2])


def installed_series() -> str:
    """The Django series of this interpreter."""
    version = django_version(Path(sys.executable))
    if version is None:
        raise CannotRun("Django is not installed here: `pip install -e .` first.")
    return series_of(version)


def probe(python: str | Path, code: str) -> str | None:
    """What a Python prints for some code, or None if it cannot run it."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", code],
            check=False,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def django_version(python: Path) -> str | None:
    return probe(python, "import django; print(django.get_version())")


def environment_for(series: str) -> Path:
    """This interpreter if it has the series, else one made under ``build/venvs``."""
    here = Path(sys.executable)
    if (version := django_version(here)) and series_of(version) == series:
        return here
    home = BUILD / "venvs" / f"django-{series}"
    python = home / "bin" / "python"
    if (version := django_version(python)) and series_of(version) == series:
        return python
    minimum = MINIMUM_PYTHON[series]
    try:
        call([str(ROOT / "tools" / "make_venv"), str(home), minimum, sys.executable])
    except CannotRun as error:
        raise CannotRun(
            f"DJANGO {series} NEEDS PYTHON >= {minimum}: {error} "
            f"`pyenv install {minimum}` is one way; --python PATH names another."
        ) from error
    call([str(python), "-m", "pip", "install", "-q", f"Django~={series}.0", *DRIVERS])
    return python


def download(python: Path, version: str) -> Path:
    """The unpacked source distribution of a version, downloaded once."""
    home = BUILD / "django"
    tree = home / f"django-{version}"
    if (tree / "tests" / "runtests.py").is_file():
        return tree
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        pip = [
            str(python),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "-q",
        ]
        what = ["--no-deps", "--no-binary", "Django", f"Django=={version}"]
        call([*pip, *what, "--dest", scratch])
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        (unpacked,) = (each for each in Path(scratch).iterdir() if each.is_dir())
        shutil.rmtree(tree, ignore_errors=True)
        unpacked.rename(tree)
    return tree


def version_of_tree(tree: Path) -> str:
    """The version a source tree says it is of."""
    for line in (tree / "PKG-INFO").read_text(encoding="utf-8").splitlines():
        if line.startswith("Version:"):
            return line.partition(":")[2].strip()
    raise CannotRun(f"{tree} does not say its version: no PKG-INFO.")


def call(command: list[str]) -> None:
    """Run a command; ``CannotRun`` with its last words if it fails."""
    print("+", " ".join(command), flush=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=INSTALL_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRun(f"`{' '.join(command)}`: {error}") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise CannotRun(f"`{' '.join(command)}` failed: {' '.join(words)}")
