"""What a shop asks its databases.

Ordinary code of an ordinary project: nothing here knows of servers, shards or
dbfleet, and the same functions are asked of the fleet and of one database.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from django.core.paginator import Paginator
from django.db import connections, router
from django.db.models import (
    Avg,
    Count,
    Exists,
    F,
    Max,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Window,
)
from django.db.models.functions import Rank, TruncMonth

from example.catalogue.models import Album, Artist, Employee, Playlist, Track
from example.sales.models import Customer, Invoice, InvoiceLine

PER_PAGE = 25


@dataclass(frozen=True)
class Catalogue:
    """Questions about what is sold and who sells it."""

    artist: int

    @classmethod
    def of_today(cls) -> Catalogue:
        """About the artist with most albums."""
        by_albums = Artist.objects.annotate(n=Count("albums")).order_by("-n", "pk")
        return cls(by_albums.values_list("pk", flat=True)[0])

    def questions(self) -> dict[str, Any]:
        """Each with its title."""
        return {
            "albums of the artist with most albums": self.albums,
            "search: 'love' in title, album or artist": self.search,
            "page 3 of all tracks": self.page,
            "the two longest tracks of each genre": self.longest,
            "playlists with tracks and hours": self.playlists,
            "staff tree, by raw SQL (WITH RECURSIVE)": self.staff_tree,
            "albums whose every track costs the same": self.one_price,
        }

    def albums(self) -> Any:
        albums = Album.objects.filter(artist=self.artist).order_by("title", "pk")
        return albums.annotate(Count("tracks"), Sum("tracks__milliseconds"))

    def search(self) -> Any:
        word = "love"
        found = Track.objects.filter(
            Q(name__icontains=word)
            | Q(album__title__icontains=word)
            | Q(album__artist__name__icontains=word)
        )
        return found.select_related("album__artist").values_list(
            "name", "album__title", "album__artist__name"
        )

    def page(self) -> Any:
        tracks = Track.objects.select_related("genre").order_by("name", "pk")
        pages = Paginator(tracks, PER_PAGE)
        rows = [(track.name, str(track.genre)) for track in pages.page(3)]
        return [(pages.count, pages.num_pages), *rows]

    def longest(self) -> Any:
        rank = Window(
            Rank(), partition_by="genre", order_by=[F("milliseconds").desc(), "pk"]
        )
        ranked = Track.objects.annotate(rank=rank).filter(rank__lte=2)
        return ranked.order_by("genre__name", "rank").values_list("genre__name", "name")

    def playlists(self) -> Any:
        rows = Playlist.objects.annotate(
            length=Count("tracks"), milliseconds=Sum("tracks__milliseconds")
        )
        return rows.order_by("-length", "pk").values_list(
            "name", "length", "milliseconds"
        )

    def staff_tree(self) -> Any:
        rows: Any = Employee.objects.raw(
            """
            WITH RECURSIVE tree (id, depth, path) AS (
                SELECT id, 0, CAST(last_name AS text) FROM catalogue_employee
                WHERE reports_to_id IS NULL
                UNION ALL
                SELECT e.id, depth + 1, path || '/' || e.last_name
                FROM catalogue_employee e JOIN tree ON e.reports_to_id = tree.id
            )
            SELECT e.*, depth FROM tree JOIN catalogue_employee e USING (id)
            ORDER BY path, e.id
            """,
            using=router.db_for_read(Employee),
        )
        return [f"{'    ' * row.depth}{row} ({row.title})" for row in rows]

    def one_price(self) -> Any:
        other = Track.objects.filter(album=OuterRef("album")).exclude(
            unit_price=OuterRef("unit_price")
        )
        mixed = Track.objects.filter(album=OuterRef("pk")).filter(Exists(other))
        albums = Album.objects.filter(~Exists(mixed), tracks__isnull=False)
        return albums.distinct().order_by("pk").values_list("pk", "title")[:20]


@dataclass(frozen=True)
class Sales:
    """Questions about who bought what."""

    customer: int
    email: str
    invoice: int
    country: str
    today: datetime.datetime

    @classmethod
    def of_today(cls) -> Sales:
        """About the customer with most invoices, on the day after the last one."""
        best = Customer.objects.annotate(n=Count("invoices")).order_by("-n", "pk")[0]
        last = Invoice.objects.filter(customer=best).order_by("pk").last()
        assert last is not None
        newest = Invoice.objects.aggregate(newest=Max("date"))["newest"]
        today = newest + datetime.timedelta(days=1)
        return cls(best.pk, best.email, last.pk, best.country.name, today)

    def pinned(self) -> dict[str, Any]:
        """What names its customer."""
        return {
            "orders of one customer": self.orders,
            "one order with its lines": self.order,
            "a customer, by primary key": self.one_customer,
            "a customer, by email (home knows the shard)": self.by_email,
            "what a customer spent, year by year": self.years,
        }

    def spread(self) -> dict[str, Any]:
        """What needs rows of several shards."""
        return {
            "dashboard: orders, customers, revenue, average": self.dashboard,
            "revenue by month of the last year": self.months,
            "revenue by country": self.countries,
            "countries with more than five orders, average (HAVING)": self.busy,
            "the ten best customers": self.best,
            "customers without an order for a year": self.silent,
            "running total of each customer in a country": self.running,
            "page 4 of all orders": self.page,
            "search: 'an' in name, company or email": self.search,
            "cities of customers or of bills (UNION)": self.cities,
            "customers whose last order was their largest": self.growing,
            "orders by size, by raw SQL": self.sizes,
        }

    # -- one customer ---------------------------------------------------------------

    def orders(self) -> Any:
        return Invoice.objects.filter(customer=self.customer).order_by("-date", "pk")

    def order(self) -> Any:
        lines = InvoiceLine.objects.filter(
            invoice=self.invoice, invoice__customer=self.customer
        )
        return lines.select_related("invoice").order_by("pk")

    def one_customer(self) -> Any:
        return Customer.objects.select_related("country").get(pk=self.customer)

    def by_email(self) -> Any:
        return Customer.objects.filter(email=self.email)

    def years(self) -> Any:
        invoices = Invoice.objects.filter(customer=self.customer)
        by_year = invoices.values("date__year").annotate(Sum("total"), Count("pk"))
        return by_year.order_by("date__year")

    # -- all customers --------------------------------------------------------------

    def dashboard(self) -> Any:
        return Invoice.objects.aggregate(
            orders=Count("pk"),
            customers=Count("customer", distinct=True),
            revenue=Sum("total"),
            average=Avg("total"),
            largest=Max("total"),
        )

    def months(self) -> Any:
        since = self.today - datetime.timedelta(days=365)
        by_month = (
            Invoice.objects.filter(date__gte=since)
            .annotate(month=TruncMonth("date"))
            .values("month")
        )
        return by_month.annotate(Sum("total"), Count("pk")).order_by("month")

    def countries(self) -> Any:
        by_country = Invoice.objects.values("billing_country__name")
        totals = by_country.annotate(revenue=Sum("total"), orders=Count("pk"))
        return totals.order_by("-revenue", "billing_country__name")

    def busy(self) -> Any:
        by_country = Invoice.objects.values("billing_country__name")
        totals = by_country.annotate(
            orders=Count("pk"), each=Sum("total") / Count("pk")
        )
        return totals.filter(orders__gt=5).order_by("-each", "billing_country__name")

    def best(self) -> Any:
        spent = Customer.objects.annotate(spent=Sum("invoices__total"))
        return spent.order_by("-spent", "pk").values_list(
            "last_name", "country__name", "spent"
        )[:10]

    def silent(self) -> Any:
        since = self.today - datetime.timedelta(days=365)
        recent = Invoice.objects.filter(customer=OuterRef("pk"), date__gte=since)
        return Customer.objects.filter(~Exists(recent)).order_by("last_name", "pk")

    def running(self) -> Any:
        total = Window(Sum("total"), partition_by="customer", order_by=["date", "pk"])
        rows = Invoice.objects.filter(billing_country__name=self.country)
        return (
            rows.annotate(running=total)
            .order_by("customer", "date", "pk")
            .values_list("customer", "date", "total", "running")
        )

    def page(self) -> Any:
        invoices = Invoice.objects.select_related("customer").order_by("-date", "-pk")
        pages = Paginator(invoices, PER_PAGE)
        rows = [(one.pk, str(one.customer), one.total) for one in pages.page(4)]
        return [(pages.count, pages.num_pages), *rows]

    def search(self) -> Any:
        word = "an"
        return Customer.objects.filter(
            Q(first_name__icontains=word)
            | Q(last_name__icontains=word)
            | Q(company__icontains=word)
            | Q(email__icontains=word)
        ).order_by("last_name", "first_name", "pk")

    def cities(self) -> Any:
        homes = Customer.objects.order_by().values_list("city", "country__name")
        bills = Invoice.objects.order_by().values_list(
            "billing_city", "billing_country__name"
        )
        return homes.union(bills).order_by("country__name", "city")

    def growing(self) -> Any:
        theirs = Invoice.objects.filter(customer=OuterRef("pk"))
        last = Subquery(theirs.order_by("-date", "-pk").values("total")[:1])
        customers = Customer.objects.annotate(last=last, largest=Max("invoices__total"))
        return (
            customers.filter(last=F("largest")).order_by("pk").values_list("pk", "last")
        )

    def sizes(self) -> Any:
        with connections[router.db_for_read(Invoice)].cursor() as cursor:
            cursor.execute(
                """
                SELECT number, count(*) FROM (
                    SELECT invoice_id, count(*) AS number FROM sales_invoiceline
                    GROUP BY invoice_id
                ) AS sized GROUP BY number ORDER BY number
                """
            )
            return cursor.fetchall()


class Across:
    """Questions that need both aliases: two steps, joined here."""

    def questions(self) -> dict[str, Any]:
        """Each with its title."""
        return {
            "top tracks of each country": self.top_tracks,
            "revenue by genre": self.genres,
            "revenue of each sales agent": self.agents,
            "the last orders with titles (prefetch_related)": self.titles,
        }

    def refused(self) -> QuerySet[InvoiceLine]:
        """A join of ``sales`` with ``default``."""
        return InvoiceLine.objects.filter(track__genre__name="Jazz")

    def top_tracks(self) -> Any:
        sold = (
            InvoiceLine.objects.values("invoice__billing_country__name", "track_id")
            .annotate(sold=Sum("quantity"))
            .order_by("invoice__billing_country__name", "-sold", "track_id")
        )
        top: dict[str, tuple[int, int]] = {}
        for row in sold:
            country = row["invoice__billing_country__name"]
            top.setdefault(country, (row["track_id"], row["sold"]))
        tracks = Track.objects.in_bulk([track for track, _ in top.values()])
        return [(c, tracks[track].name, sold) for c, (track, sold) in top.items()]

    def genres(self) -> Any:
        genre_of = dict(Track.objects.values_list("pk", "genre__name"))
        sold = InvoiceLine.objects.values("track_id").annotate(
            revenue=Sum(F("unit_price") * F("quantity"))
        )
        revenue: dict[str, Any] = {}
        for row in sold.order_by("track_id"):
            name = genre_of[row["track_id"]]
            revenue[name] = revenue.get(name, 0) + row["revenue"]
        return sorted(revenue.items(), key=lambda item: (-item[1], item[0]))

    def agents(self) -> Any:
        by_agent = (
            Customer.objects.values("support_rep_id")
            .annotate(Sum("invoices__total"), Count("pk", distinct=True))
            .order_by("support_rep_id")
        )
        names = {employee.pk: str(employee) for employee in Employee.objects.all()}
        return [(names.get(row["support_rep_id"]), row) for row in by_agent]

    def titles(self) -> Any:
        lines = InvoiceLine.objects.order_by("-pk").prefetch_related("track__album")
        return [
            (line.pk, line.track.name, str(line.track.album)) for line in lines[:10]
        ]
