"""What clients do: reads and writes of the ORM and of raw SQL, each checked at once.

Guards one invariant: an outcome is noted as the error's class says, never guessed from
what is stored.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any

from django.db import Error, InterfaceError, OperationalError, connection, transaction

import dbfleet
from dbfleet.errors import CommitUnknown, FleetError, NodeUnavailable, WriteLost
from tests.faults.replicas import promises
from tests.faults.replicas.models import Line, Register
from tests.faults.replicas.promises import Promises, Row
from tests.faults.replicas.recorder import Recorder
from tests.faults.replicas.servers import REGISTERS

MAX_LAG_S = 0.5
#: for mypy the function ``session`` is the module of that name
FLEET: Any = dbfleet
FIELDS = ("id", "counter", "seen_register", "seen_counter")
_UPDATE = (
    "UPDATE replicas_register SET counter = %s, seen_register = %s, seen_counter = %s "
    "WHERE id = %s AND counter < %s"
)
_INSERT = "INSERT INTO replicas_line (operation) VALUES (%s)"
_SELECT = (
    "SELECT id, counter, seen_register, seen_counter FROM replicas_register "
    "WHERE id = %s"
)
#: so that lines of two clients never have the same number
LINES_EACH = 10**9


class Rollback(Exception):
    """Ends a transaction on purpose."""


class Told:
    """What a client was told of its lines; shared by the clients of a process."""

    def __init__(self) -> None:
        self.lines: dict[str, list[int]] = {"done": [], "refused": [], "unknown": []}


class Client:
    """One writer and its session of the moment."""

    def __init__(
        self,
        number: int,
        seed: str,
        recorder: Recorder,
        told: Told,
        truth: Callable[[int], int | None],
    ) -> None:
        self.number, self.recorder, self._told = number, recorder, told
        self.chance = random.Random(f"{seed}-{number}")
        self._truth = truth
        self.session = 0
        self.promises = Promises()
        self.counter = self._lines = 0
        #: what a write says it follows: a register that the session has read
        self._seen = (0, 0)
        #: of which history the last write is, see ``Shared.leader``
        self._history = 0
        #: an error was seen since connections were looked at
        self.has_failed = False

    # -- sessions -------------------------------------------------------------------

    def begin(self) -> None:
        """A new session: nothing was seen."""
        self.session += 1
        self.promises, self._seen = Promises(), (0, 0)

    @contextlib.contextmanager
    def nested(self) -> Iterator[None]:
        """A session of its own inside another one, which goes on afterwards."""
        before = self.promises, self._seen
        self.promises, self._seen = Promises(), (0, 0)
        try:
            with FLEET.session():
                yield
        finally:
            self.promises, self._seen = before

    # -- writes ---------------------------------------------------------------------

    def write(self, how: str = "") -> None:
        """Count the own register up, in one of several ways."""
        how = how or self.chance.choices(list(WRITES), WEIGHTS)[0]
        counter, at = self.next_counter(), time.monotonic()
        error = None
        try:
            WRITES[how](self.number, counter, self._seen)
        except (Error, FleetError) as raised:
            error = raised
        self.written(f"write {how}", counter, at, error)

    def next_counter(self) -> int:
        self.counter += 1
        self._history = self.recorder.shared.leader[1]
        self.recorder.shared.started[self.number] = self.counter
        return self.counter

    @property
    def seen(self) -> tuple[int, int]:
        return self._seen

    def written(
        self, kind: str, counter: int, at: float, error: BaseException | None
    ) -> None:
        """Note a write and what it promises from now on."""
        is_atomic = not kind.endswith(("autocommit", "raw", "executemany"))
        outcome, found = outcome_of(error, is_atomic=is_atomic), []
        if isinstance(error, Missed):
            found = [f"missed: register {self.number} had more than {counter}"]
        if outcome == "unknown":
            stored = self._truth(self.number)
            if stored is not None and stored >= counter:
                outcome = "unknown, done"
        if outcome in ("done", "unknown, done"):
            self.promises.wrote(self.number, counter)
            if self._history == self.recorder.shared.leader[1]:
                self.recorder.shared.acknowledged[self.number] = counter
        self._note(kind, "", at, outcome, counter, found, error)

    def append(self) -> None:
        """Insert lines, in one of several ways."""
        how = self.chance.choice(list(APPENDS))
        numbers = []
        for _ in range(self.chance.choice((1, 2)) if how in MANY else 1):
            self._lines += 1
            numbers.append(self.number * LINES_EACH + self._lines)
        at, error = time.monotonic(), None
        try:
            APPENDS[how](numbers)
        except (Error, FleetError) as raised:
            error = raised
        outcome = outcome_of(error, is_atomic=how in ("atomic", "bulk"))
        self._told.lines[outcome] += numbers
        if outcome == "done":
            self.promises.wrote_lines(numbers)
        self._note(f"append {how}", "", at, outcome, numbers, (), error)

    # -- reads ----------------------------------------------------------------------

    def which(self) -> int:
        """A register: the own one, one that something is known of, any."""
        kind = self.chance.random()
        if kind < 0.35:
            return self.number
        if kind < 0.65 and self.promises.least:
            return self.chance.choice(list(self.promises.least))
        return self.chance.randrange(REGISTERS)

    def read(self) -> None:
        """Read one register, several or all of them."""
        how = self.chance.choices(list(READS), READ_WEIGHTS)[0]
        self._read(f"read {how}", "session", READS[how])

    def read_own(self) -> None:
        self._read("read own", "session", _own)

    def glance(self) -> None:
        """Read something while another thread works for the session: what that one
        writes may be seen or not, so nothing is checked."""
        try:
            Register.objects.filter(pk=self.number).exists()
        except (Error, FleetError) as error:
            self.was_told(error)

    def was_told(self, error: BaseException | None) -> None:
        """An error that says that something was lost ends what the session knew."""
        if isinstance(error, WriteLost):
            self.promises, self._seen = Promises(), (0, 0)

    def read_at(self, level: str) -> None:
        """Read at another level than the usual one."""
        chosen: Any = dbfleet.bounded(MAX_LAG_S) if level == "bounded" else level
        with dbfleet.consistency(chosen):
            self._read("read one", level, READS["one"])

    def _read(
        self, kind: str, level: str, how: Callable[[Client, list[Row]], Any]
    ) -> None:
        at, before = time.monotonic(), self._before(level)
        rows: list[Row] = []
        found: list[str] = []
        error = None
        try:
            found += how(self, rows) or ()
        except (Error, FleetError) as raised:
            error = raised
        found += self.seen_rows(rows, level, before)
        self.note_read(kind, at, rows, found, error, level)

    def note_read(
        self,
        kind: str,
        at: float,
        rows: list[Row],
        found: list[str],
        error: BaseException | None,
        level: str = "session",
    ) -> None:
        outcome = "failed" if error else "done"
        self._note(kind, level, at, outcome, rows, found, error)

    def _before(self, level: str) -> Any:
        """What a read at that level has to show, of which history, and what had been
        acknowledged to anybody."""
        shared = self.recorder.shared
        return shared.leader[1], self._least(level), list(shared.acknowledged)

    def _least(self, level: str) -> Any:
        if level in ("strong", "atomic"):
            return list(self.recorder.shared.acknowledged)
        if level == "bounded":
            return self.recorder.known_before(time.monotonic() - MAX_LAG_S)
        return None

    def seen_rows(
        self, rows: list[Row], level: str, before: Any = (0, None, None)
    ) -> list[str]:
        """Check rows that were read; sessions remember those of their own level."""
        found = []
        started = self.recorder.shared.started
        history, least, answered = before
        if connection.vendor != "postgresql" or not self._was_on_primary(level):
            answered = None
        if history % 2 or history != self.recorder.shared.leader[1]:
            least = None  # what was acknowledged may be lost, and that is told
        for row in rows:
            found += promises.invented(row, started)
            if least is not None:
                found += promises.recent(row, least, level)
            if level in ("session", "strong", "atomic"):
                found += self.promises.read(row, answered)
                self._seen = row.register, row.counter
        self.recorder.lacked_unanswered(self.promises)
        return found

    def _was_on_primary(self, level: str) -> bool:
        return level == "atomic" or "primary" in self.recorder.answered()

    def read_line(self) -> None:
        """Count a line that this session has appended."""
        if not self.promises.lines:
            return self.read()
        number = self.chance.choice(self.promises.lines)
        at, error, found, count = time.monotonic(), None, [], None
        try:
            count = Line.objects.filter(operation=number).count()
        except (Error, FleetError) as raised:
            error = raised
        if count is not None:
            found = self.promises.read_line(number, count)
        outcome = "failed" if error else "done"
        self._note("read line", "session", at, outcome, [number, count], found, error)
        return None

    # -- transactions ---------------------------------------------------------------

    def transact(self) -> None:
        """Read others, write the own register, commit or roll back."""
        is_undone = self.chance.random() < 0.3
        counter, at = self.next_counter(), time.monotonic()
        rows: list[Row] = []
        before, error = self._before("atomic"), None
        try:
            with transaction.atomic():
                READS["several"](self, rows)
                seen = (rows[-1].register, rows[-1].counter) if rows else (0, 0)
                with transaction.atomic():
                    update(self.number, counter, seen)
                if is_undone:
                    raise Rollback
        except Rollback:
            pass
        except (Error, FleetError) as raised:
            error = raised
        # Read before the update: nothing of it is an own write that was undone.
        found = self.seen_rows(rows, "atomic", before)
        self._note("read atomic", "atomic", at, "done", rows, found)
        if is_undone and error is None:
            self._note("write undone", "", at, "refused", counter)
        else:
            self.written("write transact", counter, at, error)

    def _note(
        self,
        kind: str,
        level: str,
        at: float,
        outcome: str,
        value: Any,
        found: Any = (),
        error: BaseException | None = None,
    ) -> None:
        found = [*found, *unexpected(error)]
        self.has_failed = self.has_failed or error is not None
        self.was_told(error)
        self.recorder.note(
            self.number, self.session, kind, level, at, outcome, value, found, error
        )


class Missed(Error):
    """An update of the own register found nothing to update."""


def unexpected(error: BaseException | None) -> list[str]:
    """A server that is lost explains an error; nothing explains a wrong statement."""
    if isinstance(error, (NoneType, FleetError, OperationalError, InterfaceError)):
        return []
    return [] if isinstance(error, Missed) else [f"error: {error!r}"]


def outcome_of(error: BaseException | None, *, is_atomic: bool) -> str:
    """What a client has to take a write for."""
    if error is None:
        return "done"
    if isinstance(error, CommitUnknown):
        return "unknown"
    if is_atomic:  # whatever failed before COMMIT was rolled back
        return "refused"
    if isinstance(error, NodeUnavailable) and "nothing was sent" in str(error):
        return "refused"
    is_lost = isinstance(error, (OperationalError, InterfaceError))
    return "unknown" if is_lost else "refused"


# -- ways of writing ---------------------------------------------------------------


def update(register: int, counter: int, seen: tuple[int, int]) -> None:
    # A write that got no answer may still come: it must not overwrite a later one.
    found = Register.objects.filter(pk=register, counter__lt=counter).update(
        counter=counter, seen_register=seen[0], seen_counter=seen[1]
    )
    if found != 1:
        raise Missed


def _atomic(register: int, counter: int, seen: tuple[int, int]) -> None:
    with transaction.atomic():
        update(register, counter, seen)


def _bulk(register: int, counter: int, seen: tuple[int, int]) -> None:
    row = Register(register, counter, *seen)
    found = Register.objects.filter(counter__lt=counter).bulk_update([row], FIELDS[1:])
    if found != 1:
        raise Missed


def _raw(register: int, counter: int, seen: tuple[int, int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_UPDATE, [counter, *seen, register, counter])
        if cursor.rowcount != 1:
            raise Missed


def _executemany(register: int, counter: int, seen: tuple[int, int]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(_UPDATE, [[counter, *seen, register, counter]])


WRITES: dict[str, Callable[[int, int, tuple[int, int]], None]] = {
    "autocommit": update,
    "atomic": _atomic,
    "bulk": _bulk,
    "raw": _raw,
    "executemany": _executemany,
}
WEIGHTS = [5, 3, 1, 2, 1]


def _create(numbers: list[int]) -> None:
    for number in numbers:
        Line.objects.create(operation=number)


def _create_atomic(numbers: list[int]) -> None:
    with transaction.atomic():
        _create(numbers)


def _bulk_create(numbers: list[int]) -> None:
    Line.objects.bulk_create([Line(operation=number) for number in numbers])


def _insert_many(numbers: list[int]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT, [[number] for number in numbers])


APPENDS: dict[str, Callable[[list[int]], None]] = {
    "autocommit": _create,
    "atomic": _create_atomic,
    "bulk": _bulk_create,
    "executemany": _insert_many,
}
MANY = ("atomic", "bulk", "executemany")

# -- ways of reading ----------------------------------------------------------------


def row_of(one: Any) -> Row:
    return Row(one.id, one.counter, one.seen_register, one.seen_counter)


def _one(client: Client, rows: list[Row]) -> None:
    found = Register.objects.filter(pk=client.which()).values_list(*FIELDS)
    rows += [Row(*one) for one in found]


def _own(client: Client, rows: list[Row]) -> None:
    found = Register.objects.filter(pk=client.number).values_list(*FIELDS)
    rows += [Row(*one) for one in found]


def _object(client: Client, rows: list[Row]) -> None:
    rows.append(row_of(Register.objects.get(pk=client.which())))


def _several(client: Client, rows: list[Row]) -> None:
    which = {client.which() for _ in range(3)}
    found = Register.objects.filter(pk__in=which).order_by("pk").values_list(*FIELDS)
    rows += [Row(*one) for one in found]


def _all(client: Client, rows: list[Row]) -> list[str]:
    found = Register.objects.order_by("pk").values_list(*FIELDS)
    for one in found.iterator(chunk_size=5):
        rows.append(Row(*one))
    return promises.complete(rows, REGISTERS)


def _raw_one(client: Client, rows: list[Row]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_SELECT, [client.which()])
        rows += [Row(*one) for one in cursor.fetchall()]


READS: dict[str, Callable[[Client, list[Row]], Any]] = {
    "one": _one,
    "object": _object,
    "several": _several,
    "all": _all,
    "raw": _raw_one,
}
READ_WEIGHTS = [8, 4, 4, 1, 3]
