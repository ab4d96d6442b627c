"""What is known of rows: a few branches, each with the values its columns may have.

A row that is spoken of fits at least one branch. The operations may add rows, and do
where branches become too many; they never lose one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from dbfleet.planner.ranges import ALL, Allowed, join, joins_exactly, meet

#: (table alias, column) -> the only values a row may have; nothing said of others
Branch = dict[tuple[str, str], Allowed]
#: a row fits at least one of these
Values = tuple[Branch, ...]

#: more branches than this become one that is weaker
MAX_BRANCHES = 64

#: so few are not worth putting together
FEW_BRANCHES = 8

ANYTHING: Values = ({},)
NOTHING: Values = ()


def all_of(parts: Sequence[Values]) -> Values:
    """Rows that fit every part."""
    found = parts[0]
    for part in parts[1:]:
        found = both(found, part)
    return found


def any_of(parts: Sequence[Values]) -> Values:
    """Rows that fit at least one part."""
    return tidy(list(itertools.chain.from_iterable(parts)))


def both(one: Values, other: Values) -> Values:
    """Rows that fit the one and the other."""
    if one is ANYTHING:
        return other
    if other is ANYTHING:
        return one
    if len(one) == len(other) == 1:
        alone = _merged(one[0], other[0])
        return NOTHING if alone is None else (alone,)
    merged = (_merged(a, b) for a in one for b in other)
    possible = (branch for branch in merged if branch is not None)
    found = list(itertools.islice(possible, MAX_BRANCHES + 1))
    if len(found) > MAX_BRANCHES:
        return both(one, _weakened(other)) if len(other) > 1 else one
    return tidy(found) if len(found) > FEW_BRANCHES else tuple(found)


def _merged(one: Branch, other: Branch) -> Branch | None:
    """What both say; None if they contradict each other."""
    merged = {**one}
    for column, allowed in other.items():
        known = merged.get(column)
        if known is not None:
            allowed = meet(known, allowed)
        if not allowed:
            return None
        merged[column] = allowed
    return merged


def tidy(branches: list[Branch]) -> Values:
    """The same rows in fewer branches: what differs in one column only is one."""
    if len(branches) < 2:
        return tuple(branches)
    # Branches on one column are common and found at once; others are compared.
    single: dict[tuple[str, str], list[Branch]] = {}
    kept: list[Branch] = []
    for branch in branches:
        if not branch:
            return ANYTHING
        if len(branch) == 1:
            known = single.setdefault(next(iter(branch)), [])
        else:
            known = kept
        if not _is_absorbed(branch, known):
            known.append(branch)
            if len(known) > MAX_BRANCHES:
                return _weakened(branches)
    for alike in single.values():
        kept += alike
    if len(kept) > MAX_BRANCHES:
        return _weakened(branches)
    return ANYTHING if {} in kept else tuple(kept)


def _is_absorbed(branch: Branch, known: list[Branch]) -> bool:
    """Whether a branch could be put together with one of those known."""
    for at, other in enumerate(known):
        if other.keys() == branch.keys():
            found = _as_one(other, branch)
            if found is not None:
                known[at] = found
                return True
    return False


def _as_one(one: Branch, other: Branch) -> Branch | None:
    differing = None
    for column, allowed in one.items():
        if allowed != other[column]:
            if differing is not None:
                return None
            differing = column
    if differing is None:
        return one
    if not joins_exactly(one[differing], other[differing]):
        return None
    joined = join(one[differing], other[differing])
    if joined == ALL:
        return {c: allowed for c, allowed in one.items() if c != differing}
    return {**one, differing: joined}


def _weakened(branches: Iterable[Branch]) -> Values:
    """One branch for all: column by column."""
    first, *rest = branches
    found = dict(first)
    for branch in rest:
        found = {c: join(found[c], branch[c]) for c in found if c in branch}
    return (found,)
