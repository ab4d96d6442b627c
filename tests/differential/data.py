"""Random rows, small and nasty: ties, NULLs, accents, edges of every type.

Rows are plain dicts of column values by model label, so that they can be made fewer,
loaded on any alias and printed.
"""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from tests.differential.fleet import PLAIN, Fleet, working_on

Row = dict[str, Any]
Rows = dict[str, list[Row]]

UTC = dt.UTC
TEXTS = (
    "", "a", "A", "b", "B", "ab", "aB", "á", "ä", "Ä", "e\u0301", "é", "ß", "ss",
    "\u0131", "İ", "i", "I", "%", "_", "a%b", "a_b", "\\", "'", '"', "a b", " a", "a ",
    "a  ", "A ", " ", "z", "Z", "10", "9", "日本", "😀", "null",
    "line\nbreak", "tab\t", "{a}", "%s",
)  # fmt: skip
#: no two of them are equal under any collation in use
NAMES = tuple(
    f"{first}{second}"
    for first in ("a", "ä2", "B", "ß3", "日", "😀", "%", "_x", "\\y", "Zz")
    for second in ("", "1", "é")
)
INTEGERS = (-7, -1, 0, 0, 1, 1, 2, 3, 5, 10, 100)
DECIMALS = tuple(
    map(
        Decimal, ("-1.50", "-0.01", "0.00", "0.10", "1.00", "1.00", "9.99", "100000.25")
    )
)
#: of a column that has more digits than the others
FINE = (*DECIMALS, *map(Decimal, ("-0.0001", "1.0000", "1.0001", "9.9900", "0.125")))
# Multiples of a quarter: sums are the same in any order.
FLOATS = (-2.5, -0.25, -0.0, 0.0, 0.5, 0.5, 1.0, 3.75, 1e6)
DATES = (
    dt.date(1969, 12, 31), dt.date(1999, 12, 31), dt.date(2020, 2, 29),
    dt.date(2023, 1, 1), dt.date(2023, 1, 1), dt.date(2024, 6, 30),
)  # fmt: skip
MOMENTS = (
    dt.datetime(1999, 12, 31, 23, 30, tzinfo=UTC),
    dt.datetime(2023, 3, 26, 0, 59, 59, 999999, tzinfo=UTC),  # summer time begins
    dt.datetime(2023, 3, 26, 1, 0, tzinfo=UTC),
    dt.datetime(2023, 10, 29, 0, 30, tzinfo=UTC),  # summer time ends
    dt.datetime(2023, 10, 29, 1, 30, tzinfo=UTC),
    dt.datetime(2024, 2, 29, 12, 0, tzinfo=UTC),
    dt.datetime(2024, 2, 29, 12, 0, tzinfo=UTC),
)
TIMES = (dt.time(0, 0), dt.time(6, 30), dt.time(23, 59, 59))
DURATIONS = (
    dt.timedelta(0), dt.timedelta(seconds=-1), dt.timedelta(days=3, microseconds=5),
)  # fmt: skip
DOCUMENTS: tuple[Any, ...] = (
    {}, [], {"a": 1}, {"a": 2, "b": "x"}, {"a": None}, {"a": {"b": [1, 2]}}, {"b": "X"},
    [1, 2, 3], "text", 1, 1.5, True, {"a": "1"}, {"ä": "é"},
)  # fmt: skip
# MariaDB takes only what RFC 4122 calls valid.
UUIDS = tuple(
    uuid.UUID(int=number * 0x3333_4444_5555_6666_7777_8888, version=4)
    for number in range(40)
)
STATES = ("new", "paid", "sent", "New")

#: parents first
LABELS = (
    "Country", "Setting", "Tag", "Category", "Product", "Customer", "Profile", "Order",
    "Line", "Place", "Shop", "Stock", "Comment", "Product_tags", "Customer_favorites",
)  # fmt: skip


def model_of(label: str) -> Any:
    """The model class of a label of :data:`LABELS`."""
    from django.apps import apps

    return apps.get_model("differential", label)


class Maker:
    """Makes the rows of one seed."""

    def __init__(self, rng: random.Random, engine: str) -> None:
        self.rng, self.engine = rng, engine
        #: the same few values for many rows, now and then
        self.scale = rng.choice((0.0, 0.15, 0.5, 1.0, 1.0, 1.0, 2.0))
        #: how often one key of a table is the one that is referred to: with nearly all
        #: rows of one parent, one shard has them and others are empty
        self.lean = rng.choice((0.3, 0.3, 0.3, 0.9))
        self.rows: Rows = {label: [] for label in LABELS}

    def maybe(self, value: Any) -> Any:
        """``value`` or NULL."""
        return None if self.rng.random() < 0.25 else value

    def one(self, values: Any) -> Any:
        return self.rng.choice(values)

    def count(self, usual: int) -> int:
        if self.rng.random() < 0.06:
            return 0
        return round(usual * self.scale * self.rng.uniform(0.6, 1.3))

    def ids(self, count: int, *, with_zero: bool = False) -> list[int]:
        numbers = [n for n in range(-6, 120) if n or with_zero]
        return self.rng.sample(numbers, min(count, len(numbers)))

    def of(self, label: str, column: str = "id") -> list[Any]:
        return [row[column] for row in self.rows[label]]

    def some(self, label: str, column: str = "id") -> Any:
        """A key of another table, or None; one of them is met often."""
        keys = self.of(label, column)
        if not keys:
            return None
        return keys[0] if self.rng.random() < self.lean else self.one(keys)

    def make(self) -> Rows:
        """Fill every table."""
        for label in LABELS:
            self.rows[label] = [
                row for row in getattr(self, f"_{label.lower()}")() if row
            ]
        return self.rows

    def _country(self) -> Iterator[Row]:
        codes = self.rng.sample(("DE", "FR", "it", "ÄT", "jp", "X%"), k=6)
        for code in codes[: max(1, self.count(5))]:
            population = self.maybe(self.one((0, 5, 10**6, 10**6, 9 * 10**15)))
            yield {"code": code, "name": self.one(TEXTS), "population": population}

    def _setting(self) -> Iterator[Row]:
        for pk, key in zip(
            self.ids(self.count(6)), self.rng.sample(NAMES, 15), strict=False
        ):
            yield {
                "id": pk, "key": key, "value": self.one(TEXTS),
                "number": self.maybe(self.one(INTEGERS)),
                "country_id": self.maybe(self.some("Country", "code")),
            }  # fmt: skip

    def _tag(self) -> Iterator[Row]:
        for pk, name in zip(
            self.ids(self.count(8)), self.rng.sample(NAMES, 20), strict=False
        ):
            yield {"id": pk, "name": name, "weight": self.one(INTEGERS)}

    def _category(self) -> Iterator[Row]:
        made: list[int] = []
        for pk, slug in zip(
            self.ids(self.count(9)), self.rng.sample(NAMES, 20), strict=False
        ):
            yield {
                "id": pk, "slug": slug, "title": self.one(TEXTS),
                "position": self.maybe(self.one(INTEGERS)),
                "parent_id": self.maybe(self.one(made)) if made else None,
            }  # fmt: skip
            made.append(pk)

    def _product(self) -> Iterator[Row]:
        count = self.count(12)
        keys = self.rng.sample(UUIDS, min(count, len(UUIDS)))
        for pk, sku in zip(keys, self.rng.sample(NAMES, 30), strict=False):
            yield {
                "id": pk, "sku": sku, "title": self.one(TEXTS),
                "price": self.maybe(self.one(DECIMALS)),
                "mass": self.maybe(self.one(FLOATS)),
                "released": self.maybe(self.one(DATES)), "added": self.one(MOMENTS),
                "attributes": self.maybe(self.one(DOCUMENTS)),
                "is_active": self.rng.random() < 0.7,
                "category_id": self.maybe(self.some("Category")),
            }  # fmt: skip

    def _customer(self) -> Iterator[Row]:
        made: list[int] = []
        keys = self.ids(
            self.count(14), with_zero=self.engine not in ("mariadb", "mysql")
        )
        for pk, email in zip(keys, self.rng.sample(NAMES, 30), strict=False):
            note = "long" * 20_000 if self.rng.random() < 0.01 else self.one(TEXTS)
            yield {
                "id": pk, "name": self.one(TEXTS), "email": self.maybe(email),
                "note": note, "country_id": self.maybe(self.some("Country", "code")),
                "referrer_id": self.maybe(self.one(made)) if made else None,
                "balance": self.maybe(self.one(DECIMALS)),
                "score": self.maybe(self.one(FLOATS)),
                "is_vip": self.one((True, False, None)),
                "joined": self.maybe(self.one(MOMENTS)),
                "birthday": self.maybe(self.one(DATES)),
            }  # fmt: skip
            made.append(pk)

    def _profile(self) -> Iterator[Row]:
        for pk in self.of("Customer"):
            if self.rng.random() < 0.5:
                yield {
                    "customer_id": pk, "biography": self.one(TEXTS),
                    "wakes_at": self.maybe(self.one(TIMES)),
                    "patience": self.maybe(self.one(DURATIONS)),
                }  # fmt: skip

    def _order(self) -> Iterator[Row]:
        taken = set()
        for pk in self.ids(self.count(18)):
            key = self.some("Customer"), self.rng.randrange(6)
            if key[0] is None or key in taken:
                continue
            taken.add(key)
            yield {
                "id": pk, "customer_id": key[0], "number": key[1],
                "status": self.one(STATES), "total": self.maybe(self.one(DECIMALS)),
                "placed": self.one(MOMENTS), "is_paid": self.one((True, False, None)),
                "ship_to_id": self.maybe(self.some("Country", "code")),
            }  # fmt: skip

    def _line(self) -> Iterator[Row]:
        taken = set()
        for pk in self.ids(self.count(24)):
            key = self.some("Order"), self.rng.randrange(5)
            product = self.some("Product")
            if key[0] is None or product is None or key in taken:
                continue
            taken.add(key)
            yield {
                "id": pk, "order_id": key[0], "product_id": product, "position": key[1],
                "quantity": self.one(INTEGERS), "price": self.maybe(self.one(DECIMALS)),
                "options": self.maybe(self.one(DOCUMENTS)),
            }  # fmt: skip

    def _place(self) -> Iterator[Row]:
        for pk in self.ids(self.count(8)):
            yield {
                "id": pk, "name": self.one(TEXTS),
                "rating": self.maybe(self.one(INTEGERS)),
                "country_id": self.maybe(self.some("Country", "code")),
            }  # fmt: skip

    def _shop(self) -> Iterator[Row]:
        managers = [*self.of("Customer"), *[None] * 8]
        self.rng.shuffle(managers)
        for pk, code, boss in zip(
            self.of("Place"), self.rng.sample(NAMES, 20), managers, strict=False
        ):
            if self.rng.random() < 0.6:
                yield {
                    "place_ptr_id": pk, "opened": self.maybe(self.one(DATES)),
                    "code": code, "manager_id": boss,
                }  # fmt: skip

    def _stock(self) -> Iterator[Row]:
        for pk, (shop, product) in self._pairs(
            12, self.of("Shop", "place_ptr_id"), self.of("Product")
        ):
            yield {
                "id": pk, "shop_id": shop, "product_id": product,
                "quantity": self.maybe(self.one(INTEGERS)),
                "cost": self.maybe(self.one(FINE)),
            }  # fmt: skip

    def _comment(self) -> Iterator[Row]:
        for pk in self.ids(self.count(8)):
            kind = self.one(("Tag", "Customer"))
            target = self.some(kind)
            if target is not None:
                yield {
                    "id": pk, "text": self.one(TEXTS),
                    "author_id": self.maybe(self.some("Customer")),
                    "content_type_id": CONTENT_TYPES[kind], "object_id": target,
                }  # fmt: skip

    def _product_tags(self) -> Iterator[Row]:
        for pk, (product, tag) in self._pairs(14, self.of("Product"), self.of("Tag")):
            yield {"id": pk, "product_id": product, "tag_id": tag}

    def _customer_favorites(self) -> Iterator[Row]:
        for pk, (customer, product) in self._pairs(
            14, self.of("Customer"), self.of("Product")
        ):
            yield {"id": pk, "customer_id": customer, "product_id": product}

    def _pairs(
        self, usual: int, left: list[Any], right: list[Any]
    ) -> Iterator[tuple[int, tuple[Any, Any]]]:
        pairs = [(one, other) for one in left for other in right]
        self.rng.shuffle(pairs)
        return zip(self.ids(self.count(usual)), pairs, strict=False)


CONTENT_TYPES = {"Tag": 1, "Customer": 2}


def clear(fleet: Fleet, alias: str) -> None:
    """Empty every table, on every database behind ``alias``, without dbfleet."""
    from django.db import connections

    nodes = [PLAIN] if alias == PLAIN else list(fleet.nodes[alias].values())
    tables = [model_of(label)._meta.db_table for label in reversed(LABELS)]
    tables += ["django_content_type"]
    for node in nodes:
        connection = connections[node]
        quote = connection.ops.quote_name
        own = ["dbfleet_unique"] if fleet.keeps_claims(node) else []
        statements = [f"DELETE FROM {quote(table)}" for table in (*tables, *own)]
        with connection.constraint_checks_disabled(), connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("; ".join(statements))
                continue
            for statement in statements:
                cursor.execute(statement)


def load(fleet: Fleet, alias: str, rows: Rows) -> None:
    """Make ``rows`` the whole content of ``alias``."""
    from django.contrib.contenttypes.models import ContentType
    from django.db import connections

    clear(fleet, alias)
    # Rows may come before the row of their own table that they refer to.
    with working_on(alias), connections[alias].constraint_checks_disabled():
        ContentType.objects.clear_cache()
        ContentType.objects.bulk_create(
            ContentType(id=pk, app_label="differential", model=label.lower())
            for label, pk in CONTENT_TYPES.items()
        )
        for label in LABELS:
            model = model_of(label)
            if label == "Shop":  # Django refuses children in bulk
                for row in rows[label]:
                    model(**row).save_base(raw=True, force_insert=True)
            else:
                model._base_manager.bulk_create(model(**row) for row in rows[label])
        ContentType.objects.clear_cache()


def snapshot(alias: str, labels: Iterable[str] = LABELS) -> Rows:
    """Every row of ``alias`` in some tables, as ``load`` takes them."""
    rows: Rows = {}
    with working_on(alias):
        for label in labels:
            opts = model_of(label)._meta
            names = [field.attname for field in opts.local_concrete_fields]
            found = model_of(label)._base_manager.values(*names)
            rows[label] = sorted(found, key=lambda row: repr(list(row.values())))
    return rows


def fewer(rows: Rows, label: str, keep: list[Row]) -> Rows:
    """``rows`` with only ``keep`` of one table, and nothing that refers to the rest."""
    rows = {**rows, label: keep}
    for child in LABELS:
        for field in model_of(child)._meta.local_concrete_fields:
            if field.remote_field is None or field.column == "content_type_id":
                continue
            target = field.target_field
            parent = target.model._meta.object_name
            known = {row[target.attname] for row in rows[parent]}
            kept = []
            for row in rows[child]:
                if row[field.attname] is None or row[field.attname] in known:
                    kept.append(row)
                elif field.null:
                    kept.append({**row, field.attname: None})
            rows[child] = kept
    return rows


def printed(rows: Rows) -> str:
    """Python code that makes the rows."""
    lines = []
    for label in LABELS:
        for row in rows[label]:
            given = {name: value for name, value in row.items() if value is not None}
            values = ", ".join(f"{name}={value!r}" for name, value in given.items())
            lines.append(f"{label}({values})")
    return "\n".join(lines)
