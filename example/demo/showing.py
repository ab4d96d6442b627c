"""The parts of the demo, in the order in which they are shown."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from django.db import connections
from django.db.models import Model

from dbfleet.errors import CrossAliasQuery
from example.demo import counter, losing, writing
from example.demo.load import TABLES
from example.demo.questions import Across, Catalogue, Sales
from example.demo.report import Report
from example.demo.servers import PostgresServers, Servers
from example.sales.models import Invoice
from example.single import on_single


def show(report: Report, servers: Servers) -> None:
    """Ask everything; what differs is printed and counted."""
    with on_single():
        catalogue, sales = Catalogue.of_today(), Sales.of_today()
    report.part(
        "The catalogue: reads of a cluster",
        "Each question is asked of the fleet and of the single database. `equal` means "
        "the same rows, in the same order, of the same types. Below it: how the fleet "
        "did it.",
    )
    ask_all(report, catalogue.questions())
    report.part(
        "Sales: a filter that names the shard",
        "A query that fixes its customer is answered by the one shard where that "
        "customer lives; by another unique column, too, once home was told to look it "
        "up.",
    )
    ask_all(report, sales.pinned())
    report.part(
        "Sales: rows of all shards",
        "No filter fixes a shard. Where each shard can answer for its own rows, all "
        "are asked at once and the answers merged; else the rows and columns that the "
        "query needs are gathered on one connection, where Django's own SQL runs.",
    )
    ask_all(report, sales.spread())
    report.say("Any queryset tells its route before it is sent, and what would travel:")
    best: Any = Invoice.objects.filter(total__gt=10).order_by("-total")
    report.example(
        "print(Invoice.objects.filter(total__gt=10).order_by('-total').explain_route())",
        best.explain_route(),
    )
    show_across(report)
    show_counter(report, sales)
    show_writes(report, sales)
    if isinstance(servers, PostgresServers):
        show_losses(report, servers, catalogue)
    show_every_row(report)
    if isinstance(servers, PostgresServers):
        report.part("A primary that dies")
        losing.promote(report, servers)
        connections.close_all()


def ask_all(report: Report, questions: Mapping[str, Callable[[], Any]]) -> None:
    """Ask each question under its title."""
    for title, question in questions.items():
        report.ask(title, question)


def show_across(report: Report) -> None:
    """A refusal, and the same by two steps."""
    report.part(
        "Sales and catalogue: two aliases",
        "No server holds both, so a join of the two is refused before anything is "
        "sent. Two queries and a dictionary do it; prefetch_related() by itself.",
    )
    across = Across()
    report.refused(
        "InvoiceLine.objects.filter(track__genre__name='Jazz')",
        lambda: list(across.refused()),
        CrossAliasQuery,
    )
    ask_all(report, across.questions())


def show_counter(report: Report, sales: Sales) -> None:
    """Pages of the admin, compared as HTML."""
    report.part(
        "The admin",
        "Pages by Django's test client, compared with the single database's as HTML.",
    )
    password = secrets.token_urlsafe()
    counter.open_counter(password)
    with on_single():
        counter.open_counter(password)
    for title, url in counter.pages(sales.customer, sales.invoice).items():
        report.ask(title, partial(counter.get, url))
    edit = partial(counter.edit_customer, sales.customer)
    report.ask("a customer's telephone number, changed", edit)
    report.ask("an order, entered", partial(counter.add_order, sales.customer, 1))


def show_writes(report: Report, sales: Sales) -> None:
    """Writes, and reads right after them."""
    report.part(
        "Writing, and reading it back at once",
        "A session never misses its own write: a replica serves it only after it has "
        "replayed that write, by position, not by a timer.",
    )
    homes = losing.homes_of_customers()
    emails = partial(writing.same_email, list(homes.values()))
    report.ask(
        "an order in a transaction", partial(writing.place_order, sales.customer)
    )
    report.ask("a playlist, 20 times renamed and read", writing.rename_and_look)
    report.ask("one email for customers of three shards", emails)
    report.ask("a tenth off a year's orders, by F()", writing.discount)
    report.ask("a transaction over all shards that fails", writing.sold_out)
    report.ask("a customer is deleted", partial(writing.forget, sales.customer))


def show_losses(report: Report, servers: PostgresServers, catalogue: Catalogue) -> None:
    """Replicas that lag, a replica and a shard that die."""
    report.part("Replicas that fall behind")
    losing.lag(report, servers)
    report.part("A replica that dies")
    losing.kill_replica(report, servers, catalogue)
    report.part("A shard that dies")
    losing.kill_shard(report, servers)


def show_every_row(report: Report) -> None:
    """Every table as it is after all that."""
    report.part("Every row of every table, after all that")

    def rows_of(model: type[Model]) -> list[dict[str, Any]]:
        return list(model._default_manager.order_by("pk").values())

    equal = report.ask_quietly(partial(rows_of, model) for model in TABLES)
    rows = sum(model._default_manager.count() for model in TABLES)
    report.lines(f"{equal} tables equal, {rows} rows")
    connections.close_all()
