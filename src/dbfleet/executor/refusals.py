"""The cursor of a statement that a distributed engine may refuse.

Guards two invariants: another way is taken only if the engine refused the statement as
one that it cannot carry out, before a row was handed out; and a transaction goes on
after it as if the refused statement had never been sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.db.utils import Error

from dbfleet.engines import GatheredRows
from dbfleet.engines.citus import is_refusal
from dbfleet.executor.cursors import RowsCursor
from dbfleet.observe import events

_SAVEPOINT = "dbfleet_try"


class RefusableCursor:
    """Stands where the cursor ``inner`` would; ``instead`` answers what it refuses.

    ``guarded`` is the node whose transaction a refusal would abort, None where there is
    none; a savepoint around the statement costs two round trips. Any other error leaves
    the transaction aborted, as on one database.
    """

    def __init__(
        self,
        wrapper: Any,
        inner: Any,
        instead: Callable[[str, Any], GatheredRows],
        guarded: Callable[[str], Any],
    ) -> None:
        self._wrapper, self._inner, self._current = wrapper, inner, inner
        self._instead, self._guarded = instead, guarded

    def execute(self, sql: Any, params: Any = None) -> Any:
        self._current = self._inner
        engine, node = self._wrapper.engine, self._guarded(str(sql))
        if node is not None:
            engine.savepoint(node, _SAVEPOINT)
        try:
            if params is None:
                self._inner.execute(sql)
            else:
                self._inner.execute(sql, params)
        except (Error, self._wrapper.Database.Error) as error:
            if not is_refusal(error):
                raise
            if node is not None:
                engine.rollback_to(node, _SAVEPOINT)
                engine.release(node, _SAVEPOINT)
            self._answer(str(sql), params, error)
            return self
        if node is not None:
            engine.release(node, _SAVEPOINT)
        return self

    def _answer(self, sql: str, params: Any, error: BaseException) -> None:
        reason = str(error).splitlines()[0]
        events.emit("refused", alias=self._wrapper.alias, reason=reason)
        rows = RowsCursor(self._wrapper.features.empty_fetchmany_value)
        try:
            rows.hold(self._instead(sql, params))
        except Exception as failure:
            failure.add_note(f"The statement as it is was refused: {reason}")
            raise
        self._current = rows

    def close(self) -> None:
        self._current.close()
        if self._current is not self._inner:
            self._inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_current"], name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._current)
