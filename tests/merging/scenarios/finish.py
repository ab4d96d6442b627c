"""Rows that a server is handed are what another one sent: values, types, digits."""

from __future__ import annotations

import secrets
from typing import Any

from django.db import connection, connections
from django.db.models import Avg, Count, F, Q, Sum
from django.db.models.functions import Coalesce
from django.db.utils import DataError
from django.test import override_settings

from dbfleet.engines import INLINE, InlineColumn, NotCarried
from dbfleet.observe import events
from tests.merging import scenarios
from tests.merging.app.models import Item, Owner
from tests.merging.scenarios import refused, same

POSTGRESQL = """
    SELECT 1::smallint, 2::integer, 9223372036854775807::bigint, 1.500::numeric,
        'NaN'::numeric, 0.1::double precision, 'a''\u00e9 %%'::text, 'B'::varchar(9),
        true, '2024-02-29'::date, '12:00:00.5'::time, '2024-02-29 12:00'::timestamp,
        '2024-10-27 00:30:00.000001+00'::timestamptz,
        '00000000-0000-4000-8000-000000000001'::uuid, '\\x00ff'::bytea
    UNION ALL SELECT NULL, NULL, NULL, 0.10, 'Infinity', 'NaN', '', NULL, NULL, NULL,
        NULL, NULL, NULL, NULL, NULL
"""
MARIADB = """
    SELECT CAST(1 AS SIGNED), CAST(-2.500 AS DECIMAL(9, 3)), 0.1e0, 1e300,
        CAST('2024-02-29' AS DATE), CAST('2024-02-29 12:00:00.5' AS DATETIME(6)),
        SUM(n), COUNT(*), MAX(n) FROM (SELECT 7 AS n UNION ALL SELECT 8) AS t
    UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
"""
SQLITE = "SELECT 1, 2.5, 'a', x'00ff', -9223372036854775808, '12' UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL"  # noqa: E501


def _sent() -> tuple[list[Any], list[InlineColumn]]:
    sql = {"postgresql": POSTGRESQL, "mysql": MARIADB, "sqlite": SQLITE}
    found = connection.engine.answer(connection, sql[connection.vendor], ())
    return found.rows, [InlineColumn(one) for one in found.description]


def _handed(sql: str, rows: list[Any], columns: list[InlineColumn]) -> list[Any]:
    engine = connection.engine
    return list(engine.finish(connection, columns, rows, sql, ()).rows)


def check_values_come_back_as_they_were() -> None:
    rows, columns = _sent()
    found = _handed(f"SELECT * FROM {INLINE}", rows, columns)
    same([list(map(repr, row)) for row in found], [list(map(repr, r)) for r in rows])
    same(_handed(f"SELECT * FROM {INLINE}", [], columns), [])
    same(_handed(f"SELECT COUNT(*) FROM {INLINE}", [], columns), [(0,)])


def check_types_are_the_servers() -> None:
    rows, columns = _sent()
    names = [f"c{at}" for at in range(len(columns))]
    if connection.vendor == "mysql":
        # Of a division the scale shows what its operands were.
        names = [name for at, name in enumerate(names) if at not in (4, 5)]
        listed = ", ".join(f"{name} / 7" for name in names)
        mine = connection.engine.finish(
            connection, columns, rows, f"SELECT {listed} FROM {INLINE}", ()
        )
        own = connection.engine.answer(
            connection,
            f"WITH t ({', '.join(f'c{at}' for at in range(len(columns)))}) AS "
            f"({MARIADB}) SELECT {listed} FROM t",
            (),
        )
        same(mine.rows, own.rows)
        same([one[5] for one in mine.description], [one[5] for one in own.description])
        return
    of = "pg_typeof({})::text" if connection.vendor == "postgresql" else "typeof({})"
    kinds = _handed(
        f"SELECT {', '.join(of.format(name) for name in names)} FROM {INLINE}",
        rows,
        columns,
    )
    if connection.vendor == "sqlite":
        same(kinds[0], ("integer", "real", "text", "blob", "integer", "text"))
        return
    wanted = [
        "smallint", "integer", "bigint", "numeric", "numeric", "double precision",
        "text", "character varying", "boolean", "date", "time without time zone",
        "timestamp without time zone", "timestamp with time zone", "uuid", "bytea",
    ]  # fmt: skip
    same(kinds, [tuple(wanted)] * 2)


def check_texts_keep_their_collation() -> None:
    texts = ["a", "A", "\u00e9", "e", "b ", "b", "%", "'"]
    if connection.vendor == "sqlite":
        return  # a text without a column has no collation, and its values no types
    table, name = Item._meta.db_table, "name"
    described = connection.engine.answer(
        connection, f"SELECT {name} FROM {table} WHERE 1 = 0", ()
    ).description
    columns = [InlineColumn(described[0], is_text=True, source=(table, name))]
    found = _handed(
        f"SELECT c0 FROM {INLINE} ORDER BY c0, HEX(c0)"
        if connection.vendor == "mysql"
        else f"SELECT c0 FROM {INLINE} ORDER BY c0",
        [(text,) for text in texts],
        columns,
    )
    Owner.objects.using("plain").bulk_create(
        Owner(id=1000 + at, name=text) for at, text in enumerate(texts)
    )
    with connections["plain"].cursor() as cursor:
        order = "name, HEX(name)" if connection.vendor == "mysql" else "name"
        cursor.execute(
            f"SELECT name FROM merging_owner WHERE id >= 1000 ORDER BY {order}"
        )
        expected = list(cursor.fetchall())
    Owner.objects.using("plain").filter(id__gte=1000).delete()
    if scenarios.kind != "mixed":
        same(found, expected)


def check_what_does_not_fit_is_not_handed_on() -> None:
    columns = _sent()[1]
    if connection.vendor == "mysql":
        for at, value in ((0, 2**63), (0, "x"), (1, 7), (4, "0000-00-00")):
            wrong = [tuple(value if n == at else None for n in range(len(columns)))]
            with refused(NotCarried, "not of its column's type"):
                _handed(f"SELECT * FROM {INLINE}", wrong, columns)
        many = [(secrets.token_hex(2**19),)] * 8
        text = InlineColumn(columns[0].described, True, ("merging_item", "name"))
        with refused(NotCarried, "too large for one message"):
            _handed(f"SELECT * FROM {INLINE}", many, [text])
    elif connection.vendor == "postgresql":
        found = connection.engine.answer(connection, "SELECT '1 mon'::interval", ())
        with refused(NotCarried, "a type of its own"):
            _handed("SELECT 1", found.rows, [InlineColumn(found.description[0])])
    else:
        with refused(DataError, "integer overflow"):
            _handed(f"SELECT * FROM {INLINE}", [(2**63,)], columns[:1])
        # What was begun is gone: the next one finds the name free.
        same(_handed(f"SELECT * FROM {INLINE}", [(1,)], columns[:1]), [(1,)])


def check_what_a_sample_of_answers_is_compared_with_agrees() -> None:
    counted = Item.objects.values("score").annotate(n=Count("id"), s=Sum("big"))
    by_name = Item.objects.values("name").annotate(n=Count("id"))
    told = []

    def listen(event: Any) -> None:
        if event.name == "self_check_failed":
            told.append(event)

    with events.subscribed(listen), override_settings(DBFLEET={"SELF_CHECK": 1}):
        list(counted.filter(n__gt=2).order_by("-n", "score")[:3])
        list(counted.annotate(t=F("s") + F("n"), d=Coalesce("s", 0)))
        list(by_name.filter(n__gt=2).order_by("name"))
        list(Item.objects.values("flag").annotate(n=Count("score", distinct=True)))
        counted.filter(n__gt=2).aggregate(a=Sum("n"), b=Count("*"))
        Item.objects.values("score", "flag").distinct().count()
        Item.objects.aggregate(a=Avg("price", distinct=True), b=Sum("score") + 1)
        list(Item.objects.filter(score=5).union(Item.objects.filter(flag=True)))
        list(counted.filter(Q(n__gt=2) | Q(s=None)).values_list("n").distinct())
    same(told, [])
