"""What the clients of one process did, written down as they go.

Guards one invariant: a line is written before the next operation of its client begins,
so the history of a run that was killed is whole up to then.
"""

from __future__ import annotations

import contextvars
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: between two looks at what is acknowledged
SNAPSHOT_S = 0.05
#: so many looks are kept: the bound of a read and the time it may take
SNAPSHOTS = 400
KEPT_VIOLATIONS = 50


#: the node that answered last in the running context, which tasks bring back
_node: contextvars.ContextVar[str] = contextvars.ContextVar("node", default="?")


class Shared(NamedTuple):
    """Arrays that all processes see; each place has one writer."""

    #: register -> the highest counter that was sent
    started: Any
    #: register -> the highest counter that was acknowledged, or seen on the primary
    acknowledged: Any
    #: client -> operations done
    operations: Any
    #: one number: whether to end
    is_over: Any
    #: two numbers: which server is the primary, by its place among the names, and twice
    #: how often one was promoted that lacks what was acknowledged; odd meanwhile
    leader: Any


class Recorder:
    """Of one process; its clients are threads and tasks."""

    def __init__(self, shared: Shared, path: Path, *, stops: bool) -> None:
        self.shared, self._stops = shared, stops
        self._file = path.open("w", buffering=1 << 16)
        self._lock = threading.Lock()  # a text file of Python's takes one writer
        self.violations: list[str] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.errors: Counter[str] = Counter()
        self._looks: deque[tuple[float, int, list[int]]] = deque(maxlen=SNAPSHOTS)
        self._look()

    def _look(self) -> None:
        history = self.shared.leader[1]
        look = list(self.shared.acknowledged)
        if history == self.shared.leader[1]:
            self._looks.append((time.monotonic(), history, look))

    def watch(self, is_over: threading.Event) -> None:
        """Look at what is acknowledged until the run ends; a thread of its own."""
        while not is_over.wait(SNAPSHOT_S):
            self._look()

    def known_before(self, at: float) -> Sequence[int]:
        """What had been acknowledged at some moment (monotonic seconds), at least."""
        history = self.shared.leader[1]
        if history % 2:  # what is lost is being found out
            return [0] * len(self.shared.acknowledged)
        for taken, known, found in reversed(tuple(self._looks)):
            if taken <= at and known == history:
                return found
        return [0] * len(self.shared.acknowledged)

    def note(
        self,
        client: int,
        session: int,
        kind: str,
        level: str,
        at: float,
        outcome: str,
        value: Any,
        found: Sequence[str] = (),
        error: BaseException | None = None,
    ) -> None:
        """Write an operation down; ``found`` are its violations."""
        now = time.monotonic()
        node = self.answered() if kind[0] == "r" and level != "atomic" else ""
        said = "" if error is None else f"{type(error).__name__}: {error}"
        line = (
            f'{{"client":{client},"session":{session},"kind":"{kind}",'
            f'"level":"{level}","node":"{node}","outcome":"{outcome}",'
            f'"value":{json.dumps(value)},"from":{at:.6f},"to":{now:.6f}'
            + (f',"error":{json.dumps(said)}' if said else "")
            + (f',"violations":{json.dumps(list(found))}' if found else "")
            + "}\n"
        )
        with self._lock:
            self._file.write(line)
        self.shared.operations[client] += 1
        self.outcomes[kind, outcome] += 1
        if error is not None:
            code = getattr(error, "code", "")
            self.errors[f"{kind} {type(error).__name__} {code}"] += 1
        if found:
            self._violated(client, session, kind, node, value, found)

    def _violated(
        self,
        client: int,
        session: int,
        kind: str,
        node: str,
        value: Any,
        found: Sequence[str],
    ) -> None:
        place = f"client {client}, session {session}, {kind} on {node}: {value}"
        if len(self.violations) < KEPT_VIOLATIONS:
            self.violations += [f"{one} ({place})" for one in found]
        if self._stops:
            self.shared.is_over[0] = 1

    def lacked_unanswered(self, promises: Any) -> None:
        """Count reads of a primary that lacked commits unanswered as yet."""
        if promises.unanswered:
            what = "read of a primary", "without a commit that was not answered yet"
            self.outcomes[what] += promises.unanswered
            promises.unanswered = 0

    def answered(self) -> str:
        return _node.get()

    def close(self) -> None:
        self._file.close()


def _primary(node: Any) -> str:
    """Which server it is by now, and on which timeline its connection was opened."""
    leader = node.leader.name if node.leader is not None else "primary"
    timeline = getattr(node.connection, "dbfleet_origin", ("?",))[0]
    return f"{leader} as primary on {timeline}"


def watch_nodes() -> None:
    """Note which node answers a read; for the history alone."""
    from dbfleet.executor.reads import ReadCursor

    answered = ReadCursor._has_answered

    def noted(self: Any, choice: Any, sql: Any, params: Any) -> bool:
        _node.set(choice.name or _primary(choice.node))
        return answered(self, choice, sql, params)

    ReadCursor._has_answered = noted  # type: ignore[method-assign]
