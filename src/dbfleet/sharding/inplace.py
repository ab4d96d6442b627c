"""``save()`` of a row that is where its shard key says: one statement on one shard.

``save()`` writes every column, the shard key and unique ones included, mostly with the
values that the row has. The UPDATE asks for that itself: it finds the row only if its
key, and whatever home keeps claims of, already have the values to be written. Then the
row is on the key's shard, stays there, and its claims stay; no row of another shard can
have its primary key. If it finds nothing, nothing happened, and the row is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from django.db.models.sql import Query
from django.db.models.sql.constants import ROW_COUNT
from django.db.models.sql.subqueries import UpdateQuery

from dbfleet.errors import InvalidShardKey, NullShardKey
from dbfleet.observe import events
from dbfleet.planner import simple
from dbfleet.planner.route import Route, Rung
from dbfleet.sharding.keyed import KeyedWriter, Step


class _Unknown(Exception):
    """The statement does not say that the row stays where it is."""


def update_in_place(
    writer: KeyedWriter,
    values: Sequence[Any],
    original: Query,
    route: Route,
    returning: Sequence[Any] = (),
) -> tuple[int, list[Any]] | None:
    """Write ``values`` to the one row of ``original``; None if it has to be looked for.

    One round trip, in autocommit without a transaction; one more for ``returning``, and
    one read where the key is that of a parent which the row does not name by its key.
    """
    if not values or not _writes_all(writer, values):
        return None
    try:
        pk, guards, shard = _placed(writer, values, original)
    except _Unknown:
        return None
    update: Any = original.chain(klass=UpdateQuery)
    update.add_update_fields(list(values))
    for field, value in guards:
        name = field.attname if value is not None else f"{field.attname}__isnull"
        update.add_filter(name, True if value is None else value)
    with writer.transaction.statement() if returning else nullcontext():
        compiler = update.get_compiler(writer.wrapper.alias, writer.wrapper)
        with writer.routing.on(shard, is_write=True):
            count = int(compiler.run_plain(ROW_COUNT) or 0)
        if not count:
            return None
        told = f"{writer.table.pin_reason}, as the row has it"
        events.emit(
            "routed",
            route=replace(route, rung=Rung.NODE, clusters=(shard,), reason=told),
        )
        steps = [Step(shard, [(pk,)], list(values))]
        return count, writer.read_back(steps, returning, [shard])


def _writes_all(writer: KeyedWriter, values: Sequence[Any]) -> bool:
    """Whether it looks like ``save()``; others mostly write what they change."""
    written = {field.column for field, _, _ in values}
    fields = [
        field
        for field in writer.table.opts.local_concrete_fields
        if not (field.primary_key or getattr(field, "generated", False))
    ]
    return written == {field.column for field in fields}


def _placed(
    writer: KeyedWriter, values: Sequence[Any], original: Query
) -> tuple[Any, list[tuple[Any, Any]], str]:
    """(primary key, what the row must have already, its shard); raises _Unknown."""
    table = writer.table
    if not table.is_sharded or len(table.pk_fields) != 1:
        raise _Unknown
    [pk_field] = table.pk_fields
    query = original.clone()
    query.clear_ordering(force=True)
    pk = simple.key_value(query, pk_field)
    if pk is None:
        raise _Unknown
    new = {field: value for field, _, value in values}
    placing = list(table.key_fields)
    if table.key_path:
        placing = [table.opts.get_field(table.key_path[0].field)]
    guarded = dict.fromkeys([*placing, *_claimed(writer, new)])
    guarded.pop(pk_field, None)
    guards = [(field, _plain(field, new)) for field in guarded]
    known = {pk_field: pk, **dict(guards)}
    key = tuple(known[field] for field in placing)
    if not key or None in key:
        raise _Unknown
    return pk, guards, _shard_of(writer, tuple(placing), key)


def _shard_of(
    writer: KeyedWriter, fields: tuple[Any, ...], key: tuple[Any, ...]
) -> str:
    try:
        if writer.table.key_path:
            hop = writer.table.key_path[0]
            shard = writer.routing.locate(hop, set(key)).get(key[0])
        else:
            shard = writer.routing.find_shard(fields, key)
    except (InvalidShardKey, NullShardKey) as error:
        raise _Unknown from error
    if shard is None:
        raise _Unknown
    return str(shard)


def _claimed(writer: KeyedWriter, new: dict[Any, Any]) -> Iterator[Any]:
    """The columns of claims that the statement might change; raises _Unknown."""
    opts = writer.table.opts
    by_column = {field.column: field for field in opts.local_concrete_fields}
    written = {field.column for field in new}
    for rule in writer.rules:
        if not rule.columns & written:
            continue
        for column in sorted(rule.columns):
            field = by_column[column]
            # Values that a collation calls equal may differ in an expression.
            if rule.is_computed and not writer.facts.is_exact(field):
                raise _Unknown
            yield field


def _plain(field: Any, new: dict[Any, Any]) -> Any:
    """The value to be written, that a comparison with the column can be sent of."""
    value = new.get(field, field)
    if hasattr(value, "prepare_database_save"):
        value = value.prepare_database_save(field)
    is_usual = field.get_lookup("exact") in simple.EXACT
    if hasattr(value, "resolve_expression") or value is field or not is_usual:
        raise _Unknown
    return value
