"""Random querysets that only read."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from tests.differential.cases import Case
from tests.differential.compare import Expected
from tests.differential.conditions import Conditions
from tests.differential.schema import Path, code_of
from tests.differential.source import Code, call, keyword, text

#: values made of a count ``a0`` and of an aggregate of numbers ``a1``
_MADE = (
    "F('a0') * 2",
    "F('a0') + F('a0')",
    "F('a1') * F('a1')",
    "Coalesce('a1', 'a0', output_field=DecimalField(max_digits=30, decimal_places=6))",
    "F('a0') % 3",
    "Case(When(a0__gt=1, then=F('a0')), default=Value(-1))",
    "Case(When(a1__isnull=True, then=Value('none')), default=Value('some'))",
    "ExpressionWrapper(F('a1') / F('a0'), output_field=FloatField())",
    "NullIf('a0', Value(1))",
    "-F('a0')",
)
_HAVING = (
    "a0__gt={}",
    "a1__gt={}",
    "a1__isnull=True",
    "Q(a0={}) | Q(a1__lt={})",
    "~Q(a0__in=[1, {}])",
    "a0__lte=F('b0')",
    "Q(a0__gte=1) & ~Q(a1={})",
)
_SORTABLE = ("int", "decimal", "float", "text", "date", "moment", "bool", "uuid")


def step(name: str, *parts: Code | str, **flags: Any) -> Code:
    """One call of a chain: ``.name(parts)``."""
    nodes = tuple(text(part) if isinstance(part, str) else part for part in parts)
    flags.setdefault("least", min(1, len(nodes)))
    return Code(f".{name}(", nodes, tail=")", **flags)


def column(path: Path) -> str:
    """The path to the value itself: ``customer_id``, not ``customer``."""
    name = path.name
    if path.is_foreign_key:
        name = name[: len(name) - len(path.field.name)] + path.field.attname
    return name


class Reads(Conditions):
    """Makes one case after another."""

    def case(self) -> Case:
        """A random read."""
        found: Case = self.one(self.makers())()
        while _is_arbitrary(str(found.code), folds=self.folds):
            found = self.one(self.makers())()
        if self.folds and _DEVIATION.search(str(found.code)):
            found = Case(found.code, replace(found.expected, has_rounded=True))
        if self.chance(0.1):
            inside = Code("atomically(lambda: ", (found.code,), tail=")()[0]", least=1)
            if not found.expected.is_ordered and not found.expected.keys:
                return Case(inside, found.expected)
        return found

    def makers(self) -> list[Any]:
        """What makes cases, the commoner ones more often."""
        makers = [self._instances] * 6 + [self._values] * 4 + [self._grouped] * 4
        makers += [self._aggregated] * 2 + [self._combined] * 2
        makers += [self._made_of_groups] * 2
        makers += [self._dates, self._locked]
        if self.engine == "postgresql":
            makers.append(self._distinct_on)
        return makers

    # -- the beginning of every chain ----------------------------------------------

    def _narrowed(
        self, model: Any, *, multi: bool, wide: bool = True
    ) -> tuple[list[Code], dict[str, str]]:
        """Filters and annotations, and the kinds of the annotations."""
        steps: list[Code] = []
        names: dict[str, str] = {}
        for _ in range(self.rng.choice((0, 1, 1, 1, 2, 2, 3))):
            roll = self.rng.random()
            name = f"x{len(names)}"
            if roll < 0.6:
                kind = "filter" if self.chance(0.7) else "exclude"
                known = names if self.chance(0.7) else {}
                steps.append(step(kind, self.condition(model, known, multi=multi)))
            elif roll < 0.85 or not wide:
                code, names[name] = self.expression(model)
                steps.append(step("annotate", keyword(name, code)))
            elif roll < 0.95:
                code, names[name] = self.aggregate(model)
                steps.append(step("annotate", keyword(name, code)))
            elif not multi:
                window = self.window(model)
                if window is not None:
                    names[name] = window[1]
                    steps.append(step("annotate", keyword(name, window[0])))
        return steps, names

    def _sliced(self) -> str:
        start = self.rng.randrange(4)
        stop = start + self.rng.randrange(1, 6)
        return self.one((f"[:{stop}]", f"[{start}:{stop}]", f"[{start}:]"))

    def _direction(self, name: str) -> Code:
        """A sort key, in one of the ways to write it."""
        form = self.rng.randrange(5)
        if form == 0:
            return text(f"F({name!r}).asc(nulls_last=True)")
        if form == 1:
            return text(f"F({name!r}).desc(nulls_first=True)")
        return text(repr(("-" if form == 2 else "") + name))

    def _rows(
        self,
        code: Code,
        *,
        ordered: bool,
        keys: tuple[str, ...] = (),
        merges: bool = False,
    ) -> Case:
        folds = self.folds and merges
        if folds and ordered:
            ordered = False
        return Case(code, Expected(ordered, keys, folds))

    # -- instances -----------------------------------------------------------------

    def _instances(self) -> Case:
        model, multi = self.start(), self.chance(0.4)
        steps, names = self._narrowed(model, multi=multi)
        steps += self._loading(model)
        if self.chance(0.15):
            steps.append(step("distinct"))
        order, keys, is_total = self._order(model, names)
        if order is not None:
            steps.append(order)
        chained = Code(f"{model.__name__}.objects.all()", tuple(steps), glue="")
        return self._ended(model, chained, keys, is_total, names)

    def _loading(self, model: Any) -> list[Code]:
        """select_related, prefetch_related, only, defer."""
        found: list[Code] = []
        singles = self.relations(model, multi=False)
        if singles and self.chance(0.2):
            picked = self.rng.sample(
                singles, min(len(singles), self.rng.randrange(1, 3))
            )
            found.append(step("select_related", *(repr(name) for name, _, _ in picked)))
        elif self.chance(0.15):
            fields = [
                f.name for f in model._meta.concrete_fields if f.remote_field is None
            ]
            some = self.rng.sample(fields, min(len(fields), 2))
            found.append(step(self.one(("only", "defer")), *map(repr, some)))
        if self.chance(0.2):
            found.append(step("prefetch_related", *self._prefetches(model)))
        return found

    def _prefetches(self, model: Any) -> list[Code]:
        relations = self.relations(model)
        if model.__name__ == "Comment":
            return [text("'about'")]
        picked = self.rng.sample(relations, min(len(relations), 2))
        parts = []
        for at, (name, related, is_multi) in enumerate(picked):
            accessor = self._accessor(model, name)
            if accessor is None:
                continue
            if is_multi and self.chance(0.4):
                inner = [step("filter", self.condition(related, {}, 1, multi=False))]
                if self.chance(0.4):
                    inner.append(
                        Code(f".order_by('pk'){self._sliced()}", is_fixed=True)
                    )
                rows = Code(
                    f"{related.__name__}.objects.all()", tuple(inner), glue="", least=0
                )
                options = [keyword("queryset", rows)]
                if self.chance(0.3):
                    options.append(keyword("to_attr", f"'kept{at}'"))
                parts.append(call("Prefetch", repr(accessor), *options))
            else:
                parts.append(text(repr(accessor)))
        return parts or [text("None")]

    def _accessor(self, model: Any, name: str) -> str | None:
        field = model._meta.get_field(name)
        if hasattr(field, "get_accessor_name"):
            found: str | None = field.get_accessor_name()
            return found
        return str(field.name)

    def _order(
        self, model: Any, names: dict[str, str]
    ) -> tuple[Code | None, tuple[str, ...], bool]:
        """order_by, the names whose order it fixes, and whether it is total."""
        if self.chance(0.3):
            return None, (), False
        keys: list[str] = []
        parts: list[Code] = []
        for _ in range(self.rng.randrange(3)):
            path = self.path(model, _SORTABLE, depth=self.rng.randrange(2), multi=False)
            if path is not None:
                keys.append(column(path))
                parts.append(self._direction(column(path)))
        sortable = [n for n, kind in names.items() if kind in _SORTABLE]
        if sortable and self.chance(0.3):
            keys.append(self.one(sortable))
            parts.append(self._direction(keys[-1]))
        name = self.own(model, ("text",))
        if name is not None and self.chance(0.1):
            parts.append(text(f"Lower({name.name!r}).desc()"))
        is_total = not parts or self.chance(0.7)
        if is_total:
            parts.append(text(self.one(("'pk'", "'-pk'")), is_fixed=True))
            return step("order_by", *parts, is_fixed=True), (), True
        # The first key alone: the others order only within it.
        checked = tuple(keys[:1]) if keys and "__" not in keys[0] else ()
        if self.folds:
            checked = ()
        fixed = Code(".order_by(", tuple(parts), tail=")", is_fixed=True, is_rigid=True)
        return fixed, checked, False

    def _ended(
        self,
        model: Any,
        chained: Code,
        keys: tuple[str, ...],
        is_total: bool,
        names: Any,
    ) -> Case:
        roll = self.rng.random()
        if roll < 0.62:
            if is_total and self.chance(0.4):
                sliced = Code("", (chained,), tail=self._sliced(), least=1)
                return self._rows(call("list", sliced), ordered=True)
            return self._rows(call("list", chained), ordered=is_total, keys=keys)
        ends = [
            ".count()",
            ".exists()",
            ".values_list('pk', flat=True)",
            ".iterator(chunk_size=2)",
        ]
        if is_total:
            ends += [".first()", ".last()", f"[{self.rng.randrange(3)}]"]
            ends += ["[1:4].count()", ".reverse()", "[:3].exists()"]
        pk, other = (code_of(self.value(model._meta.pk)) for _ in range(2))
        ends += [f".get(pk={pk})", f".in_bulk([{pk}, {other}])", ".get()"]
        ends.append(f".filter(pk={pk}).first()")
        end = self.one(ends)
        whole = Code("", (chained,), tail=end, least=1)
        if end.startswith((".values", ".iterator", ".reverse")):
            return self._rows(call("list", whole), ordered=is_total)
        if end == "[1:4].count()" or not is_total:
            return Case(whole, Expected())
        return Case(whole, Expected(is_ordered=True))

    # -- values --------------------------------------------------------------------

    def _values(self) -> Case:
        model, multi = self.start(), self.chance(0.35)
        steps, names = self._narrowed(model, multi=multi)
        paths = [self.path(model, multi=multi) for _ in range(self.rng.randrange(1, 4))]
        columns = list(dict.fromkeys(column(p) for p in paths if p is not None))
        kinds = {column(p): p.kind for p in paths if p is not None} | names
        columns += [name for name in names if self.chance(0.7)]
        flavour = self.one(("values", "values_list", "values_list"))
        parts = [text(repr(name)) for name in columns]
        steps.append(step(flavour, *parts, is_fixed=True))
        distinct = self.chance(0.35)
        if distinct:
            steps.append(Code(".distinct()", is_fixed=True))
        is_total = self.chance(0.6) and all(
            kinds[name] in _SORTABLE for name in columns
        )
        tail = ""
        if is_total:
            order = [*columns]
            self.rng.shuffle(order)
            sort = [self._direction(name) for name in order]
            steps.append(
                Code(
                    ".order_by(",
                    tuple(sort),
                    tail=")",
                    glue=", ",
                    is_fixed=True,
                    is_rigid=True,
                )
            )
            if self.chance(0.4) and not (self.folds and "text" in kinds.values()):
                tail = self._sliced()
        start = Code(
            f"{model.__name__}.objects.all()", tuple(steps), glue="", tail=tail
        )
        if tail == "" and self.chance(0.12):
            return Case(Code("", (start,), tail=".count()", least=1), Expected())
        ordered = is_total and not (self.folds and "text" in kinds.values())
        return self._rows(call("list", start), ordered=ordered, merges=distinct)

    def _grouped(self) -> Case:
        model = self.start()
        steps, names = self._narrowed(model, multi=self.chance(0.3), wide=False)
        by = [
            path
            for path in (
                self.path(model, _SORTABLE, multi=self.chance(0.3))
                for _ in range(self.rng.randrange(3))
            )
            if path is not None
        ]
        columns = list(dict.fromkeys(map(column, by)))
        kinds = {column(path): path.kind for path in by}
        for name, kind in names.items():
            if kind in _SORTABLE and self.chance(0.5):
                columns.append(name)
                kinds[name] = kind
        steps.append(step("values", *map(repr, columns), is_fixed=True, is_rigid=True))
        aggregates = []
        known: dict[str, str] = {}
        for at in range(self.rng.randrange(1, 4)):
            code, known[f"a{at}"] = self.aggregate(model)
            aggregates.append(keyword(f"a{at}", code))
        steps.append(step("annotate", *aggregates, is_fixed=True))
        folding = self.folds and "text" in kinds.values()
        is_total = self.chance(0.6) and bool(columns) and not folding
        if self.chance(0.35):
            having = self._on_annotation(known)
            if not is_total:  # columns in it may split the groups
                having = self.condition(model, known, 1, multi=False)
            if having is not None:
                steps.append(step(self.one(("filter", "exclude")), having))
        tail, merges = "", True
        if is_total:
            sort = [self._direction(name) for name in columns]
            first = [
                n for n, kind in known.items() if kind in ("int", "decimal", "date")
            ]
            if first and self.chance(0.4):
                sort.insert(0, self._direction(first[0]))
            steps.append(
                Code(".order_by(", tuple(sort), tail=")", is_fixed=True, is_rigid=True)
            )
            if self.chance(0.35):
                tail = self._sliced()
        code = Code(f"{model.__name__}.objects.all()", tuple(steps), glue="", tail=tail)
        if not tail and self.chance(0.1):
            return Case(Code("", (code,), tail=".count()", least=1), Expected())
        return self._rows(call("list", code), ordered=is_total, merges=merges)

    def _made_of_groups(self) -> Case:
        """Groups by a model's own columns, and what is made of their aggregates."""
        model = self.start()
        number = self.own(model, ("int", "decimal"))
        if number is None:
            return self._grouped()
        steps = []
        if self.chance(0.3):
            steps.append(step("filter", self.condition(model, {}, 1)))
        by = [self.own(model, _SORTABLE) for _ in range(self.rng.randrange(3))]
        kinds = {column(path): path.kind for path in by if path is not None}
        steps.append(step("values", *map(repr, kinds), is_fixed=True, least=0))
        function = self.one(("Sum", "Min", "Max", "Avg"))
        more = self.one(("", "", "", ", distinct=True"))
        counted = self.one((f"Count({number.name!r}{more})", "Count('pk')"))
        named = {"a0": counted, "a1": f"{function}({number.name!r})"}
        given = (keyword(name, text(code)) for name, code in named.items())
        steps.append(step("annotate", *given, is_fixed=True))
        made = {"b0": self.one(_MADE), "b1": self.one(_MADE)}
        given = (keyword(name, text(code)) for name, code in made.items())
        steps.append(step("annotate", *given))
        if self.chance(0.6):
            limit = self.one(("0", "1", "2", "5"))
            condition = self.one(_HAVING).replace("{}", limit)
            steps.append(step(self.one(("filter", "exclude")), text(condition)))
        folding = self.folds and "text" in kinds.values()
        is_total, tail = bool(kinds) and not folding, ""
        if is_total:
            sort = [self._direction(name) for name in kinds]
            if self.chance(0.4):
                sort.insert(0, self._direction("a0"))
            steps.append(
                Code(".order_by(", tuple(sort), tail=")", is_fixed=True, is_rigid=True)
            )
            tail = self._sliced() if self.chance(0.35) else ""
        code = Code(f"{model.__name__}.objects.all()", tuple(steps), glue="", tail=tail)
        if self.chance(0.2):
            last = self.one((".count()", ".aggregate(s=Sum('a0'), n=Count('*'))"))
            return Case(Code("", (code,), tail=last, least=1), Expected())
        return self._rows(call("list", code), ordered=is_total, merges=True)

    def _aggregated(self) -> Case:
        model = self.start()
        steps, names = self._narrowed(model, multi=self.chance(0.4))
        if self.chance(0.15):
            steps.append(step("distinct"))
        parts = []
        for at in range(self.rng.randrange(1, 4)):
            code, _ = self.aggregate(model)
            numbers = [n for n, kind in names.items() if kind in ("int", "decimal")]
            if numbers and self.chance(0.5):
                code = call(
                    self.one(("Sum", "Max", "Avg", "Count")), repr(self.one(numbers))
                )
            parts.append(keyword(f"a{at}", code))
        steps.append(step("aggregate", *parts, is_fixed=True))
        code = Code(f"{model.__name__}.objects.all()", tuple(steps), glue="", least=1)
        return Case(code, Expected(folds_text=self.folds))

    # -- the rest ------------------------------------------------------------------

    def _combined(self) -> Case:
        kinds = tuple(
            self.one(("int", "text", "decimal", "date", "moment")) for _ in range(2)
        )
        branches = []
        for _ in range(self.rng.randrange(2, 4)):
            found = self._branch(kinds)
            if found is not None:
                branches.append(found)
        if len(branches) < 2:
            return self._values()
        (first, names), *others = branches
        operator = self.one(("union", "union", "intersection", "difference"))
        more = [text("all=True")] if operator == "union" and self.chance(0.4) else []
        steps = [step(operator, *(code for code, _ in others), *more, is_fixed=True)]
        folding = self.folds and "text" in kinds
        is_total, tail = self.chance(0.7) and not folding, ""
        if is_total:
            steps.append(
                Code(f".order_by({', '.join(map(repr, names))})", is_fixed=True)
            )
            tail = self._sliced() if self.chance(0.4) else ""
        whole = Code("", (first, *steps), glue="", tail=tail, least=2)
        if not tail and self.chance(0.15):
            return Case(Code("", (whole,), tail=".count()", least=1), Expected())
        return self._rows(call("list", whole), ordered=is_total, merges=True)

    def _branch(self, kinds: tuple[str, ...]) -> tuple[Code, list[str]] | None:
        model = self.start()
        paths = [self.path(model, (kind,), depth=1, multi=False) for kind in kinds]
        if any(path is None for path in paths):
            return None
        names = [column(path) for path in paths if path is not None]
        if len(set(names)) < len(names):
            return None
        steps = []
        if self.chance(0.6):
            steps.append(step("filter", self.condition(model, {}, 1)))
        if model.__name__ == "Category":
            steps.append(Code(".order_by()", is_fixed=True))
        shown = f".values_list({', '.join(map(repr, names))})"
        if self.engine != "sqlite" and self.chance(0.15):  # SQLite has no such SQL
            shown += f".order_by('pk'){self._sliced()}"
        steps.append(Code(shown, is_fixed=True))
        return Code(
            f"{model.__name__}.objects.all()", tuple(steps), glue="", is_fixed=True
        ), names

    def _dates(self) -> Case:
        name, field, parts = self.one(
            (
                ("Product", "released", ("year", "month", "week", "day")),
                ("Customer", "birthday", ("year", "month", "week", "day")),
                ("Order", "placed", ("year", "month", "week", "day", "hour", "second")),
                ("Product", "added", ("year", "month", "day", "minute")),
            )
        )
        model = next(
            m for m in (self.start() for _ in range(1000)) if m.__name__ == name
        )
        steps, _ = self._narrowed(model, multi=self.chance(0.3), wide=False)
        kind = "datetimes" if field in ("placed", "added") else "dates"
        order = self.one(("'ASC'", "'DESC'"))
        zone = f", tzinfo={self.zone()}" if kind == "datetimes" else ""
        end = f".{kind}({field!r}, {self.one(parts)!r}, {order}{zone})"
        steps.append(Code(end, is_fixed=True))
        code = Code(f"{name}.objects.all()", tuple(steps), glue="")
        return self._rows(call("list", code), ordered=True)

    def _locked(self) -> Case:
        model = self.start()
        path = self.own(model)
        assert path is not None
        steps = [step("filter", self.lookup(path))] if self.chance(0.7) else []
        steps.append(step("order_by", "'pk'", is_fixed=True))
        code = Code(f"{model.__name__}.objects.all()", tuple(steps), glue="")
        return self._rows(call("locked", code), ordered=True)

    def _distinct_on(self) -> Case:
        model, multi = self.start(), self.chance(0.3)
        steps, _ = self._narrowed(model, multi=multi, wide=False)
        path = self.path(model, _SORTABLE, depth=1, multi=False)
        if path is None:
            return self._instances()
        name = column(path)
        steps.append(
            Code(f".order_by({name!r}, '-pk').distinct({name!r})", is_fixed=True)
        )
        tail = self._sliced() if self.chance(0.3) else ""
        code = Code(f"{model.__name__}.objects.all()", tuple(steps), glue="", tail=tail)
        return self._rows(call("list", code), ordered=True)


def _is_arbitrary(source: str, *, folds: bool) -> bool:
    """Whether the answer of one database is a matter of its plan.

    - A window over rows that tie because an aggregate joins other rows to each.
    - A subquery in a filter beside one of a window: Django selects it as one value, and
      SQLite takes its first row.
    - Whether SQLite comes to a pattern that is too long for it.
    - Which of two equal decimals with other numbers of digits a set operation shows, or
      shows first.
    - MariaDB and MySQL group texts that are equal in any case, and show one of them,
      which a condition on its bytes then takes or leaves.
    - MariaDB 10.11 may find equal values distinct: with DISTINCT, it compares what an
      average or a deviation is worked out from, as in
      ``SELECT DISTINCT VAR_POP(number) FROM orders GROUP BY id``.
    - It counts rows twice that DISTINCT leaves out, for OFFSET, where a key is given.
    - It may also forget ``ORDER BY`` of a key that it groups by, beside a window, and
      look a subquery of ``HAVING`` up with the key of another group.
    """
    chance = (
        _WINDOW_OVER_TIES, _SUBQUERY_BESIDE_WINDOW, _DECIMALS_OF_SETS, _LONG_PATTERN
    )  # fmt: skip
    if any(one.search(source) for one in chance):
        return True
    if not folds:
        return False
    return bool(
        (_WORKED_OUT.search(source) and ".distinct(" in source)
        or _BYTES_OF_GROUP.search(source)
        or ("Window(" in source and _ANNOTATED_AGGREGATE.search(source))
        or _SUBQUERY_OF_HAVING.search(source)
        or _OFFSET_OF_DISTINCT.search(source)
    )


_DEVIATION = re.compile(r"\b(Variance|StdDev)\(")
_WORKED_OUT = re.compile(r"\b(Avg|Variance|StdDev)\(")
_WINDOW_OVER_TIES = re.compile(r"Window\((?!Count|Sum|Avg|Min|Max).*\.aggregate\(.*__")
_SUBQUERY_BESIDE_WINDOW = re.compile(r"Window\(.*__in=\w+\.objects")
_DECIMALS_OF_SETS = re.compile(
    r"(?s)^(?=.*'cost')(?=.*'(price|total|balance)').*\.(intersection|union)\("
)
_ANNOTATED_AGGREGATE = re.compile(
    r"annotate\(\w+=(Count|Sum|Avg|Min|Max|StdDev|Variance|Bit\w+)\("
)
_LONG_PATTERN = re.compile(r"__i?(exact|contains|startswith|endswith)='(long){20}")
_OFFSET_OF_DISTINCT = re.compile(r"\b(id|pk)=\d.*\.distinct\(\).*\[[1-9]\d*:")
_SUBQUERY_OF_HAVING = re.compile(
    _ANNOTATED_AGGREGATE.pattern + r".*\.(filter|exclude)\(.*OuterRef"
)
_BYTES_OF_GROUP = re.compile(
    r"\.values\('.*\.annotate\(.*\.(filter|exclude)\(.*"
    r"__(contains|startswith|endswith|regex)="
)
