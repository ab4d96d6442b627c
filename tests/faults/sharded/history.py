"""What clients saw, what the servers hold at the end, and whether both can be true.

Pure: no server, no Django. A checker returns one line for each violation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Outcome(Enum):
    """What a client was told."""

    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Operation:
    """One operation of one client."""

    number: int
    kind: str
    outcome: Outcome
    #: of a transfer: how much; of a claim: the email
    value: Any = None
    #: of a register: what the client read after its write
    seen: int | None = None
    client: int = 0
    error: str = ""


@dataclass
class State:
    """What the nodes hold after everything is settled."""

    total: int
    #: operation of a transfer -> amounts of its entries, number of its slips
    entries: dict[int, list[int]] = field(default_factory=dict)
    slips: Counter[int] = field(default_factory=Counter)
    #: operation of a claim -> email
    people: list[tuple[int, str]] = field(default_factory=list)
    #: prepared transactions that no error had named
    orphans: list[str] = field(default_factory=list)


def violations(operations: Iterable[Operation], state: State, total: int) -> list[str]:
    """Every contradiction between what clients were told and what is stored."""
    history = sorted(operations, key=lambda operation: operation.number)
    found = [f"prepared on {name} and named by no error" for name in state.orphans]
    if state.total != total:
        found.append(f"money is not conserved: {state.total} of {total}")
    found += _halves(state)
    found += _duplicates(state)
    found += _presence(history, state)
    found += _sessions(history)
    return found


def _halves(state: State) -> list[str]:
    found = []
    for number in sorted({*state.entries, *state.slips}):
        amounts, slips = state.entries.get(number, []), state.slips[number]
        if len(amounts) != 2 or sum(amounts) != 0 or slips != 1:
            found.append(f"transfer {number} is in part: {amounts}, {slips} slips")
    return found


def _duplicates(state: State) -> list[str]:
    counts = Counter(email for _, email in state.people)
    return [f"{email!r} is held {n} times" for email, n in counts.items() if n > 1]


def _presence(history: list[Operation], state: State) -> list[str]:
    stored = {*state.entries, *(number for number, _ in state.people)}
    found = []
    for one in history:
        if one.kind not in {"transfer", "claim"}:
            continue
        if one.outcome is Outcome.DONE and one.number not in stored:
            found.append(f"{one.kind} {one.number} was acknowledged and is lost")
        if one.outcome is Outcome.REFUSED and one.number in stored:
            found.append(f"{one.kind} {one.number} failed ({one.error}) and is stored")
    return found


def _sessions(history: list[Operation]) -> list[str]:
    """A client reads at least what it last wrote for certain."""
    written: dict[int, int] = {}
    found = []
    for one in history:
        if one.kind != "register":
            continue
        if one.outcome is Outcome.DONE:
            written[one.client] = one.number
        least = written.get(one.client, 0)
        if one.seen is not None and one.seen < least:
            found.append(f"client {one.client} read {one.seen} after it wrote {least}")
    return found
