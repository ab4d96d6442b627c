"""Where statements went: every route that the fleet took while a block ran.

dbfleet tells each decision as an event. Which server of a cluster then served a
statement is asked of the driver's own connection, so it is seen and not believed.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

from django.db import connections

from dbfleet.observe import events
from dbfleet.observe.events import Event


class Step(NamedTuple):
    """One way to carry out a statement."""

    rung: str
    nodes: str
    reason: str


class Watch:
    """What happened while it watched."""

    def __init__(self) -> None:
        self.steps: Counter[Step] = Counter()
        #: shards that took part in a commit in two phases
        self.prepared: list[str] = []
        self._reason = ""

    def told(self, event: Event) -> None:
        """Take note of an event of dbfleet's."""
        if event.name == "commit_prepared":
            self.prepared += event.fields["nodes"]
        if event.name != "routed":
            return
        route = event.fields["route"]
        connection: Any = connections[route.alias]
        if not connection.topology.is_sharded:
            self._reason = route.reason  # its server is known when it has run
            return
        nodes = f"{route.alias}/{', '.join(route.clusters)}"
        self.steps[Step(str(route.rung), nodes, route.reason)] += 1

    def executed(
        self,
        execute: Callable[..., Any],
        sql: str,
        params: Any,
        many: bool,
        context: Any,
    ) -> Any:
        """Django's ``execute_wrapper``, on an alias without shards."""
        try:
            return execute(sql, params, many, context)
        finally:
            connection = context["connection"]
            if connection.topology.is_plain:
                reason = "the alias is one database"
            elif sql.split(None, 1)[0] in {"SELECT", "WITH"}:
                reason = self._reason or "raw SQL that plainly reads"
            else:
                reason = "a write"
            self._reason = ""
            node = served_by(connection, context["cursor"])
            self.steps[Step("one node", node, reason)] += 1


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Watch the fleet until the block ends."""
    watch = Watch()
    with ExitStack() as stack:
        stack.enter_context(events.subscribed(watch.told))
        for alias in ("default", "legacy"):
            wrapper = connections[alias].execute_wrapper(watch.executed)
            stack.enter_context(wrapper)
        yield watch


def served_by(connection: Any, cursor: Any) -> str:
    """The name of the node that a cursor of Django's is on."""
    nodes = connection.settings_dict["NODES"]
    driver = cursor.cursor
    driver = getattr(driver, "inner", driver)
    info = getattr(driver.connection, "info", None)
    for name, settings in nodes.items():
        if info is not None and str(settings["PORT"]) == str(info.port):
            return str(name)
    return str(next(iter(nodes)))
