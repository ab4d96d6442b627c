"""Outcomes in a form that can be compared: values with their types, in their order.

Floats count to ten digits, because sums depend on the order of rows. Deviations of
decimals that MariaDB and MySQL compute in floats count to six; where these round them,
the last digit may be the next one. Where an order is not total, rows are compared as a
multiset and the order by its keys alone.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db.models import Model, QuerySet

from tests.differential.fleet import AUTOMATIC, current

#: how far into related instances a comparison goes
DEPTH = 3
#: what is written of a float; all digits of its binary fraction are more
DOUBLE_DIGITS = 17
#: MariaDB and MySQL round deviations to no fewer; sums of money have two
ROUNDED_PLACES = 4


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case did on one alias."""

    value: Any = None
    error: BaseException | None = None

    @property
    def is_unjudged(self) -> bool:
        return isinstance(self.error, Unjudged)

    @property
    def is_refused(self) -> bool:
        """Whether dbfleet said that it does not do this."""
        return is_refusal(self.error)

    def describe(self) -> str:
        if self.error is not None:
            return (
                f"raised {type(self.error).__name__}: {str(self.error).strip()[:600]}"
            )
        return shortened(self.value)


@dataclass(frozen=True, slots=True)
class Expected:
    """What must agree in the rows of a case."""

    is_ordered: bool = False
    #: names in each row whose sequence must agree although ties may stand anyhow
    keys: tuple[str, ...] = ()
    #: text that the database calls equal counts as equal
    folds_text: bool = False
    #: some decimals are floats that the database rounded
    has_rounded: bool = False


def is_refusal(error: BaseException | None) -> bool:
    """Whether an error of dbfleet's own names what it does not do."""
    from dbfleet.errors import InvalidShardKey, RouteRefused

    return isinstance(error, RouteRefused | InvalidShardKey)


class Seen(tuple):  # type: ignore[type-arg]
    """A canonical form inside a result that is made canonical later."""


class Unjudged(Exception):
    """The plain database refused what shards need not: a foreign key, or SQL of
    Django's that MariaDB cannot read."""


def canonical(  # noqa: PLR0911 - one line for each type
    value: Any, *, folds: bool = False, depth: int = 0
) -> Any:
    """A hashable form of a value that tells types apart."""
    if isinstance(value, Seen):
        return _folded(tuple(value)) if folds else tuple(value)
    if isinstance(value, Model):
        return _instance(value, folds, depth)
    if isinstance(value, Mapping):
        pairs = [
            (canonical(key, folds=folds), canonical(item, folds=folds, depth=depth))
            for key, item in value.items()
        ]
        return ("dict", *sorted(pairs, key=repr))
    if isinstance(value, QuerySet | list | tuple | set | frozenset | range):
        items = [canonical(item, folds=folds, depth=depth) for item in value]
        if isinstance(value, set | frozenset):
            items.sort(key=repr)
        kind = "list" if isinstance(value, QuerySet) else type(value).__name__
        return (kind, *items)
    if isinstance(value, float):
        return ("float", f"{value + 0.0:.10g}")
    if isinstance(value, Decimal) and _is_binary(value):
        return ("Decimal", f"{float(value):.6g}")
    if isinstance(value, str) and folds:
        return ("str", fold(value))
    if isinstance(value, int) and AUTOMATIC <= value < 2 * AUTOMATIC:
        return ("int", "automatic")
    return (type(value).__name__, str(value) if value is not None else None)


def _is_binary(value: Decimal) -> bool:
    """Whether a decimal was made of a float, whose digits it has, to the last."""
    parts = value.as_tuple()
    if not isinstance(parts.exponent, int) or parts.exponent >= 0:
        return False
    is_long = len(parts.digits) > DOUBLE_DIGITS
    return is_long and Decimal(float(value)).as_tuple() == parts


def fold(value: str) -> str:
    """What collations without case and accents keep of a text."""
    plain = unicodedata.normalize("NFKD", value.rstrip(" ").casefold())
    return "".join(c for c in plain if not unicodedata.combining(c)).replace(
        "\u0131", "i"
    )


def _folded(form: Any) -> Any:
    """A canonical form that was made without folding, with its texts folded."""
    if not isinstance(form, tuple):
        return form
    if len(form) == 2 and form[0] == "str":
        return ("str", fold(form[1]))
    return tuple(map(_folded, form))


def _instance(obj: Model, folds: bool, depth: int) -> Any:
    name = type(obj).__name__
    if depth >= DEPTH:
        return (name, str(obj.pk))
    fields = [
        (key, _attribute(value, folds, depth + 1))
        for key, value in obj.__dict__.items()
        if not key.startswith("_")
    ]
    related = [
        (key, canonical(value, folds=folds, depth=depth + 1))
        for key, value in obj._state.fields_cache.items()
    ]
    prefetched = [
        (key, _attribute(list(rows), folds, depth + 1))
        for key, rows in getattr(obj, "_prefetched_objects_cache", {}).items()
    ]
    at_home = obj._state.db == current()
    return (name, at_home, *(tuple(sorted(p)) for p in (fields, related, prefetched)))


def _attribute(value: Any, folds: bool, depth: int) -> Any:
    """A value of an instance; prefetched rows come in any order."""
    found = canonical(value, folds=folds, depth=depth)
    is_prefetched = isinstance(value, list) and value and isinstance(value[0], Model)
    return ("list", *sorted(found[1:], key=repr)) if is_prefetched else found


def difference(plain: Outcome, fleet: Outcome, expected: Expected) -> str | None:
    """How the fleet's outcome differs from the plain database's; None if it agrees."""
    if isinstance(plain.error, Unjudged):
        return None
    if plain.error is not None or fleet.error is not None:
        return _error_difference(plain, fleet)
    if not (_is_rows(plain.value) and _is_rows(fleet.value)):
        return None if plain.value == fleet.value else "other values"
    if plain.value[0] != fleet.value[0]:
        return "another type of result"
    left, right = plain.value[1:], fleet.value[1:]
    if Counter(left) != Counter(right):
        is_rounding = expected.has_rounded and _is_nearly(left, right)
        return None if is_rounding else "other rows"
    if expected.is_ordered and left != right:
        return "another order"
    for key in expected.keys:
        if [_named(row, key) for row in left] != [_named(row, key) for row in right]:
            return f"another order by {key}"
    return None


def _is_nearly(left: Any, right: Any) -> bool:
    """Whether nothing differs but the last digits of decimals, by one."""
    if not (isinstance(left, tuple) and isinstance(right, tuple)):
        return bool(left == right)
    if len(left) != len(right):
        return False
    if left[:1] == right[:1] == ("Decimal",):
        ours, theirs = Decimal(left[1]), Decimal(right[1])
        place = ours.as_tuple().exponent
        if not isinstance(place, int) or place > -ROUNDED_PLACES:
            return ours == theirs
        return abs(ours - theirs) <= Decimal(1).scaleb(place)
    return all(map(_is_nearly, left, right))


def _error_difference(plain: Outcome, fleet: Outcome) -> str | None:
    if fleet.error is None:
        return "no error"
    if plain.error is None:
        return None if fleet.is_refused else "an error"
    if isinstance(fleet.error, type(plain.error)) or fleet.is_refused:
        return None
    return "another error"


def _is_rows(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and value[0] in ("list", "tuple")


def _named(row: Any, key: str) -> Any:
    """The value of ``key`` in the canonical form of an instance or a dict."""
    parts: Iterable[Any] = row[1:] if row[0] == "dict" else row[2]
    for name, value in parts:
        if name in (key, ("str", key)):
            return value
    return None


def shortened(value: Any, limit: int = 3000) -> str:
    """The canonical form for a person."""
    if isinstance(value, tuple) and value and value[0] in ("list", "tuple"):
        lines = [f"{value[0]} of {len(value) - 1}:"]
        lines += [f"    {_bare(row)}" for row in value[1:]]
        shown = "\n".join(lines)
    else:
        shown = str(_bare(value))
    return shown if len(shown) <= limit else shown[:limit] + " …"


def _bare(value: Any) -> Any:
    """Without the names of the commonest types."""
    if isinstance(value, tuple) and len(value) == 2 and value[0] in ("str", "int"):
        return value[1] if value[0] == "int" else repr(value[1])
    if isinstance(value, tuple):
        return "(" + ", ".join(str(_bare(part)) for part in value) + ")"
    return value
