"""Numbers, places and edges: every trap that has a name somewhere."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.db import transaction
from django.db.models import (
    Avg,
    Case,
    Count,
    DecimalField,
    Exists,
    F,
    Max,
    Min,
    OuterRef,
    Q,
    StdDev,
    Subquery,
    Sum,
    Value,
    Variance,
    When,
    Window,
)
from django.db.models.functions import Cast, Coalesce, Rank, TruncDay
from django.test import override_settings

from dbfleet.errors import GatherLimitExceeded
from tests.merging import scenarios
from tests.merging.app.models import Item, Note, Owner, Parcel, Tag
from tests.merging.scenarios import agree, close_to, of, refused, same
from tests.sharding.scenarios import SHARDS, on_node

MERGE, PARTIAL, GATHER = "stream merge", "partial aggregate", "gather"


def _totals(**aggregates: Any) -> dict[str, dict[str, Any]]:
    return {alias: rows.aggregate(**aggregates) for alias, rows in of(Item)}


def check_an_average_is_no_sum_and_no_average_of_averages() -> None:
    """vitess#8582: AVG was sent to each shard as it is; #15625 is a check of
    :mod:`.pitfalls`."""
    found = _totals(
        score=Avg("score"), big=Avg("big"), price=Avg("price"), ratio=Avg("ratio")
    )
    for name, expected in found["plain"].items():
        close_to(found["default"][name], expected)
    same(str(found["default"]["price"]), str(found["plain"]["price"]))
    for name in ("score", "price"):
        agree(
            Item,
            lambda rows, name=name: rows.values("flag").annotate(a=Avg(name)),
            rung=PARTIAL,
            is_total=False,
        )
    agree(
        Item,
        lambda rows: rows.values_list("flag").annotate(a=Avg("price")).order_by("-a"),
        rung=PARTIAL,
    )


def check_deviations() -> None:
    """Pitfall: deviations out of deviations; count, mean and sum of squares do it."""
    apart = list(
        Item.objects.using("plain")
        .filter(owner__gt=1)
        .exclude(Q(score=None) | Q(ratio=None))
        .order_by("owner", "id")
        .values_list("id", flat=True)[::7]
    )
    # Django's functions for SQLite take no NULL, no empty set and no sample of one.
    is_sqlite = scenarios.kind == "sqlite"
    for sample in (False, True):
        known = Q(score=None) | Q(ratio=None) | Q(price=None)
        some = {"filter": ~known} if is_sqlite else {}
        one = Q(id=apart[0])
        wanted = {
            "a": StdDev("score", sample=sample, **some),
            "b": Variance("ratio", sample=sample, **some),
            "c": StdDev("price", sample=sample, **some),
            "g": Variance("score", sample=sample, filter=Q(id__in=apart[:2])),
            "h": Variance("ratio", sample=sample, filter=Q(id__in=apart[:4])),
        }
        if not is_sqlite:
            wanted["d"] = StdDev("score", sample=sample, filter=one)
            wanted["e"] = StdDev("score", sample=sample, filter=Q(id__lt=0))
            wanted["f"] = Variance("score", sample=sample, filter=one, default=-1.0)
        found = _totals(**wanted)
        for name, expected in found["plain"].items():
            close_to(found["default"][name], expected)


def check_groups_ordered_by_count_with_a_limit() -> None:
    """vitess#16262: GROUP BY with ORDER BY count and LIMIT gave other groups."""
    for end in (1, 2, 3, 100):
        agree(
            Item,
            lambda rows, end=end: (
                rows.values_list("score")
                .annotate(n=Count("id"))
                .order_by("-n", "score")[:end]
            ),
            rung=PARTIAL,
        )
    agree(
        Item,
        lambda rows: (
            rows.values_list("score")
            .annotate(n=Count("id"), s=Sum("price"))
            .order_by("n", F("score").desc(nulls_first=True))[2:5]
        ),
        rung=PARTIAL,
    )
    agree(
        Item,
        lambda rows: (
            rows.annotate(day=TruncDay("sold"))
            .values_list("day")
            .annotate(n=Count("id"))
            .order_by("-n", "day")[:3]
        ),
    )


def check_groups_that_lie_on_one_shard() -> None:
    """Citus pushes whole groups down where they hold the key; a count of distinct
    values is right only there."""
    agree(
        Item,
        lambda rows: (
            rows.values_list("owner")
            .annotate(n=Count("score", distinct=True), a=Avg("score"))
            .filter(n__gt=1)
            .order_by("-n", "owner")[:4]
        ),
        rung=MERGE,
    )


def check_rows_with_what_belongs_to_them() -> None:
    """Grouped by a row's primary key, for which MariaDB's GROUP BY names no more."""
    agree(
        Item,
        lambda rows: (
            rows.annotate(n=Count("owner__items", distinct=True))
            .filter(n__gt=1)
            .order_by("id")
            .values_list("id", "name", "n")
        ),
        rung=MERGE,
    )
    agree(
        Item,
        lambda rows: rows.annotate(n=Count("owner__items")).order_by("-n", "id")[:7],
        rung=MERGE,
    )


def check_in_over_two_shards() -> None:
    """pgdog#639: IN over two shards was answered by a random one of them."""
    for owners in ([1, 2], [3, 4, 5], [1, 999], [998, 999]):
        agree(
            Item,
            lambda rows, owners=owners: rows.filter(owner__in=owners).order_by("id"),
        )
        agree(Item, lambda rows, owners=owners: rows.filter(owner__in=owners).count())


def check_the_places_of_null() -> None:
    """PgDog's source: NULLS FIRST and LAST, and what a vendor takes for the default,
    were mis-sorted."""
    for name in ("score", "price", "ratio", "flag", "sold", "big"):
        for order in (
            F(name).asc(),
            F(name).desc(),
            F(name).asc(nulls_first=True),
            F(name).asc(nulls_last=True),
            F(name).desc(nulls_first=True),
            F(name).desc(nulls_last=True),
        ):
            agree(Item, lambda rows, order=order: rows.order_by(order, "-id"))
            agree(
                Item,
                lambda rows, order=order: rows.order_by(order, "id").values("id")[3:40],
                rung=MERGE,
            )


def check_orders_of_what_is_not_selected() -> None:
    """PgDog's source: columns of ORDER BY that are not selected were mis-sorted;
    Vitess: ``in scatter query: complex order by expression``."""
    for order in (
        ["score", "id"],
        ["-price", "id"],
        [F("score") + F("owner_id"), "id"],
        [Coalesce("score", Value(7)).desc(), "-id"],
        [Case(When(flag=True, then=Value(1)), default=F("score")), "id"],
        ["-owner__id", "id"],
        ["owner__items__score", "id", "owner__items__id"],
    ):
        for end in (5, None):
            agree(
                Item,
                lambda rows, order=order, end=end: rows.order_by(*order).values_list(
                    "flag", "owner"
                )[:end],
            )
    agree(Item, lambda rows: rows.order_by("-score", "id").only("flag")[:9], rung=MERGE)
    agree(
        Item,
        lambda rows: rows.order_by("-score", "id").values_list("flag", flat=True)[:9],
        rung=MERGE,
    )


def check_distinct_comes_before_the_limit() -> None:
    """vitess#19693: DISTINCT was lost before LIMIT; shardingsphere#4565: equal rows of
    two shards were both there."""
    for start, end in ((0, 3), (2, 5), (0, 100)):
        agree(
            Item,
            lambda rows, start=start, end=end: (
                rows.values_list("score").distinct().order_by("score")[start:end]
            ),
            rung=MERGE,
        )
    agree(
        Item,
        lambda rows: rows.values_list("score", "flag").distinct().order_by("-score"),
        rung=MERGE,
        is_total=False,
    )
    agree(Item, lambda rows: rows.values("score", "flag").distinct().count())
    agree(Item, lambda rows: rows.values("ratio").distinct().count())


def check_distinct_counts() -> None:
    """ShardingSphere #32469 and #29841: count of distinct values with LIMIT."""
    agree(
        Item,
        lambda rows: (
            rows.values_list("flag")
            .annotate(n=Count("score", distinct=True))
            .order_by("-n", "flag")[:1]
        ),
        rung=PARTIAL,
    )
    found = _totals(
        n=Count("score", distinct=True),
        s=Sum("score", distinct=True),
        owners=Count("owner", distinct=True),
    )
    same(found["default"], found["plain"])
    agree(
        Item,
        lambda rows: rows.aggregate(n=Count("owner", distinct=True), s=Sum("score")),
    )
    agree(
        Item,
        lambda rows: rows.order_by("id")[:30].aggregate(
            n=Count("score", distinct=True), a=Avg("score")
        ),
    )


def check_distinct_values_of_all_shards() -> None:
    for name in ("score", "price", "ratio", "big", "sold", "flag", "owner", "id"):
        wanted: dict[str, Any] = {"n": Count(name, distinct=True)}
        if name in ("score", "price", "big"):
            wanted["s"] = Sum(name, distinct=True)
        if name in ("score", "price"):  # SQLite's of greater numbers is not exact
            wanted["a"] = Avg(name, distinct=True)
        for condition in (Q(), Q(id__lt=0), Q(score=None), Q(owner=2)):
            agree(
                Item, lambda rows, q=condition, w=wanted: rows.filter(q).aggregate(**w)
            )
        agree(
            Item,
            lambda rows, w=wanted: (
                rows.values_list("flag")
                .annotate(rows=Count("id"), least=Min("price"), **w)
                .order_by("-n", "flag")
            ),
            rung=PARTIAL,
        )
        agree(
            Item,
            lambda rows, w=wanted: (
                rows.values_list("score")
                .annotate(total=Sum("big"), mean=Avg("price"), **w)
                .filter(n__gt=1)
                .order_by("score")
            ),
            rung=PARTIAL,
        )


def check_distinct_values_of_texts() -> None:
    rows = Item.objects.values("flag").annotate(n=Count("name", distinct=True))
    same(str(rows.explain_route().rung), PARTIAL)
    agree(Item, lambda rows: rows.aggregate(n=Count("name", distinct=True)))
    agree(
        Item,
        lambda rows: (
            rows.values_list("flag")
            .annotate(n=Count("name", distinct=True), rows=Count("name"))
            .order_by("flag")
        ),
        rung=PARTIAL,
    )


def check_distinct_values_that_stay_gathered() -> None:
    for wanted in (
        {"n": Count("score", distinct=True), "m": Count("price", distinct=True)},
        {"n": Count("score", distinct=True), "m": Count("owner", distinct=True)},
        {"n": Count("score", distinct=True, filter=Q(flag=True))},
        {"n": Count(F("score") + 1, distinct=True)},
    ):
        agree(
            Item,
            lambda rows, w=wanted: rows.values_list("flag").annotate(**w),
            rung=GATHER,
            is_total=False,
        )
        agree(Item, lambda rows, w=wanted: rows.aggregate(**w))
    agree(
        Item,
        lambda rows: rows.filter(id__lt=0).aggregate(
            s=Sum("score", distinct=True, default=7), n=Count("id")
        ),
    )
    agree(
        Item,
        lambda rows: rows.aggregate(
            s=Sum("score", distinct=True, default=7) + Count("score")
        ),
    )


def check_a_row_whose_key_was_changed_is_there_once() -> None:
    """citus#8087 and #2288: rows whose key an update changed could not be found;
    elsewhere it is refused (shardingsphere#36967, vitess#3596). More in
    ``tests/sharding``, ``scenarios/updates.py``."""
    for target in range(31, 45):
        for _, rows in of(Parcel):
            rows.filter(id=5).update(region=target)
        agree(Parcel, lambda rows: rows.order_by("id").values_list("id", "region"))
        agree(Parcel, lambda rows: rows.count())
        agree(Parcel, lambda rows: list(rows.values_list("region").filter(id=5)))
        agree(Parcel, lambda rows, n=target: rows.filter(region=n).count())
    for alias, rows in of(Parcel):
        with transaction.atomic(using=alias):
            moved = rows.get(id=6)
            moved.region = 77
            moved.save()
            same(rows.filter(id=6).count(), 1)
    agree(
        Parcel,
        lambda rows: rows.values_list("label").annotate(Count("id")),
        is_total=False,
    )
    same(Parcel.objects.filter(region=6).count(), 0)
    # What a row held before it moved is free once it is deleted.
    for _, rows in of(Parcel):
        rows.filter(id__in=[5, 6]).delete()
        rows.bulk_create([Parcel(id=n, region=n, label="again") for n in (5, 6)])
    agree(Parcel, lambda rows: rows.order_by("id").values_list("id", "region"))


def check_pages_walked_to_the_end_give_each_row_once() -> None:
    """Pitfall: OFFSET sent to each shard; Basecamp gave deep pages up
    (geared_pagination#21)."""
    for order in (["id"], ["score", "-id"], ["-flag", "id"]):
        pages: dict[str, list[int]] = {}
        for alias, rows in of(Item):
            walked: list[int] = []
            pages[alias] = walked
            while page := list(
                rows.order_by(*order).values_list("id", flat=True)[
                    len(walked) : len(walked) + 17
                ]
            ):
                walked += page
        same(pages["default"], pages["plain"])
        same(sorted(pages["default"]), list(range(1, 201)))


def check_each_shards_first_row_is_not_passed_over() -> None:
    """CommCare HQ's older paginator over its partitions skipped the first row of
    each."""
    walked: list[int] = []
    last = 0
    while page := list(Item.objects.filter(id__gt=last).order_by("id")[:7]):
        walked += [one.id for one in page]
        last = walked[-1]
    same(walked, list(range(1, 201)))
    agree(Item, lambda rows: rows.order_by("id").first())
    agree(Item, lambda rows: rows.order_by("id").last())
    agree(Item, lambda rows: rows.aggregate(a=Min("id"), b=Max("id"), c=Count("*")))


def check_or_with_what_says_nothing_of_the_key() -> None:
    """SQLAlchemy's example of a ``ShardedSession`` prunes through OR and loses rows."""
    for condition in (
        Q(owner=1) | Q(score=5),
        Q(owner=1) | Q(owner=2, score=1),
        (Q(owner=1) & Q(score=1)) | ~Q(owner__in=[1, 2, 3]),
        ~(Q(owner=1) | Q(score=5)),
        Q(owner=1) ^ Q(score=5),
        Q(owner=1, pk__in=[]) | Q(owner=4),
    ):
        agree(Item, lambda rows, q=condition: rows.filter(q).order_by("id"))
        agree(Item, lambda rows, q=condition: rows.filter(q).count())


def check_joins_off_the_key() -> None:
    """pgdog#94: such joins run as they are, on each shard; Citus: ``complex joins are
    only supported when all distributed tables are co-located``."""
    agree(Note, lambda rows: rows.filter(owner__id__lt=9).count(), rung=None)
    agree(
        Note,
        lambda rows: rows.filter(owner__items__score=5).order_by("id", "owner__items"),
    )
    agree(
        Note,
        lambda rows: rows.values_list("id", "owner__name").order_by("id"),
        rung=GATHER,
    )
    agree(
        Owner,
        lambda rows: rows.annotate(n=Count("notes")).values_list("id", "n"),
        rung=GATHER,
        is_total=False,
    )
    agree(
        Item,
        lambda rows: (
            rows.filter(owner__notes__score=2).values_list("id").order_by("id")
        ),
    )


def check_joins_by_the_key() -> None:
    """Where rows live together a join is each shard's own, as in Citus and Vitess."""
    agree(
        Owner,
        lambda rows: rows.filter(items__score=5).order_by("id").values_list("id"),
        rung=MERGE,
    )
    agree(
        Owner,
        lambda rows: (
            rows.annotate(n=Count("items"), s=Sum("items__price"))
            .order_by("-n", "id")
            .values_list("id", "n", "s")[:8]
        ),
        rung=MERGE,
    )
    agree(
        Owner,
        lambda rows: rows.filter(items__isnull=True).order_by("id").values_list("id"),
    )


def check_edges_of_many_to_many_are_not_doubled() -> None:
    """Pitfall: joins over a through table that lies elsewhere, on shards that are
    concatenated: counts came out doubled."""
    agree(
        Owner,
        lambda rows: (
            rows.annotate(n=Count("tags")).order_by("id").values_list("id", "n")
        ),
    )
    agree(
        Tag,
        lambda rows: (
            rows.annotate(n=Count("owner")).order_by("id").values_list("id", "n")
        ),
    )
    agree(Owner, lambda rows: rows.filter(tags__word__in=["w1", "w2"]).count())
    agree(
        Owner,
        lambda rows: rows.filter(tags__word__in=["w1", "w2"]).distinct().order_by("id"),
    )
    agree(
        Owner,
        lambda rows: [
            sorted(tag.id for tag in one.tags.all())
            for one in rows.prefetch_related("tags").order_by("id")
        ],
    )


def check_exists_on_and_off_the_key() -> None:
    """citus#4160: correlated subqueries that are not co-located."""
    noted = Note.objects.filter(owner=OuterRef("pk"))
    owned = Item.objects.filter(owner=OuterRef("pk"), score=5)
    for inner, rung in ((noted, GATHER), (owned, MERGE)):
        for condition in (Exists(inner), ~Exists(inner)):
            agree(
                Owner,
                lambda rows, c=condition: (
                    rows.filter(c).order_by("id").values_list("id")
                ),
                rung=rung,
            )
    best = Item.objects.filter(owner=OuterRef("owner")).order_by("-score", "-id")
    agree(
        Item,
        lambda rows: (
            rows.annotate(best=Subquery(best.values("id")[:1]))
            .order_by("id")
            .values_list("id", "best")
        ),
    )
    of_others = Item.objects.filter(score=OuterRef("score")).exclude(pk=OuterRef("pk"))
    agree(Item, lambda rows: rows.filter(Exists(of_others)).count())
    above = Item.objects.filter(score__gt=2).values("owner")
    agree(Owner, lambda rows: rows.filter(pk__in=above).order_by("id"))
    agree(Note, lambda rows: rows.filter(score__in=above.values("score")).count())


def check_having() -> None:
    """pgdog#695 and shardingsphere#3830: there is no HAVING over shards."""
    averages = GATHER if scenarios.kind == "mariadb" else PARTIAL
    for condition, rung in (
        (Q(n__gt=20), PARTIAL),
        (Q(n__lte=20) | Q(s=None), PARTIAL),
        (Q(a__gt=1.5), averages),
    ):
        agree(
            Item,
            lambda rows, q=condition: (
                rows.values_list("score", "flag")
                .annotate(n=Count("id"), s=Sum("big"), a=Avg("score"))
                .filter(q)
                .values_list("score", "flag", "n")
            ),
            rung=rung,
            is_total=False,
        )


def check_windows() -> None:
    """vitess#18070 and #19530: windows over several shards are refused, or were not."""
    agree(
        Item,
        lambda rows: (
            rows.annotate(r=Window(Rank(), order_by=F("score").asc(nulls_last=True)))
            .order_by("id")
            .values_list("id", "r")
        ),
        rung=GATHER,
    )
    agree(
        Item,
        lambda rows: (
            rows.annotate(s=Window(Sum("price"), partition_by="flag"))
            .order_by("id")
            .values_list("id", "s")
        ),
    )


def check_sums_of_nothing_and_counts_of_none() -> None:
    """Pitfall: the SUM of no rows is NULL, their COUNT 0, on empty shards as on one."""
    for condition in (Q(id__lt=0), Q(score=None), Q(owner__in=[2, 3], score=None)):
        agree(
            Item,
            lambda rows, q=condition: rows.filter(q).aggregate(
                a=Sum("score"),
                b=Sum("score", default=0),
                c=Count("score"),
                d=Avg("score"),
                e=Avg("score", default=2.5),
                f=Min("score"),
                g=Max("score", default=9),
                h=Count("*"),
            ),
        )
    agree(
        Item,
        lambda rows: (
            rows.values_list("flag")
            .annotate(
                a=Sum("score", filter=Q(score__gt=100)),
                b=Sum("score", filter=Q(owner=2), default=0),
                c=Count("score", filter=Q(owner=2)),
            )
            .order_by("flag")
        ),
        rung=PARTIAL,
    )


def check_both_zeroes_are_one_group() -> None:
    """Pitfall: -0.0 and 0.0 are equal to the server."""
    found = agree(
        Item,
        lambda rows: rows.values("ratio").annotate(n=Count("id")).order_by("ratio"),
        rung=PARTIAL,
    )
    zeroes = [row for row in found if row["ratio"] == 0]
    same(len(zeroes), 1)


def check_decimals_of_several_scales_are_one_group() -> None:
    """Pitfall: 1.0 and 1.0000 are equal to the server."""

    def scaled(rows: Any) -> Any:
        narrow = Cast("score", DecimalField(max_digits=9, decimal_places=1))
        wide = Cast("score", DecimalField(max_digits=9, decimal_places=4))
        value = Case(
            When(flag=True, then=narrow),
            default=wide,
            output_field=DecimalField(max_digits=9, decimal_places=4),
        )
        return rows.annotate(v=value).values_list("v")

    agree(Item, lambda rows: scaled(rows).annotate(n=Count("id")).order_by("v"))
    agree(Item, lambda rows: scaled(rows).distinct().order_by("v"))
    agree(Item, lambda rows: rows.values("price").distinct().count())


def check_sums_have_the_digits_and_types_of_one_server() -> None:
    """Pitfall: sums that become floats, or lose their scale."""
    found = agree(
        Item,
        lambda rows: rows.aggregate(
            a=Sum("score"), b=Sum("big"), c=Sum("price"), d=Max("price"), e=Min("sold")
        ),
    )
    same([type(found[name]) for name in "abc"], [int, int, Decimal])


def check_updates_of_what_was_merged() -> None:
    """Writes by keys that a merged read found."""
    for _, rows in of(Note):
        chosen = rows.order_by("-score", "id").values_list("id", flat=True)[:10]
        rows.filter(id__in=list(chosen)).update(score=F("score") + 1)
    agree(Note, lambda rows: rows.order_by("id").values_list("id", "score"))
    agree(
        Note,
        lambda rows: (
            rows.values_list("score").annotate(n=Count("id")).order_by("score")
        ),
        rung=PARTIAL,
    )


def check_groups_beyond_the_limit_are_refused() -> None:
    def groups() -> Any:
        return Parcel.objects.values("label").annotate(n=Count("id"))

    counted = sum(
        int(on_node(shard, "SELECT COUNT(DISTINCT label) FROM merging_parcel")[0][0])
        for shard in SHARDS
    )
    same(str(groups().explain_route().rung), PARTIAL)
    for limits, error in (
        ({"MAX_ROWS": counted - 1}, ("dbfleet.E501", f"{counted - 1} rows")),
        ({"MAX_ROWS": 2}, ("dbfleet.E501", "2 rows of its shards")),
        ({"MAX_BYTES": 40}, ("dbfleet.E502", "merging.Parcel on alias 'default'")),
    ):
        with override_settings(DBFLEET={"GATHER": limits}):
            with refused(GatherLimitExceeded, *error):
                list(groups())
            with refused(GatherLimitExceeded, *error):
                list(groups().order_by("-n")[:1])
            with refused(GatherLimitExceeded, *error):
                list(groups().iterator())
            same(Parcel.objects.count(), 30)
            same(len(list(Parcel.objects.values_list("label"))), 30)
    if scenarios.kind == "mixed":
        return  # gathered, as no shard's order of text is another's
    with override_settings(DBFLEET={"GATHER": {"MAX_ROWS": counted}}):
        agree(
            Parcel,
            lambda rows: rows.values("label").annotate(n=Count("id")),
            rung=PARTIAL,
            is_total=False,
        )


def check_quotients_are_added_before_they_are_rounded() -> None:
    """MariaDB computes with more digits than it shows."""
    seventh = F("price") / Decimal(7)
    groups = Item.objects.values("flag").annotate(a=Sum(seventh))
    is_shown = scenarios.kind != "mariadb"
    same(str(groups.explain_route().rung), PARTIAL if is_shown else GATHER)
    found = _totals(
        a=Sum(seventh), b=Avg(seventh), c=Sum(F("price") * seventh), d=Max(seventh)
    )
    for name, expected in found["plain"].items():
        if scenarios.kind == "sqlite":
            close_to(found["default"][name], expected)
        else:
            same(str(found["default"][name]), str(expected))
