"""The rig's command line: servers that stay up between commands."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbfleet.testing.rig import wait_until
from dbfleet.testing.rig.identity import unprivileged
from dbfleet.testing.rig.mariadb_binaries import find_mariadb
from dbfleet.testing.rig.mysql_binaries import find_mysql
from dbfleet.testing.rig.postgresql_binaries import find_postgresql
from dbfleet.testing.rig.processes import alive_pids
from tests.conftest import start_or_skip

TIMEOUT_S = 20.0
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "state.json"


@pytest.fixture
def command(
    state_file: Path, tmp_path: Path, environment: dict[str, str]
) -> Iterator[Command]:
    """Run one command of the rig with ``state_file``; servers end with the test."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-X", "dev", "-W", "error"),
                *("-m", "dbfleet.testing.rig", *arguments),
                *("--state", str(state_file)),
            ],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    yield run
    run("stop")


def test_cluster_stays_up_until_stopped(
    request: pytest.FixtureRequest, command: Command, state_file: Path, tmp_path: Path
) -> None:
    start_or_skip(
        request,
        "PostgreSQL",
        lambda: find_postgresql(unprivileged("postgres"), copies_in=tmp_path),
    )
    started = command("start", "--replicas", "1", "--databases", "a", "b")
    assert (started.returncode, started.stderr) == (0, "")
    state = json.loads(state_file.read_text())
    assert state_file.stat().st_mode & 0o777 == 0o600
    with psycopg.connect(state["databases"]["a"]["primary"]) as connection:
        assert connection.info.dbname == "a"
    [replica] = state["databases"]["b"]["replicas"]
    with psycopg.connect(replica) as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)

    shown = command("status")
    assert shown.returncode == 0
    assert [line.split()[1:] for line in shown.stdout.splitlines()[:2]] == [
        ["primary", str(state["servers"][0]["port"]), "running"],
        ["replica", str(state["servers"][1]["port"]), "running"],
    ]
    [secret] = {
        found[1]
        for urls in state["databases"].values()
        for url in [urls["primary"], *urls["replicas"]]
        if (found := re.search(r"dbfleet:(\w+)@", url))
    }
    assert secret not in started.stdout + shown.stdout

    again = command("start")
    assert again.returncode == 1
    assert "stop them first" in again.stderr
    assert json.loads(state_file.read_text()) == state

    assert command("stop").returncode == 0
    assert not {server["pid"] for server in state["servers"]} & alive_pids()
    assert not Path(state["directory"]).exists()
    assert not state_file.exists()


@pytest.mark.parametrize("engine", ["mariadb", "mysql"])
def test_dead_server_is_seen_and_replaced(
    request: pytest.FixtureRequest, command: Command, state_file: Path, engine: str
) -> None:
    if engine == "mysql":
        find = functools.partial(find_mysql, unprivileged("mysql"))
        start_or_skip(request, "MySQL", find, is_newer=True)
    else:
        start_or_skip(request, "MariaDB", find_mariadb)
    assert command("start", "--engine", engine).returncode == 0
    old = json.loads(state_file.read_text())
    [pid] = [server["pid"] for server in old["servers"]]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in alive_pids(), timeout_s=TIMEOUT_S, what="it ends")
    shown = command("status")
    assert shown.returncode == 1
    assert "stopped" in shown.stdout
    assert command("start", "--engine", engine).returncode == 0
    new = json.loads(state_file.read_text())
    assert not Path(old["directory"]).exists()
    assert Path(new["directory"]).exists()
    assert command("status").returncode == 0


def test_sqlite_needs_no_process(command: Command, state_file: Path) -> None:
    assert command("start", "--engine", "sqlite", "--databases", "a").returncode == 0
    state = json.loads(state_file.read_text())
    assert state["servers"] == []
    assert Path(state["databases"]["a"]["primary"].removeprefix("sqlite:///")).exists()
    assert command("status").returncode == 0
    assert command("stop").returncode == 0
    assert not Path(state["directory"]).exists()


def test_stop_leaves_a_process_alone_that_took_a_servers_id(
    command: Command, state_file: Path
) -> None:
    with (
        subprocess.Popen(["/bin/sleep", "600"]) as stranger,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(stranger.kill)
        write_state(
            state_file,
            servers=[
                {
                    "name": "gone",
                    "role": "primary",
                    "port": 1,
                    "pid": stranger.pid,
                    "data": "/nonexistent/data",
                    "stop_signal": "SIGTERM",
                }
            ],
        )
        assert "stopped" in command("status").stdout
        assert command("stop").returncode == 0
        assert stranger.poll() is None


def test_stop_deletes_only_what_the_rig_made(
    command: Command, state_file: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    write_state(state_file, directory=str(precious))
    stopped = command("stop")
    assert stopped.returncode == 1
    assert "was not made by the rig" in stopped.stderr
    assert precious.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_file_that_is_no_state_file_is_named(
    command: Command, state_file: Path, content: str
) -> None:
    state_file.parent.mkdir()
    state_file.write_text(content)
    for verb in ("start", "status", "stop"):
        done = command(verb)
        assert done.returncode == 1
        assert done.stderr == f"rig: {state_file} is not a state file of the rig\n"
    assert state_file.read_text() == content


def test_nothing_started(command: Command, state_file: Path) -> None:
    shown = command("status")
    assert shown.returncode == 1
    assert shown.stderr == (
        f"rig: {state_file} does not exist: nothing was started with it\n"
    )
    assert command("stop").returncode == 0


@pytest.mark.parametrize("replicas", ["-1", "many"])
def test_wrong_number_of_replicas_is_refused(command: Command, replicas: str) -> None:
    done = command("start", "--replicas", replicas)
    assert done.returncode == 2
    assert "--replicas" in done.stderr


def test_replicas_of_sqlite_are_refused(command: Command, state_file: Path) -> None:
    done = command("start", "--engine", "sqlite", "--replicas", "1")
    assert done.returncode == 1
    assert "SQLite has no replicas" in done.stderr
    assert not state_file.exists()


def test_failed_start_leaves_nothing(
    command: Command, state_file: Path, tmp_path: Path
) -> None:
    done = command(
        "start", "--engine", "sqlite", "--databases", "a b", "--base-dir", "x"
    )
    assert done.returncode == 1
    assert "cannot name a database" in done.stderr
    assert not state_file.exists()
    assert list((tmp_path / "x").iterdir()) == []


def write_state(path: Path, **changes: Any) -> None:
    state = {
        "engine": "postgresql",
        "directory": str(path.with_name("dbfleet-rig-gone")),
        "databases": {},
        "servers": [],
    }
    path.parent.mkdir()
    path.write_text(json.dumps(state | changes))
