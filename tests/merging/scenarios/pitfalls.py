"""Traps of sharding that are nobody's alone, and reports about statements other than
those of :mod:`.published`; each check names where it comes from."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import (
    Avg,
    Case,
    CharField,
    Count,
    DecimalField,
    ExpressionWrapper,
    F,
    IntegerField,
    Max,
    OuterRef,
    Q,
    Subquery,
    Sum,
    Value,
    When,
    Window,
)
from django.db.models.functions import Cast, Coalesce, RowNumber

from tests.merging import scenarios
from tests.merging.app.models import Item, Note, Owner, Parcel
from tests.merging.scenarios import agree, close_to, of, same

MERGE, PARTIAL, GATHER = "stream merge", "partial aggregate", "gather"


def check_a_limit_is_one_of_all_rows_and_a_count_is_one_number() -> None:
    """SQLAlchemy's ShardedSession gives a LIMIT per shard and a COUNT per shard
    (sqlalchemy#9482); django-sharded chains the shards' iterators."""
    for end in (1, 7, 50):
        agree(Item, lambda rows, end=end: len(rows[:end]))
        agree(Item, lambda rows, end=end: rows[:end].count())
        agree(Item, lambda rows, end=end: len(rows.values("flag", "score")[:end]))
        agree(Item, lambda rows, end=end: rows.order_by("-id")[3:end].exists())
    agree(Item, lambda rows: list(rows.order_by("id").iterator(chunk_size=7)))
    found = agree(Item, lambda rows: rows.aggregate(n=Count("id"), m=Max("id")))
    same(found, {"n": 200, "m": 200})


def check_a_limit_comes_after_groups_and_having() -> None:
    """Pitfall: LIMIT sent to shards before DISTINCT, GROUP BY or HAVING; Citus has a
    flag of its own against it (``distinctPreventsLimitPushdown``)."""
    for end in (1, 2, 4):
        agree(
            Item,
            lambda rows, end=end: (
                rows.values_list("score", "flag")
                .annotate(n=Count("id"))
                .filter(n__gt=4)
                .order_by("n", "score", "flag")[:end]
            ),
        )
        agree(
            Item,
            lambda rows, end=end: (
                rows.values_list("owner")
                .annotate(n=Count("id"), s=Sum("score"))
                .filter(n__gt=2)
                .order_by("-s", "owner")[:end]
            ),
            rung=MERGE,
        )


def check_groups_of_rows_without_children() -> None:
    """Found by a random queryset: the NULLs of a LEFT JOIN are one group, although the
    column that is grouped by is the shard key of the rows that are there."""
    for made in (Count("id"), Max("name"), Count("items")):
        agree(
            Owner,
            lambda rows, made=made: (
                rows.values_list("items__owner")
                .annotate(n=made)
                .order_by("items__owner")
                .values_list("items__owner", "n")
            ),
        )
    agree(Owner, lambda rows: rows.values("items__owner").distinct().count())
    agree(
        Owner,
        lambda rows: (
            rows.values("items__owner").annotate(n=Max("id")).aggregate(c=Count("n"))
        ),
    )
    place = Window(RowNumber(), partition_by="items__owner", order_by=["id", "items"])
    agree(
        Owner,
        lambda rows: (
            rows.annotate(r=place).order_by("id", "items").values_list("id", "r")
        ),
    )


def check_left_joins_with_a_limit() -> None:
    """citus#2614: LIMIT of a LEFT JOIN, as ORMs write it."""
    agree(
        Owner,
        lambda rows: rows.order_by("-id", "items__id").values_list("id", "items__id")[
            :20
        ],
    )
    agree(
        Owner,
        lambda rows: rows.order_by("-id", "notes__id").values_list("id", "notes__id")[
            3:20
        ],
    )


def check_a_random_order_has_each_row_once() -> None:
    """Pitfall: ORDER BY something that is no column; ``order_by("?")``."""
    for _, rows in of(Item):
        same(sorted(one.id for one in rows.order_by("?")), list(range(1, 201)))
        same(len({one.id for one in rows.order_by("?")[:9]}), 9)


def check_aggregates_of_expressions() -> None:
    """Pitfall: aggregates of annotations and ``Case``, expressions over aggregates."""
    doubled = F("score") * 2 + F("owner_id")
    flagged = Case(When(flag=True, then=F("score")), default=Value(0))
    agree(
        Item,
        lambda rows: rows.annotate(d=doubled).aggregate(
            s=Sum("d"), m=Max("d"), n=Count("d"), c=Sum(flagged)
        ),
    )
    averages = {
        alias: rows.annotate(d=doubled).aggregate(a=Avg("d"), b=Avg(flagged))
        for alias, rows in of(Item)
    }
    for name, expected in averages["plain"].items():
        close_to(averages["default"][name], expected)
    agree(
        Item,
        lambda rows: (
            rows.values_list("flag")
            .annotate(
                x=Sum("score") + Count("id"),
                y=Coalesce(Sum("score", filter=Q(score__gt=2)), 0),
                z=Case(When(Q(flag=True), then=Count("id")), default=-Count("id")),
            )
            .filter(x__gt=0)
            .order_by("-x", "flag")[:2]
        ),
    )
    share = Cast(Sum("price"), DecimalField(max_digits=20, decimal_places=6))
    ratio = share / Cast(Count("id"), DecimalField(max_digits=20, decimal_places=0))
    ratio.output_field = DecimalField(max_digits=20, decimal_places=6)
    agree(Item, lambda rows: str(rows.aggregate(r=ratio)["r"]))
    agree(
        Item,
        lambda rows: (
            rows.values("score")
            .annotate(n=Count("id"))
            .aggregate(a=Sum("n"), b=Max("n"), c=Count("n"))
        ),
    )


def check_aggregates_of_groups_that_are_not_shown() -> None:
    """vitess#15625: an average by a column that is ordered by and not selected."""
    for made in (Avg("price"), Sum("score"), Count("score"), Max("price")):
        agree(
            Item,
            lambda rows, made=made: (
                rows.values("score").annotate(a=made).order_by("score").values_list("a")
            ),
        )
        agree(
            Item,
            lambda rows, made=made: (
                rows.values("owner").annotate(a=made).order_by("owner").values_list("a")
            ),
            rung=MERGE,
        )


def check_one_aggregate_twice() -> None:
    """vitess#13179: the same count, selected twice, came out different."""
    agree(
        Item,
        lambda rows: (
            rows.values_list("score")
            .annotate(a=Count("id"), b=Count("id"), c=Avg("price"), d=Avg("price"))
            .order_by("score")
        ),
        rung=PARTIAL,
    )
    agree(Item, lambda rows: rows.aggregate(a=Count("id"), b=Count("id"), c=Count("*")))


def check_rows_of_one_shard_alone() -> None:
    """vitess#12540: arithmetic over sums where only one shard had rows, some of the
    time; #18468: counts of a slice of nothing; #16226: counts of ordered slices."""
    for condition in (Q(id=5), Q(owner=1, id__lt=30), Q(id__lt=0)):
        agree(
            Item,
            lambda rows, q=condition: rows.filter(q).aggregate(
                r=Sum("score") * 2 + Max("id"), n=Count("id"), m=Max("price")
            ),
        )
        for end in (1, 25):
            agree(
                Item,
                lambda rows, q=condition, end=end: (
                    rows.filter(q).order_by("-id")[:end].count()
                ),
            )
            agree(
                Item,
                lambda rows, q=condition, end=end: (
                    rows.filter(q)
                    .order_by("-id")[:end]
                    .aggregate(n=Count("id"), s=Sum("score"))
                ),
            )


def check_groups_of_nothing_and_of_null() -> None:
    """shardingsphere#33219: no rows made one group; #22170: groups of NULLs."""
    for by in ("score", "flag", "owner", "sold"):
        agree(
            Item,
            lambda rows, by=by: list(
                rows.filter(id__lt=0).values(by).annotate(n=Count("id")).order_by("-n")
            ),
        )
        found = agree(
            Item,
            lambda rows, by=by: (
                rows.values_list(by).annotate(n=Count("id")).order_by(by)
            ),
        )
        same(sum(n for _, n in found), 200)
        same(len({value for value, _ in found}), len(found))


def check_distinct_aggregates_of_groups() -> None:
    """shardingsphere#14341, #5492: COUNT and SUM of distinct values, in groups; #29841:
    their LIMIT cut the values that were counted."""
    for by, rung in (("flag", PARTIAL), ("owner", MERGE)):
        for end in (1, 3, None):
            agree(
                Item,
                lambda rows, by=by, end=end: (
                    rows.values_list(by)
                    .annotate(
                        n=Count("score", distinct=True), s=Sum("score", distinct=True)
                    )
                    .order_by(by)[:end]
                ),
                rung=rung,
            )


def check_windows_within_filters_and_subqueries() -> None:
    """vitess#19530: the guard that refuses windows over several shards is passed by
    where one is compared with a scalar subquery; #19693: DISTINCT was dropped beside a
    window, before LIMIT; #18903 merges windows partitioned by the key."""
    number = Window(RowNumber(), partition_by="flag", order_by=["score", "id"])
    by_owner = Window(RowNumber(), partition_by="owner", order_by=["-score", "id"])
    for window in (number, by_owner):
        agree(
            Item,
            lambda rows, w=window: (
                rows.annotate(r=w).filter(r__lte=2).order_by("id").values_list("id")
            ),
        )
        agree(
            Item,
            lambda rows, w=window: (
                rows.annotate(r=w).filter(r=1).aggregate(s=Sum("id"))
            ),
        )
        agree(
            Item,
            lambda rows, w=window: rows.annotate(r=w).order_by("-r", "id")[:9],
        )
        least = Subquery(Owner.objects.order_by("id").values("id")[:1])
        agree(
            Item,
            lambda rows, w=window, least=least: (
                rows.annotate(r=w).filter(r__lte=least).order_by("id").values_list("id")
            ),
        )
        for end in (1, 3, 6):
            agree(
                Item,
                lambda rows, w=window, end=end: (
                    rows.annotate(r=w)
                    .values_list("r", "flag")
                    .distinct()
                    .order_by("r", "flag")[:end]
                ),
            )
    agree(
        Item,
        lambda rows: rows.annotate(r=by_owner).order_by("id").values_list("id", "r"),
        rung=MERGE,
    )


def check_conditions_that_do_not_name_a_shard() -> None:
    """Pitfall: pruning by casts, NULL, ranges, other columns; values of other types."""
    for condition in (
        Q(owner="1"),
        Q(owner=Decimal(1)),
        Q(owner__in=[1, None]),
        Q(owner=F("score")),
        Q(owner__id__range=(2, 4)),
        Q(owner__lt=3) | Q(owner=None),
        ~Q(owner=1),
        ~Q(owner__in=[1, 2]) & Q(owner__lte=5),
        Q(owner__id__gt=17, owner__isnull=False),
    ):
        agree(Item, lambda rows, q=condition: rows.filter(q).order_by("id"))
    text = Cast("owner_id", CharField(max_length=9))
    agree(Item, lambda rows: rows.annotate(o=text).filter(o="1").order_by("id"))
    shifted = ExpressionWrapper(F("owner_id") + 1, IntegerField())
    agree(Item, lambda rows: rows.annotate(o=shifted).filter(o=2).order_by("id"))
    number = IntegerField()
    named = Case(
        When(owner=1, then=Value(2)), default=F("owner_id"), output_field=number
    )
    agree(Item, lambda rows: rows.annotate(o=named).filter(o=2).order_by("id"))


def check_documents_are_grouped_as_the_server_does() -> None:
    """Pitfall: equality of JSON, of numbers in it, of its keys' order."""
    agree(
        Note,
        lambda rows: rows.values("data").annotate(n=Count("id")).values("n"),
        is_total=False,
    )
    agree(Note, lambda rows: rows.values("data").distinct().count())
    agree(
        Note,
        lambda rows: rows.values("data__a").annotate(n=Count("id")),
        is_total=False,
    )
    agree(Note, lambda rows: rows.filter(data__a=1).order_by("id"))


def check_subqueries_that_are_not_tied_by_the_key() -> None:
    """citus#4160, ShardingSphere#4722: subqueries off the key are refused there; PgDog
    (#381) has none."""
    same_score = Note.objects.filter(score=OuterRef("score")).order_by().values("score")
    counted = Subquery(
        same_score.annotate(n=Count("id")).values("n"), output_field=IntegerField()
    )
    agree(
        Item,
        lambda rows: (
            rows.annotate(n=Coalesce(counted, 0)).order_by("id").values_list("n")
        ),
    )
    best = Note.objects.filter(score__isnull=False).order_by("-score", "id")
    agree(
        Owner,
        lambda rows: (
            rows.annotate(
                n=Subquery(best.filter(owner=OuterRef("pk")).values("id")[:1])
            )
            .order_by("id")
            .values_list("id", "n")
        ),
        rung=GATHER,
    )


# -- these write ----------------------------------------------------------------------


def check_saving_a_key_that_did_not_change() -> None:
    """citus#722, #769: ORMs write all columns, the shard key too; there an error."""
    for alias, rows in of(Parcel):
        one = rows.get(id=9)
        one.label = "saved"
        one.save(using=alias)
        one.save(update_fields=["region", "label"], using=alias)
        same(rows.filter(id=9).update(region=F("region")), 1)
        same(rows.filter(label="p1").update(region=F("region"), label="p8") > 0, True)
        both = list(rows.filter(id__in=[9, 10]))
        rows.bulk_update(both, ["region", "label"])
    agree(Parcel, lambda rows: rows.order_by("id").values_list("id", "region", "label"))
    agree(Parcel, lambda rows: rows.filter(region=9).count())


def check_keys_that_come_from_elsewhere() -> None:
    """citus#8087: a key set to a column of another table; #2288: one set by an upsert.
    The rows stayed where they were and could not be found any more."""
    found = Owner.objects.order_by("-id").values("id")[:1]
    for alias, rows in of(Parcel):
        rows.filter(id__in=[1, 2, 3]).update(region=Subquery(found.using(alias)))
        if scenarios.kind == "mariadb":
            continue  # which takes any conflict, and no names of columns for it
        rows.bulk_create(
            [Parcel(id=4, region=91, label="up"), Parcel(id=92, region=92, label="up")],
            update_conflicts=True,
            unique_fields=["id"],
            update_fields=["region", "label"],
        )
    for region in (24, 91, 92, 4, 1):
        agree(Parcel, lambda rows, n=region: rows.filter(region=n).order_by("id"))
        agree(Parcel, lambda rows, n=region: rows.filter(region=n).count())
    agree(Parcel, lambda rows: rows.order_by("id").values_list("id", "region", "label"))


def check_a_key_is_one_over_all_shards() -> None:
    """Pitfall: unique constraints that each shard keeps for itself (citus#6521,
    pgdog#439); rows that are inserted, ignored or updated in one statement."""
    for alias, rows in of(Parcel):
        for region in range(100, 112):
            try:
                with transaction.atomic(using=alias):
                    rows.create(id=11, region=region, label="twice")
            except IntegrityError:
                continue
            raise AssertionError(f"id 11 was taken twice on {alias}")
        some = [Parcel(id=n, region=n + 50, label="new") for n in (11, 12, 61, 62, 63)]
        rows.bulk_create(some, ignore_conflicts=True)
        for n in (13, 71):
            rows.update_or_create(
                id=n,
                defaults={"label": "or"},
                create_defaults={"region": n, "label": "c"},
            )
        same(rows.get_or_create(id=14, defaults={"region": 3})[1], False)
    agree(Parcel, lambda rows: rows.order_by("id").values_list("id", "region", "label"))


def check_rows_of_one_insert_are_each_stored_once() -> None:
    """ShardingSphere splits a multi-row INSERT; PgDog took those of one shard."""
    for _, rows in of(Parcel):
        made = rows.bulk_create(
            Parcel(id=n, region=n * 7 % 31, label=f"b{n % 3}") for n in range(200, 260)
        )
        same([one.id for one in made], list(range(200, 260)))
    agree(Parcel, lambda rows: rows.filter(id__gte=200).order_by("id"))
    agree(Parcel, lambda rows: rows.count())


def check_a_write_does_not_see_itself() -> None:
    """Pitfall: a statement over several shards whose later parts read what its earlier
    ones wrote."""
    for _, rows in of(Note):
        own = rows.filter(score__gte=2).order_by().values("owner")
        rows.filter(owner__in=own).update(score=F("score") + 1)
        top = rows.order_by().values("owner").annotate(m=Max("score"))
        below = top.filter(owner=OuterRef("owner")).values("m")
        if scenarios.kind != "mariadb":  # whose UPDATE may not read its own table
            rows.filter(score__lt=Subquery(below)).update(score=0)
        rows.filter(score=F("owner_id")).delete()
    agree(Note, lambda rows: rows.order_by("id").values_list("id", "owner", "score"))


def check_first_rows_that_are_deleted() -> None:
    """Older Vitess: ``multi shard update with limit is not supported``; here as Django
    has it: keys first."""
    found: dict[str, Any] = {}
    for alias, rows in of(Note):
        first = rows.order_by("-score", "id").values_list("id", flat=True)[:6]
        found[alias] = rows.filter(id__in=list(first)).delete()
    same(found["default"], found["plain"])
    agree(Note, lambda rows: rows.order_by("id").values_list("id"))
