"""``python -m dbfleet.testing.rig``: a cluster that stays up between commands.

``start`` starts servers and describes them in a *state file*; ``status`` and
``stop`` need nothing else. Guards two invariants: servers stay up only once the
state file is written, so none is ever lost, and ``stop`` signals a process only
if it serves the directory that the state file names. The state file holds
passwords and is readable by its owner alone; nothing printed holds one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dbfleet.testing.rig import DatabaseServer, Rig, ServerCluster
from dbfleet.testing.rig.errors import DeadlineExceeded, RigError
from dbfleet.testing.rig.identity import BASE_PREFIX
from dbfleet.testing.rig.processes import alive_pids, command_line
from dbfleet.testing.rig.server import STOP_TIMEOUT_S, make_password
from dbfleet.testing.rig.waiting import wait_until

State = dict[str, Any]

FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    commands = {"start": _start, "status": _status, "stop": _stop}
    try:
        return commands[options.command](options)
    except RigError as error:
        sys.stderr.write(f"rig: {error}\n")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dbfleet.testing.rig",
        description="Start, show and stop real database servers.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="start servers and leave them running")
    start.add_argument(
        "--engine",
        choices=["postgresql", "mariadb", "mysql", "sqlite"],
        default="postgresql",
    )
    start.add_argument("--replicas", type=_count, default=0, metavar="N")
    start.add_argument("--databases", nargs="+", default=["dbfleet"], metavar="NAME")
    start.add_argument("--durable", action="store_true", help="survive a loss of power")
    start.add_argument("--base-dir", type=Path, metavar="DIR")
    status = commands.add_parser("status", help="exit status 1 unless all run")
    stop = commands.add_parser("stop", help="stop the servers and delete their files")
    for command in (start, status, stop):
        command.add_argument("--state", type=Path, required=True, metavar="FILE")
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError(text)
    return count


def _start(options: argparse.Namespace) -> int:
    if options.replicas and options.engine == "sqlite":
        raise RigError("SQLite has no replicas: leave --replicas out")
    if options.state.exists():
        old = _read(options.state)
        if any(_is_running(server) for server in old["servers"]):
            raise RigError(f"the servers of {options.state} run: stop them first")
        _delete_files(old)
    with Rig(options.base_dir, options.durable, password=make_password()) as rig:
        state = _start_servers(rig, options)
        _write(options.state, state)
        rig.detach()
    _print(state)
    return 0


def _status(options: argparse.Namespace) -> int:
    state = _read(options.state)
    _print(state)
    return 0 if all(_is_running(server) for server in state["servers"]) else FAILED


def _stop(options: argparse.Namespace) -> int:
    if not options.state.exists():
        return 0
    state = _read(options.state)
    # Replicas first: a primary that stops waits for those it feeds.
    for server in reversed(state["servers"]):
        _end(server)
    _delete_files(state)
    options.state.unlink()
    return 0


def _start_servers(rig: Rig, options: argparse.Namespace) -> State:
    servers: list[DatabaseServer] = []
    urls: dict[str, dict[str, Any]] = {}
    if options.engine == "sqlite":
        files = rig.sqlite(databases=options.databases)
        urls = {
            name: {"primary": files.url(name), "replicas": []}
            for name in options.databases
        }
    else:
        starts: dict[str, Callable[..., ServerCluster[Any, Any]]] = {
            "postgresql": rig.postgresql_cluster,
            "mariadb": rig.mariadb_cluster,
            "mysql": rig.mysql_cluster,
        }
        start = starts[options.engine]
        cluster = start(options.replicas, databases=options.databases)
        servers = cluster.servers
        urls = {
            name: {"primary": cluster.url(name), "replicas": cluster.replica_urls(name)}
            for name in options.databases
        }
    return {
        "engine": options.engine,
        "directory": str(rig.directory),
        "databases": urls,
        "servers": [_describe(server) for server in servers],
    }


def _describe(server: DatabaseServer) -> State:
    return {
        "name": server.name,
        "role": server.role,
        "host": server.host,
        "port": server.port,
        "pid": server.pid,
        "data": str(server.data_directory),
        "stop_signal": server.stop_signals["fast"].name,
    }


def _is_running(server: State) -> bool:
    """Tell whether the process of ``server`` lives and is still that server."""
    return server["pid"] in alive_pids() and server["data"] in command_line(
        server["pid"]
    )


def _end(server: State) -> None:
    if not _is_running(server):
        return
    pid = server["pid"]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.Signals[server["stop_signal"]])
        # It may have been paused.
        os.kill(pid, signal.SIGCONT)
    try:
        wait_until(
            lambda: pid not in alive_pids(),
            timeout_s=STOP_TIMEOUT_S,
            what=f"{server['name']} stops",
        )
    except DeadlineExceeded as error:
        sys.stderr.write(f"rig: {error}; it is killed\n")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _read(path: Path) -> State:
    try:
        state = json.loads(path.read_text())
    except FileNotFoundError:
        raise RigError(f"{path} does not exist: nothing was started with it") from None
    except ValueError:
        state = None
    if not isinstance(state, dict) or not {"servers", "directory"} <= state.keys():
        raise RigError(f"{path} is not a state file of the rig")
    return state


def _write(path: Path, state: State) -> None:
    """Write the state file at once or not at all, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        json.dump(state, file, indent=2)
    beside.replace(path)


def _delete_files(state: State) -> None:
    directory = Path(state["directory"])
    if not directory.name.startswith(BASE_PREFIX):
        raise RigError(f"{directory} was not made by the rig: it is left alone")
    shutil.rmtree(directory, ignore_errors=True)


def _print(state: State) -> None:
    for server in state["servers"]:
        condition = "running" if _is_running(server) else "stopped"
        sys.stdout.write(
            f"{server['name']:<24} {server['role']:<8} {server['port']} {condition}\n"
        )
    sys.stdout.write(f"databases: {', '.join(state['databases'])}\n")
