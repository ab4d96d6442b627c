"""Child processes and files that outlive neither their use nor their parent.

Guards one invariant: what is started here ends with the interpreter, whether that
returns, raises, or is killed: ``atexit`` covers the first two, a *guard* process
that watches a pipe the last. Only what was *detached* stays. A forked copy of the
interpreter never touches what its parent started.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from dbfleet.testing.rig.errors import DeadlineExceeded, ServerFailed
from dbfleet.testing.rig.identity import Identity, last_lines, server_environment
from dbfleet.testing.rig.waiting import wait_until

KILL_TIMEOUT_S = 30.0
LOG_NAME = "server.log"
QUOTED_BYTES = 8192

# Reads what there is to end, one verb and its object per line. When the pipe closes,
# ends the processes and deletes the directories that are left.
GUARD = """
pids=''
directories=''
while read -r verb object; do
    case $verb in
    add) pids="$pids $object" ;;
    del)
        left=''
        for pid in $pids; do [ "$pid" = "$object" ] || left="$left $pid"; done
        pids=$left ;;
    delete) directories="$directories$object
" ;;
    keep)
        directories="$(printf %s "$directories" | grep -Fxv -e "$object")
" ;;
    esac
done
[ -z "$pids" ] || { kill -QUIT $pids; kill -CONT $pids; }
for second in 1 2 3 4 5 6 7 8; do
    left=''
    for pid in $pids; do kill -0 "$pid" && left="$left $pid"; done
    pids=$left
    [ -n "$pids" ] || break
    sleep 1
done
[ -z "$pids" ] || kill -KILL $pids
printf %s "$directories" | while read -r directory; do
    [ -z "$directory" ] || rm -rf -- "$directory"
done
"""


class ServerProcess:
    """One server program, its process and the processes that it started."""

    def __init__(
        self,
        argv: list[str | Path],
        *,
        directory: Path,
        identity: Identity,
    ) -> None:
        self.argv = argv
        self.directory = directory
        self.identity = identity
        self._popen: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @property
    def pid(self) -> int | None:
        """The id of the process that was started last; None before."""
        return None if self._popen is None else self._popen.pid

    @property
    def is_running(self) -> bool:
        """Tell whether the process has not ended (a stopped one is running)."""
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Start the program; its output is appended to its log."""
        try:
            with (self.directory / LOG_NAME).open("ab") as log:
                self._popen = subprocess.Popen(
                    self.argv,
                    cwd=self.directory,
                    env=server_environment(self.directory),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C is for the tests; they end their servers themselves.
                    start_new_session=True,
                    **self.identity.popen_options(),
                )
        except OSError as error:
            raise ServerFailed(
                f"{Path(self.argv[0]).name} cannot be run as "
                f"{self.identity.name}: {error.strerror}"
            ) from error
        guarded.add(self)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server's first process alone."""
        if self.is_running and self._is_mine():
            assert self._popen is not None
            self._popen.send_signal(number)

    def freeze(self) -> None:
        """Stop the server and all its children; no connection gets an answer."""
        # The parent first, so that it cannot start or miss a child meanwhile.
        self.send(signal.SIGSTOP)
        self._send_children(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._send_children(signal.SIGCONT)
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """End the server and all its children at once, as a power cut would."""
        if not self._is_mine() or not self.is_running:
            return
        # Stopped, it cannot start another child meanwhile.
        self.send(signal.SIGSTOP)
        children = self._send_children(signal.SIGKILL)
        self.send(signal.SIGKILL)
        self.wait(KILL_TIMEOUT_S)
        wait_until(
            lambda: not alive_pids() & children,
            timeout_s=KILL_TIMEOUT_S,
            what=f"the children of {Path(self.argv[0]).name} end",
        )

    def wait(self, timeout_s: float) -> int:
        """Wait until the process has ended and return its exit status."""
        assert self._popen is not None
        try:
            status = self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded(
                f"{Path(self.argv[0]).name} did not end after {timeout_s:g} s; "
                f"its log ends:\n{self.log_tail()}"
            ) from None
        guarded.discard(self)
        return status

    def detach(self) -> None:
        """Let the process outlive this interpreter; it is out of reach then."""
        guarded.discard(self)
        if self._popen is not None and self._popen.returncode is None:
            # Otherwise Popen takes a running child at the end for a leak.
            self._popen.returncode = 0

    def log_tail(self) -> str:
        """Return the last lines that the server printed."""
        with contextlib.suppress(FileNotFoundError):
            content = (self.directory / LOG_NAME).read_bytes()[-QUOTED_BYTES:]
            return last_lines(content.decode(errors="replace"))
        return last_lines("")

    def _is_mine(self) -> bool:
        return os.getpid() == self._owner

    def _send_children(self, number: signal.Signals) -> set[int]:
        if self.pid is None or not self.is_running or not self._is_mine():
            return set()
        children = child_pids(self.pid)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return children


def child_pids(parent: int) -> set[int]:
    """Return the ids of the living processes that ``parent`` started."""
    return {pid for pid, ppid, state in _processes() if ppid == parent and state != "Z"}


def alive_pids() -> set[int]:
    """Return the ids of all processes, without those that ended unwaited for."""
    return {pid for pid, _, state in _processes() if state != "Z"}


def command_line(pid: int) -> str:
    """Return the command line of a process, or an empty text if there is none."""
    try:
        return Path("/proc", str(pid), "cmdline").read_text().replace("\0", " ")
    except FileNotFoundError:
        shown = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=KILL_TIMEOUT_S,
            check=False,
        )
        return shown.stdout.strip()


def _processes() -> Iterator[tuple[int, int, str]]:
    """Yield id, parent's id and state of every process of the machine."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,state="],
            capture_output=True,
            text=True,
            timeout=KILL_TIMEOUT_S,
            check=True,
        ).stdout
        for line in listing.splitlines():
            pid, ppid, state = line.split()
            yield int(pid), int(ppid), state[0]
        return
    for name in os.listdir("/proc"):
        if name.isdigit():
            # A process may end between the listing and the reading.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path("/proc", name, "stat").read_text(errors="replace")
                # The program's name, in parentheses, may hold anything.
                state, ppid = stat.rpartition(")")[2].split()[:2]
                yield int(name), int(ppid), state


class Guarded:
    """What must not outlive this interpreter, and the guard that sees to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects all below
        self._servers: dict[int, ServerProcess] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def add(self, server: ServerProcess) -> None:
        with self._lock:
            self._start_guard()
            assert server.pid is not None
            self._servers[server.pid] = server
            self._tell("add", server.pid)

    def discard(self, server: ServerProcess) -> None:
        with self._lock:
            if server.pid is not None and server.pid in self._servers:
                del self._servers[server.pid]
                self._tell("del", server.pid)

    def add_directory(self, directory: Path) -> None:
        with self._lock:
            self._start_guard()
            self._tell("delete", directory)

    def keep_directory(self, directory: Path) -> None:
        with self._lock:
            self._tell("keep", directory)

    def end(self) -> None:
        """Kill what still runs, then let the guard go."""
        if os.getpid() != self._owner:
            return
        for server in list(self._servers.values()):
            with contextlib.suppress(DeadlineExceeded):
                server.kill()
        with self._lock:
            if self._guard is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._guard.communicate(timeout=KILL_TIMEOUT_S)
                self._guard = None

    def _start_guard(self) -> None:
        if self._guard is not None and self._owner == os.getpid():
            return
        if not self._owner:
            atexit.register(self.end)
        self._owner = os.getpid()
        self._servers = {}
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _tell(self, verb: str, what: int | Path) -> None:
        if self._guard is not None and self._owner == os.getpid():
            assert self._guard.stdin is not None
            # A guard that somebody killed guards no more; atexit still does.
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(os.fsencode(f"{verb} {what}\n"))
                self._guard.stdin.flush()


guarded = Guarded()
