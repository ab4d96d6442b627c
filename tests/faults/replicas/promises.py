"""What a session was promised, and whether an answer keeps it.

Pure: no server, no Django. Registers count up and have one writer, so every promise is
a least value. A method returns one line for each violation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

#: the promises, as violations name them
WROTE, READ, FOLLOWS = "read-your-writes", "monotonic reads", "writes-follow-reads"


class Row(NamedTuple):
    """A register as it was read."""

    register: int
    counter: int
    seen_register: int
    seen_counter: int


class Promises:
    """The least value of each register, and the lines, that a session must see."""

    def __init__(self, least: Mapping[int, tuple[int, str]] | None = None) -> None:
        self.least = dict(least or {})
        #: operations of lines that were acknowledged to the session; the last few
        self.lines: list[int] = []
        #: reads of a primary that lacked what its writer had not been answered yet
        self.unanswered = 0

    def demand(self, register: int, counter: int, why: str) -> None:
        known = self.least.get(register)
        if known is None or known[0] < counter:
            self.least[register] = counter, why

    def wrote(self, register: int, counter: int) -> None:
        """A write of the session was acknowledged, or was found to have happened."""
        self.demand(register, counter, WROTE)

    def wrote_lines(self, operations: Iterable[int]) -> None:
        self.lines = [*self.lines, *operations][-8:]

    def add(self, least: Mapping[int, tuple[int, str]], lines: Sequence[int]) -> None:
        """What another session was promised, whose token was resumed."""
        for register, (counter, why) in least.items():
            self.demand(register, counter, f"{why}, of a resumed token")
        self.wrote_lines(lines)

    def read(self, row: Row, answered: Sequence[int] | None = None) -> list[str]:
        """A register was read at level "session" or stricter.

        ``answered`` is given for a read of a PostgreSQL primary: what had been
        acknowledged to its writers when the read began. That server logs a commit
        first and shows it a moment later, a replica at once: until its writer is
        answered, a commit that a replica showed may not be seen on the primary. No
        client can tell, so it is counted and documented, not a violation.
        """
        found = []
        least, why = self.least.get(row.register, (0, ""))
        is_own = why.startswith(WROTE)
        if row.counter >= least:
            pass
        elif answered is not None and answered[row.register] < least and not is_own:
            self.unanswered += 1
        else:
            found.append(f"{why}: register {row.register} is {row.counter} < {least}")
        self.demand(row.register, row.counter, READ)
        if row.seen_counter:
            self.demand(row.seen_register, row.seen_counter, FOLLOWS)
        return found

    def read_line(self, operation: int, count: int) -> list[str]:
        """A line that was acknowledged to the session was counted."""
        if count == 1:
            return []
        if count:
            return [f"duplicate: line {operation} is there {count} times"]
        return [f"{WROTE}: line {operation} is not there"]


def recent(row: Row, least: Sequence[int], promise: str) -> list[str]:
    """A level that promises what was acknowledged before some moment."""
    known = least[row.register]
    if row.counter >= known:
        return []
    return [f"{promise}: register {row.register} is {row.counter} < {known}"]


def invented(row: Row, started: Sequence[int]) -> list[str]:
    """Nothing is read that nobody began to write."""
    if row.counter <= started[row.register]:
        return []
    return [
        f"invented: register {row.register} is {row.counter}, "
        f"written up to {started[row.register]}"
    ]


def complete(rows: Sequence[Row], registers: int) -> list[str]:
    """A read of all registers, in their order."""
    if [row.register for row in rows] == list(range(registers)):
        return []
    return [f"rows: read registers {[row.register for row in rows]} of {registers}"]


class Acknowledged(NamedTuple):
    """What clients were told of the lines they appended."""

    done: set[int]
    refused: set[int]
    #: may have happened or not
    unknown: set[int]


def final_lines(
    told: Acknowledged, stored: Mapping[int, int], lost: frozenset[int] = frozenset()
) -> list[str]:
    """Lines at the end; ``stored`` counts them, ``lost`` were reported as lost."""
    found = [
        f"lost: line {n} was acknowledged and is not there"
        for n in sorted(told.done - stored.keys() - lost)
    ]
    found += [
        f"refused: line {n} was refused and is there"
        for n in sorted(told.refused & stored.keys())
    ]
    found += [
        f"duplicate: line {n} is there {c} times" for n, c in stored.items() if c > 1
    ]
    known = told.done | told.refused | told.unknown
    found += [f"invented: line {n} was never appended" for n in stored.keys() - known]
    return found


def final_registers(
    stored: Mapping[int, int], acknowledged: Sequence[int], started: Sequence[int]
) -> list[str]:
    """Registers at the end, where nothing may be lost."""
    found = []
    for register, counter in stored.items():
        if counter < acknowledged[register]:
            found.append(
                f"lost: register {register} is {counter}, "
                f"acknowledged up to {acknowledged[register]}"
            )
        if counter > started[register]:
            found.append(f"invented: register {register} is {counter} at the end")
    return found
