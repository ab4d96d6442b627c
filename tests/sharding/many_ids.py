"""``python -m tests.sharding.many_ids``: time-ordered ids while all goes wrong.

Processes take ids of one home while each sees home's clock, and its own clocks, step by
seconds; they are paused, killed, started anew, and fork. Windows are short and numbers
few, so that each number passes through many hands. The last line says how many ids were
given and how many of them twice; the exit code is 1 if any was.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import django
from django.conf import settings

from dbfleet import Sharded, databases
from dbfleet.testing.rig import Rig

#: promised at once, instead of 10 s
WINDOW_MS, LEAST_MS = 60, 5
#: the clocks that a process sees are wrong by up to so many seconds
STEP_S = 5.0
COARSE_MS = 500
BATCHES = (1, 3, 50, 1000, 5000, 20_000)
#: batches of a process at least, so that a small run has its share of forks
MIN_BATCHES = 300
#: kills for each process of a run, and forks of one life, at most
MAX_KILLS, MAX_FORKS = 5, 20
#: questions to home that a life may have refused
MAX_REFUSED = 20
SIZE = 8
CHUNK = 16_384
#: after the last process should have ended
DEADLINE_S = 60


def main() -> int:
    options = _options()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(
        f"{options.count} ids, {options.processes} processes, seed {seed}", flush=True
    )
    with Rig() as rig, tempfile.TemporaryDirectory(dir=options.directory) as root:
        home = options.home or _home(rig, options.engine)
        _configure(home, options.processes)
        run = Run(Path(root), seed, options)
        run.all()
        issued, twice, falls = check(run.files())
    print(
        f"{run.started} lives, {run.kills} killed, {run.pauses} pauses, "
        f"{run.failed} failed, {falls} out of order"
    )
    print(f"ids: {issued} issued, {twice} duplicates")
    is_good = not (twice or falls or run.failed) and issued >= options.count
    return 0 if is_good else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sharding.many_ids")
    parser.add_argument("--count", type=int, default=10**6, help="ids in all")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--seed", type=int, help="of clocks and faults; printed")
    parser.add_argument(
        "--engine", choices=["postgresql", "mariadb", "sqlite"], default="sqlite"
    )
    parser.add_argument("--home", help="URL of an empty database, instead of --engine")
    parser.add_argument("--directory", help="for 8 bytes an id; default: temporary")
    return parser.parse_args()


def _home(rig: Rig, engine: str) -> str:
    if engine == "sqlite":
        return str(rig.sqlite(databases=["home"]).url("home"))
    start = rig.postgresql_cluster if engine == "postgresql" else rig.mariadb_cluster
    return str(start(databases=["home"]).url("home"))


def _configure(home: str, processes: int) -> None:
    if home.startswith(("mysql", "mariadb")):
        import pymysql

        pymysql.install_as_MySQLdb()
    # The shard is declared and never asked: ids come from home alone.
    more: dict[str, Any] = {}
    if home.startswith("sqlite"):
        more["OPTIONS"] = {"init_command": "PRAGMA synchronous = OFF"}
    entry = Sharded(home=home, shards={"a": f"{home}_never_asked"}, **more)
    settings.configure(DATABASES=databases(default=entry), INSTALLED_APPS=[])
    django.setup()
    import_module("dbfleet.sharding.ids")  # before forks, not in each
    from dbfleet.sharding import clock_ids, workers

    clock_ids.WINDOW_MS, clock_ids.LEAST_MS = WINDOW_MS, LEAST_MS
    workers.LEAST_MS = LEAST_MS
    clock_ids.WORKERS = 2 * processes


class Run:
    """Starts processes, torments them, and starts those anew that it killed."""

    def __init__(self, root: Path, seed: int, options: argparse.Namespace) -> None:
        self.root, self.random = root, random.Random(seed)
        self.quota = -(-options.count // options.processes)
        self.max_kills = MAX_KILLS * options.processes
        self.slots: dict[int, int] = {}  # slot -> process
        self.idle = list(range(options.processes))
        self.paused: dict[int, float] = {}
        self.started = self.kills = self.pauses = self.failed = 0
        # Held by all processes that give ids, forks of forks included.
        self.ended, self.alive = os.pipe()

    def files(self, slot: int | None = None) -> list[Path]:
        return sorted(self.root.glob(f"{'*' if slot is None else slot}.*"))

    def all(self) -> None:
        try:
            while self.idle or self.slots:
                while self.idle:
                    self._start(self.idle.pop())
                time.sleep(self.random.uniform(0.002, 0.03))  # until the next fault
                self._reap()
                self._torment()
        finally:
            for process in self.slots.values():
                os.kill(process, signal.SIGCONT)
        os.close(self.alive)
        ready, _, _ = select.select([self.ended], [], [], DEADLINE_S)
        if not ready:
            self.failed += 1
            print("a forked process did not end")

    def _start(self, slot: int) -> None:
        there = sum(path.stat().st_size for path in self.files(slot)) // SIZE
        if there >= self.quota:
            return
        self.started += 1
        seed = self.random.getrandbits(32)
        process = os.fork()
        if process == 0:
            os.close(self.ended)
            name = f"{slot}.{self.started}"
            _live(self.root / name, random.Random(seed), self.quota - there)
        self.slots[slot] = process

    def _reap(self) -> None:
        for slot, process in list(self.slots.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if not ended:
                continue
            del self.slots[slot]
            self.paused.pop(process, None)
            if os.WIFSIGNALED(status):
                self.idle.append(slot)
            elif status:
                self.failed += 1

    def _torment(self) -> None:
        for process, until in list(self.paused.items()):
            if time.monotonic() > until:
                del self.paused[process]
                os.kill(process, signal.SIGCONT)
        chance = self.random.random()
        if not self.slots:
            return
        process = self.random.choice(list(self.slots.values()))
        if chance < 0.05 and self.kills < self.max_kills:
            self.kills += 1
            self.paused.pop(process, None)
            os.kill(process, signal.SIGKILL)
        elif chance < 0.3 and process not in self.paused:
            self.pauses += 1
            self.paused[process] = time.monotonic() + self.random.uniform(0.01, 0.3)
            os.kill(process, signal.SIGSTOP)


def _live(path: Path, chance: random.Random, count: int) -> NoReturn:
    """A process that gives ``count`` ids; never returns."""
    code = 1
    try:
        from dbfleet.sharding import ids

        ids.TimeIds = partial(wrong_clocks(), chance)  # type: ignore[assignment]
        _give(path, chance, count)
        code = 0
    except BaseException:  # noqa: BLE001 - the parent learns of any by the exit code
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def _give(path: Path, chance: random.Random, count: int) -> None:
    from django.db import OperationalError, connections

    from dbfleet.sharding import ids

    wrapper, forks, children = connections["default"], 0, []
    refused = 0
    batches = [one for one in BATCHES if one * MIN_BATCHES <= count] or BATCHES[:1]
    with path.open("ab", buffering=0) as target:
        while count > 0:
            try:
                found = ids.take_timed(wrapper, min(chance.choice(batches), count))
            except OperationalError:  # who holds home's lock is paused
                refused += 1
                if refused > MAX_REFUSED:
                    raise
                continue
            target.write(array("q", found).tobytes())
            count -= len(found)
            if chance.random() < 0.02 and forks < MAX_FORKS and "f" not in path.name:
                forks += 1
                some = min(count, max(batches) * 3)
                count -= some
                seed = chance.getrandbits(32)
                child = os.fork()
                if child == 0:
                    name = f"{path.name}f{forks}"
                    _live(path.with_name(name), random.Random(seed), some)
                children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("a forked process failed")


def wrong_clocks() -> Any:
    """Ids of a process that is told another time by home with each question, and
    whose own clocks step; made once Django is set up."""
    from dbfleet.sharding.workers import TimeIds

    class WrongClocks(TimeIds):
        def __init__(self, chance: random.Random) -> None:
            super().__init__(self._stepping_monotonic, self._stepping_wall)
            self._chance, self._off_s, self._wall_off_s = chance, 0.0, 0.0

        def _stepping_monotonic(self) -> float:
            if self._chance.random() < 0.01:
                self._off_s = self._chance.uniform(-STEP_S, STEP_S)
            return time.monotonic() + self._off_s

        def _stepping_wall(self) -> float:
            if self._chance.random() < 0.01:
                self._wall_off_s = self._chance.uniform(-STEP_S, STEP_S)
            return time.time() + self._wall_off_s + self._off_s

        def _ask(self, engine: Any, node: Any) -> tuple[int, dict[int, int]]:
            now_ms, promised = super()._ask(engine, node)
            off_s = self._chance.choice([0, self._chance.uniform(-STEP_S, STEP_S)])
            now_ms += int(off_s * 1000)
            # A clock that stands still makes processes meet in one millisecond.
            return now_ms // COARSE_MS * COARSE_MS, promised

    return WrongClocks


def check(paths: Iterable[Path]) -> tuple[int, int, int]:
    """How many ids there are, how many of them twice, how many below one before.

    The ids of a process rise, so equal ones meet when all files are read side by side;
    in memory are :data:`CHUNK` ids of each file.
    """
    readers = [_Reader(path) for path in paths]
    count = twice = 0
    while unread := [reader for reader in readers if reader.fill()]:
        last = min(reader.buffer[-1] for reader in unread)
        here = [one for reader in unread for one in reader.up_to(last)]
        count += len(here)
        twice += len(here) - len(set(here))
    return count, twice, sum(reader.falls for reader in readers)


class _Reader:
    """The ids of one process."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.last, self.falls = path, 0, -1, 0
        self.buffer: array[int] = array("q")

    def fill(self) -> bool:
        """Read on if all was taken; whether there are ids left."""
        if self.buffer:
            return True
        with self.path.open("rb") as source:
            source.seek(self.offset)
            data = source.read(CHUNK * SIZE)
        self.offset += len(data)
        found = array("q", data[: len(data) // SIZE * SIZE])  # killed in the middle
        if found:
            rising = sorted(found)
            if found[0] <= self.last or found.tolist() != rising:
                self.falls += 1
            self.last = rising[-1]
            self.buffer = array("q", rising)
        return bool(found)

    def up_to(self, last: int) -> array[int]:
        at = bisect_right(self.buffer, last)
        found, self.buffer = self.buffer[:at], self.buffer[at:]
        return found


if __name__ == "__main__":
    raise SystemExit(main())
