"""Random conditions and expressions, as code."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.differential.data import Rows, model_of
from tests.differential.schema import Path, Schema, code_of, kind_of
from tests.differential.source import Code, call, either, keyword, text

_ORDERED = ("exact", "in", "gt", "gte", "lt", "lte", "range", "isnull")
_TEXT = (
    "exact", "iexact", "in", "gt", "lte", "contains", "icontains", "startswith",
    "istartswith", "endswith", "iendswith", "isnull", "regex", "iregex",
)  # fmt: skip
_DATE_PARTS = {
    "year": (1969, 1999, 2020, 2023), "month": (1, 2, 3, 12), "day": (1, 26, 29, 31),
    "week_day": (1, 5), "iso_week_day": (1, 7), "quarter": (1, 4), "week": (1, 52),
    "iso_year": (1999, 2022, 2023),
}  # fmt: skip
_TIME_PARTS = {"hour": (0, 1, 2, 23), "minute": (0, 30, 59), "second": (0, 59)}
_PATTERNS = ("^a", "[ab]", "é$", "^.?$", "^$", "s+", "%", "1|z")
_NUMBERS = ("int", "decimal", "float")
_SORTABLE = ("int", "decimal", "float", "text", "date", "moment")


class Conditions(Schema):
    """Conditions over a model; ``names`` are annotations that may be used."""

    def __init__(self, rng: Random, rows: Rows, engine: str) -> None:
        super().__init__(rng, rows)
        self.engine = engine
        #: text that differs may be equal to the database
        self.folds = engine in ("mariadb", "mysql")

    def lookup(self, path: Path) -> Code:
        """``path__lookup=value``"""
        kind = path.kind
        if path.is_foreign_key and self.chance(0.2):
            return keyword(f"{path.name}__isnull", code_of(self.chance(0.5)))
        if kind == "text":
            name = self.one(_TEXT)
        elif kind == "json":
            return self._json_lookup(path)
        elif kind in ("bool", "uuid"):
            name = self.one(("exact", "in", "isnull"))
        else:
            name = self.one(_ORDERED)
        if kind in ("date", "moment") and self.chance(0.5):
            return self._date_lookup(path)
        if path.is_foreign_key and name not in ("exact", "in", "isnull", "gt", "lte"):
            name = self.one(("exact", "in"))
        return keyword(*self._with_value(path, name))

    def _with_value(self, path: Path, name: str) -> tuple[str, Code]:
        field = path.field
        if name == "isnull":
            return f"{path.name}__isnull", text(code_of(self.chance(0.5)))
        if name == "in":
            values = [self.value(field) for _ in range(self.rng.randrange(5))]
            items = [text(code_of(value)) for value in values]
            if self.chance(0.1):
                items.append(text("None"))
            return f"{path.name}__in", Code("[", tuple(items), tail="]")
        if name == "range":
            low, high = self.value(field), self.value(field)
            return f"{path.name}__range", text(f"({code_of(low)}, {code_of(high)})")
        if name in ("regex", "iregex"):
            return f"{path.name}__{name}", text(repr(self.one(_PATTERNS)))
        value = self.value(field)
        if name.endswith(("contains", "with")):
            start = self.rng.randrange(2)
            value = str(value)[start : start + self.rng.randrange(4)]
        suffix = "" if name == "exact" else f"__{name}"
        return f"{path.name}{suffix}", text(code_of(value))

    def _date_lookup(self, path: Path) -> Code:
        parts: dict[str, Any] = dict(_DATE_PARTS)
        if path.kind == "moment":
            parts |= _TIME_PARTS
            if self.chance(0.2):
                name = self.one(("date", "date__gt", "date__lte"))
                moment = self.value(path.field)
                return keyword(f"{path.name}__{name}", code_of(moment.date()))
        name = self.one(list(parts))
        values = parts[name]
        if self.chance(0.3):
            return keyword(f"{path.name}__{name}__in", code_of(list(values[:2])))
        operator = self.one(("", "", "__gt", "__lte"))
        return keyword(f"{path.name}__{name}{operator}", code_of(self.one(values)))

    def _json_lookup(self, path: Path) -> Code:
        flag, key = code_of(self.chance(0.5)), code_of(self.one((1, 2, "1", None)))
        # MariaDB's strict mode refuses in an UPDATE what a SELECT takes.
        above = ("__b__icontains", "'x'") if self.folds else ("__a__gt", "1")
        suffix, value = self.one(
            (
                ("__isnull", flag), ("", code_of(self.value(path.field))), ("__a", key),
                ("__a__b__0", "1"), above, ("__a__isnull", flag),
                ("__a__in", "[1, 2, 'x']"), ("__b__icontains", "'x'"),
                ("__has_key", "'a'"), ("__has_any_keys", "['a', 'ä']"),
                ("__has_keys", "['a', 'b']"), ("__contains", "{'a': 1}"),
            )
        )  # fmt: skip
        return keyword(path.name + suffix, value)

    # -- Q ----------------------------------------------------------------------------

    def leaf(self, model: Any, names: dict[str, str], *, multi: bool = True) -> Code:
        """One condition."""
        roll = self.rng.random()
        if names and roll < 0.25:
            found = self._on_annotation(names)
            if found is not None:
                return found
        if roll < 0.35:
            found = self._between_columns(model, multi=multi)
            if found is not None:
                return found
        if roll < 0.42:
            found = self.exists(model)
            if found is not None:
                return found
        if roll < 0.5:
            found = self._in_subquery(model)
            if found is not None:
                return found
        path = self.path(model, multi=multi)
        assert path is not None
        return call("Q", self.lookup(path))

    def _on_annotation(self, names: dict[str, str]) -> Code | None:
        # MariaDB calls the variance of one row NULL or not, as its plan goes.
        known = [name for name, kind in names.items() if kind != "spread"]
        if not known:
            return None
        name = self.one(known)
        kind = names[name]
        if kind in _NUMBERS:
            operator = self.one(("", "__gt", "__lte", "__isnull"))
            value = self.one((0, 1, 2)) if operator != "__isnull" else self.chance(0.5)
            return call("Q", keyword(name + operator, code_of(value)))
        if kind == "bool":
            return call("Q", keyword(name, code_of(self.chance(0.5))))
        if kind == "text":
            return call("Q", keyword(f"{name}__icontains", "'a'"))
        return call("Q", keyword(f"{name}__isnull", code_of(self.chance(0.5))))

    def _between_columns(self, model: Any, *, multi: bool) -> Code | None:
        left = self.path(model, _SORTABLE, multi=multi)
        if left is None:
            return None
        right = self.path(model, (left.kind,), multi=multi)
        if right is None:
            return None
        operator = self.one(("", "__gt", "__lte", "__lt"))
        if left.is_foreign_key:
            operator = ""
        return call("Q", keyword(left.name + operator, f"F({right.name!r})"))

    def exists(self, model: Any) -> Code | None:
        """``Exists(...)`` over a model that refers to this one."""
        found = self.reverse(model)
        if found is None:
            return None
        return call("Exists", self._related(*found))

    def _related(self, label: str, foreign_key: str) -> Code:
        """Rows of ``label`` that refer to the row outside."""
        steps = [
            Code(
                ".filter(", (keyword(foreign_key, "OuterRef('pk')"),), tail=")", least=1
            )
        ]
        if self.chance(0.5):
            name = self.one(("filter", "exclude"))
            path = self.path(model_of(label), depth=1)
            assert path is not None
            steps.append(Code(f".{name}(", (self.lookup(path),), tail=")", least=1))
        return chain_of(label, steps)

    def _in_subquery(self, model: Any) -> Code | None:
        found = self.reverse(model)
        if found is None:
            return None
        label, foreign_key = found
        path = self.path(model_of(label), depth=1)
        assert path is not None
        steps = [
            Code(".filter(", (self.lookup(path),), tail=")", least=1),
            Code(f".values({foreign_key!r})", is_fixed=True),
        ]
        if not self.folds and self.chance(0.15):  # MariaDB has no such SQL
            count = self.rng.randrange(1, 4)
            steps.append(Code(f".order_by({foreign_key!r}, 'pk')[:{count}]"))
        return call("Q", keyword("pk__in", chain_of(label, steps)))

    def condition(
        self, model: Any, names: dict[str, str], depth: int = 2, *, multi: bool = True
    ) -> Code:
        """A tree of conditions."""
        if depth and self.chance(0.45):
            count = self.rng.randrange(2, 4)
            parts = [
                self.condition(model, names, depth - 1, multi=multi)
                for _ in range(count)
            ]
            return either(*parts, glue=self.one(("&", "|", "|", "&", "^")))
        found = self.leaf(model, names, multi=multi)
        if self.chance(0.2):
            return Code("~", (found,), least=1, is_hoistable=True)
        return found

    # -- expressions ---------------------------------------------------------------

    def expression(self, model: Any) -> tuple[Code, str]:
        """A value of one row, and its kind; no relation multiplies rows."""
        makers = (
            self._column, self._column, self._arithmetic, self._coalesce, self._case,
            self._text, self._part, self._cast, self._scalar, self._exists_value,
            self._truncated, self._numeric, self._key,
        )  # fmt: skip
        while True:
            found: tuple[Code, str] | None = self.one(makers)(model)
            if found is not None:
                return found

    def _f(self, model: Any, *kinds: str) -> tuple[Code, str] | None:
        path = self.path(model, kinds, multi=False)
        return None if path is None else (text(f"F({path.name!r})"), path.kind)

    def _column(self, model: Any) -> tuple[Code, str] | None:
        return self._f(model, *_SORTABLE, "bool", "uuid")

    def _arithmetic(self, model: Any) -> tuple[Code, str] | None:
        left = self._f(model, *_NUMBERS)
        if left is None:
            return None
        right = self._f(model, left[1])
        if right is None or self.chance(0.4):
            constant = {"int": "3", "decimal": "Decimal('1.25')", "float": "0.5"}
            right = text(f"Value({constant[left[1]]})"), left[1]
        operator = self.one(
            (" + ", " - ", " * ") if left[1] != "int" else (" + ", " - ")
        )
        return Code("", (left[0], right[0]), glue=operator, least=2), left[1]

    def _coalesce(self, model: Any) -> tuple[Code, str] | None:
        left = self._f(model, *_NUMBERS, "text", "date", "moment")
        if left is None:
            return None
        path = self.path(model, (left[1],), multi=False)
        if path is None:
            return None
        last = text(f"Value({code_of(self.value(path.field))})")
        if left[1] == "decimal":
            last = text(f"F({path.name!r})")
        name = self.one(("Coalesce", "Greatest", "Least"))
        return call(name, left[0], last), left[1]

    def _case(self, model: Any) -> tuple[Code, str] | None:
        whens = [
            call(
                "When",
                self.condition(model, {}, 1, multi=False),
                keyword("then", f"Value({n})"),
            )
            for n in range(1, self.rng.randrange(2, 4))
        ]
        default = keyword("default", self.one(("Value(0)", "Value(None)")))
        field = keyword("output_field", "IntegerField()")
        return Code("Case(", (*whens, default, field), tail=")", least=3), "int"

    def _text(self, model: Any) -> tuple[Code, str] | None:
        found = self._f(model, "text")
        if found is None:
            return None
        name = self.one(
            (
                "Lower",
                "Upper",
                "Trim",
                "Length",
                "Reverse",
                "Substr",
                "Concat",
                "Replace",
                "StrIndex",
                "MD5",
            )
        )
        more = {
            "Substr": ("2", "2"), "Concat": ("Value('-')", "F('pk')"),
            "Replace": ("Value('a')", "Value('á')"), "StrIndex": ("Value('a')",),
        }.get(name, ())  # fmt: skip
        kind = "int" if name in ("Length", "StrIndex") else "text"
        if name == "Concat":
            return call(
                name, found[0], *more, keyword("output_field", "CharField()")
            ), kind
        return call(name, found[0], *more), kind

    def _part(self, model: Any) -> tuple[Code, str] | None:
        found = self._f(model, "date", "moment")
        if found is None:
            return None
        name = self.one(
            ("Year", "Month", "Day", "WeekDay", "Week", "IsoYear", "Quarter")
        )
        zone = [keyword("tzinfo", self.zone())] if found[1] == "moment" else []
        return call(f"Extract{name}", found[0], *zone), "int"

    def _truncated(self, model: Any) -> tuple[Code, str] | None:
        found = self._f(model, "date", "moment")
        if found is None:
            return None
        names = ["Year", "Quarter", "Month", "Week"]
        if found[1] == "moment":
            names += ["Day", "Hour"]
        zone = [keyword("tzinfo", self.zone())] if found[1] == "moment" else []
        return call(f"Trunc{self.one(names)}", found[0], *zone), found[1]

    def zone(self) -> str:
        """The project's time zone, or another one."""
        names = ("None", "None", "America/New_York", "Asia/Kathmandu", "Etc/UTC")
        name = self.one(names)
        return name if name == "None" else f"ZoneInfo({name!r})"

    def _cast(self, model: Any) -> tuple[Code, str] | None:
        source, field, kind = self.one(
            (
                ("int", "CharField()", "text"), ("decimal", "IntegerField()", "int"),
                ("int", "FloatField()", "float"), ("moment", "DateField()", "date"),
                ("float", "DecimalField(max_digits=12, decimal_places=1)", "decimal"),
                ("int", "DecimalField(max_digits=20, decimal_places=2)", "decimal"),
                ("date", "CharField()", "text"), ("bool", "IntegerField()", "int"),
            )
        )  # fmt: skip
        found = self._f(model, source)
        return None if found is None else (call("Cast", found[0], field), kind)

    def _numeric(self, model: Any) -> tuple[Code, str] | None:
        found = self._f(model, "decimal", "float")
        if found is None:
            return None
        name = self.one(("Abs", "Sign", "Ceil", "Floor", "Round"))
        return call(name, found[0]), "float" if found[1] == "float" else "other"

    def _key(self, model: Any) -> tuple[Code, str] | None:
        path = self.path(model, ("json",), multi=False)
        if path is None:
            return None
        # KT() goes to no other table: it would read a document out of the foreign key.
        is_own = "__" not in path.name
        name = self.one(("KeyTextTransform", *(("KT",) if is_own else ()), "F"))
        if name == "KeyTextTransform":
            return call(name, "'a'", repr(path.name)), "other"
        return call(name, repr(f"{path.name}__a")), "other"

    def _scalar(self, model: Any) -> tuple[Code, str] | None:
        found = self.reverse(model)
        if found is None:
            return None
        label, foreign_key = found
        rows = self._related(label, foreign_key)
        if self.chance(0.4):
            counted = Code(
                f".order_by().values({foreign_key!r}).annotate(n=Count('pk')).values('n')",
                is_fixed=True,
            )
            return call("Subquery", chain_of(label, [*rows.parts, counted])), "int"
        path = self.own(model_of(label), ("int", "decimal", "text", "float"))
        sort = self.own(model_of(label), _SORTABLE)
        if path is None or sort is None:
            return None  # a table that only links others
        key = self.one(("", "-")) + sort.name
        tail = f".order_by({key!r}, 'pk').values({path.name!r})[:1]"
        first = Code(tail, is_fixed=True)
        return call("Subquery", chain_of(label, [*rows.parts, first])), path.kind

    def _exists_value(self, model: Any) -> tuple[Code, str] | None:
        found = self.exists(model)
        return None if found is None else (found, "bool")

    # -- aggregates ----------------------------------------------------------------

    def aggregate(self, model: Any) -> tuple[Code, str]:
        """An aggregate over the model or what refers to it, and its kind."""
        names = ["Count", "Count", "Sum", "Avg", "Min", "Max"]
        # SQLite's fail over NULLs and over too few rows.
        name = self.one(
            [*names, *(() if self.engine == "sqlite" else ("StdDev", "Variance"))]
        )
        kinds: tuple[str, ...] = () if name == "Count" else _NUMBERS
        if name in ("Min", "Max"):
            kinds = _SORTABLE
        path = None
        while path is None:
            path = self.path(model, kinds)
            if path is None:
                name, kinds = "Count", ()
        parts = [text(repr(path.name))]
        if (
            self.chance(0.25)
            and name in ("Count", "Sum", "Avg")
            and path.kind != "json"
        ):
            parts.append(keyword("distinct", "True"))
        if self.chance(0.3):
            parts.append(keyword("filter", self.condition(model, {}, 1)))
        if name == "Count" and path.kind == "json":
            path = Path("pk", model._meta.pk, is_multi=False)
            parts[0] = text("'pk'")
        if name in ("StdDev", "Variance") and self.chance(0.5):
            parts.append(keyword("sample", "True"))
        kind = {"Count": "int", "Sum": path.kind, "Min": path.kind, "Max": path.kind,
                "StdDev": "spread", "Variance": "spread"}  # fmt: skip
        return Code(f"{name}(", tuple(parts), tail=")", least=1), kind.get(
            name, "other"
        )

    def window(self, model: Any) -> tuple[Code, str] | None:
        """A window function whose value does not depend on the order of ties."""
        number = self.own(model, ("int", "decimal", "float"))
        sort = self.own(model, _SORTABLE)
        if number is None or sort is None:
            return None
        order = f"[F({sort.name!r}).{self.one(('asc', 'desc'))}(), F('pk').asc()]"
        ties = f"[F({sort.name!r}).{self.one(('asc', 'desc'))}()]"
        function, ordering, kind = self.one(
            (
                ("RowNumber()", order, "int"), ("Rank()", ties, "int"),
                ("DenseRank()", ties, "int"), ("PercentRank()", ties, "other"),
                ("CumeDist()", ties, "other"), ("Ntile(3)", order, "int"),
                (f"Lag({number.name!r})", order, number.kind),
                (f"Lead({number.name!r}, 2)", order, number.kind),
                (f"FirstValue({number.name!r})", order, number.kind),
                (f"NthValue({number.name!r}, 2)", order, number.kind),
                (f"Sum({number.name!r})", ties, number.kind),
                (f"Avg({number.name!r})", None, "other"),
                (f"Max({number.name!r})", ties, number.kind),
                (f"Sum({number.name!r})", order, number.kind),
                ("Count('pk')", None, "int"),
            )
        )  # fmt: skip
        parts = [text(function, is_fixed=True)]
        if ordering is not None:
            parts.append(Code("order_by=", (text(ordering),), least=1, is_fixed=True))
        by = self.path(model, ("int", "text", "bool", "date"), depth=1, multi=False)
        if by is not None and self.chance(0.6):
            parts.append(keyword("partition_by", f"[F({by.name!r})]"))
        if function.startswith("Sum") and ordering is order and self.chance(0.5):
            parts.append(keyword("frame", "RowRange(start=-1, end=1)"))
        return Code("Window(", tuple(parts), tail=")", least=1), kind


def chain_of(label: str, steps: Any) -> Code:
    """``Label.objects`` with steps; a subquery keeps at least one."""
    return Code(f"{label}.objects.all()", tuple(steps), glue="", least=1)


__all__ = ["Conditions", "chain_of", "kind_of"]
