"""``queryset.explain_route()``: where a queryset would go, without sending it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.models import QuerySet
from django.db.models.manager import BaseManager

if TYPE_CHECKING:
    from dbfleet.planner.route import Route


def explain_route(queryset: Any, *, sizes: bool = False) -> Route:
    """The route that evaluating ``queryset`` here and now would take.

    ``route.nodes`` are the servers that may serve it. Nothing is sent but the question
    for a lookup, one round trip to home; the shard map is read once in a process. With
    ``sizes`` the servers estimate the rows of a gather's fragments, a round trip for
    each to each node. Raises RouteRefused if no rung fits.
    """
    # Every project installs this module; the planner is for those that ask.
    from dataclasses import replace

    from dbfleet.executor.gather import Gatherer
    from dbfleet.planner.route import HOME, Intent, Route, Rung

    alias = str(queryset.db)
    connection = connections[alias]
    routing = getattr(connection, "routing", None)
    if routing is None:
        reason = "the alias is one database"
        node = f"{alias}/primary"
        return Route(alias, Intent.READ, Rung.NODE, (HOME,), reason, nodes=(node,))
    compiler = queryset.query.clone().get_compiler(connection=connection)
    try:
        route: Route = routing.plan(compiler)
    except EmptyResultSet:
        reason = "the filters contradict each other: no database is asked"
        return Route(alias, Intent.READ, Rung.NODE, (), reason)
    names: tuple[str, ...] = routing.node_names(route)
    if sizes and route.fragments:
        route = Gatherer(routing, route, compiler.query).sized()
    return replace(route, nodes=names)


def install() -> None:
    """Give every queryset and manager ``explain_route()``; idempotent."""
    QuerySet.explain_route = explain_route  # type: ignore[attr-defined]
    BaseManager.explain_route = _explain_all  # type: ignore[attr-defined]


# Django copies a queryset's methods to managers of its own; this one is set on both.
explain_route.queryset_only = True  # type: ignore[attr-defined]


def _explain_all(manager: Any, *, sizes: bool = False) -> Route:
    return explain_route(manager.all(), sizes=sizes)
