"""Servers that fall behind or die, while the shop stays open."""

from __future__ import annotations

import contextvars
from collections import Counter
from functools import partial
from typing import Any

from django.db import Error, connections
from django.db.models import Sum

import dbfleet
from dbfleet.errors import NodeUnavailable
from dbfleet.testing.rig import wait_until
from example.catalogue.models import Genre, Playlist
from example.demo.questions import Catalogue
from example.demo.report import Report
from example.demo.servers import PostgresServers
from example.demo.watch import watching
from example.sales.models import Customer, Invoice

RECOVERY_TIMEOUT_S = 30
VISITS = 12


def lag(report: Report, servers: PostgresServers) -> None:
    """Both replicas stop replaying; who wrote still reads what was written."""
    replicas = servers.replicas
    for replica in replicas:
        replica.pause_replay()

    def look() -> str:
        playlist = Playlist.objects.order_by("pk").first()
        assert playlist is not None
        return playlist.name

    def write_and_look() -> str:
        Playlist.objects.filter(name=look()).update(name="Fresh")
        return look()

    report.ask("renamed and read while no replica replays", write_and_look)
    token = dbfleet.token()

    def look_in_a_job() -> str:
        with dbfleet.resume(token):
            return look()

    def look_strictly() -> str:
        with dbfleet.consistency("strong"):
            return look()

    for title, question in (
        ("read by a job that was handed the session's token", look_in_a_job),
        ('read by another visitor at level "strong"', look_strictly),
    ):
        report.ask(title, partial(contextvars.Context().run, question))
    with watching() as watch:
        # A session is the running context: a fresh one has written nothing.
        name = contextvars.Context().run(look)
    nodes = ", ".join(step.nodes for step in watch.steps)
    report.say(
        f"Another visitor, who wrote nothing, is served by {nodes} and still reads "
        f"{name!r}: replicas may lag for others, never for the one who wrote."
    )
    for replica in replicas:
        replica.resume_replay()
    for replica in replicas:
        replica.wait_until_caught_up()


def kill_replica(report: Report, servers: PostgresServers, about: Catalogue) -> None:
    """A replica is killed; reads go on; it comes back and serves again."""
    victim = servers.replicas[0]
    report.lines(f"before: {visits()}", "kill -9 of default/replica1")
    victim.kill()
    equal = report.ask_quietly(about.questions().values())
    report.lines(
        f"the questions of part 3 again: {equal} equal",
        f"after:  {visits()}",
    )
    victim.start()
    wait_until(
        lambda: "default/replica1" in visits(),
        timeout_s=RECOVERY_TIMEOUT_S,
        what="the replica serves again",
    )
    report.lines(f"started again, and found by itself: {visits()}")


def visits() -> str:
    """Which nodes serve some visitors' reads."""
    with watching() as watch:
        for _ in range(VISITS):
            Genre.objects.count()
    nodes: Counter[str] = Counter()
    for step, times in watch.steps.items():
        nodes[step.nodes] += times
    return ", ".join(f"{node} {times}x" for node, times in sorted(nodes.items()))


def promote(report: Report, servers: PostgresServers) -> None:
    """The catalogue's primary dies for good and a replica is promoted."""
    chosen = servers.replicas[0]
    report.lines("kill -9 of default/primary; default/replica1 is promoted")
    servers.primary.kill()
    chosen.promote()
    refused: Counter[str] = Counter()

    def is_written() -> bool:
        try:
            Playlist.objects.create(name="Written after the promotion")
        except Error as error:
            refused[f"{type(error).__name__} ({getattr(error, 'code', '')})"] += 1
            return False
        return True

    wait_until(
        is_written, timeout_s=RECOVERY_TIMEOUT_S, what="writes reach the new primary"
    )
    told = ", ".join(f"{what} {times}x" for what, times in sorted(refused.items()))
    driver: Any = connections["default"].connection
    (name,) = [
        f"default/replica{number}"
        for number, replica in enumerate(servers.replicas, 1)
        if replica.port == driver.info.port
    ]
    report.lines(
        f"a playlist is written, by {name}; before that: {told or 'no error'}",
        f"read back: {Playlist.objects.filter(name__startswith='Written').count()}",
    )
    report.say(
        "Neither settings nor processes changed. A COMMIT or a single write that was "
        "on its way raises CommitUnknown and is never repeated; a write that the "
        "promoted server lacks raises WriteLost in the session that made it, once."
    )


def kill_shard(report: Report, servers: PostgresServers) -> None:
    """A shard is killed: its rows are missed by name, never silently."""
    homes = homes_of_customers()
    here, there = homes["sales/a"], homes["sales/b"]

    def orders(customer: int) -> int:
        return Invoice.objects.filter(customer=customer).count()

    def revenue() -> dict[str, object]:
        return Invoice.objects.aggregate(Sum("total"))

    report.lines("kill -9 of sales/b/primary")
    servers.shards["b"].kill()
    connections["sales"].close()
    report.ask(f"orders of customer {here}, who is on shard a", lambda: orders(here))
    for title, question in (
        (f"orders of customer {there}, who is on shard b", lambda: orders(there)),
        ("revenue of all orders", revenue),
    ):
        report.refused(title, question, NodeUnavailable)
    servers.shards["b"].start()
    connections["sales"].close()
    report.lines("sales/b/primary is started again")
    report.ask(f"orders of customer {there}", lambda: orders(there))
    report.ask("revenue of all orders", revenue)


def homes_of_customers() -> dict[str, int]:
    """Shard -> a customer who lives there, as the routes of reads tell."""
    homes: dict[str, int] = {}
    for customer in Customer.objects.order_by("pk")[:30]:
        with watching() as watch:
            customer.invoices.count()
        homes.setdefault(next(iter(watch.steps)).nodes, customer.pk)
    return homes
