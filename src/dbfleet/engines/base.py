"""What an engine offers; the defaults are those of a server nothing is known of.

Every method that talks to a server says so and counts its round trips. Wrappers
passed in are Django database wrappers in driver autocommit, whose transactions
are steered by explicit statements.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from django.db.utils import DatabaseError, OperationalError

from dbfleet.engines.gathering import (
    Budget,
    Fetched,
    FragmentSpec,
    GatheredRows,
    Portion,
    Row,
)
from dbfleet.engines.inline import InlineColumn
from dbfleet.engines.positions import Position, Verdict


class Engine:
    """The defaults: a server of which only Django's own abilities are known."""

    vendor: ClassVar[str] = "unknown"
    #: prepared transactions that survive a lost connection
    can_prepare: ClassVar[bool] = False
    #: a failed statement makes the rest of its transaction fail
    aborts_on_error: ClassVar[bool] = False
    #: rows of several nodes can be brought together under the same names
    can_gather: ClassVar[bool] = False
    #: home can read rows of shards through foreign tables
    has_foreign_tables: ClassVar[bool] = False
    #: a temporary or inline table of the home connection sees home's own tables
    gathers_at_home: ClassVar[bool] = True
    #: ``=`` on text means equal bytes, so equal keys hash alike
    has_binary_text_equality: ClassVar[bool] = False
    #: ORDER BY puts NULL after every value, not before
    nulls_are_largest: ClassVar[bool] = False
    #: a computed text compares by the database's collation, unless it names another
    has_one_collation: ClassVar[bool] = False
    #: a sample's deviation of one row is NULL, not an error
    has_null_samples: ClassVar[bool] = True
    #: a deviation of integers has all the digits of a binary fraction
    has_whole_deviations: ClassVar[bool] = True
    #: a quotient has the digits that it is shown with, also where it is computed with
    shows_all_digits: ClassVar[bool] = True
    #: :meth:`finish` can hand rows to a server
    can_finish: ClassVar[bool] = False
    #: kinds of fields whose values it cannot hand on as they were
    uncarried: ClassVar[frozenset[str]] = frozenset()
    #: a replica's position can be compared with its primary's
    tracks_positions: ClassVar[bool] = False
    #: positions move only by writes that are :meth:`counted`
    counts_commits: ClassVar[bool] = False
    #: asking costs no round trip, so what a node said is not relied on later
    is_local: ClassVar[bool] = False
    #: :meth:`make_read_only` makes the server refuse writes
    enforces_read_only: ClassVar[bool] = False

    # -- statements ---------------------------------------------------------

    def run(self, node: Any, sql: str, params: Sequence[Any] | None = None) -> Any:
        """Execute on ``node`` below Django's query log; one round trip."""
        node.ensure_connection()
        with node.wrap_database_errors:
            cursor = node.create_cursor()
            if params is None:
                cursor.execute(sql)
            else:
                cursor.execute(sql, params)
            return cursor

    def answer(self, node: Any, sql: str, params: Sequence[Any]) -> GatheredRows:
        """Execute and return every row with its description; one round trip."""
        cursor = self.run(node, sql, params)
        with node.wrap_database_errors:
            rows = list(cursor.fetchall())
            found = GatheredRows(rows, cursor.description, len(rows), 0, [sql])
            cursor.close()
        return found

    def fetch(
        self, node: Any, sql: str, params: Sequence[Any] | None = None
    ) -> list[Row]:
        """Execute and return every row; one round trip."""
        cursor = self.run(node, sql, params)
        with node.wrap_database_errors:
            rows = list(cursor.fetchall())
            cursor.close()
        return rows

    def is_lost(self, node: Any) -> bool:
        """Whether the connection of ``node`` is gone; at most one round trip."""
        return node.connection is None or not node.is_usable()

    def is_closed(self, node: Any) -> bool:
        """Whether the driver knows the connection of ``node`` to be gone; no I/O."""
        return node.connection is None

    def is_connection_loss(self, error: BaseException) -> bool:
        """Whether an error of the driver may tell that its connection is gone."""
        return False

    def is_read_only_error(self, error: BaseException) -> bool:
        """Whether a read-only connection refused a write; no I/O."""
        return "read-only" in str(error) or "readonly" in str(error)

    def is_of_content(self, error: BaseException) -> bool:
        """Whether other rows or tables might not have caused an error; no I/O."""
        is_of_server = isinstance(error, OperationalError)
        return isinstance(error, DatabaseError) and not is_of_server

    def is_recovery_conflict(self, error: BaseException) -> bool:
        """Whether a replica cancelled a read to go on with its log; no I/O."""
        return False

    def refuses_writes(self, primary: Any) -> bool:
        """Whether a server, as a whole, takes no writes; asked after an error.

        At most one round trip, which an aborted transaction survives.
        """
        return False

    def named_cursor(self, node: Any, name: str) -> Any:
        """A cursor that the server keeps until the transaction of ``node`` ends."""
        return node.create_cursor(name)

    def without_locking(self, sql: str) -> str:
        """``sql`` without FOR UPDATE; its rows were locked where they live."""
        from dbfleet.lexer import strip_locking  # no project reads SQL at its start

        return strip_locking(sql, self.vendor)[0]

    def is_aborted(self, node: Any) -> bool:
        """Whether the transaction of ``node`` accepts only a rollback; no I/O."""
        return False

    def connect_limits(self, timeout_s: int) -> dict[str, Any]:
        """``OPTIONS`` that bound how long a new connection may wait; no I/O."""
        return {}

    def probe_settings(
        self, settings: dict[str, Any], timeout_s: int
    ) -> dict[str, Any]:
        """Settings of one connection that only looks, outside of any pool; no I/O."""
        kept = {k: v for k, v in settings["OPTIONS"].items() if k != "pool"}
        return {**settings, "OPTIONS": {**kept, **self.connect_limits(timeout_s)}}

    def bounded(self, node: Any, params: dict[str, Any]) -> dict[str, Any]:
        """Connection parameters of a replica: connecting to it ends, in seconds, also
        if the server does not answer. What the project set itself stays; no I/O."""
        return params

    def watch(self, node: Any, watch: Any, *, only_connecting: bool = False) -> None:
        """Have ``watch`` asked, again and again, while a node sends no answer.

        Called before a connection is opened and when it is open; no I/O. Nothing with
        a driver that cannot be interrupted.
        """

    # -- replication ----------------------------------------------------------

    def make_read_only(self, node: Any) -> None:
        """Make writes on this connection an error, where the server can."""

    def identity(self, node: Any) -> str | None:
        """Name the server system that ``node`` belongs to; one round trip."""
        return None

    def is_replica(self, node: Any) -> bool | None:
        """Whether the server itself says it is a replica; one round trip."""
        return None

    def position(self, primary: Any) -> Position | None:
        """The primary's position, at or after its last commit; one round trip.

        None means unknown, and unknown means that no replica has caught up.
        """
        return None

    def known_timeline(self, primary: Any) -> int | None:
        """The timeline a primary's connection has told, None if none; no I/O."""
        return None

    def is_standby(self, node: Any) -> bool:
        """Whether a new connection's server is a standby; at most one round trip."""
        return False

    def run_of(self, replica: Any) -> str:
        """Names the run of the server that a connection belongs to, "" if it does not
        tell; no I/O. After a crash a replica may go back; a new run says so."""
        return ""

    def timeline(self, primary: Any) -> int:
        """The timeline a primary writes; a round trip for a new connection."""
        return 0

    def connection_params(self, node: Any, params: dict[str, Any]) -> dict[str, Any]:
        """What a primary with replicas connects with, so that commits can tell."""
        return params

    def track_commits(self, primary: Any) -> None:
        """Have a new connection's commits tell their position; one round trip, or
        none."""

    def prepare_guard(self, replica: Any) -> None:
        """Make what every guarded read asks cheap, on a new connection."""

    def applied(self, replica: Any) -> Position | None:
        """What ``replica`` has applied; one round trip."""
        return None

    def compare(self, have: Position, want: Position) -> Verdict:
        """Whether a node that has applied ``have`` has applied ``want``; no I/O."""
        return Verdict.COVERED if have == want else Verdict.BEHIND

    def covers(self, have: Position | None, wants: Iterable[Position]) -> bool:
        """Whether all of ``wants`` are known to be applied at ``have``; no I/O."""
        return have is not None and all(
            self.compare(have, want) is Verdict.COVERED for want in wants
        )

    def is_older(self, have: Position, wants: Iterable[Position]) -> bool:
        """Whether a node at ``have`` surely showed nothing beyond ``wants``; no I/O."""
        return False

    def merge(
        self, floors: tuple[Position, ...], more: Iterable[Position]
    ) -> tuple[Position, ...]:
        """The least positions that cover all of both; no I/O."""
        return tuple(dict.fromkeys([*floors, *more]))

    def learn_history(self, primary: Any, have: Position) -> None:
        """Read how the timeline of ``have`` came about; at most one round trip."""

    def judge(self, primary: Any, have: Position, want: Position) -> Verdict:
        """What :meth:`compare` could not tell, with the primary's help; at most two
        round trips."""
        self.learn_history(primary, have)
        return self.compare(have, want)

    def dump(self, position: Position) -> str:
        """A position as text for a token, without ``;`` and ``,``."""
        raise NotImplementedError

    def load(self, text: str) -> Position:
        """The position that :meth:`dump` wrote; raises ValueError."""
        raise ValueError(text)

    def wait(
        self, replica: Any, wants: Sequence[Position], timeout_s: float
    ) -> Position | None:
        """Wait until ``replica`` has applied ``wants``; what it has applied then.

        Polls, with a round trip for each pause of 1 to 5 ms, unless the server can
        wait by itself.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = 0.001
        while True:
            time.sleep(pause_s)
            found = self.applied(replica)
            if self.covers(found, wants) or time.monotonic() >= deadline:
                return found
            pause_s = min(pause_s * 2, 0.005)

    def read_at(self, node: Any, cursor: Any, sql: str, params: Any) -> Position | None:
        """Execute a read; what ``node`` had applied before. Two round trips, or one.

        The rows say nothing where the position turns out not to be enough.
        """
        found = self.applied(node)
        execute(cursor, sql, params)
        return found

    def write_at(
        self, node: Any, cursor: Any, sql: str, params: Any
    ) -> tuple[GatheredRows | None, Position | None]:
        """Execute one write in autocommit, and its position if its message tells.

        One round trip. The rows, unless the cursor has them.
        """
        execute(cursor, sql, params)
        return None, None

    def counted(
        self, primary: Any, sql: str
    ) -> contextlib.AbstractContextManager[list[Position]]:
        """A block for one write in autocommit, which becomes part of the position.

        The list has that position afterwards, if it is known. Nothing where the
        server's log has every write anyway.
        """
        return contextlib.nullcontext([])

    def count_commit(self, primary: Any) -> None:
        """The same for the open transaction, which is about to be committed."""

    def tells_commit(self, node: Any) -> bool:
        """Whether :meth:`commit_at` can commit the open transaction; no I/O."""
        return False

    def commit_at(self, node: Any) -> Position | None:
        """Commit, and the position that the commit's own message tells."""
        raise NotImplementedError

    # -- transactions ---------------------------------------------------------

    def begin(self, node: Any, gid: str, first: Sequence[str] = ()) -> None:
        """Begin a transaction that may later be prepared as ``gid``; ``first`` are
        statements that :meth:`comes_first` is true of."""
        self.run(node, "BEGIN").close()

    def comes_first(self, sql: str) -> bool:
        """Whether a transaction takes this statement before its first query alone."""
        return False

    def commit(self, node: Any, gid: str) -> None:
        """Commit a transaction that was begun and not prepared."""
        self.run(node, "COMMIT").close()

    def rollback(self, node: Any, gid: str) -> None:
        """Roll back a transaction that was begun and not prepared."""
        self.run(node, "ROLLBACK").close()

    def savepoint(self, node: Any, name: str) -> None:
        """Set a savepoint."""
        self.run(node, node.ops.savepoint_create_sql(name)).close()

    def rollback_to(self, node: Any, name: str) -> None:
        """Roll back to a savepoint, which stays."""
        self.run(node, node.ops.savepoint_rollback_sql(name)).close()

    def release(self, node: Any, name: str) -> None:
        """Forget a savepoint, keep what was done since."""
        self.run(node, node.ops.savepoint_commit_sql(name)).close()

    def prepare(self, node: Any, gid: str) -> None:
        """Make the transaction survive a crash; raises if it did not."""
        raise NotImplementedError

    def commit_prepared(self, node: Any, gid: str) -> None:
        """Finish a prepared transaction."""
        raise NotImplementedError

    def rollback_prepared(self, node: Any, gid: str) -> None:
        """Undo a prepared transaction."""
        raise NotImplementedError

    def is_prepared(self, node: Any, gid: str) -> bool:
        """Whether ``gid`` is prepared and not finished; one round trip.

        Once it is not, everybody can read what it committed.
        """
        return False

    def prepared(self, node: Any) -> list[str]:
        """The ids of transactions that are prepared in a node's database, or on its
        server; one round trip."""
        return []

    def settling_sql(self, gid: str, *, commit: bool) -> str:
        """The statement an operator runs on a node to settle ``gid``."""
        raise NotImplementedError

    # -- gather ---------------------------------------------------------------

    def read(
        self, node: Any, spec: FragmentSpec, limit: int, budget: Budget
    ) -> Portion:
        """Rows of a fragment from one node; one round trip.

        At most ``limit``, unless they are to be locked. What passes the budget is read
        and dropped: cancelling a read would abort the caller's transaction.
        """
        raise NotImplementedError

    def estimate(self, node: Any, spec: FragmentSpec) -> int | None:
        """About how many rows of a fragment the server takes a node to have; None if it
        has no idea. One round trip, or none; nothing may be refused by it."""
        return None

    def membership(
        self, home: Any, target: tuple[str, str], source: tuple[str, str], count: int
    ) -> str:
        """SQL: a column is one of ``count`` parameters, values of another one as
        :meth:`read` gave them. ``target`` and ``source`` are table and column.

        True wherever the two columns are equal. No I/O but for the catalogue, once.
        """
        quote = home.ops.quote_name
        column = ".".join(map(quote, target)).replace("%", "%%")
        return f"{column} IN ({', '.join(['%s'] * count)})"

    def compares(
        self, home: Any, target: tuple[str, str], source: tuple[str, str]
    ) -> bool:
        """Whether :meth:`membership` holds for these columns as the server has them."""
        return True

    def gather(
        self,
        home: Any,
        fetched: Sequence[Fetched],
        sql: str,
        params: Any,
        *,
        inline_rows: int,
    ) -> GatheredRows:
        """Run ``sql`` over the fragments under their tables' own names.

        Round trips: one where they travel inside the statement; else one to begin, one
        to end, and three for each fragment.
        """
        raise NotImplementedError

    # -- merging --------------------------------------------------------------

    def comparison(self, described: Any) -> str | None:
        """How values of a result's column compare: ``"direct"``, as Python compares
        what the driver made of them; ``"text"``; None if only the server knows.

        ``described`` is one entry of the driver's ``description``; no I/O.
        """
        return None

    def text_order(self, node: Any) -> str | None:
        """Names the order of a database's text; None if it is that of its characters'
        codes. One round trip."""
        return ""

    def can_rank(self, home: Any) -> bool:
        """Whether a server has what :meth:`rank` takes; a round trip at most once."""
        return True

    def rank(
        self, home: Any, texts: Sequence[str], source: tuple[str, str] | None
    ) -> dict[str, int]:
        """The place of each text in the database's order; equal texts share one.

        ``source`` is the table and column whose collation decides; without one, the
        database's own. One round trip, two the first time for a table.
        """
        raise NotImplementedError

    def as_stored(self, sql: str) -> str:
        """SQL of a column whose values the driver does not convert; no I/O."""
        return sql

    def finish(
        self,
        home: Any,
        columns: Sequence[InlineColumn],
        rows: Sequence[Row],
        sql: str,
        params: Sequence[Any],
    ) -> GatheredRows:
        """Run a SELECT over ``rows``, which it finds as :data:`INLINE`.

        Each column has the type, scale and collation that it had where it was made.
        Raises :class:`NotCarried`, before anything was sent, where that cannot be. One
        round trip, two the first time for a table of texts.
        """
        raise NotImplementedError

    def average(self, total: Any, count: int) -> Any:
        """``total / count`` as AVG would have it, of a total that SUM made; no I/O."""
        return total / count

    def cancel(self, node: Any, timeout_s: float) -> None:
        """Ask the server to end the statement that ``node`` waits for, from another
        thread. Waits at most ``timeout_s``; nothing where a driver cannot."""

    def sever(self, connection: Any) -> None:
        """Cut the wire of a driver's connection, so that the thread which waits for an
        answer gets an error instead. No I/O; nothing where a driver cannot."""

    def render(self, home: Any, sql: str, params: Any) -> str:
        """``sql`` as the log shows it; no I/O."""
        return str(home.ops.last_executed_query(None, sql, params))

    def canonical_text(
        self, column_sql: str, db_type: str | None, collation: str | None = None
    ) -> str:
        """SQL that maps equal values of a column to equal text, others apart.

        ``collation`` is one that the column or expression names, if it does.
        """
        raise NotImplementedError

    def known_text(self, value: Any, collation: str | None = None) -> str | None:
        """What :meth:`canonical_text` makes of a whole number, text or UUID as it is
        sent to the server; None where only the server knows. No I/O."""
        return None

    def claim_sql(self, text_sql: str) -> str:
        """SQL of a claim's name: its one parameter, then ``text_sql`` counted."""
        raise NotImplementedError

    def shows_commits(self, node: Any) -> bool:
        """Whether each statement of a transaction sees what was committed before it,
        as far as the connection's settings say; no I/O."""
        return False

    #: an expression: how a transaction is isolated, where settings do not say
    isolation_sql: ClassVar[str] = ""

    def table_columns(self, node: Any, table: str) -> tuple[str, ...]:
        """The columns of ``table`` in order, from the server's own catalogue."""
        with node.cursor() as cursor:
            described = node.introspection.get_table_description(cursor, table)
        return tuple(column.name for column in described)

    #: whether an UPDATE of one table assigns its columns one after the other, so that a
    #: later one may read the new value of an earlier one
    assigns_in_turn: ClassVar[bool] = False
    #: whether foreign keys are checked row by row, not at the end of a transaction
    checks_at_once: ClassVar[bool] = False

    def unchecked(self, node: Any) -> contextlib.AbstractContextManager[None]:
        """A block in which ``node`` does not check foreign keys row by row.

        Nothing where the server checks them at the end of the transaction.
        """
        return contextlib.nullcontext()

    #: whether gathered rows have their table's primary key where a statement groups
    keeps_keys: ClassVar[bool] = False

    def infers_group_by(self, home: Any) -> bool:
        """Whether the server infers grouped columns from a table's primary key."""
        return False

    def copy_rows(
        self, source: Any, target: Any, table: str, where: str, params: Sequence[Any]
    ) -> int:
        """Copy rows of ``table`` between two nodes, losing nothing; two round trips."""
        raise NotImplementedError

    # -- ids --------------------------------------------------------------------

    #: an expression: the server's Unix time in milliseconds
    clock_ms_sql: ClassVar[str] = ""

    def lease_ids(
        self, home: Any, control: Any, table: str, column: str, count: int
    ) -> Iterable[int]:
        """Take ``count`` fresh ids of a table from home; never handed out twice.

        ``control`` opens a second connection to home for engines whose leases
        would otherwise wait for the caller's own transaction.
        """
        raise NotImplementedError

    def ensure_ids_above(
        self, home: Any, control: Any, table: str, column: str, value: int
    ) -> None:
        """Keep later leases above ``value``, where the vendor itself would."""

    def restarts_ids(self, sql: str) -> bool:
        """Whether a statement of a flush also restarts automatic ids; no I/O."""
        return "RESTART IDENTITY" in sql

    def reset_ids_sql(self, table: str, column: str, highest: int | None) -> list[str]:
        """Statements that make the next lease start above ``highest``.

        None where the counter follows explicit ids by itself.
        """
        return []


def execute(cursor: Any, sql: str, params: Any) -> None:
    """Execute with the driver's cursor; without parameters ``%`` is a character."""
    if params is None:
        cursor.execute(sql)
    else:
        cursor.execute(sql, params)
