"""When an answer fails to come: whether its server is asked, and when it is given up.

A slow answer and a server that is gone look alike from the connection that waits. What
tells them apart is whether the server still answers somebody else: a *probe*, another
connection that is open for a moment. A server that answers its probes is waited for
without end, so a report may run for hours; one that leaves two in a row unanswered is
lost. This decides; who waits and who probes is the executor's and the engines' affair.

Process-wide by node, since every thread sees the same servers: one prober at a time,
and what it finds holds for all that wait.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from enum import Enum

#: how long a probe may take
PROBE_S = 0.3
#: so many probes in a row have to fail
PROBES = 2
#: after a probe that was answered the next one comes after so long, then later
NEXT_PROBE_S = 1.0
MAX_PROBE_PAUSE_S = 5.0
#: a prober that told nothing after this time is forgotten
PROBER_S = 5.0


class Step(Enum):
    """What to do about an answer that has not come."""

    WAIT = "wait"
    #: probe the server, then tell :meth:`Silence.probed`
    PROBE = "probe"
    #: the server is lost: give up
    LOST = "lost"


class _Server:
    """What the probes of one node found."""

    __slots__ = ("answered", "lost", "missed", "prober")

    def __init__(self) -> None:
        #: when a probe was answered last, and when the server was found to be lost
        self.answered: float | None = None
        self.lost: float | None = None
        #: probes in a row that were not answered
        self.missed = 0
        #: since when somebody probes
        self.prober: float | None = None


class Servers:
    """The verdicts on every node. ``clock`` counts seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or time.monotonic
        self._servers: dict[str, _Server] = {}
        #: guards who probes; nothing waits while it is held
        self.lock = threading.Lock()

    def of(self, name: str) -> _Server:
        return self._servers.get(name) or self._servers.setdefault(name, _Server())

    def is_lost(self, name: str) -> bool:
        """Whether the last verdict on a node was that it is lost."""
        found = self._servers.get(name)
        return found is not None and found.lost is not None

    def reset(self) -> None:
        """Forget every verdict."""
        self._servers.clear()

    def leave_parent(self) -> None:
        """In a forked child: nobody probes, and nobody holds the lock."""
        self.lock = threading.Lock()
        for server in tuple(self._servers.values()):
            server.prober = None


class Silence:
    """One wait for an answer of a node, begun ``late_s`` seconds ago.

    ``after_s``: how long the silence may last before the server is probed; a server
    that was lost when it was last probed is probed at once. None: never.
    """

    __slots__ = ("_began", "_due", "_pause_s", "_server", "_servers")

    def __init__(
        self,
        name: str,
        after_s: float | None,
        late_s: float = 0.0,
        servers: Servers | None = None,
    ) -> None:
        self._servers = servers or known
        self._server = self._servers.of(name)
        self._began = self._servers.clock() - late_s
        self._pause_s = NEXT_PROBE_S
        self._due = None if after_s is None else self._began + after_s

    def lasts_s(self) -> float:
        """How long it has lasted."""
        return self._servers.clock() - self._began

    def step(self) -> Step:
        """What to do now; :attr:`Step.PROBE` is given to one caller at a time."""
        if self._due is None:
            return Step.WAIT
        now, server = self._servers.clock(), self._server
        if server.lost is not None:
            if server.lost >= self._began:
                return Step.LOST
        else:
            if server.answered is not None and server.answered >= self._began:
                self._due = max(self._due, server.answered + NEXT_PROBE_S)
            if now < self._due:
                return Step.WAIT
        with self._servers.lock:
            if server.prober is not None and now < server.prober + PROBER_S:
                return Step.WAIT
            server.prober = now
        return Step.PROBE

    def probed(self, answered: bool | None) -> Step:
        """What the probe found; None: nothing about the server. What to do then."""
        now, server = self._servers.clock(), self._server
        server.prober = None
        if answered is False:
            server.missed += 1
            if server.missed >= PROBES or server.lost is not None:
                server.lost = now
                return Step.LOST
            return self.step()
        if answered:
            server.missed, server.lost, server.answered = 0, None, now
        self._due = now + self._pause_s
        self._pause_s = min(self._pause_s * 2, MAX_PROBE_PAUSE_S)
        return Step.WAIT


known = Servers()
reset = known.reset

os.register_at_fork(after_in_child=known.leave_parent)
