"""Gathers that fetch less: whatever is left out, the answer is one database's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from django.db import transaction
from django.db.models import Count, Exists, F, OuterRef, Q, Subquery, Sum
from django.test import override_settings

from dbfleet.errors import GatherLimitExceeded
from dbfleet.executor import reducing
from dbfleet.observe import events
from dbfleet.planner.forced import gathering
from tests.merging import scenarios
from tests.merging.app.models import Item, Note, Owner, Tag
from tests.merging.scenarios import refused, same
from tests.sharding.scenarios import on_node

#: rows of a shard up to which a table is taken for small; the last ones for all
PROBES = (0, 3, 200)


@contextlib.contextmanager
def _told(probe_rows: int, **limits: int) -> Iterator[list[Any]]:
    """Gather everything; the events of the gathers."""
    seen: list[Any] = []

    def note(event: Any) -> None:
        if event.name == "gathered":
            seen.append(event.fields)

    with (
        gathering(),
        mock.patch.object(reducing, "PROBE_ROWS", probe_rows),
        override_settings(DBFLEET={"GATHER": {"INLINE_ROWS": 20, **limits}}),
        events.subscribed(note),
    ):
        yield seen


def _same_as_plain(ask: Callable[[str], Any], *reduced: str, probe_rows: int) -> Any:
    """The rows of both; the tables are among those of which less was fetched, unless
    all are small."""
    expected = list(ask("plain"))
    with _told(probe_rows) as seen:
        for scope in (contextlib.nullcontext, transaction.atomic):
            seen.clear()
            with scope():
                same(list(ask("default")), expected)
            found = {table for one in seen for table in one["reduced"]}
            if probe_rows < PROBES[-1]:
                same({f"merging_{name}" for name in reduced} - found, set())
            else:
                same(found, set())
    return seen[0]


def _notes(alias: str) -> Any:
    return Note.objects.using(alias)


def _owners(alias: str) -> Any:
    return Owner.objects.using(alias)


def _of(name: str) -> Any:
    return OuterRef(name)


def check_joins() -> None:
    for rows in PROBES:
        _same_as_plain(
            lambda a: _notes(a).filter(owner__name="a").order_by("pk").values_list(),
            "note",
            probe_rows=rows,
        )
        _same_as_plain(
            lambda a: (
                _notes(a)
                .filter(score=2)
                .order_by("pk")
                .values_list("pk", "owner__name", "owner__pk")
            ),
            "owner",
            probe_rows=rows,
        )
        _same_as_plain(
            lambda a: (
                _owners(a)
                .filter(pk__lt=5)
                .annotate(n=Count("notes"), s=Sum("notes__score"))
                .order_by("pk")
                .values_list("pk", "n", "s")
            ),
            "note",
            probe_rows=rows,
        )


def check_chains() -> None:
    for rows in PROBES:
        _same_as_plain(
            lambda a: (
                Item.objects.using(a)
                .filter(owner__notes__pk__in=[3, 9, 27], owner__notes__score__gte=0)
                .order_by("pk", "owner__notes")
                .values_list("pk", "owner__notes")
            ),
            "owner",
            "item",
            probe_rows=rows,
        )
        _same_as_plain(
            lambda a: (
                Tag.objects.using(a)
                .filter(owner__notes__pk__lt=4)
                .order_by("pk", "owner__notes")
                .values_list("word", "owner__notes")
            ),
            "owner_tags",
            probe_rows=rows,
        )


def check_rows_without_a_relative() -> None:
    for rows in PROBES:
        for queryset in (
            lambda a: _owners(a).filter(notes__isnull=True, pk__lt=9),
            lambda a: _owners(a).filter(
                ~Exists(_notes(a).filter(owner=_of("pk"), score=1)), pk__lt=9
            ),
            lambda a: _owners(a).filter(
                Q(notes__isnull=True) | Q(notes__score=1), pk__lt=9
            ),
            lambda a: _owners(a).exclude(notes__score=1).filter(pk__lt=9),
            lambda a: (
                _owners(a)
                .filter(pk__lt=9)
                .exclude(pk__in=_notes(a).filter(score=1).values("owner"))
            ),
        ):
            _same_as_plain(
                lambda a, q=queryset: (
                    q(a).order_by("pk", "notes").values_list("pk", "name", "notes")
                ),
                probe_rows=rows,
            )


def _best(alias: str) -> Any:
    notes = _notes(alias).filter(owner=_of("pk"))
    return notes.order_by("-score", "pk").values("score")


def check_nested_queries() -> None:
    some = {"score": 2, "pk__lt": 30}
    for rows in PROBES:
        for queryset in (
            lambda a: _owners(a).filter(
                pk__in=_notes(a).filter(**some).values("owner")
            ),
            lambda a: _owners(a).filter(
                Exists(_notes(a).filter(owner=_of("pk"), **some))
            ),
        ):
            _same_as_plain(
                lambda a, q=queryset: q(a).order_by("pk").values_list(),
                "owner",
                probe_rows=rows,
            )
        _same_as_plain(
            lambda a: (
                _owners(a)
                .filter(pk__lt=4)
                .annotate(s=Subquery(_best(a)[:1]))
                .order_by("pk")
                .values_list("pk", "s")
            ),
            "note",
            probe_rows=rows,
        )


def check_several_places_of_a_table() -> None:
    for rows in PROBES:
        _same_as_plain(
            lambda a: (
                _notes(a)
                .filter(score=1, owner__notes__score=2, owner__pk__lt=F("pk"))
                .order_by("pk", "owner__notes")
                .values_list("pk", "owner__notes", "owner__name")
            ),
            "owner",
            probe_rows=rows,
        )
        # Every owner is needed in the second place.
        _same_as_plain(
            lambda a: (
                _notes(a)
                .filter(score=1)
                .annotate(n=Subquery(_owners(a).order_by("-pk").values("pk")[:1]))
                .order_by("pk")
                .values_list("pk", "n", "owner__name")
            ),
            probe_rows=rows,
        )


def check_less_is_fetched() -> None:
    def ask(alias: str) -> Any:
        notes = _notes(alias).filter(pk__in=[5, 6])
        found = Item.objects.using(alias).filter(owner__in=notes.values("owner"))
        return found.order_by("pk").values_list("pk", "score")

    told = _same_as_plain(ask, "item", probe_rows=3)
    wanted = len(ask("plain")) + 2
    # Of the items a few were read in vain, to see that they are many.
    same(wanted <= told["rows"] <= wanted + 4 * 3, True)
    with _told(3, MAX_ROWS=len(ask("plain")) + 20):
        same(list(ask("default")), list(ask("plain")))
        with refused(GatherLimitExceeded, "merging.Item"):
            list(Item.objects.all())


def check_small_gathers_take_one_round() -> None:
    def ask(alias: str) -> Any:
        found = _notes(alias).filter(owner__name="a", owner__items__score=1)
        return found.order_by("pk", "owner__items").values_list("pk", "owner__items")

    with (
        _told(1000) as seen,
        mock.patch.object(
            reducing.Reducer, "_read", side_effect=AssertionError("a second round")
        ),
    ):
        same(list(ask("default")), list(ask("plain")))
    same([one["reduced"] for one in seen], [()])


def check_a_small_table_is_read_again_to_reduce_others() -> None:
    """Owners are few in each shard, but each item has one: those of a tag are fewer."""

    def ask(alias: str) -> Any:
        found = Item.objects.using(alias).filter(owner__tags__word="w1")
        return found.order_by("pk").values_list("pk", "owner__name")

    with _told(24) as seen:
        same(list(ask("default")), list(ask("plain")))
    same("merging_item" in seen[0]["reduced"], True)
    same("merging_owner" in seen[0]["reduced"], True)


def check_the_smaller_of_two_is_read_first() -> None:
    """Neither is small, nor filtered: the servers know which has fewer rows."""

    def ask(alias: str) -> Any:
        found = _notes(alias).filter(owner__items__score=F("score"))
        return found.order_by("pk", "owner__items").values_list("pk", "owner__items")

    tables = ("merging_item", "merging_note", "merging_owner")
    for shard in ("a", "b", "c"):
        for table in tables:
            verb = "ANALYZE TABLE" if scenarios.kind == "mariadb" else "ANALYZE"
            on_node(shard, f"{verb} {table}")
    read, order = reducing.Reducer._read, []

    def note(self: Any, wanted: Any) -> None:
        order.append(sorted(wanted))
        read(self, wanted)

    with _told(3) as seen, mock.patch.object(reducing.Reducer, "_read", note):
        same(list(ask("default")), list(ask("plain")))
        route = ask("default").explain_route(sizes=True)
    sizes = {part.table: part.rows for part in route.fragments}
    if scenarios.kind == "sqlite":
        same(set(sizes.values()), {None})
        same(order, [sorted(tables)])
        return
    # Owners are fewer still; but that a note has one of all of them says nothing.
    same(order, [["merging_note"], ["merging_item", "merging_owner"]])
    same(seen[0]["reduced"], ("merging_item", "merging_owner"))
    for table, rows in zip(tables, (200, 40, 24), strict=True):
        same(rows / 2 <= sizes[table] <= rows * 2, True)
    # What is estimated to be too much to have few values is not waited for.
    order.clear()
    with (
        _told(3),
        mock.patch.object(reducing.Reducer, "_read", note),
        mock.patch.object(reducing, "WORTH_ROWS", 5),
    ):
        same(list(ask("default")), list(ask("plain")))
    same(order, [sorted(tables)])


def check_values_beyond_the_limit_are_not_sent() -> None:
    def ask(alias: str) -> Any:
        found = _notes(alias).filter(score__lte=3).order_by("pk")
        return found.values_list("pk", "owner__name")

    with _told(3) as seen, mock.patch.object(reducing, "MAX_VALUES", 2):
        same(list(ask("default")), list(ask("plain")))
    same([one["reduced"] for one in seen], [()])


def check_rows_that_come_meanwhile_cannot_tear_the_answer() -> None:
    """A row that was fetched decides, also if another one is there by now."""
    read = reducing.Reducer._read
    late: list[Any] = []

    def write_before(self: Any, wanted: Any) -> None:
        if not late:
            # On connections of its own: the answer's are at work.
            late.append(_in_thread(_insert_note))
        read(self, wanted)

    ask = lambda a: (  # noqa: E731
        _notes(a).filter(score=77).order_by("pk").values_list("pk", "owner__name")
    )
    try:
        with _told(3), mock.patch.object(reducing.Reducer, "_read", write_before):
            found = list(ask("default"))
        same(found in ([], [(9000, "new")]), True)
        same(len(late), 1)
        same(list(ask("default")), [(9000, "new")])
    finally:
        _notes("default").filter(pk=9000).delete()
        _owners("default").filter(pk=9000).delete()


def _insert_note() -> None:
    Owner.objects.create(pk=9000, name="new")
    Note.objects.create(pk=9000, owner_id=9000, score=77)


def _in_thread(work: Callable[[], Any]) -> Any:
    from tests.sharding.scenarios import in_threads

    [found] = in_threads(lambda n: work(), 1)
    if isinstance(found, Exception):
        raise found
    return True
