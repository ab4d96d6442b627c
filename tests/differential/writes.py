"""Random scripts of writes, with reads between them."""

from __future__ import annotations

import uuid
from typing import Any

from tests.differential.cases import Case
from tests.differential.compare import Expected
from tests.differential.conditions import Conditions
from tests.differential.data import NAMES, UUIDS, model_of
from tests.differential.schema import code_of, kind_of
from tests.differential.source import Code, call, keyword, text

#: models that scripts write, the ones with constraints over shards more often
TARGETS = (
    "Customer", "Customer", "Product", "Product", "Order", "Order", "Line", "Tag",
    "Category", "Shop", "Place", "Stock", "Comment", "Profile", "Setting", "Country",
)  # fmt: skip
#: pk columns that an update may change: nothing refers to these rows
FREE_KEYS = ("Comment", "Stock", "Line")
_STEPS = {"int": "1000", "decimal": "Decimal('1.25')", "float": "0.5"}


def act(code: Code | str) -> Code:
    """An action of a script."""
    body = text(code) if isinstance(code, str) else code
    return Code("lambda: ", (body,), least=1)


class Writes(Conditions):
    """Makes one script after another."""

    leaves_ids = False

    def case(self) -> Case:
        """A random script."""
        self.leaves_ids = False
        blocks = []
        for _ in range(self.rng.randrange(1, 4)):
            kind = self.one(("one", "one", "atomically", "careful", "undone"))
            if kind == "one":
                blocks.append(self._action())
                continue
            actions = [self._action() for _ in range(self.rng.randrange(1, 4))]
            if self.chance(0.3):
                inner = [self._action() for _ in range(self.rng.randrange(1, 3))]
                nested = self.one(("undone", "careful"))
                actions.append(Code(f"{nested}(", tuple(inner), tail=")", least=1))
                actions.append(self._action())
            blocks.append(Code(f"{kind}(", tuple(actions), tail=")", least=1))
        code = Code("steps(", tuple(blocks), glue=",\n  ", tail=")", least=1)
        return Case(code, Expected(is_ordered=True), True, self.leaves_ids)

    def _action(self) -> Code:
        makers = (
            self._create, self._create, self._bulk_create, self._bulk_create,
            self._upsert, self._update, self._update, self._update, self._move,
            self._save, self._save, self._bulk_update, self._delete, self._delete,
            self._get_or, self._many_to_many, self._many_to_many, self._reverse,
            self._automatic, self._read, self._read, self._update_key,
        )  # fmt: skip
        while True:
            found: Code | str | None = self.one(makers)()
            if found is not None:
                return act(found)

    # -- rows ----------------------------------------------------------------------

    def _label(self) -> str:
        return str(self.one(TARGETS))

    def _fresh_key(self, field: Any, label: str) -> Any:
        """A key for a new row; sometimes one that is taken."""
        if field.remote_field is not None:
            return self._target(field)
        if self.chance(0.08) and self.rows[label]:
            return self.one(self.rows[label])[field.attname]
        kind = kind_of(field)
        if kind == "uuid":
            return self.one(UUIDS)
        return self.one(NAMES)[:8] if kind == "text" else self.rng.randrange(200, 900)

    def _target(self, field: Any) -> Any:
        """The key of a stored row that a foreign key may refer to; None if none is."""
        target = field.target_field
        stored = self.rows.get(target.model.__name__, ())
        return self.one(stored)[target.attname] if stored else None

    def _new_value(self, field: Any) -> Any:
        if field.remote_field is not None:
            return self._target(field)
        if field.null and self.chance(0.3):
            return None
        value = self.value(field)
        if field.unique and isinstance(value, str) and self.chance(0.5):
            return value + self.one(("", "x", "X", " ", "é", "2"))
        if kind_of(field) == "text":
            return value[: field.max_length]
        return value

    def _row(self, label: str) -> dict[str, Any] | None:
        """Values of a new row; None if a parent is missing."""
        row: dict[str, Any] = {}
        for field in model_of(label)._meta.concrete_fields:
            if field.name == "place_ptr":
                continue
            if field.name == "content_type":
                row["content_type_id"] = self.rng.randrange(1, 3)
                continue
            value = (
                self._fresh_key(field, field.model.__name__)
                if field.primary_key
                else self._new_value(field)
            )
            if value is None and not field.null:
                return None
            row[field.attname] = value
        return row

    def _made(self, label: str, row: dict[str, Any]) -> Code:
        return call(label, *(keyword(n, code_of(v)) for n, v in row.items()))

    def _rows(self, label: str, count: int) -> list[dict[str, Any]]:
        found = [self._row(label) for _ in range(count)]
        return [row for row in found if row is not None]

    def _some(self, label: str) -> Code:
        """A queryset of the rows that a statement is about."""
        model = model_of(label)
        if self.chance(0.4):
            pk = code_of(self.value(model._meta.pk))
            return text(f"{label}.objects.filter(pk={pk})")
        condition = self.condition(model, {}, 1, multi=self.chance(0.3))
        return Code(f"{label}.objects.filter(", (condition,), tail=")")

    def _first(self, label: str) -> str | None:
        """One stored row, read again."""
        stored = self.rows[label]
        if not stored:
            return None
        pk = model_of(label)._meta.pk.attname
        return f"{label}.objects.get(pk={code_of(self.one(stored)[pk])})"

    # -- INSERT --------------------------------------------------------------------

    def _create(self) -> Code | None:
        label = self._label()
        row = self._row(label)
        if row is None:
            return None
        return call(
            f"{label}.objects.create", *(keyword(n, code_of(v)) for n, v in row.items())
        )

    def _bulk_create(self) -> Code | None:
        label = self._label()
        rows = self._rows(label, self.rng.randrange(1, 6))
        if not rows or label == "Shop":
            return None
        objs = Code(
            "[", tuple(self._made(label, row) for row in rows), tail="]", least=1
        )
        options: list[Code | str] = []
        if self.chance(0.3):
            options.append("batch_size=2")
        if self.chance(0.5):
            options.append("ignore_conflicts=True")
            # What comes back has no say about what was stored.
            return call("len", call(f"{label}.objects.bulk_create", objs, *options))
        return call(f"{label}.objects.bulk_create", objs, *options)

    def _upsert(self) -> Code | None:
        label, unique, updated = self.one(
            (
                ("Customer", "id", ("name", "balance")),
                ("Customer", "email", ("name", "score")),
                ("Product", "sku", ("price", "title")),
                ("Product", "id", ("price", "sku")),
                ("Order", "customer, number", ("total", "status")),
                ("Line", "order, position", ("quantity",)),
                ("Tag", "name", ("weight",)), ("Setting", "key", ("number", "value")),
                ("Country", "code", ("population",)),
                ("Stock", "shop, product", ("quantity",)),
            )
        )  # fmt: skip
        opts = model_of(label)._meta
        names = [opts.get_field(name).attname for name in unique.split(", ")]
        rows: dict[str, dict[str, Any]] = {}
        for row in self._rows(label, self.rng.randrange(1, 5)):
            stored = self.rows[label]
            if stored and self.chance(0.6):
                row |= {name: self.one(stored)[name] for name in names}
            if self.folds:  # MariaDB takes any unique conflict, not the named one
                row = self._without_other_conflicts(label, row, names)
            # One statement must not meet the same row twice.
            rows.setdefault(repr([row[name] for name in names]).casefold(), row)
        if not rows or any(None in [row[n] for n in names] for row in rows.values()):
            return None
        objs = Code(
            "[", tuple(self._made(label, r) for r in rows.values()), tail="]", least=1
        )
        options = ["update_conflicts=True", f"update_fields={list(updated)!r}"]
        if not self.folds:
            options.append(f"unique_fields={unique.split(', ')!r}")
        return call("len", call(f"{label}.objects.bulk_create", objs, *options))

    def _without_other_conflicts(
        self, label: str, row: dict[str, Any], names: list[str]
    ) -> dict[str, Any]:
        fresh = dict(row)
        for field in model_of(label)._meta.concrete_fields:
            if field.unique and field.attname not in names:
                kind = kind_of(field)
                if kind == "int":
                    fresh[field.attname] = self.rng.randrange(900, 99_000)
                elif kind == "text":
                    fresh[field.attname] = f"n{self.rng.randrange(10**6)}"
                else:
                    fresh[field.attname] = uuid.UUID(
                        int=self.rng.getrandbits(128), version=4
                    )
        return fresh

    def _automatic(self) -> Code | None:
        """Ids that the database chooses."""
        label = self.one(("Tag", "Setting", "Category", "Order"))
        rows = self._rows(label, self.rng.randrange(1, 4))
        if not rows:
            return None
        self.leaves_ids = True
        for row in rows:
            row.pop("id")
        if len(rows) == 1:
            parts = (keyword(n, code_of(v)) for n, v in rows[0].items())
            return call(f"{label}.objects.create", *parts)
        objs = Code(
            "[", tuple(self._made(label, row) for row in rows), tail="]", least=1
        )
        return call(f"{label}.objects.bulk_create", objs)

    # -- UPDATE --------------------------------------------------------------------

    def _update(self) -> Code | None:
        label = self._label()
        assignments = self._assignments(label, self.rng.randrange(1, 3))
        if not assignments:
            return None
        rows = self._some(label)
        if self.engine == "sqlite" and f"Exists({label}.objects" in str(rows):
            # SQLite 3.40 shows a row's subquery what it has written to earlier rows.
            return None
        return Code(
            "",
            (rows, Code(".update(", assignments, tail=")", least=1)),
            glue="",
            least=2,
        )

    def _assignments(self, label: str, count: int) -> tuple[Code, ...]:
        model = model_of(label)
        kept = {"content_type", "object_id"}
        if label in ("Order", "Line", "Profile"):
            kept |= {"customer", "order"}
        fields = [
            field
            for field in model._meta.concrete_fields
            if not field.primary_key and field.name not in kept
        ]
        picked = self.rng.sample(fields, min(count, len(fields)))
        return tuple(
            keyword(field.name, value)
            for field in picked
            if (value := self._assigned(model, field)) is not None
        )

    def _assigned(self, model: Any, field: Any) -> Code | str | None:
        """A new value of a column: a constant or an expression over the row."""
        if field.remote_field is not None:
            key = self._target(field)
            return None if key is None and not field.null else code_of(key)
        if field.unique:
            # One value for several rows must fail on both sides alike.
            more = f"Concat(F({field.name!r}), Value('~'))"
            return self.one((self._constant(field), more))
        kind, roll = kind_of(field), self.rng.random()
        if roll < 0.35 or kind == "json":
            return self._constant(field)
        if kind in _STEPS and field.name not in ("number", "position"):
            return self._counted_up(model, field, kind)
        if roll < 0.8:
            value = keyword("then", f"Value({code_of(self.value(field))})")
            when = call("When", self._own_condition(model), value)
            return call("Case", when, keyword("default", f"F({field.name!r})"))
        if kind == "text":
            return self.one((f"Upper({field.name!r})", f"Substr({field.name!r}, 1, 3)"))
        return self._constant(field)

    def _counted_up(self, model: Any, field: Any, kind: str) -> Code | str:
        own, more = self.stored(model, (kind,)), _STEPS[kind]
        found = self._from_rows(model, kind) if self.chance(0.3) else None
        return found or f"Coalesce(F({own.name!r}), {more}) + {more}"

    def _own_condition(self, model: Any) -> Code:
        """A condition over the row itself, which an UPDATE may use."""
        path = self.stored(model)
        return call("Q", self.lookup(path))

    def _from_rows(self, model: Any, kind: str) -> Code | None:
        """A subquery over what refers to the row."""
        if kind != "int":
            return None
        found = self.reverse(model)
        if found is None:
            return None
        label, foreign_key = found
        counted = Code(
            f".order_by().values({foreign_key!r}).annotate(n=Count('pk')).values('n')",
            is_fixed=True,
        )
        inner = self._related(label, foreign_key)
        return call(
            "Coalesce",
            call("Subquery", Code(inner.head, (*inner.parts, counted), glue="")),
            "0",
        )

    def _move(self) -> Code | None:
        """A new shard key."""
        label = self.one(("Order", "Order", "Customer_favorites"))
        customers = self.rows["Customer"]
        if not customers:
            return None
        value = code_of(self.one(customers)["id"])
        if label == "Customer_favorites":
            return None
        orders = self._some("Order")
        if self.chance(0.3):
            value = "F('customer_id')" if self.chance(0.3) else value
        more = ", total=F('total') + 1" if self.chance(0.3) else ""
        if self.chance(0.4):
            found = self._first("Order")
            return (
                None if found is None else text(f"edited({found}, customer_id={value})")
            )
        return Code(
            "", (orders, text(f".update(customer={value}{more})")), glue="", least=2
        )

    def _update_key(self) -> Code | None:
        """A new primary key for rows that nothing refers to."""
        label = self.one(FREE_KEYS)
        new = (
            # Whether rows that follow each other collide is a matter of their order.
            f"F('id') + {self.rng.randrange(1000, 10**6)}"
            if self.chance(0.6)
            else code_of(self.rng.randrange(200, 900))
        )
        return Code(
            "", (self._some(label), text(f".update(id={new})")), glue="", least=2
        )

    def _save(self) -> Code | None:
        label = self._label()
        found = self._first(label)
        if found is None:
            return None
        model = model_of(label)
        values = self._assignments(label, 2)
        fields = {str(v).partition("=")[0] for v in values}
        parts = [
            keyword(
                model._meta.get_field(name).attname,
                self._constant(model._meta.get_field(name)),
            )
            for name in sorted(fields)
        ]
        if not parts:
            return None
        if self.chance(0.3):
            parts.append(keyword("update_fields", repr(sorted(fields))))
        return Code("edited(", (text(found, is_fixed=True), *parts), tail=")", least=1)

    def _constant(self, field: Any) -> str:
        value = self._new_value(field)
        if value is None and not field.null:
            value = self.value(field)
        return code_of(value)

    def _bulk_update(self) -> Code | None:
        label = self._label()
        values = [
            keyword(
                field.attname if field.remote_field is None else field.name + "_id",
                self._constant(field),
            )
            for field in self.rng.sample(
                list(model_of(label)._meta.local_concrete_fields), 2
            )
            if not field.primary_key and not field.unique and field.remote_field is None
        ]
        if not values:
            return None
        return Code("changed(", (self._some(label), *values), tail=")", least=2)

    # -- DELETE and the rest -----------------------------------------------------

    def _delete(self) -> Code | None:
        return Code(
            "", (self._some(self._label()), text(".delete()")), glue="", least=2
        )

    def _get_or(self) -> Code | None:
        label, unique = self.one(
            (
                ("Tag", "name"), ("Customer", "email"), ("Product", "sku"),
                ("Setting", "key"), ("Category", "slug"), ("Country", "code"),
                ("Shop", "code"),
            )
        )  # fmt: skip
        row = self._row(label)
        if row is None or row[unique] is None:
            return None
        if self.rows[label] and self.chance(0.4):
            row[unique] = self.one(self.rows[label])[unique] or "e"
        name = self.one(("get_or_create", "update_or_create"))
        defaults = {n: v for n, v in row.items() if n != unique}
        options = []
        if name == "update_or_create":
            pk = model_of(label)._meta.pk.attname
            changing = {n: v for n, v in defaults.items() if n not in (pk, "id")}
            picked = dict(list(changing.items())[-1:])
            options.append(keyword("create_defaults", code_of(defaults)))
            defaults = picked
        return call(
            f"{label}.objects.{name}",
            keyword(unique, code_of(row[unique])),
            keyword("defaults", code_of(defaults)),
            *options,
        )

    def _many_to_many(self) -> Code | None:
        label, name, other = self.one(
            (("Product", "tags", "Tag"), ("Tag", "products", "Product"),
             ("Customer", "favorites", "Product"), ("Product", "fans", "Customer"),
             ("Shop", "products", "Product"))
        )  # fmt: skip
        found = self._first(label)
        stored = self.rows[other]
        if found is None or not stored:
            return None
        keys = [self.one(stored)["id"] for _ in range(self.rng.randrange(1, 4))]
        method = self.one(("add", "add", "remove", "set", "set", "clear", "create"))
        inside = ", ".join(map(code_of, keys))
        if label == "Shop" and method in ("add", "set", "create"):
            return None
        if method == "clear":
            return text(f"{found}.{name}.clear()")
        if method == "set":
            more = ", clear=True" if self.chance(0.2) else ""
            return text(f"{found}.{name}.set([{inside}]{more})")
        if method == "create":
            row = self._row(other)
            if row is None:
                return None
            return call(
                f"{found}.{name}.create",
                *(keyword(n, code_of(v)) for n, v in row.items()),
            )
        return text(f"{found}.{name}.{method}({inside})")

    def _reverse(self) -> Code | None:
        label, name, other, foreign_key = self.one(
            (("Customer", "orders", "Order", "customer_id"),
             ("Order", "lines", "Line", "order_id"),
             ("Category", "products", "Product", "category_id"),
             ("Country", "customers", "Customer", "country_id"),
             ("Customer", "referred", "Customer", "referrer_id"),
             ("Customer", "comments", "Comment", "object_id"))
        )  # fmt: skip
        found = self._first(label)
        if found is None:
            return None
        form = self.rng.randrange(4)
        nullable = name in ("products", "customers", "referred")
        if form == 0:
            row = self._row(other)
            if row is None:
                return None
            row.pop(foreign_key)
            row.pop("content_type_id", None)
            return call(
                f"{found}.{name}.create",
                *(keyword(n, code_of(v)) for n, v in row.items()),
            )
        if form == 1 and nullable:
            return text(f"{found}.{name}.{self.one(('clear()', 'set([])'))}")
        if form == 2 and nullable:
            one = self._first(other)
            bulk = self.one(("", ", bulk=False"))
            return None if one is None else text(f"{found}.{name}.add({one}{bulk})")
        values = self._assignments(other, 1)
        return (
            Code(f"{found}.{name}.all().update(", values, tail=")", least=1)
            if values
            else None
        )

    def _read(self) -> Code | None:
        label = self._label()
        model = model_of(label)
        rows = Code(
            f"{label}.objects.filter(", (self.condition(model, {}, 1),), tail=")"
        )
        if self.chance(0.3):
            return Code("", (rows,), tail=".count()", least=1)
        names = [f.attname for f in model._meta.concrete_fields if kind_of(f) != "json"]
        shown = self.rng.sample(names, min(2, len(names)))
        order = ["pk"] if self.folds else [*shown, "pk"]
        tail = f".order_by({_quoted(order)}).values_list({_quoted(shown)}))"
        return Code("list(", (rows,), tail=tail, least=1)


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names))
