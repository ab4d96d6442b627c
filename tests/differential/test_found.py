"""Differences that random querysets found once, each as one case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.project import Project

DATABASES = """
from dbfleet import Sharded, databases

DATABASES = databases(
    default=Sharded(
        home={home!r},
        shards={{"a": {a!r}, "b": {b!r}, "c": {c!r}}},
        {options}
    ),
    plain={{**databases(x={plain!r})["x"], **dict({options})}},
)
"""
MODELS = """
from django.db.models.functions import Now, Random
from dbfleet import REFERENCE

class Customer(models.Model):
    name = models.CharField(max_length=20)
    score = models.FloatField(default=0)

class Product(models.Model):
    sku = models.CharField(max_length=20, unique=True)

class Order(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE)
    total = models.IntegerField(default=0)
    class Meta:
        shard_key = "customer"

class Item(models.Model):
    id = models.UUIDField(primary_key=True)
    made = models.DateTimeField(null=True)

class Line(models.Model):
    order = models.ForeignKey(Order, models.CASCADE)
    item = models.ForeignKey(Item, models.CASCADE)
    class Meta:
        shard_key = "order__customer"

class Seat(models.Model):
    pk = models.CompositePrimaryKey("customer_id", "number")
    customer = models.ForeignKey(Customer, models.CASCADE)
    number = models.IntegerField()
    name = models.CharField(max_length=20, default="old")
    score = models.IntegerField(default=0)
    class Meta:
        shard_key = "customer"

class Call(models.Model):
    began = models.DateTimeField(null=True)
    ended = models.DateTimeField(null=True)

class Country(models.Model):
    code = models.CharField(max_length=2, unique=True)
    luck = models.FloatField(default=0)
    seen = models.DateTimeField(auto_now=True)
    class Meta:
        shard_key = REFERENCE
"""
Make = Callable[..., Project]


def made(
    project: Make, urls: dict[str, Any], settings: str = "", options: str = ""
) -> Project:
    built = project(
        databases=DATABASES.format(options=options, **urls),
        models=MODELS,
        settings=settings,
    )
    for alias in ("default", "plain"):
        built.manage("migrate", "--run-syncdb", "-v0", f"--database={alias}")
    return built


def made_on(project: Make, mariadb: Any, new_database: Callable[[Any], str]) -> Project:
    urls = {
        name: mariadb.url(new_database(mariadb))
        for name in ("home", "a", "b", "c", "plain")
    }
    return made(project, urls, "import pymysql\npymysql.install_as_MySQLdb()")


def files(tmp_path: Any) -> dict[str, Any]:
    return {
        name: f"sqlite:///{tmp_path}/{name}.sqlite3"
        for name in ("home", "a", "b", "c", "plain")
    }


def test_a_row_that_is_not_stored_gives_up_no_other_rows_claims(
    project: Make, tmp_path: Any
) -> None:
    """Rows of two shards with one primary key: the one that loses leaves the claim."""
    found = made(project, files(tmp_path)).run(
        """
        from app.models import Customer, Order
        from django.db import IntegrityError

        Customer.objects.bulk_create([Customer(pk=n, name=str(n)) for n in range(9)])
        Order.objects.create(pk=69, customer_id=0)
        for customer in range(1, 9):
            Order.objects.bulk_create(
                [Order(pk=69, customer_id=customer)], ignore_conflicts=True
            )
        stored = list(Order.objects.values_list("pk", "customer"))
        refused = 0
        for customer in range(1, 9):
            try:
                Order.objects.create(pk=69, customer_id=customer)
            except IntegrityError:
                refused += 1
        result = [stored, refused]
        """
    )
    assert found == [[[69, 0]], 8]


def test_the_first_of_equal_rows_stays(project: Make, tmp_path: Any) -> None:
    """A row that loses to a stored one does not take the next one with it."""
    found = made(project, files(tmp_path)).run(
        """
        from app.models import Product

        result = []
        for alias in ("default", "plain"):
            products = Product.objects.using(alias)
            products.create(pk=1, sku="s")
            products.bulk_create(
                [
                    Product(pk=2, sku="s"),
                    Product(pk=2, sku="i"),
                    Product(pk=3, sku="i"),
                    Product(pk=4, sku="z"),
                ],
                ignore_conflicts=True,
            )
            result.append(list(products.order_by("pk").values_list("pk", "sku")))
        """
    )
    assert found[0] == found[1] == [[1, "s"], [2, "i"], [4, "z"]]


def test_an_update_frees_a_value_for_those_after_it(
    project: Make, tmp_path: Any
) -> None:
    """Rows of several shards are inserted or updated in their order."""
    found = made(project, files(tmp_path)).run(
        """
        from app.models import Product
        from django.db import IntegrityError

        def stored(alias, pks):
            products = Product.objects.using(alias)
            products.all().delete()
            products.create(pk=1, sku="taken")
            objs = [Product(pk=pk, sku="new" if pk == 1 else "taken") for pk in pks]
            try:
                products.bulk_create(
                    objs, update_conflicts=True, update_fields=["sku"],
                    unique_fields=["pk"],
                )
            except IntegrityError:
                return "refused"
            return sorted(products.values_list("pk", "sku"))

        result = {}
        for alias in ("plain", "default"):
            result[alias] = {
                str(pks): stored(alias, pks)
                for other in range(2, 9)
                for pks in ((1, other), (other, 1))
            }
        """
    )
    assert found["default"] == found["plain"]
    assert found["plain"]["(2, 1)"] == "refused"
    assert found["plain"]["(1, 2)"] == [[1, "new"], [2, "taken"]]


def test_copies_of_a_reference_row_are_equal(project: Make, tmp_path: Any) -> None:
    """Times and random numbers are made once, not on every node."""
    found = made(project, files(tmp_path)).run(
        """
        from app.models import Country
        from django.db import connection
        from django.db.models.functions import Random
        from dbfleet import on_shard

        Country.objects.create(pk=1, code="no")
        Country.objects.bulk_create([Country(pk=2, code="se", luck=Random())])
        Country.objects.filter(pk=1).update(luck=Random())
        copies = [
            connection.engine.fetch(
                connection.nodes.primary(cluster),
                "SELECT id, code, luck, seen FROM app_country ORDER BY id",
            )
            for cluster in ("home", "a", "b", "c")
        ]
        result = [len(copies[0]), len({str(copy) for copy in copies})]
        """
    )
    assert found == [2, 1]


def test_a_moved_row_keeps_its_foreign_key(
    project: Make, mariadb: Any, new_database: Callable[[Any], str]
) -> None:
    """The foreign key is checked on the shard that the row goes to."""
    found = made_on(project, mariadb, new_database).run(
        """
        from app.models import Customer, Order

        Customer.objects.bulk_create(Customer(pk=n, name=str(n)) for n in range(1, 9))
        order = Order.objects.create(pk=1, customer_id=1)
        for customer in range(2, 9):
            Order.objects.filter(pk=1).update(customer=customer)
        order.refresh_from_db()
        result = [
            order.customer_id,
            Order.objects.count(),
            Order.objects.filter(customer=8).count(),
        ]
        """
    )
    assert found == [8, 1, 1]


def test_gathered_tables_have_the_indexes_of_their_tables(
    project: Make, mariadb: Any, new_database: Callable[[Any], str]
) -> None:
    """MariaDB 10.11 loses a group of this query where the inner table has no index."""
    found = made_on(project, mariadb, new_database).run(
        """
        from uuid import UUID
        from app.models import Customer, Item, Line, Order
        from django.db.models import Avg, Exists, OuterRef, Q

        def asked(alias):
            Customer.objects.using(alias).create(pk=1, name="1")
            ids = [UUID(int=n << 96 | 4 << 76 | 1 << 63) for n in (1, 4)]
            for pk in ids:
                Item.objects.using(alias).create(pk=pk)
            Order.objects.using(alias).create(pk=1, customer_id=1, total=5)
            Line.objects.using(alias).create(pk=1, order_id=1, item_id=ids[0])
            own = Line.objects.filter(item=OuterRef("pk"))
            mean = Avg("line__order__total", distinct=True)
            rows = Item.objects.using(alias).annotate(x=mean)
            rows = rows.filter(Exists(own) ^ Q(x=None)).values_list("x", flat=True)
            return sorted(rows, key=repr)

        result = [asked("plain"), asked("default")]
        """
    )
    assert found == [[5.0, None], [5.0, None]]


def test_windows_over_grouped_rows(
    project: Make, postgres: Any, new_database: Callable[[Any], str]
) -> None:
    """PostgreSQL infers a window's columns from the key of what is grouped."""
    urls = {
        name: postgres.url(new_database(postgres))
        for name in ("home", "a", "b", "c", "plain")
    }
    found = made(project, urls).run(
        """
        from app.models import Customer, Order
        from django.db.models import F, Sum, Window
        from django.db.models.functions import Lead

        result = []
        for alias in ("default", "plain"):
            customers = Customer.objects.using(alias)
            customers.bulk_create(
                Customer(pk=n, name=str(n), score=n * 7 % 5) for n in range(1, 9)
            )
            Order.objects.using(alias).bulk_create(
                Order(pk=n, customer_id=n % 8 + 1, total=n) for n in range(1, 30)
            )
            lead = Window(Lead("score", 2), order_by=[F("name").desc(), F("pk").asc()])
            result.append(
                customers.annotate(x0=lead)
                .annotate(x1=Sum("order__total"))
                .aggregate(a0=Sum("x0"), a1=Sum("x1"))
            )
        """
    )
    assert found[0] == found[1]


@pytest.mark.parametrize("uses_zones", [True, False])
def test_the_hour_that_comes_twice(
    project: Make,
    postgres: Any,
    new_database: Callable[[Any], str],
    uses_zones: bool,
) -> None:
    """Two moments that a clock on the wall shows alike are two, and in their order."""
    urls = {
        name: postgres.url(new_database(postgres))
        for name in ("home", "a", "b", "c", "plain")
    }
    settings = f"USE_TZ = {uses_zones}\nTIME_ZONE = 'Europe/Berlin'"
    options = "TIME_ZONE='Europe/Berlin'" if uses_zones else ""
    found = made(project, urls, settings, options).run(
        """
        from datetime import UTC, datetime, timedelta
        from app.models import Call
        from django.conf import settings
        from django.db.models import Count, Max, Min
        from django.utils import timezone

        first = datetime(2023, 10, 28, 23, 30, tzinfo=UTC)
        moments = [first + timedelta(minutes=20 * n) for n in range(9)] * 3
        if not settings.USE_TZ:
            moments = [timezone.make_naive(moment) for moment in moments]
        result = []
        for alias in ("default", "plain"):
            calls = Call.objects.using(alias)
            calls.bulk_create(Call(pk=n, began=m) for n, m in enumerate(moments, 1))
            grouped = calls.values_list("began").annotate(n=Count("pk"))
            keys = calls.order_by("began", "pk").values_list("pk")
            ends = calls.aggregate(Min("began"), Max("began"))
            result.append(
                [
                    list(keys),
                    list(calls.order_by("-began", "pk").values_list("pk")[:9]),
                    list(keys.iterator(4)),
                    [n for _, n in grouped.order_by("began")],
                    calls.values("began").distinct().count(),
                    len(calls.values("began").distinct()),
                    list(map(str, ends.values())),
                ]
            )
        """
    )
    assert found[0] == found[1]


@pytest.mark.parametrize("server", ["mariadb", "mysql"])
def test_assignments_see_of_each_other_what_one_database_shows(
    project: Make,
    request: pytest.FixtureRequest,
    new_database: Callable[[Any], str],
    server: str,
) -> None:
    """MariaDB and MySQL assign one column after the other, but MariaDB looks rows up in
    a subquery first where Django joins; a reference table has its values computed."""
    cluster = request.getfixturevalue(server)
    found = made_on(project, cluster, new_database).run(
        """
        from app.models import Country, Customer, Item, Line, Order
        from dbfleet.errors import RouteRefused
        from django.db.models import Case, F, Value, When

        def name(when):
            return Case(When(**when, then=Value("new")), default=F("name"))

        result = []
        for alias in ("default", "plain"):
            customers = Customer.objects.using(alias)
            customers.bulk_create(Customer(pk=n, name="old") for n in range(1, 9))
            item = Item.objects.using(alias).create(
                pk="00000000-0000-4000-8000-000000000001"
            )
            for n in range(1, 9):
                Order.objects.using(alias).create(pk=n, customer_id=n)
                Line.objects.using(alias).create(pk=n, order_id=n, item=item)
            high = {"score__gte": 1}
            customers.filter(pk__lte=2).update(score=F("score") + 1, name=name(high))
            joined = customers.filter(pk__gte=6, order__line__item__pk=item.pk)
            joined.update(score=F("score") + 1, name=name(high))
            result.append(list(customers.order_by("pk").values_list("name", "score")))
        Country.objects.create(code="no")
        try:
            Country.objects.update(
                luck=F("luck") + 1,
                code=Case(When(luck__gte=1, then=Value("se")), default=F("code")),
            )
        except RouteRefused as error:
            result.append(error.code)
        result.append(list(Country.objects.values_list("code", "luck")))
        """
    )
    assert found[0] == found[1]
    assert found[0][0] == ["new", 1.0]
    assert found[2:] == ["dbfleet.E415", [["no", 0.0]]]


_TURNS = """
    from app.models import Customer, Seat
    from dbfleet.errors import RouteRefused
    from django.db.models import Case, F, Value, When
    from django.db.utils import OperationalError

    later = Case(When(score__gte=1, then=Value("new")), default=F("name"))
    given = {"score": F("score") + 1, "name": later}
    result = []
    for alias in ("default", "plain"):
        customers = Customer.objects.using(alias)
        customers.bulk_create(Customer(pk=n, name="old") for n in range(1, 7))
        Seat.objects.using(alias).bulk_create(
            Seat(customer_id=n, number=n) for n in range(1, 7)
        )
        result.append([])
        for rows in (
            customers.filter(pk__in=customers.filter(pk__lte=2).values("pk")),
            customers.filter(pk__in=Seat.objects.using(alias).values("number")),
            Seat.objects.using(alias).filter(number__lte=2),
            Seat.objects.using(alias).filter(customer__name="old"),
        ):
            model = rows.model.objects.using(alias).order_by("pk")
            for one in (model, customers):
                one.update(score=0, name="old")
            try:
                rows.update(**given)
                result[-1].append(list(model.values_list("name", "score")))
            except RouteRefused as error:
                assert not model.exclude(score=0, name="old").exists()
                result[-1].append(error.code)
            except OperationalError as error:  # MySQL on its own refuses some of them
                result[-1].append(str(error))
"""


@pytest.mark.parametrize(("server", "refused"), [("mariadb", {3}), ("mysql", {0, 1})])
def test_assignments_that_cannot_be_in_turn_are_refused(
    project: Make,
    request: pytest.FixtureRequest,
    new_database: Callable[[Any], str],
    server: str,
    refused: set[int],
) -> None:
    """Where rows are looked up first, by a composite key or a subquery of MySQL."""
    cluster = request.getfixturevalue(server)
    sharded, plain = made_on(project, cluster, new_database).run(_TURNS)
    for at, (ours, theirs) in enumerate(zip(sharded, plain, strict=True)):
        assert ours == ("dbfleet.E415" if at in refused else theirs)


def test_a_group_by_key_whose_having_names_a_column_of_two_tables(
    project: Make, mysql: Any, new_database: Callable[[Any], str]
) -> None:
    """MySQL finds no such column where the key's columns are spelled out."""
    found = made_on(project, mysql, new_database).run(
        """
        from app.models import Customer, Order
        from django.db.models import F, Q, Sum

        result = []
        for alias in ("default", "plain"):
            Customer.objects.using(alias).bulk_create(
                Customer(pk=n, name=str(n)) for n in range(1, 9)
            )
            Order.objects.using(alias).bulk_create(
                Order(pk=n, customer_id=n % 8 + 1, total=n) for n in range(1, 30)
            )
            orders = Order.objects.using(alias).values("id", "total", "customer__name")
            most = orders.annotate(sum=Sum("customer__order__total"))
            result.append(list(most.filter(Q(sum__gt=50) ^ Q(total=3)).order_by("pk")))
        """
    )
    assert found[0] == found[1]
    assert found[0]


def test_a_group_by_a_key_that_a_unique_column_leads_to(
    project: Make, mysql: Any, new_database: Callable[[Any], str]
) -> None:
    """MySQL infers columns from unique ones as well, which gathered rows do not have;
    what it refuses on one database it refuses here."""
    found = made_on(project, mysql, new_database).run(
        """
        from app.models import Customer, Product
        from django.db import OperationalError, connections

        result = []
        for alias in ("default", "plain"):
            for n in range(1, 6):
                Customer.objects.using(alias).create(pk=n, name=str(n), score=n % 2)
                Product.objects.using(alias).create(pk=n, sku=str(n))
            for begins in ("", "EXPLAIN FORMAT=TRADITIONAL "):
                for grouped in ("p.sku", "c.score"):
                    try:
                        with connections[alias].cursor() as cursor:
                            cursor.execute(
                                f"{begins}SELECT p.id, COUNT(*) FROM app_product p "
                                "JOIN app_customer c ON c.name = p.sku "
                                f"GROUP BY {grouped} ORDER BY 1"
                            )
                            rows = [list(row) for row in cursor.fetchall()]
                            result.append(len(rows) if begins else rows)
                    except OperationalError as error:
                        result.append(error.args[0])
        """
    )
    assert found[:4] == found[4:]
    assert found[:4] == [[[n, 1] for n in range(1, 6)], 1055, 2, 1055]


def test_a_union_is_ordered_by_the_column_that_is_named(
    project: Make, tmp_path: Any
) -> None:
    """Two columns of its first branch are the same, of the others they are not."""
    found = made(project, files(tmp_path)).run(
        """
        from app.models import Customer, Order
        from django.db.models import F

        result = []
        for alias in ("default", "plain"):
            customers = Customer.objects.using(alias)
            customers.bulk_create(Customer(pk=n, name="x") for n in range(1, 5))
            orders = Order.objects.using(alias)
            orders.bulk_create(
                Order(pk=n, customer_id=n % 4 + 1, total=7 * n % 5)
                for n in range(1, 20)
            )
            first = customers.filter(pk=1).annotate(again=F("pk"))
            first = first.values_list("pk", "again")
            found = first.union(orders.values_list("customer_id", "total"))
            result.append(list(found.order_by("again", "-pk")))
        """
    )
    assert found[0] == found[1]


def test_a_row_that_a_join_finds_very_often_is_written_once(
    project: Make, postgres: Any, new_database: Callable[[Any], str]
) -> None:
    """More often than keys fit into one statement."""
    found = made_on(project, postgres, new_database).run(
        """
        from app.models import Customer, Order, Product
        from django.db.models import F
        from dbfleet.sharding import keyed

        keyed.BATCH = 10
        result = []
        for alias in ("default", "plain"):
            customers = Customer.objects.using(alias)
            customers.bulk_create(Customer(pk=n, name=str(n)) for n in range(1, 4))
            Order.objects.using(alias).bulk_create(
                Order(pk=n, customer_id=n % 3 + 1) for n in range(1, 60)
            )
            products = Product.objects.using(alias)
            products.bulk_create(Product(pk=n, sku=str(n)) for n in range(1, 4))
            found = customers.filter(order__total=0, pk__in=products.values("pk"))
            count = found.update(score=F("score") + 1)
            scores = customers.order_by("pk").values_list("score", flat=True)
            result.append([count, list(scores)])
        """
    )
    assert found[0] == found[1]
    assert found[0] == [3, [1.0, 1.0, 1.0]]


def test_rows_are_ordered_by_what_has_no_declared_type(
    project: Make, tmp_path: Any
) -> None:
    """One database is not asked for the type of what it does not select."""
    found = made(project, files(tmp_path)).run(
        """
        from app.models import Customer
        from django.db.models import F, TextField, Value
        from django.db.models.functions import Cast, Greatest

        result = []
        for alias in ("default", "plain"):
            customers = Customer.objects.using(alias)
            customers.bulk_create(Customer(pk=n, name=n % 4) for n in range(1, 10))
            as_text = Cast("name", TextField())
            ordered = customers.annotate(most=Greatest(F("name"), as_text))
            ordered = ordered.order_by("-most", "-pk").values_list("pk", flat=True)
            result.append(list(ordered))
        """
    )
    assert found[0] == found[1] == [7, 3, 6, 2, 9, 5, 1, 8, 4]


def test_rows_are_looked_for_by_an_automatic_key_of_zero(
    project: Make, mariadb: Any, new_database: Callable[[Any], str]
) -> None:
    """Django refuses to store such a key on MariaDB, not to look for it."""
    found = made_on(project, mariadb, new_database).run(
        """
        from app.models import Product

        result = []
        for alias in ("default", "plain"):
            products = Product.objects.using(alias)
            products.create(pk=5, sku="a")
            counts = [
                products.filter(pk__in=[0, 5]).update(sku="b"),
                products.filter(pk=0).update(sku="c"),
            ]
            result.append([counts, list(products.values_list("pk", "sku"))])
        """
    )
    assert found[0] == found[1]
    assert found[0] == [[1, 0], [[5, "b"]]]


def test_having_names_a_column_of_a_grouped_key(
    project: Make, postgres: Any, new_database: Callable[[Any], str]
) -> None:
    """Gathered rows travel inside the statement and have no key that implies it; Django
    groups by the year and compares the moment."""
    found = made_on(project, postgres, new_database).run(
        """
        import datetime
        from app.models import Customer, Item, Line, Order
        from django.db.models import Count, Q

        result = []
        for alias in ("default", "plain"):
            Customer.objects.using(alias).create(pk=1, name="x")
            order = Order.objects.using(alias).create(pk=1, customer_id=1)
            for n in range(1, 7):
                made = datetime.datetime(2019 + n % 3, 5, 1, tzinfo=datetime.UTC)
                item = Item.objects.using(alias).create(pk=f"{n:032}", made=made)
                for _ in range(n % 2):
                    Line.objects.using(alias).create(order=order, item=item)
            items = Item.objects.using(alias).annotate(n=Count("line"))
            found = items.filter(Q(made__year=2020) ^ Q(n__gt=0))
            keys = found.order_by("pk").values_list("pk", flat=True)
            result.append([found.count(), [key.int for key in keys]])
        """
    )
    assert found[0] == found[1]
    assert found[0][0] == len(found[0][1]) == 3


@pytest.mark.parametrize("server", ["mariadb", "postgres"])
def test_distinct_rows_are_sorted_by_what_is_not_selected_and_may_be_null(
    project: Make,
    request: pytest.FixtureRequest,
    new_database: Callable[[Any], str],
    server: str,
) -> None:
    """MariaDB and MySQL are asked for a column more, which says whether it is NULL."""
    cluster = request.getfixturevalue(server)
    found = made_on(project, cluster, new_database).run(
        """
        import datetime
        from app.models import Call
        from django.db.models import F

        def day(n):
            return datetime.datetime(2024, 5, n + 1, tzinfo=datetime.UTC) if n else None

        result = []
        for alias in ("default", "plain"):
            calls = Call.objects.using(alias)
            calls.bulk_create(
                Call(pk=n, began=day(n * 7 % 4), ended=day(n % 5)) for n in range(1, 20)
            )
            for first, second in (
                (F("began").desc(nulls_first=True), F("ended").asc(nulls_last=True)),
                (F("began").asc(nulls_last=True), F("ended").desc(nulls_last=True)),
                (F("began").asc(nulls_first=True), F("ended").desc(nulls_first=True)),
            ):
                keys = calls.values_list("pk", flat=True).distinct()
                keys = keys.order_by(first, second, "-pk")
                result.append([list(keys), list(keys[3:9])])
        """
    )
    assert found[:3] == found[3:]


def test_groups_of_a_year_that_having_compares_by_its_days(
    project: Make, tmp_path: Any
) -> None:
    found = made(project, files(tmp_path)).run(
        """
        import datetime
        from app.models import Call
        from django.db.models import Count, Q

        may = datetime.datetime(1998, 5, 1, tzinfo=datetime.UTC)
        result = []
        for alias in ("default", "plain"):
            calls = Call.objects.using(alias)
            calls.bulk_create(
                Call(pk=n, began=may.replace(year=1998 + n % 3)) for n in range(1, 9)
            )
            groups = calls.values("ended").annotate(n=Count("pk"))
            found = groups.filter(Q(began__iso_year__lte=1999) ^ Q(n__isnull=True))
            result.append(sorted(group["n"] for group in found))
        """
    )
    assert found == [[2, 3], [2, 3]]
