"""What random code may name: models, paths over their relations, values of columns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.differential import data
from tests.differential.data import Rows, model_of

Choice = TypeVar("Choice")

_KINDS = {
    "AutoField": "int", "BigAutoField": "int", "BigIntegerField": "int",
    "BooleanField": "bool", "CharField": "text", "DateField": "date",
    "DateTimeField": "moment", "DecimalField": "decimal", "DurationField": "duration",
    "FloatField": "float", "IntegerField": "int", "JSONField": "json",
    "TextField": "text", "TimeField": "time", "UUIDField": "uuid",
}  # fmt: skip
_VALUES: dict[str, tuple[Any, ...]] = {
    "int": data.INTEGERS, "bool": (True, False), "text": data.TEXTS + data.NAMES,
    "date": data.DATES, "moment": data.MOMENTS, "decimal": data.DECIMALS,
    "duration": data.DURATIONS, "float": data.FLOATS, "json": data.DOCUMENTS,
    "time": data.TIMES, "uuid": data.UUIDS,
}  # fmt: skip
#: models that querysets start from, the busy ones more often
STARTS = (
    "Customer", "Customer", "Customer", "Order", "Order", "Order", "Line", "Line",
    "Product", "Product", "Product", "Category", "Tag", "Shop", "Place", "Stock",
    "Profile", "Country", "Setting", "Comment", "Product_tags", "Customer_favorites",
)  # fmt: skip
#: relations to rows of the same shard, which shards join by themselves: half of all
NEAR = {
    "Customer": ("orders", "profile", "Profile", "Order"),
    "Order": ("customer", "lines", "Line"), "Line": ("order",),
    "Profile": ("customer",), "Customer_favorites": ("customer",),
    "Place": ("shop", "Shop"), "Shop": ("place_ptr",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Path:
    """A column reached from a model."""

    name: str
    field: Any
    is_multi: bool

    @property
    def kind(self) -> str:
        return kind_of(self.field)

    @property
    def is_foreign_key(self) -> bool:
        return self.field.remote_field is not None


def kind_of(field: Any) -> str:
    """What a column's values are."""
    while field.remote_field is not None:
        field = field.target_field
    return _KINDS[field.get_internal_type()]


def code_of(value: Any) -> str:
    """A value as source; the names it needs are in every case's namespace."""
    return repr(value)


class Schema:
    """Random choices among what exists, for one set of rows."""

    def __init__(self, rng: random.Random, rows: Rows) -> None:
        self.rng, self.rows = rng, rows

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def one(self, values: Sequence[Choice]) -> Choice:
        return self.rng.choice(values)

    # -- paths ----------------------------------------------------------------------

    def relations(
        self, model: Any, *, multi: bool = True
    ) -> list[tuple[str, Any, bool]]:
        """(name, related model, whether it multiplies rows) of each relation."""
        found = []
        for field in model._meta.get_fields():
            related = field.related_model
            if not field.is_relation or related is None:
                continue
            if related._meta.app_label != "differential":
                continue
            is_multi = bool(field.one_to_many or field.many_to_many)
            if multi or not is_multi:
                found.append((field.name, related, is_multi))
        return found

    def path(
        self,
        model: Any,
        kinds: tuple[str, ...] = (),
        *,
        depth: int = 2,
        multi: bool = True,
    ) -> Path | None:
        """A random column; of ``kinds`` if any are given; None if none was found."""
        for _ in range(12):
            names: list[str] = []
            at, is_multi = model, False
            while len(names) < depth and self.chance(0.4):
                relations = self.relations(at, multi=multi)
                if not relations:
                    break
                near = [one for one in relations if one[0] in NEAR.get(at.__name__, ())]
                some = near if near and self.chance(0.5) else relations
                name, at, multiplies = self.one(some)
                names.append(name)
                is_multi = is_multi or multiplies
            field = self.one(at._meta.concrete_fields)
            if field.name == "content_type":
                continue
            if not kinds or kind_of(field) in kinds:
                return Path("__".join([*names, field.name]), field, is_multi)
        return None

    def own(self, model: Any, kinds: tuple[str, ...] = ()) -> Path | None:
        """A column of the model itself."""
        return self.path(model, kinds, depth=0)

    def stored(self, model: Any, kinds: tuple[str, ...] = ()) -> Path:
        """A column of the model's own table, which its UPDATE may use."""
        fields = list(model._meta.local_concrete_fields)
        some = [field for field in fields if not kinds or kind_of(field) in kinds]
        field = self.one(some or fields)
        return Path(field.name, field, is_multi=False)

    def reverse(self, model: Any) -> tuple[str, str] | None:
        """A model that refers to ``model``, and the name of its foreign key."""
        found = [
            (relation.related_model.__name__, relation.field.name)
            for relation in model._meta.related_objects
            if relation.related_model._meta.app_label == "differential"
            and not relation.many_to_many
            and relation.related_model._meta.auto_created is False
        ]
        near = [one for one in found if one[0] in NEAR.get(model.__name__, ())]
        if near and self.chance(0.5):
            return self.one(near)
        return self.one(found) if found else None

    # -- values ---------------------------------------------------------------------

    def value(self, field: Any) -> Any:
        """A value for a column, often one that is stored; never None."""
        while field.remote_field is not None:
            field = field.target_field
        stored = [
            row[field.attname]
            for row in self.rows.get(field.model.__name__, ())
            if row.get(field.attname) is not None
        ]
        if stored and self.chance(0.75):
            return self.one(stored)
        return self.one(_VALUES[kind_of(field)])

    def start(self) -> Any:
        """A model to begin with."""
        return model_of(self.one(STARTS))
