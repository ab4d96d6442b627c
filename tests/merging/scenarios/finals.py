"""What is asked of aggregates beyond them: HAVING, arithmetic, orders, defaults."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.db import connection, connections
from django.db.models import (
    Avg,
    BooleanField,
    Case,
    Count,
    DecimalField,
    ExpressionWrapper,
    F,
    FloatField,
    Max,
    Min,
    OuterRef,
    Q,
    StdDev,
    Subquery,
    Sum,
    Value,
    When,
)
from django.db.models.functions import (
    Cast,
    Coalesce,
    Greatest,
    Length,
    Lower,
    NullIf,
    TruncDay,
    Upper,
)

from dbfleet.observe import events
from tests.merging import scenarios
from tests.merging.app.models import Item, Note, Parcel
from tests.merging.scenarios import agree, close_to, of, same
from tests.sharding.scenarios import SHARDS, on_node

MERGE, PARTIAL, GATHER = "stream merge", "partial aggregate", "gather"


def _where_text_is_known() -> str:
    """MariaDB compares texts by the collation of a column, which no function has."""
    return GATHER if scenarios.kind == "mariadb" else PARTIAL


def _where_digits_are_shown() -> str:
    return GATHER if scenarios.kind == "mariadb" else PARTIAL


def check_having() -> None:
    for condition in (
        Q(n__gt=8),
        Q(n__lte=20) | Q(s=None),
        Q(s__lt=0) & Q(n__gte=2),
        ~Q(n__in=[1, 2, 3]),
        Q(n__range=(3, 12)),
        Q(s__isnull=True),
        Q(m__gte=Decimal("2.5")),
        Q(m=F("n")) | Q(n=F("k")),
        Q(n__gt=F("k")) ^ Q(flag=True),
        Q(score__gt=1, n__gt=2),
        Q(score=None) | Q(n__gt=12),
        Q(n__lt=0),
    ):
        for start, end in ((0, None), (0, 3), (1, 4)):
            agree(
                Item,
                lambda rows, q=condition, a=start, z=end: (
                    rows.values_list("score", "flag")
                    .annotate(
                        n=Count("id"), s=Sum("big"), m=Max("price"), k=Count("price")
                    )
                    .filter(q)
                    .order_by("-n", "score", "flag")[a:z]
                ),
                rung=PARTIAL,
            )


def check_having_of_averages() -> None:
    agree(
        Item,
        lambda rows: (
            rows.values_list("score", "flag")
            .annotate(a=Avg("price"))
            .filter(a__gt=5)
            .order_by("score", "flag")
        ),
        rung=_where_digits_are_shown(),
    )
    agree(
        Item,
        lambda rows: (
            rows.values_list("score", "flag")
            .annotate(a=Avg("price"), n=Count("id"))
            .filter(n__gt=5)
            .order_by("score", "flag")
        ),
        rung=PARTIAL,
    )


def check_having_of_what_is_not_selected() -> None:
    agree(
        Item,
        lambda rows: (
            rows.values("score")
            .annotate(n=Count("id"), top=Max("sold"))
            .filter(n__gt=4)
            .order_by("top", "score")
            .values_list("score")
        ),
        rung=PARTIAL,
    )


def check_quotients_of_sums() -> None:
    for columns in (("score", "id"), ("price", "id"), ("price", "score")):
        ratio = Sum(columns[0]) / NullIf(Count(columns[1]), Value(0))
        found = {alias: rows.aggregate(r=ratio) for alias, rows in of(Item)}
        close_to(found["default"]["r"], found["plain"]["r"])
        if scenarios.kind != "sqlite":
            same(str(found["default"]["r"]), str(found["plain"]["r"]))
        agree(
            Item,
            lambda rows, r=ratio: (
                rows.values_list("flag").annotate(r=r).order_by("flag")
            ),
            rung=PARTIAL,
        )


def check_a_shard_that_would_divide_by_zero_is_not_asked_to() -> None:
    ratio = Sum("score") / Count("price", filter=Q(owner=1))
    agree(
        Item,
        lambda rows: rows.filter(price__isnull=False).aggregate(r=ratio),
    )


def check_arithmetic_over_annotations() -> None:
    agree(
        Item,
        lambda rows: (
            rows.values("score")
            .annotate(total=Sum("price"), n=Count("id"))
            .annotate(twice=F("total") * 2, more=F("score") + F("n"), all=F("n") % 3)
            .filter(twice__gt=1)
            .order_by(F("twice").desc(), "score")
            .values_list("score", "twice", "more", "all")
        ),
        rung=PARTIAL,
    )
    found = agree(
        Item,
        lambda rows: rows.aggregate(
            a=Sum("score") + Sum("big"),
            b=Sum("price") * Value(Decimal("1.10")),
            c=Max("sold"),
            d=Max("score") - Min("score"),
            e=Coalesce(Sum("score", filter=Q(id__lt=0)), 0) + 1,
            f=Sum(F("score") * 2) - F("d"),
        ),
    )
    same([type(found[name]) for name in "abdf"], [int, Decimal, int, int])


def check_defaults() -> None:
    none = Q(id__lt=0)
    agree(
        Item,
        lambda rows: rows.aggregate(
            a=Coalesce(Sum("score", filter=none), Value(0)),
            b=Coalesce(Sum("score", filter=none), Max("score")),
            c=Coalesce(Max("price", filter=none), Value(Decimal("1.25"))),
            d=Coalesce(Max("price"), Value(Decimal("1.25"))) + 1,
            e=Count("id", filter=none) + 5,
        ),
    )
    agree(Item, lambda rows: rows.filter(none).aggregate(a=Sum("score") + Count("id")))
    agree(
        Item,
        lambda rows: (
            rows.values_list("flag")
            .annotate(s=Coalesce(Sum("score"), Count("id")))
            .filter(s__gte=0)
            .order_by("flag")
        ),
        rung=PARTIAL,
    )
    agree(
        Item,
        lambda rows: (
            rows.filter(none).values("flag").annotate(n=Count("id")).filter(n__gt=0)
        ),
        rung=PARTIAL,
    )


def check_orders_by_what_was_computed() -> None:
    for order in (
        [(F("s") * 2).desc(nulls_last=True), "score"],
        [(F("n") + F("k")).asc(), F("score").desc(nulls_first=True)],
        [F("n") * -1, "score"],
        [Coalesce("s", Value(Decimal(0))).desc(), "score"],
    ):
        for end in (1, 3, None):
            agree(
                Item,
                lambda rows, order=order, end=end: (
                    rows.values_list("score")
                    .annotate(n=Count("id"), k=Count("price"), s=Sum("price"))
                    .order_by(*order)[:end]
                ),
                rung=PARTIAL,
            )


def check_values_of_every_kind() -> None:
    for name in ("flag", "score", "big", "ratio", "price", "sold"):
        agree(
            Item,
            lambda rows, name=name: (
                rows.values_list(name)
                .annotate(n=Count("id"), lo=Min("price"), hi=Max("sold"))
                .filter(n__gt=1)
                .order_by("n", name)
            ),
            rung=PARTIAL,
        )
    for name in ("score", "big", "ratio", "price", "sold"):
        agree(
            Item,
            lambda rows, name=name: (
                rows.values_list("score")
                .annotate(lo=Min(name), n=Count("id"))
                .filter(n__gt=1)
                .order_by("score")
            ),
            rung=PARTIAL,
        )


def check_moments() -> None:
    agree(
        Item,
        lambda rows: (
            rows.annotate(day=TruncDay("sold"))
            .values_list("day")
            .annotate(n=Count("id"), last=Max("sold"))
            .filter(n__gt=3, last__gt=datetime(2024, 2, 29, 15, tzinfo=UTC))
            .order_by("-n", "day")
        ),
        rung=PARTIAL,
    )


def check_texts() -> None:
    if scenarios.kind == "mixed":
        return  # gathered, as no shard's order of text is another's
    found = {
        alias: sorted(
            n
            for _, n in rows.values_list("name").annotate(n=Count("id")).filter(n__gt=8)
        )
        for alias, rows in of(Item)
    }
    same(found["default"], found["plain"])
    for condition in (Q(name__gt="b"), Q(name="a"), Q(name__in=["a", "Z"])):
        found = {
            alias: [
                n
                for _, n in rows.values_list("name")
                .annotate(n=Count("id"))
                .filter(condition | Q(n__lt=3), n__gt=2)
                .order_by("-name", "n")
            ]
            for alias, rows in of(Item)
        }
        same(found["default"], found["plain"])
    agree(
        Item,
        lambda rows: (
            rows.annotate(low=Lower("name"))
            .values_list("low")
            .annotate(n=Count("id"), long=Length("low") + Count("price"))
            .filter(n__gt=2)
            .order_by("low", "n", "long")
        ),
        rung=_where_text_is_known(),
        # Blanks at the end are no difference there, and their number is one of groups.
        is_total=scenarios.kind != "mariadb",
    )
    rows = Item.objects.values("name").annotate(n=Count("id"), u=Upper("name"))
    same(str(rows.filter(n__gt=2).explain_route().rung), _where_text_is_known())


def check_distinct_ones_of_what_was_aggregated() -> None:
    agree(
        Item,
        lambda rows: (
            rows.values("score", "flag")
            .annotate(n=Count("id"))
            .values_list("n", flat=True)
            .distinct()
        ),
        rung=PARTIAL,
        is_total=False,
    )


def check_cases() -> None:
    kind = Case(
        When(n__gt=10, then=Value("many")),
        When(s=None, then=Value("none")),
        default=Value("few"),
    )
    agree(
        Item,
        lambda rows: (
            rows.values("score")
            .annotate(n=Count("id"), s=Sum("score"))
            .annotate(kind=kind, most=Greatest("n", "s"))
            .order_by("score")
            .values_list("score", "kind", "most")
        ),
        rung=PARTIAL,
    )
    is_big = ExpressionWrapper(Q(n__gt=10), output_field=BooleanField())
    agree(
        Item,
        lambda rows: (
            rows.values("score")
            .annotate(n=Count("id"))
            .annotate(big=is_big)
            .order_by("score")
            .values_list("score", "big")
        ),
        rung=PARTIAL,
    )


def check_types_are_those_of_one_server() -> None:
    """A numeric's scale, a float's division, what an integer is divided to."""
    agree(
        Item,
        lambda rows: (
            rows.values("score")
            .annotate(n=Count("id"), p=Sum("price"))
            .annotate(
                a=F("n") / 7,
                b=F("p") / 7,
                c=Cast("p", DecimalField(max_digits=30, decimal_places=1)),
                d=Cast("n", FloatField()) / 7,
                e=F("score") / 2,
            )
            .order_by("score")
            .values_list("score", "a", "b", "c", "d", "e")
        ),
        rung=PARTIAL,
    )


def check_groups_of_one_shard_and_of_several_aliases_of_a_column() -> None:
    agree(
        Item,
        lambda rows: (
            rows.filter(owner__in=[1, 2, 3, 4])
            .values("flag", again=F("flag"))
            .annotate(n=Count("id"))
            .filter(n__gt=1)
            .order_by("again")
            .values_list("again", "n")
        ),
    )
    agree(
        Parcel,
        lambda rows: (
            rows.values("label")
            .annotate(n=Count("id"))
            .filter(n__gt=3)
            .order_by("-n", "label")
            .values_list("label", "n")
        ),
    )


def check_what_stays_gathered() -> None:
    noted = Note.objects.filter(score=OuterRef("score")).values("score")
    counted = Item.objects.values("score", "flag").annotate(n=Count("id"))
    for query in (
        counted.annotate(o=Subquery(noted[:1])).filter(n__gt=1),
        counted.distinct().order_by("-n"),
        counted.annotate(d=StdDev("ratio", filter=Q(ratio__gt=0))).filter(d__gt=1),
    ):
        same(str(query.explain_route().rung), GATHER)


def check_arrays_are_made_where_their_rows_are() -> None:
    if connection.vendor != "postgresql":
        return
    from django.contrib.postgres.aggregates import ArrayAgg

    arrays = {
        "all": ArrayAgg("id", order_by="id"),
        "some": ArrayAgg("score", order_by=["-score", "id"], filter=Q(flag=True)),
    }
    for by, rung in (("owner", MERGE), ("flag", GATHER)):
        agree(
            Item,
            lambda rows, by=by: rows.values_list(by).annotate(**arrays).order_by(by),
            rung=rung,
        )


def check_aggregates_of_groups() -> None:
    for condition in (Q(), Q(n__gt=5), Q(s__lt=0), Q(id__lt=0)):
        for wanted in (
            {"a": Sum("n"), "b": Max("s"), "c": Count("*")},
            {"a": Sum(F("n") * 2) + Count("score"), "b": Min("n")},
            {"a": Count("n", distinct=True)},
        ):
            agree(
                Item,
                lambda rows, q=condition, w=wanted: (
                    rows.values("score", "flag")
                    .annotate(n=Count("id"), s=Sum("big"))
                    .filter(q)
                    .aggregate(**w)
                ),
            )
        agree(
            Item,
            lambda rows, q=condition: (
                rows.values("score")
                .annotate(n=Count("id"), s=Sum("big"))
                .filter(q)
                .count()
            ),
        )
    agree(
        Item,
        lambda rows: (
            rows.values("score")
            .annotate(n=Count("id"))
            .order_by("-n", "score")[1:4]
            .aggregate(s=Sum("n"), m=Max("score"))
        ),
    )


def check_counts_of_distinct_rows() -> None:
    for columns in (["score"], ["score", "flag"], ["price"], ["sold", "flag"]):
        agree(Item, lambda rows, by=columns: rows.values(*by).distinct().count())
        agree(
            Item, lambda rows, by=columns: rows.values_list(*by).distinct()[2:5].count()
        )
    agree(Item, lambda rows: rows.values("name").distinct().count())
    agree(Item, lambda rows: rows.filter(id__lt=0).values("score").distinct().count())
    agree(
        Item,
        lambda rows: rows.values("score").distinct().aggregate(s=Sum("score")),
    )
    agree(
        Item,
        lambda rows: (
            rows.values("owner").annotate(n=Count("id")).filter(n__gt=3).count()
        ),
    )


def check_aggregates_of_groups_are_not_gathered() -> None:
    def sum_of_counts() -> Any:
        counted = Item.objects.values("score").annotate(n=Count("id"))
        return counted.filter(n__gt=2).aggregate(s=Sum("n"))

    def distinct() -> Any:
        return Item.objects.values("score").distinct().count()

    for query in (sum_of_counts, distinct):
        rungs: list[str] = []

        def listen(event: Any, rungs: list[str] = rungs) -> None:
            if event.name == "routed":
                rungs.append(str(event.fields["route"].rung))

        with events.subscribed(listen):
            query()
        same(rungs, [PARTIAL])


def check_what_is_stored_is_grouped_as_it_is_stored() -> None:
    """SQLite: two spellings of a moment, which its driver would make one."""
    if connection.vendor != "sqlite":
        return

    def spell(old: str, new: str) -> None:
        sql = (
            f"UPDATE merging_item SET sold = replace(sold, '{old}', '{new}') "
            "WHERE (id & 1) = 0"
        )
        for shard in SHARDS:
            on_node(shard, sql)
        with connections["plain"].cursor() as cursor:
            cursor.execute(sql)

    spell(" ", "T")
    try:
        agree(
            Item,
            lambda rows: sorted(
                n
                for _, n in rows.values_list("sold")
                .annotate(n=Count("id"))
                .filter(n__gt=0)
            ),
        )
    finally:
        spell("T", " ")
