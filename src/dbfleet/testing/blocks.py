"""Blocks for the tests of projects: replicas that lag, servers that are down.

They need no server but the test database, work inside ``django.test.TestCase`` and in
``TransactionTestCase``, under Django's runner and under pytest, as ``with``, as
``async with`` and as decorator of a test, also of an ``async def``. Inside them the
``atomic()`` that ``TestCase`` puts around each test does not count as a transaction;
blocks of the tested code do. Nothing is waited for.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.test.client import AsyncClientHandler, ClientHandler

from dbfleet import sessions
from dbfleet.testing.emulation import AliasEmulation, emulation

_Test = TypeVar("_Test", bound=Callable[..., Any])


class Block:
    """A ``with`` block that also decorates a test; each use is a new one."""

    using: str

    def __init__(self) -> None:
        self._stack: contextlib.ExitStack | None = None

    emulation: AliasEmulation

    def _enter(self, stack: contextlib.ExitStack) -> None:
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        if self._stack is not None:
            raise RuntimeError(f"this {type(self).__name__} block has begun already")
        with contextlib.ExitStack() as stack:
            self._enter(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        stack, self._stack = self._stack, None
        assert stack is not None
        stack.close()

    async def __aenter__(self: _Self) -> _Self:
        return await sync_to_async(self.__enter__)()

    async def __aexit__(self, *error: Any) -> None:
        await sync_to_async(self.__exit__)(*error)

    def again(self: _Self) -> _Self:
        """A block of the same kind that has not begun."""
        found = type(self).__new__(type(self))
        Block.__init__(found)
        found.__dict__.update(self.__dict__, _stack=None)
        return found

    def __call__(self, test: _Test) -> _Test:
        """Run a test inside a block of its own."""
        if inspect.iscoroutinefunction(test):

            @functools.wraps(test)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                async with self.again():
                    return await test(*args, **kwargs)

            return run_async  # type: ignore[return-value]

        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.again():
                return test(*args, **kwargs)

        return run  # type: ignore[return-value]


_Self = TypeVar("_Self", bound=Block)


class replica_lag(Block):  # noqa: N801 - reads as a block
    """Replicas of ``using`` stand still: they show the rows as the block found them.

    A read that production would send to a replica sees those; one that goes to the
    primary sees the present. What a session wrote or saw on the primary its later
    reads see, so ``with dbfleet.session():`` inside the block is another user, who
    sees the past. :meth:`catch_up` lets the replicas catch up and stand still anew.

    Each request of Django's test client is a session of its own, as in production: the
    next one sees what it wrote only if a carrier (cookie, header) says so. What a
    request saw, the test itself sees from then on. With ``shares_session=True`` the
    client's requests belong to the test's session, whatever they carry.

    Cost: at the beginning and in :meth:`catch_up` every row of the database is copied
    by the server itself. Raises ValueError if ``using`` declares no replicas.
    """

    def __init__(self, using: str = "default", *, shares_session: bool = False) -> None:
        super().__init__()
        self.using, self.shares_session = using, shares_session

    def _enter(self, stack: contextlib.ExitStack) -> None:
        self.emulation = stack.enter_context(emulation(self.using))
        if self.emulation.is_lagging:
            raise RuntimeError(f"replicas of alias {self.using!r} lag already")
        stack.callback(self.emulation.let_go)
        self.emulation.keep()
        if not self.shares_session:
            stack.enter_context(_requests_apart())

    def catch_up(self) -> None:
        """The replicas show the present, and stand still there."""
        self.emulation.keep()


class _Down(Block):
    using: str
    names: tuple[str, ...]
    are_primaries: bool

    def __init__(self, *names: str, using: str = "default") -> None:
        super().__init__()
        self.names, self.using = names, using

    def _enter(self, stack: contextlib.ExitStack) -> None:
        self.emulation = stack.enter_context(emulation(self.using))
        before = self.emulation.down
        self.emulation.down = before | self._nodes()
        stack.callback(self.emulation.mend)
        stack.callback(setattr, self.emulation, "down", before)

    def _nodes(self) -> frozenset[str]:
        found: dict[str, str] = {}
        for declared in self.emulation.names.values():
            for name in (
                (declared.primary,) if self.are_primaries else declared.replicas
            ):
                found[name] = name
                found.setdefault(name.removeprefix(f"{self.using}/"), name)
        wrong = [name for name in self.names if name not in found]
        if wrong:
            raise ValueError(
                f"alias {self.using!r} has no {', '.join(wrong)}; it has "
                f"{', '.join(sorted(set(found.values())))}"
            )
        return frozenset(found[name] for name in self.names or found)


class replica_down(_Down):  # noqa: N801
    """The named replicas of ``using`` cannot be reached; all of them by default.

    Names are those of the settings, ``"replica1"`` or ``"default/replica1"``. Reads go
    to the others; when all are down, to the primary. Raises ValueError for a name that
    is not declared.
    """

    are_primaries = False


class primary_down(_Down):  # noqa: N801
    """The primary of ``using`` cannot be reached; of a sharded alias, every primary
    that is named (``"sales/a/primary"``) or all.

    A write raises NodeUnavailable (E204) before anything is sent, and so does a read
    that only the primary can answer, in a transaction or after a write of the same
    session. Other reads are served by the replicas. ``atomic()`` itself does not fail:
    its first statement does.
    """

    are_primaries = True


@contextlib.contextmanager
def _requests_apart() -> Iterator[None]:
    """Requests of the test client are sessions of their own."""
    handle, handle_async = ClientHandler.__call__, AsyncClientHandler.__call__

    @functools.wraps(handle)
    def apart(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _request_session():
            return handle(self, *args, **kwargs)

    @functools.wraps(handle_async)
    async def apart_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _request_session():
            return await handle_async(self, *args, **kwargs)

    ClientHandler.__call__ = apart  # type: ignore[method-assign]
    AsyncClientHandler.__call__ = apart_async  # type: ignore[method-assign]
    try:
        yield
    finally:
        ClientHandler.__call__ = handle  # type: ignore[method-assign]
        AsyncClientHandler.__call__ = handle_async  # type: ignore[method-assign]


@contextlib.contextmanager
def _request_session() -> Iterator[None]:
    seen = None
    with sessions.session():
        try:
            yield
        finally:
            seen = sessions.peek()
    if seen is None:
        return
    for key, state in seen.clusters.items():
        if not state.is_blank():
            # The test has seen the answer; what the primary is at now covers it.
            sessions.current().saw_unknown(key)
