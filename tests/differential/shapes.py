"""Querysets of rarer shapes: expressions over aggregates, aggregates of groups and of
slices, filtered relations, windows over whole shard keys, other ends of a chain.
"""

from __future__ import annotations

from typing import Any

from tests.differential.cases import Case
from tests.differential.compare import Expected
from tests.differential.reads import Reads, column, step
from tests.differential.schema import code_of
from tests.differential.source import Code, call, keyword, text

#: unique columns that may find rows in bulk
_UNIQUE = {
    "Product": "sku", "Customer": "email", "Tag": "name", "Category": "slug",
    "Setting": "key", "Shop": "code",
}  # fmt: skip
#: how a model's rows lie together: what its shard key is called from there
_PLACED_BY = {
    "Order": "customer", "Line": "order__customer", "Profile": "customer",
    "Customer_favorites": "customer",
}  # fmt: skip
_GROUPABLE = ("int", "text", "decimal", "date", "bool")


class Shapes(Reads):
    """Makes the cases of :class:`Reads` and these."""

    def makers(self) -> list[Any]:
        return [
            *super().makers() * 2,
            *[self._computed] * 4,
            *[self._of_groups, self._of_slices, self._windowed] * 2,
            *[self._filtered_relation, self._correlated] * 2,
            *[self._other_end] * 3,
        ]

    def _filtered(self, model: Any, *, multi: bool = False) -> list[Code]:
        if self.chance(0.4):
            return []
        return [step("filter", self.condition(model, {}, 1, multi=multi))]

    def _chain(self, model: Any, steps: list[Code], tail: str = "") -> Code:
        start = f"{model.__name__}.objects.all()"
        return Code(start, tuple(steps), glue="", tail=tail)

    # -- aggregates --------------------------------------------------------------------

    def _number(self, model: Any) -> tuple[Code, str] | None:
        """An aggregate that is a whole number or a decimal, and which of them."""
        # SQLite adds decimals up as binary fractions: the difference of two sums shows
        # in which order that was.
        kinds = ("int",) if self.engine == "sqlite" else ("int", "decimal")
        path = self.path(model, kinds, depth=1)
        if path is None:
            return None
        name, kind = column(path), path.kind
        forms: tuple[Code, ...] = (
            call("Count", repr(name)),
            call("Count", repr(name), "distinct=True"),
            call("Sum", repr(name)),
            call("Sum", repr(name), keyword("default", "Value(0)")),
            call("Max", repr(name)),
            call("Min", repr(name), keyword("default", "Value(1)")),
            call("Sum", repr(name), keyword("filter", self.condition(model, {}, 1))),
            call("Coalesce", call("Sum", repr(name)), "Value(0)"),
        )
        if kind == "decimal":
            forms = (forms[0], forms[2], forms[4], forms[6])
        else:
            when = call("When", self.condition(model, {}, 1), keyword("then", "1"))
            flagged = call("Case", when, keyword("output_field", "IntegerField()"))
            forms += (
                call("Sum", flagged),
                call("Count", flagged),
                call(
                    "Sum", Code("", (text(f"F({name!r})"), text("2")), " * ", least=2)
                ),
            )
        found = self.one(forms)
        return found, "int" if found.head == "Count(" else kind

    def _over_aggregates(self, names: dict[str, str]) -> Code:
        """An expression over annotated aggregates."""
        name, kind = self.one(list(names.items()))
        same = [other for other, its in names.items() if its == kind]
        left, right = text(f"F({name!r})"), text(f"F({self.one(same)!r})")
        form = self.rng.randrange(4)
        if form == 0:
            return call("Coalesce", left, right)
        if form == 1 and kind == "int":
            when = call(
                "When", call("Q", keyword(f"{name}__gt", "1")), keyword("then", right)
            )
            return call("Case", when, keyword("default", "Value(-1)"))
        return Code("", (left, right), glue=self.one((" + ", " - ")), least=2)

    def _computed(self) -> Case:
        """Groups with expressions over their aggregates, which filter and order too."""
        model = self.start()
        by = [
            path
            for path in (
                self.path(model, _GROUPABLE, depth=1, multi=self.chance(0.4))
                for _ in range(self.rng.randrange(1, 3))
            )
            if path is not None
        ]
        columns = list(dict.fromkeys(map(column, by)))
        names: dict[str, str] = {}
        made = []
        for at in range(self.rng.randrange(1, 4)):
            found = self._number(model)
            if found is not None:
                names[f"a{at}"] = found[1]
                made.append(keyword(f"a{at}", found[0]))
        if not made or not columns:
            return self._grouped()
        steps = self._filtered(model)
        steps.append(step("values", *map(repr, columns), is_fixed=True))
        steps.append(step("annotate", *made, is_fixed=True, is_rigid=True))
        more = self._over_aggregates(names)
        steps.append(step("annotate", keyword("e", more), is_fixed=True))
        if self.chance(0.4):
            having = keyword(self.one(("e__gt", "e__lte", "a0__lt")), "1")
            if "a0" not in names:
                having = keyword("e__gt", "0")
            steps.append(step(self.one(("filter", "exclude")), call("Q", having)))
        folding = self.folds and any(path.kind == "text" for path in by)
        if folding or self.chance(0.3):
            return self._rows(
                call("list", self._chain(model, steps)), ordered=False, merges=True
            )
        sort = [self._direction(name) for name in columns]
        sort.insert(0, self._direction("e"))
        steps.append(
            Code(".order_by(", tuple(sort), tail=")", is_fixed=True, is_rigid=True)
        )
        tail = self._sliced() if self.chance(0.5) else ""
        code = call("list", self._chain(model, steps, tail))
        return self._rows(code, ordered=True, merges=True)

    def _of_groups(self) -> Case:
        """Aggregates of groups, and aggregates that are expressions."""
        model = self.start()
        found = self._number(model)
        if found is None:
            return self._aggregated()
        inner, kind = found
        steps = self._filtered(model)
        if self.chance(0.3):
            other = self._number(model)
            if other is None or other[1] != kind:
                other = found
            both = Code("", (inner, other[0]), glue=self.one((" + ", " - ")), least=2)
            steps.append(step("aggregate", keyword("e", both), is_fixed=True))
            return Case(self._chain(model, steps), Expected())
        path = self.path(model, _GROUPABLE, depth=1, multi=self.chance(0.4))
        if path is None:
            return self._aggregated()
        steps.append(step("values", repr(column(path)), is_fixed=True))
        steps.append(step("annotate", keyword("n", inner), is_fixed=True))
        outer = [
            keyword("s", call(self.one(("Sum", "Avg")), "'n'")),
            keyword("m", call(self.one(("Max", "Min")), "'n'")),
            keyword("c", call("Count", "'n'")),
        ]
        steps.append(step("aggregate", *outer, is_fixed=True))
        return Case(self._chain(model, steps), Expected())

    def _of_slices(self) -> Case:
        """Aggregates of the first rows, and of distinct ones."""
        model = self.start()
        path = self.own(model, ("int", "decimal", "date"))
        sort = self.own(model, ("int", "decimal", "date", "moment"))
        if path is None or sort is None:
            return self._aggregated()
        order = Code(f".order_by({column(sort)!r}, 'pk')", is_fixed=True)
        sliced = Code(self._sliced(), is_fixed=True)
        name = repr(column(path))
        parts = [keyword("n", call("Count", name)), keyword("m", call("Max", name))]
        if path.kind != "date":
            parts.append(keyword("s", call("Sum", name)))
        end = step("aggregate", *parts, is_fixed=True)
        return Case(
            self._chain(model, [*self._filtered(model), order, sliced, end]), Expected()
        )

    # -- what looks at other rows ------------------------------------------------------

    def _windowed(self) -> Case:
        """A window whose partitions are those of the shard key, or others, or none."""
        model = self.start()
        by = _PLACED_BY.get(model.__name__, "pk")
        sort = self.own(model, ("int", "decimal", "date", "moment", "text"))
        number = self.own(model, ("int", "decimal"))
        if sort is None or number is None:
            return self._instances()
        order = f"[F({column(sort)!r}).desc(), F('pk').asc()]"
        value = column(number)
        function = self.one(
            (
                "RowNumber()", "Rank()", "Count('pk')", f"Sum({value!r})",
                f"Lag({value!r})", f"LastValue({value!r})",
            )
        )  # fmt: skip
        extra = self.own(model, ("int", "bool", "text"))
        partition = [] if self.chance(0.4) else [by]
        if extra is not None and self.chance(0.4):
            partition.append(column(extra))
        parts = [text(function), Code("order_by=", (text(order),), least=1)]
        if partition:
            parts.append(keyword("partition_by", code_of(partition)))
        window = Code("Window(", tuple(parts), tail=")", least=len(parts))
        steps = [*self._filtered(model)]
        steps.append(step("annotate", keyword("w", window), is_fixed=True))
        if self.chance(0.35):
            wanted = keyword(self.one(("w__lte", "w__gt")), "1")
            steps.append(step("filter", call("Q", wanted)))
        shown = Code(f".values_list('pk', {column(number)!r}, 'w')", is_fixed=True)
        steps += [Code(".order_by('pk')", is_fixed=True), shown]
        tail = self._sliced() if self.chance(0.3) else ""
        return self._rows(call("list", self._chain(model, steps, tail)), ordered=True)

    def _filtered_relation(self) -> Case:
        """A join with a condition of its own."""
        model = self.start()
        relations = self.relations(model)
        if not relations or model.__name__ == "Comment":
            return self._instances()
        name, related, _ = self.one(relations)
        inner = self.own(related)
        if inner is None:
            return self._instances()
        # Django takes conditions on the relation's own columns alone.
        lookup = str(self.lookup(inner))
        condition = call("Q", text(f"{name}__{lookup}"))
        made = call("FilteredRelation", repr(name), keyword("condition", condition))
        steps = [step("annotate", keyword("r", made), is_fixed=True)]
        if self.chance(0.5):
            flag = code_of(self.chance(0.5))
            steps.append(step("filter", keyword("r__isnull", flag)))
        if self.chance(0.3):
            steps.append(Code(".annotate(n=Count('r')).values_list('pk', 'n')"))
        else:
            steps.append(Code(".values_list('pk', 'r__pk')", is_fixed=True))
        return self._rows(call("list", self._chain(model, steps)), ordered=False)

    def _correlated(self) -> Case:
        """A subquery that is tied to the row outside by any columns, or two deep."""
        model, other = self.start(), self.start()
        left = self.own(model, ("int", "decimal", "date", "text", "bool"))
        right = None if left is None else self.own(other, (left.kind,))
        if left is None or right is None:
            return self._instances()
        ties = [keyword(column(right), f"OuterRef({column(left)!r})")]
        found = self.reverse(other)
        if found is not None and self.chance(0.4):
            label, foreign_key = found
            deep = f"{label}.objects.filter({foreign_key}=OuterRef('pk'))"
            ties.append(call(self.one(("Exists", "~Exists")), deep))
        if self.chance(0.4):
            ties.insert(0, self.condition(other, {}, 1, multi=False))
        ties.sort(key=lambda tie: "=" in tie.head and not tie.head.endswith("("))
        inner = Code(
            f"{other.__name__}.objects.filter(", tuple(ties), tail=")", least=1
        )
        if self.chance(0.6):
            steps = [step("filter", call(self.one(("Exists", "~Exists")), inner))]
        else:
            counted = ".order_by().values({0!r}).annotate(n=Count('pk')).values('n')"
            ending = Code(counted.format(column(right)), is_fixed=True)
            made = call("Subquery", Code("", (inner, ending), glue="", least=2))
            field = keyword("output_field", "IntegerField()")
            steps = [step("annotate", keyword("n", call("Coalesce", made, "0", field)))]
        steps = [*self._filtered(model), *steps, Code(".order_by('pk')", is_fixed=True)]
        tail = self._sliced() if self.chance(0.3) else ""
        return self._rows(call("list", self._chain(model, steps, tail)), ordered=True)

    # -- other ends --------------------------------------------------------------------

    def _other_end(self) -> Case:
        model = self.start()
        pk = self.one((code_of(self.value(model._meta.pk)), "F('pk')"))
        steps = self._filtered(model, multi=self.chance(0.3))
        sort = self.own(model, ("int", "decimal", "date", "moment", "text"))
        ends = [".in_bulk()", ".distinct().count()", ".order_by('pk')[1:].exists()"]
        if not pk.startswith("F("):
            ends += [f".contains({model.__name__}(pk={pk}))"] * 2
        if sort is not None:
            key = self.one(("", "-")) + column(sort)
            ends += [f".earliest({key!r}, 'pk')", f".latest({key!r}, 'pk')"] * 2
            ends += [f".order_by({key!r}, 'pk').reverse()[:3]"]
        unique = _UNIQUE.get(model.__name__)
        if unique is not None and not steps:
            field = model._meta.get_field(unique)
            values = [self.value(field) for _ in range(3)]
            ends += [f".in_bulk({values!r}, field_name={unique!r})"] * 3
        end = Code(self.one(ends), is_fixed=True)
        return Case(self._chain(model, [*steps, end]), Expected())
