"""Runs one SELECT on several shards and makes their rows one answer.

Guards two invariants: rows are handed out only in an order that was proved; and where
the servers' types turn out not to be what the models say, the statement is gathered
instead, before a row was handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from dbfleet import conf
from dbfleet.engines import GatheredRows, InlineColumn, NotCarried
from dbfleet.errors import PageTooDeep
from dbfleet.executor import fanout, selfcheck
from dbfleet.executor.budget import Budget
from dbfleet.executor.combining import combined
from dbfleet.executor.emulated import emulated
from dbfleet.executor.ordering import Distinct, Ranks, Row, in_order, texts_of
from dbfleet.observe import events
from dbfleet.planner.merging import Column, Merge, Sql
from dbfleet.planner.partials import Partial
from dbfleet.planner.route import HOME, Route

#: rows of each shard that are read at once also by ``iterator()``: as many as that asks
#: a server for at a time by default, of which a stream holds up to two portions
FEW_ROWS = 2000

#: database -> the name of its text's order, None for that of its characters' codes
_text_orders: dict[tuple[str, str], str | None] = {}


class NotAsDeclared(Exception):
    """A column has another type on the server than its model says."""


class Answer(NamedTuple):
    """What one shard answered: all rows, and the driver's description of them."""

    rows: list[Row]
    description: Any


class Merger:
    """One statement over several shards; ``routing`` gives it nodes."""

    def __init__(
        self,
        routing: Any,
        route: Route,
        query: Any,
        shard_sql: Sql,
        gather: Callable[[str, Any], GatheredRows],
    ) -> None:
        self.routing, self.route, self.query = routing, route, query
        self.wrapper = routing.wrapper
        self.shard_sql, self.gathered = shard_sql, gather
        #: locks are taken shard by shard: statements that lock in one order cannot
        #: wait for each other in a circle that runs over two servers
        self.locks = query is not None and bool(query.select_for_update)
        self.partial: Partial | None = None
        self.merge: Merge = route.merge
        if isinstance(route.merge, Partial):
            self.partial, self.merge = route.merge, route.merge.merge
        self._check_depth()

    @property
    def streams(self) -> bool:
        """Whether rows can be handed out before all are there, and may be too many to
        have them all there: few are had in one round trip, and a cursor that the server
        keeps takes four."""
        if self.partial is not None:
            return False
        if self.merge.high is not None and self.merge.high <= FEW_ROWS:
            return False
        # Ranks of one portion's texts say nothing of another's.
        is_equal = self.wrapper.engine.has_binary_text_equality
        return self.merge.distinct is None or is_equal

    def _check_depth(self) -> None:
        merge, limits = self.merge, conf.settings().gather_for(self.routing.topology)
        rows = (merge.high or 0) * len(self.route.clusters)
        if self.partial is None and merge.low and rows > limits.max_rows:
            raise PageTooDeep(
                "E504",
                f"rows {merge.low} to {merge.high} of a query on alias "
                f"{self.wrapper.alias!r} take {merge.high} rows from each of "
                f"{len(self.route.clusters)} shards, {rows} in all, to drop most of "
                "them; nothing was sent. Go on after the last row of the page before, "
                "by a filter on an ordered unique column (keyset paging), or raise "
                "GATHER['MAX_ROWS']",
            )

    def run(self, sql: str, params: Any) -> GatheredRows:
        """The whole answer, complete in memory; one round trip to each shard, at
        once, and one to home where text is ordered by a collation.

        A share ``SELF_CHECK`` of the answers is compared with a gather's.
        """
        found = self._run(sql, params)
        if not self.locks and selfcheck.is_due(conf.settings().self_check):
            selfcheck.check(
                self.wrapper.alias,
                self.merge,
                self._loose(),
                partial(self._run, sql, params),
                partial(self.gathered, sql, params),
                found,
            )
        return found

    def _run(self, sql: str, params: Any) -> GatheredRows:
        answers = self._answers()
        description = next(iter(answers.values())).description
        rows = [row for answer in answers.values() for row in answer.rows]
        fetched = len(rows)
        try:
            ranks = self.ranks(rows, description)
            if self.partial is not None:
                average = self.wrapper.engine.average
                rows = combined(rows, self.partial, ranks, average)
                if self.partial.finish is not None:
                    return self._finished(rows, description, fetched)
        except NotAsDeclared as problem:
            events.emit("rerouted", alias=self.wrapper.alias, reason=str(problem))
            return self.gathered(sql, params)
        rows = in_order(rows, self.merge.keys, ranks)
        if self.merge.distinct is not None:
            rows = Distinct(self.merge.distinct, self.merge.keys).first_of(rows, ranks)
        rows = rows[self.merge.low : self.merge.high]
        width = self.merge.width
        if self.merge.hidden:
            rows = [row[:width] for row in rows]
            description = description[:width]
        return GatheredRows(rows, description, len(rows), fetched, [self.shard_sql[0]])

    def _loose(self) -> frozenset[int]:
        """Columns of the answer where any of several equal texts may stand."""
        if self.partial is not None and self.partial.finish is not None:
            return self.partial.finish.loose
        return frozenset(one.at for one in self._compared() if one.is_text)

    def _finished(
        self, groups: list[Row], description: Any, fetched: int
    ) -> GatheredRows:
        """What a database makes of the combined groups; one round trip to home."""
        assert self.partial is not None
        finish, engine = self.partial.finish, self.wrapper.engine
        assert finish is not None
        columns = [
            InlineColumn(description[one.at], one.is_text, one.source)
            for one in finish.carried
        ]
        rows = [tuple(row[one.at] for one in finish.carried) for row in groups]
        home = self.routing.node(HOME, is_write=False) if engine.is_local else None
        try:
            found: GatheredRows = engine.finish(
                home or self._reader(HOME), columns, rows, finish.sql, finish.params
            )
        except NotCarried as problem:
            raise NotAsDeclared(str(problem)) from None
        found.fetched_rows = fetched
        return found

    # -- the shards ---------------------------------------------------------------

    def _answers(self) -> dict[str, Answer]:
        cursors = {c: self.cursor(c) for c in self.route.clusters}
        budget = self._budget()
        return self.on_all(
            {c: partial(_fetch, one, budget) for c, one in cursors.items()}, cursors
        )

    def _budget(self) -> Budget | None:
        """Groups that are combined have limits; what is merged is the answer itself,
        which one database would have sent as well."""
        if self.partial is None or not self.partial.is_grouped:
            return None
        model = self.query.model
        of = f" of {model._meta.label}" if model is not None else ""
        return Budget(
            conf.settings().gather_for(self.routing.topology),
            f"an aggregate{of} on alias {self.wrapper.alias!r}",
        )

    def on_all(
        self,
        steps: Mapping[str, Callable[[], Any]],
        cursors: Mapping[str, ShardCursor],
    ) -> dict[str, Any]:
        """Each step's result, in the order of the shards; at once, where that helps."""
        is_alone = len(self.route.clusters) == 1
        if is_alone or self.wrapper.engine.is_local or emulated or self.locks:
            return {cluster: step() for cluster, step in steps.items()}
        jobs = {
            cluster: fanout.Job(step, cursors[cluster].cancel, cursors[cluster].abandon)
            for cluster, step in steps.items()
        }
        limits = conf.settings().fanout
        found = fanout.run(self.wrapper.alias, jobs, limits)
        return {cluster: found[cluster] for cluster in steps}

    def cursor(self, cluster: str, name: str | None = None) -> ShardCursor:
        """A cursor of one shard, on the node that may serve it."""
        routing = self.routing
        declared = self.wrapper.nodes.clusters[cluster]
        has_replicas = declared.replicas or declared.source is not None
        if self.route.replica_ok and has_replicas and routing.reads_replicas():
            inner = routing.read_cursor(cluster, self.query, name)
            return ShardCursor(self, None, inner)
        node = routing.node(cluster, is_write=self.locks)
        return ShardCursor(self, node, partial(routing.vendor_cursor, node, name))

    # -- what values compare by ----------------------------------------------------

    def ranks(self, rows: Sequence[Row], description: Any) -> Ranks:
        """The places of the texts that are compared; a round trip to home where they
        are not in the order of their characters' codes.

        Raises NotAsDeclared where a server's type is not what was planned with.
        """
        columns = self._texts(description)
        if not columns or self._is_bytewise():
            return {}
        texts = texts_of(rows, columns)
        home, engine = self._reader(HOME), self.wrapper.engine
        if not engine.can_rank(home):
            raise NotAsDeclared("this server cannot be asked for the order of texts")
        return {
            column.at: engine.rank(home, found, column.source)
            for column, found in texts.items()
            if found
        }

    def _texts(self, description: Any) -> list[Column]:
        """The columns that compare as text, once every column was checked."""
        found = []
        for column in self._compared():
            kind = self.wrapper.engine.comparison(description[column.at])
            if kind is None or (kind == "text" and not column.is_text):
                raise NotAsDeclared(f"column {column.at + 1} compares as its server's")
            if kind == "text":
                found.append(column)
        return list(dict.fromkeys(found))

    def _reader(self, cluster: str) -> Any:
        """A node that may be asked something about its database."""
        if self.route.replica_ok:
            return self.routing.reader(cluster, self.query)
        return self.routing.node(cluster, is_write=False)

    def _compared(self) -> Iterator[Column]:
        yield from self.merge.columns
        if self.partial is not None:
            yield from self.partial.groups
            for one in self.partial.combines:
                yield from (part for part in (one.column, one.distinct) if part)

    def _is_bytewise(self) -> bool:
        """Whether text is ordered by its characters' codes, on all nodes alike."""
        engine, orders = self.wrapper.engine, set()
        for cluster in (HOME, *self.route.clusters):
            name = self.wrapper.nodes.clusters[cluster].primary
            settings = self.wrapper.settings_dict["NODES"][name]
            known = name, str(settings["NAME"])
            if known not in _text_orders:
                node = self._reader(cluster)
                _text_orders[known] = engine.text_order(node)
            orders.add(_text_orders[known])
        if len(orders) > 1:
            raise NotAsDeclared("the shards' databases have different collations")
        return orders == {None}


class ShardCursor:
    """The cursor of one shard, opened by the thread that uses it."""

    def __init__(self, merger: Merger, node: Any, source: Any) -> None:
        self._merger, self._node, self._source = merger, node, source
        self.inner: Any = None

    def execute(self) -> None:
        sql, params = self._merger.shard_sql
        if self._node is None:
            self.inner = self._source
            self.inner.execute(sql, params)
            return
        with self._node.wrap_database_errors:
            self.inner = self._source()
            self.inner.execute(sql, params)

    def fetchall(self) -> list[Row]:
        if self._node is None:
            return list(self.inner.fetchall())
        with self._node.wrap_database_errors:
            return list(self.inner.fetchall())

    def fetchmany(self, size: int) -> list[Row]:
        if self._node is None:
            return list(self.inner.fetchmany(size))
        with self._node.wrap_database_errors:
            return list(self.inner.fetchmany(size))

    @property
    def description(self) -> Any:
        return self.inner.description

    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()

    def _node_in_use(self) -> Any:
        return self._node if self._node is not None else self._source.asked

    def cancel(self, timeout_s: float) -> None:
        if self._node is None:
            self._source.is_over = True
        node = self._node_in_use()
        if node is not None:
            self._merger.wrapper.engine.cancel(node, timeout_s)

    def abandon(self) -> None:
        node = self._node_in_use()
        if node is not None:
            fanout.give_up(self._merger.wrapper.engine, node)


def _fetch(cursor: ShardCursor, budget: Budget | None) -> Answer:
    try:
        cursor.execute()
        rows = cursor.fetchall() if budget is None else budget.fetch(cursor)
        return Answer(rows, cursor.description)
    finally:
        cursor.close()
