"""Processes of the rig end with whom they belong to, and with nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dbfleet.testing.rig import DeadlineExceeded, Rig, ServerFailed, wait_until
from dbfleet.testing.rig.identity import Identity, run_tool
from dbfleet.testing.rig.ports import free_port, give_back
from dbfleet.testing.rig.processes import (
    ServerProcess,
    alive_pids,
    child_pids,
    command_line,
)

RunOwner = Callable[[str], tuple[int, list[str], int]]

TIMEOUT_S = 20.0
MYSELF = Identity("me", None, None)

#: Starts a server that forks a child, says its id, then ends as its argument says.
OWNER = """
import os, signal, sys
from pathlib import Path
from dbfleet.testing.rig.identity import Identity
from dbfleet.testing.rig.processes import ServerProcess

server = ServerProcess(
    ["/bin/sleep", "600"],
    directory=Path.cwd(),
    identity=Identity("me", None, None),
)
server.start()
print(server.pid, flush=True)
match sys.argv[1]:
    case "returns":
        pass
    case "raises":
        raise SystemExit(3)
    case "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    case "is killed while the server is frozen":
        server.freeze()
        os.kill(os.getpid(), signal.SIGKILL)
    case "forks":
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        print(server.is_running, flush=True)
    case "detaches":
        server.detach()
"""


#: Makes two rigs, says where, then ends as its argument says.
OWNER_OF_FILES = """
import os, signal, sys
from dbfleet.testing.rig import Rig

rig, other = Rig(sys.argv[1]), Rig(sys.argv[1])
print(rig.directory, other.directory, sep="\\n", flush=True)
if sys.argv[2] == "detaches":
    rig.detach()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture
def family(tmp_path: Path) -> Iterator[ServerProcess]:
    """A shell with two children."""
    server = ServerProcess(
        ["/bin/sh", "-c", "sleep 600 & sleep 601 & echo ready >&2; wait"],
        directory=tmp_path,
        identity=MYSELF,
    )
    server.start()
    assert server.pid is not None
    pid = server.pid
    wait_until(
        lambda: len(child_pids(pid)) == 2, timeout_s=TIMEOUT_S, what="children start"
    )
    yield server
    server.kill()


@pytest.fixture
def run_owner(tmp_path: Path, environment: dict[str, str]) -> RunOwner:
    """Run an interpreter that owns a server; return its id, the output and status."""

    def run(ending: str) -> tuple[int, list[str], int]:
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", OWNER, ending],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        pid, *rest = done.stdout.split()
        return int(pid), rest, done.returncode

    return run


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("returns", 0),
        ("raises", 3),
        ("is killed", -signal.SIGKILL),
        ("is killed while the server is frozen", -signal.SIGKILL),
    ],
)
def test_server_ends_with_its_owner(
    run_owner: RunOwner, ending: str, status: int
) -> None:
    pid, _, returned = run_owner(ending)
    assert returned == status
    wait_until(
        lambda: pid not in alive_pids(), timeout_s=TIMEOUT_S, what="the server ends"
    )


def test_end_of_a_forked_child_leaves_the_server_alone(run_owner: RunOwner) -> None:
    pid, output, _ = run_owner("forks")
    assert output == ["True"]
    wait_until(
        lambda: pid not in alive_pids(), timeout_s=TIMEOUT_S, what="the server ends"
    )


def test_detached_server_stays(run_owner: RunOwner) -> None:
    pid, _, returned = run_owner("detaches")
    assert returned == 0
    assert command_line(pid).split() == ["/bin/sleep", "600"]
    os.kill(pid, signal.SIGKILL)


def test_kill_ends_the_children_too(family: ServerProcess) -> None:
    assert family.pid is not None
    everybody = {family.pid, *child_pids(family.pid)}
    assert len(everybody) == 3
    family.kill()
    assert not family.is_running
    assert not everybody & alive_pids()
    family.kill()


def test_freeze_stops_all_and_thaw_lets_all_go_on(family: ServerProcess) -> None:
    assert family.pid is not None
    everybody = {family.pid, *child_pids(family.pid)}

    def states() -> set[str]:
        shown = subprocess.run(
            ["ps", "-o", "state=", "-p", ",".join(map(str, everybody))],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        return set(shown.stdout.split())

    family.freeze()
    wait_until(lambda: states() == {"T"}, timeout_s=TIMEOUT_S, what="all are stopped")
    assert family.is_running
    family.thaw()
    wait_until(lambda: states() == {"S"}, timeout_s=TIMEOUT_S, what="all go on")


def test_wait_for_a_process_that_stays_quotes_its_log(family: ServerProcess) -> None:
    with pytest.raises(DeadlineExceeded, match=r"sh did not end(?s:.*)ready"):
        family.wait(0.1)


def test_program_that_cannot_run_is_named(tmp_path: Path) -> None:
    server = ServerProcess([tmp_path / "absent"], directory=tmp_path, identity=MYSELF)
    with pytest.raises(ServerFailed, match="absent cannot be run as me: No such file"):
        server.start()
    with pytest.raises(ServerFailed, match="absent cannot be run as me: No such file"):
        run_tool([tmp_path / "absent"], directory=tmp_path, identity=MYSELF)


def test_failing_tool_is_quoted_without_its_environment(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed) as caught:
        run_tool(
            ["/bin/sh", "-c", "echo one; echo two >&2; exit 4"],
            directory=tmp_path,
            identity=MYSELF,
            environment={"PGPASSWORD": "hidden"},
        )
    assert str(caught.value) == (
        "sh failed with exit status 4; it said:\n    one\n    two"
    )


def test_tool_has_a_deadline(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match=r"sleep did not end after 0\.1 s"):
        run_tool(
            ["/bin/sleep", "600"], directory=tmp_path, identity=MYSELF, timeout_s=0.1
        )


def test_condition_is_tried_at_least_once_and_has_a_deadline() -> None:
    wait_until(lambda: True, timeout_s=0, what="nothing")
    with pytest.raises(DeadlineExceeded, match=r"^a miracle: not after 0\.05 s$"):
        wait_until(lambda: False, timeout_s=0.05, what="a miracle")


def test_ports_are_distinct_and_below_those_of_outgoing_connections() -> None:
    given = [free_port() for _ in range(100)]
    assert len(set(given)) == 100
    assert all(20_000 <= port < 30_000 for port in given)
    for port in given:
        give_back(port)


def test_stopped_rig_leaves_no_file(open_directory: Path) -> None:
    with Rig(open_directory / "new") as rig:
        rig.sqlite(databases=["a"])
        assert rig.directory.parent == open_directory / "new"
    assert list((open_directory / "new").iterdir()) == []
    rig.stop()


@pytest.mark.parametrize(
    ("ending", "is_kept"), [("is killed", False), ("detaches", True)]
)
def test_files_of_a_rig_end_with_their_owner_unless_detached(
    open_directory: Path, environment: dict[str, str], ending: str, is_kept: bool
) -> None:
    base = open_directory / "a b  c"
    done = subprocess.run(
        [sys.executable, "-c", OWNER_OF_FILES, base, ending],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    kept, other = (Path(line) for line in done.stdout.splitlines())
    assert kept.parent == base
    # The guard deletes in the order of making.
    wait_until(
        lambda: not other.exists(), timeout_s=TIMEOUT_S, what="the files are deleted"
    )
    assert kept.exists() == is_kept


def test_names_of_clusters_do_not_collide(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        one, other = rig.sqlite(databases=["a"]), rig.sqlite(databases=["a"])
        assert one.url("a") != other.url("a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another user")
def test_directory_that_the_servers_user_cannot_enter_is_not_used(
    tmp_path: Path,
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with Rig(closed) as rig:
        assert closed not in rig.directory.parents
