"""A case: an expression as source, and how it is carried out on one alias."""

from __future__ import annotations

import datetime
import decimal
import signal
import uuid
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.db import (
    Error,
    IntegrityError,
    OperationalError,
    connections,
    models,
    transaction,
)
from django.db.models import functions
from django.db.models.fields.json import KT, KeyTextTransform

from tests.differential.compare import (
    Expected,
    Outcome,
    Seen,
    Unjudged,
    canonical,
    is_refusal,
)
from tests.differential.data import LABELS, model_of
from tests.differential.fleet import PLAIN, current, working_on
from tests.differential.source import Code

#: a case that takes longer hangs
TIMEOUT_S = 60

Action = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One expression to run on every alias."""

    code: Code
    expected: Expected
    #: it writes, so the tables are compared as well
    writes: bool = False
    #: rows with automatic ids stay, which differ between aliases
    leaves_ids: bool = False


class Hung(Exception):
    """A case that did not end in time."""


class Undo(Exception):
    """Rolls a block back on purpose."""


def run(case: Case, alias: str) -> Outcome:
    """The outcome of a case on one alias."""
    with working_on(alias), _deadline(), _ignored_rows_told(alias):
        try:
            value = eval(_compiled(str(case.code)), namespace())
            return Outcome(canonical(value, folds=case.expected.folds_text))
        except IntegrityError as error:
            return Outcome(error=Unjudged() if _is_foreign_key(error) else error)
        except Exception as error:  # noqa: BLE001 - every error is an outcome
            is_unjudged = current() == PLAIN and error.args[:1] in UNREAD
            return Outcome(error=Unjudged() if is_unjudged else error)


@lru_cache(maxsize=4)
def _compiled(text: str) -> Any:
    """Every alias runs the same text."""
    return compile(text, "<case>", "eval")


@contextmanager
def _deadline() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hung(f"no answer in {TIMEOUT_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(TIMEOUT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


#: MySQL does not read Django's way to sort NULLs by what it groups by, nor MariaDB some
#: names in HAVING; a fleet may not need them
UNREAD = ((1054,), (1055,))
#: the warning of a row that INSERT IGNORE left out because its parent is missing
NO_PARENT = 1452


def _ignored_rows_told(alias: str) -> AbstractContextManager[Any]:
    """Have MariaDB refuse, as others do, a row that it would leave out silently."""
    connection = connections[alias]
    if alias != PLAIN or connection.vendor != "mysql":
        return nullcontext()

    def told(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql.startswith("INSERT IGNORE"):
            with connection.connection.cursor() as cursor:
                cursor.execute("SHOW WARNINGS")
                if any(code == NO_PARENT for _, code, _ in cursor.fetchall()):
                    raise IntegrityError("a foreign key fails; the row was ignored")
        return result

    return connection.execute_wrapper(told)


_namespace: dict[str, Any] = {}


def namespace() -> dict[str, Any]:
    """The names that the code of a case may use."""
    if not _namespace:
        _namespace.update({name: getattr(models, name) for name in models.__all__})
        _namespace.update(
            {name: getattr(functions, name) for name in functions.__all__}
        )
        _namespace.update({label: model_of(label) for label in LABELS})
        _namespace.update(
            KT=KT,
            KeyTextTransform=KeyTextTransform,
            datetime=datetime,
            Decimal=decimal.Decimal,
            UUID=uuid.UUID,
            ZoneInfo=zoneinfo.ZoneInfo,
            steps=steps,
            atomically=atomically,
            careful=careful,
            undone=undone,
            edited=edited,
            changed=changed,
            locked=locked,
        )
    return _namespace


# -- what the code of a case may call beside Django ------------------------------------


def steps(*actions: Action) -> list[Any]:
    """Each action in autocommit; an error is noted and the next one follows."""
    return [_noted(action) for action in actions]


def _noted(action: Action) -> Any:
    try:
        return Seen(canonical(action()))
    except (Error, ObjectDoesNotExist, ValueError) as error:
        if is_refusal(error):
            raise
        if _is_foreign_key(error) or _is_bad_sql(error):
            raise Unjudged from error
        return Seen(("raised", _django_name(error)))


def _is_foreign_key(error: BaseException) -> bool:
    """Whether the plain database refused a row whose parent is missing."""
    return current() == PLAIN and "foreign key" in str(error).lower()


def _is_bad_sql(error: BaseException) -> bool:
    """Whether MariaDB could not read a DELETE of Django's; a fleet that picks the rows
    first does not run into it."""
    is_plain = current() == PLAIN and connections[PLAIN].vendor == "mysql"
    return is_plain and isinstance(error, OperationalError)


def _django_name(error: BaseException) -> str:
    """The class that code written for one database would catch."""
    for kind in type(error).__mro__:
        if kind.__module__.startswith("django.db.utils"):
            return kind.__name__
    return type(error).__name__


def atomically(*actions: Action) -> Action:
    """All actions in one transaction, or none."""

    def act() -> Any:
        with transaction.atomic(using=current()):
            return [Seen(canonical(action())) for action in actions]

    return act


def careful(*actions: Action) -> Action:
    """One transaction, each action in a savepoint of its own; errors are noted."""

    def guarded(action: Action) -> Any:
        with transaction.atomic(using=current()):
            return Seen(canonical(action()))

    def act() -> Any:
        with transaction.atomic(using=current()):
            return [_noted(partial(guarded, action)) for action in actions]

    return act


def undone(*actions: Action) -> Action:
    """One transaction that is rolled back; what it saw counts."""

    def act() -> Any:
        seen: list[Any] = []
        try:
            with transaction.atomic(using=current()):
                seen += [Seen(canonical(action())) for action in actions]
                raise Undo
        except Undo:
            return seen

    return act


def edited(obj: Any, *, update_fields: Any = None, **values: Any) -> Any:
    """Set attributes of an instance and save it."""
    if obj is None:
        return None
    for name, value in values.items():
        setattr(obj, name, value)
    obj.save(update_fields=update_fields)
    return obj


def changed(rows: Any, **values: Any) -> int:
    """``bulk_update`` of the rows of a queryset."""
    objs = list(rows)
    for obj in objs:
        for name, value in values.items():
            setattr(obj, name, value)
    return int(rows.model.objects.bulk_update(objs, list(values)))


def locked(rows: Any) -> list[Any]:
    """The rows of a queryset, locked, and let go of."""
    with transaction.atomic(using=current()):
        return list(rows.select_for_update())
