"""``assert_routed_to``: which server each statement of a block was sent to, and why."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from django.db import connections

from dbfleet.observe import events
from dbfleet.planner.route import Route, Rung
from dbfleet.planner.statements import classify
from dbfleet.testing.blocks import Block
from dbfleet.testing.emulation import emulation

SHOWN_CHARS = 300


class Routed(NamedTuple):
    """One statement of an alias, however many servers it took."""

    alias: str
    #: names of the servers that served it, as the settings spell them
    nodes: tuple[str, ...]
    rung: str
    #: the consistency level it was read at
    level: str
    reason: str
    is_write: bool
    #: its text without parameters
    sql: str

    def __str__(self) -> str:
        kind = "write" if self.is_write else f"read at {self.level!r}"
        sql = self.sql if len(self.sql) <= SHOWN_CHARS else self.sql[:SHOWN_CHARS] + "…"
        return (
            f"{', '.join(self.nodes)} ({kind}, {self.rung}): {self.reason}\n      {sql}"
        )


class assert_routed_to(Block):  # noqa: N801 - reads as a block
    """Every statement of the block goes to ``target``, and at least one does.

    ``target`` is ``"replica"`` or ``"primary"`` of any alias, an alias
    (``"default"``), a shard (``"sales/a"``) or one server (``"default/replica1"``,
    ``"sales/a/primary"``). ``queries`` is how many statements there have to be;
    ``kind="read"`` or ``"write"`` looks at those alone. A target that names an alias
    looks at that alias alone.

    Statements are those of the thread that opened the block, raw SQL included; BEGIN,
    SAVEPOINT and their ends do not count. Without :class:`replica_lag` the replicas
    are played by their primary, and show the present.

    ``with assert_routed_to(…) as routed`` gives what was seen, in
    ``routed.statements``. Raises AssertionError that lists what went where and why;
    ValueError if no alias has such a target.
    """

    def __init__(
        self, target: str, *, queries: int | None = None, kind: str | None = None
    ) -> None:
        super().__init__()
        if kind not in (None, "read", "write"):
            raise ValueError(f'kind is "read" or "write", not {kind!r}')
        self.target, self.queries, self.kind = target, queries, kind

    def _enter(self, stack: contextlib.ExitStack) -> None:
        self.statements: list[Routed] = []
        aliases = self._aliases()
        for alias in aliases:
            wrapper: Any = connections[alias]
            if any(
                declared.is_replicated for declared in wrapper.nodes.clusters.values()
            ):
                stack.enter_context(emulation(alias))
            watch = _Watch(alias, self.statements.append)
            stack.enter_context(events.subscribed(watch.on_event))
            stack.enter_context(wrapper.execute_wrapper(watch.execute))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if not any(error):
            self.check()

    def check(self) -> None:
        """Raise AssertionError if a statement went elsewhere."""
        looked_at = [
            one
            for one in self.statements
            if self.kind is None or one.is_write == (self.kind == "write")
        ]
        astray = [one for one in looked_at if not self._is_there(one)]
        problem = None
        if astray:
            problem = f"{len(astray)} of {len(looked_at)} statements went elsewhere"
        elif self.queries is not None and len(looked_at) != self.queries:
            problem = f"{len(looked_at)} statements, expected {self.queries}"
        elif self.queries is None and not looked_at:
            problem = "there was no statement"
        if problem is None:
            return
        kind = f"{self.kind}s " if self.kind else ""
        lines = [f"{kind}expected on {self.target}: {problem}"]
        for number, one in enumerate(self.statements, 1):
            mark = "->" if one in astray else "  "
            lines.append(f"{mark} {number}. {one}")
        raise AssertionError("\n".join(lines))

    def _is_there(self, one: Routed) -> bool:
        return bool(one.nodes) and all(map(self._is_target, one.nodes))

    def _is_target(self, node: str) -> bool:
        if self.target in ("replica", "primary"):
            is_primary = node.rsplit("/", 1)[-1] == "primary"
            return is_primary == (self.target == "primary")
        return node == self.target or node.startswith(f"{self.target}/")

    def _aliases(self) -> list[str]:
        fleets = {
            alias: list(_nodes_of(connections[alias]))
            for alias in connections
            if getattr(connections[alias], "nodes", None) is not None
        }
        if self.target not in ("replica", "primary"):
            alias = self.target.split("/", 1)[0]
            fleets = {alias: fleets[alias]} if alias in fleets else {}
        if not any(self._is_target(n) for names in fleets.values() for n in names):
            known = sorted(
                name for a in connections for name in _nodes_of(connections[a])
            )
            raise ValueError(
                f"no alias has a server {self.target!r}; declared are "
                f"{', '.join(known) or 'none'}"
            )
        return list(fleets)


def _nodes_of(wrapper: Any) -> tuple[str, ...]:
    nodes = getattr(wrapper, "nodes", None)
    clusters = nodes.clusters.values() if nodes is not None else ()
    return tuple(n for one in clusters for n in (one.primary, *one.replicas))


class _Watch:
    """Puts together what is told of each statement of one alias in one thread."""

    def __init__(self, alias: str, found: Callable[[Routed], None]) -> None:
        self.alias, self._found = alias, found
        self._thread = threading.get_ident()
        self._begin()

    def _begin(self) -> None:
        self._route: Route | None = None
        #: cluster -> the server that was asked last, and those before it
        self._nodes: dict[str, str] = {}
        self._passed: list[str] = []
        self._level, self._is_write = "", False

    def on_event(self, event: events.Event) -> None:
        if threading.get_ident() != self._thread:
            return
        fields = event.fields
        if event.name == "routed" and fields["route"].alias == self.alias:
            self._route = fields["route"]
        elif event.name == "sent" and fields["alias"] == self.alias:
            earlier = self._nodes.get(fields["cluster"])
            if earlier not in (None, fields["node"]):
                self._passed.append(str(earlier))
            self._nodes[fields["cluster"]] = fields["node"]
            self._level = fields["level"]
            self._is_write = self._is_write or fields["is_write"]

    def execute(
        self, execute: Any, sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        """Django calls this around each statement of the alias."""
        wrapper = context["connection"]
        text = str(sql)
        if classify(text, wrapper.vendor).kind == "transaction":
            return execute(sql, params, many, context)
        try:
            return execute(sql, params, many, context)
        finally:
            self._found(self._routed(wrapper, text))
            self._begin()

    def _routed(self, wrapper: Any, sql: str) -> Routed:
        route, nodes = self._route, tuple(self._nodes.values())
        if not nodes:  # an alias without replicas and shards decides nothing
            nodes = (wrapper.topology.home.primary,)
        is_write = self._is_write
        if route is not None:
            reason, rung = route.reason, route.rung
        else:
            reason = "a write goes to its primary" if is_write else "hand-written SQL"
            rung = Rung.NODE if len(nodes) == 1 else Rung.SCATTER
        if self._passed:
            reason += f"; {', '.join(self._passed)} could not serve it"
        return Routed(self.alias, nodes, str(rung), self._level, reason, is_write, sql)
