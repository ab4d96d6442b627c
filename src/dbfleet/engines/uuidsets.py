"""Arithmetic of MySQL's GTID sets, without a server.

Sources: MySQL manual, "GTID Format and Storage", "GTID Sets" and, since MySQL 8.3,
its tags: ``uuid:1-5:7:tag:1-2`` holds two intervals of ``uuid`` and one of
``uuid:tag``. Each such name counts for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from django.utils.regex_helper import _lazy_re_compile

_NUMBERS = r":[1-9]\d*(?:-[1-9]\d*)?"
_TAG = r":[A-Za-z_][A-Za-z0-9_]{0,31}"
_SOURCE = (
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    rf"(?:(?:{_TAG})?{_NUMBERS})+"
)
#: what servers write, and nothing else: it goes into their own functions
_SET = _lazy_re_compile(rf"{_SOURCE}(?:,{_SOURCE})*")

#: first and last transaction, both included
Interval = tuple[int, int]
#: for each name its intervals, in order, apart from each other
Intervals = tuple[Interval, ...]
Sets = Mapping[str, Intervals]


def is_set(text: str) -> bool:
    """Whether a text is a set as MySQL writes it, without spaces."""
    return _SET.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def parse(text: str) -> Sets:
    """The intervals of each name in a set; raises ValueError."""
    found: dict[str, list[Interval]] = {}
    for part in filter(None, map(str.strip, text.lower().split(","))):
        source, *rest = part.split(":")
        name = source
        for one in rest:
            if not one[:1].isdigit():
                name = f"{source}:{one}"
                continue
            first, _, last = one.partition("-")
            found.setdefault(name, []).append((int(first), int(last or first)))
    return {name: _joined(intervals) for name, intervals in found.items()}


def dump(sets: Sets) -> str:
    """A set as text, which MySQL and :func:`parse` read."""
    parts: dict[str, str] = {}
    for name, intervals in sorted(sets.items()):
        source, _, tag = name.partition(":")
        text = parts.get(source, source) + (f":{tag}" if tag else "")
        parts[source] = text + "".join(
            f":{first}" if first == last else f":{first}-{last}"
            for first, last in intervals
        )
    return ",".join(parts.values())


def union(several: Iterable[Sets]) -> Sets:
    """What is in any of several sets."""
    found: dict[str, list[Interval]] = {}
    for one in several:
        for name, intervals in one.items():
            found.setdefault(name, []).extend(intervals)
    return {name: _joined(intervals) for name, intervals in found.items()}


def minus(these: Sets, those: Sets) -> Sets:
    """What is in the first set and not in the second."""
    found = {name: _minus(have, those.get(name, ())) for name, have in these.items()}
    return {name: left for name, left in found.items() if left}


def source_of(name: str) -> str:
    """The server, or the group of servers, that wrote under a name."""
    return name.partition(":")[0]


def _joined(intervals: Iterable[Interval]) -> Intervals:
    found: list[Interval] = []
    for first, last in sorted(intervals):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        elif first <= last:
            found.append((first, last))
    return tuple(found)


def _minus(these: Intervals, those: Intervals) -> Intervals:
    found: list[Interval] = []
    for begin, last in these:
        first = begin
        for taken, until in those:
            if until < first:
                continue
            if taken > last:
                break
            if first < taken:
                found.append((first, taken - 1))
            first = until + 1
        if first <= last:
            found.append((first, last))
    return tuple(found)
