"""A missing server is said loudly: a skip by default, a failure where required."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import REPOSITORY

TEST = """
from dbfleet.testing.rig.errors import ServerUnavailable
from tests.conftest import start_or_skip


def test_on_a_server(request):
    def start():
        raise ServerUnavailable("get it there")

    start_or_skip(request, "ExampleDB", start)
"""


def run(directory: Path, *, required: str) -> subprocess.CompletedProcess[str]:
    """Run one test that needs a missing server, in a pytest of its own."""
    test = directory / "test_server.py"
    test.write_text(TEST)
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest"),
            *("-p", "no:cacheprovider", "-p", "no:django", "--rootdir", directory),
            *("-c", os.devnull, test),
        ],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'src'}",
            "DBFLEET_REQUIRE_SERVERS": required,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_missing_server_skips_with_the_way_to_get_it(tmp_path: Path) -> None:
    done = run(tmp_path, required="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped" in done.stdout
    assert "NOT TESTED: ExampleDB is missing. get it there" in done.stdout


@pytest.mark.parametrize("required", ["1", "true"])
def test_missing_server_fails_where_required(tmp_path: Path, required: str) -> None:
    done = run(tmp_path, required=required)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ExampleDB is required here: get it there" in done.stdout
