"""Where the next cursor of an alias goes, for the length of a block.

Django asks a wrapper for a cursor without saying what for. Whoever runs a statement
binds what opens it first; nothing here does I/O.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from dbfleet.planner.route import HOME

#: opens the driver's (or our) cursor for the statement at hand
Target = Callable[[str | None], Any]


class Binding:
    """The part of an alias's routing that remembers where cursors go."""

    wrapper: Any
    topology: Any
    scatter: Any
    cluster_target: Any
    _home_target: Any
    target: Target | None = None
    _is_logged = True

    @contextlib.contextmanager
    def bound(self, target: Target) -> Iterator[None]:
        before, self.target = self.target, target
        try:
            yield
        finally:
            self.target = before

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Steps of a write bind their own cursors; outer bindings wait."""
        before, self.target = self.target, None
        try:
            yield
        finally:
            self.target = before

    def on_home(self) -> contextlib.AbstractContextManager[None]:
        """Cursors of the block are home's own, without a look at their SQL."""

        def target(name: str | None) -> Any:
            self.target = target  # each cursor of the block, not only the first
            return self._home_target(name)

        return self.bound(target)

    @contextlib.contextmanager
    def on(
        self, cluster: str, *, is_write: bool, is_logged: bool = True
    ) -> Iterator[None]:
        """The next cursor is on the primary of ``cluster``."""
        is_logged = is_logged and self._is_logged
        target = partial(self.cluster_target, cluster, is_write, is_logged=is_logged)
        with self.bound(target):
            yield

    @contextlib.contextmanager
    def unlogged(self) -> Iterator[None]:
        """Statements inside are steps of another one; the log shows that one."""
        before, self._is_logged = self._is_logged, False
        try:
            yield
        finally:
            self._is_logged = before

    @contextlib.contextmanager
    def on_every_node(self) -> Iterator[None]:
        """Every cursor opened inside runs its statements on every primary."""
        clusters = (HOME, *self.topology.shards)

        def target(name: str | None) -> Any:
            self.target = target  # each cursor of the block, not only the first
            return self.wrapper._prepare_cursor(self.scatter(clusters, is_write=True))

        with self.bound(target):
            yield
