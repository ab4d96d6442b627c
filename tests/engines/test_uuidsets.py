"""MySQL's GTID sets: against sets of numbers, and what a set can prove."""

from __future__ import annotations

import random
import re

import pytest

from dbfleet.engines import Position, Verdict, gtid, uuidsets
from dbfleet.engines.gtid import GtidPositions
from dbfleet.testing.rig import MySQLCluster

A = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
B = "4d8b564f-03f4-4975-856a-0e65c3105328"
C = "5c9c675a-14f5-5a86-967b-1f76d4216439"

SEED = 20260101


def numbers(sets: uuidsets.Sets) -> set[tuple[str, int]]:
    """All transactions of a set, one by one."""
    return {
        (name, n)
        for name, intervals in sets.items()
        for first, last in intervals
        for n in range(first, last + 1)
    }


def some(chance: random.Random) -> str:
    """A set as servers write them, and as they do not: overlapping, out of order."""
    parts = []
    for source in chance.sample((A, B), chance.randint(0, 2)):
        text = source
        for tag in chance.sample(("", ":one", ":two"), chance.randint(1, 3)):
            text += tag
            for _ in range(chance.randint(1, 3)):
                first = chance.randint(1, 12)
                last = first + chance.randint(0, 5)
                text += f":{first}" if first == last else f":{first}-{last}"
        parts.append(text)
    return ",".join(parts)


def test_arithmetic_is_that_of_sets_of_numbers() -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    for _ in range(2000):
        one, two = some(chance), some(chance)
        these, those = uuidsets.parse(one), uuidsets.parse(two)
        assert numbers(uuidsets.minus(these, those)) == numbers(these) - numbers(those)
        joined = uuidsets.union([these, those])
        assert numbers(joined) == numbers(these) | numbers(those)
        text = uuidsets.dump(joined)
        assert numbers(uuidsets.parse(text)) == numbers(joined)
        assert uuidsets.is_set(text) or not text
        # One interval for each run: equal sets are equal texts.
        assert uuidsets.dump(uuidsets.union([those, these])) == text


def test_the_server_agrees(mysql: MySQLCluster) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    rows = [(some(chance), some(chance)) for _ in range(200)]
    asked = ", ".join(
        f"GTID_SUBTRACT('{one}', '{two}'), GTID_SUBSET('{one}', '{two}')"
        for one, two in rows
    )
    [answer] = mysql.primary.execute(f"SELECT {asked}")
    for (one, two), left, is_subset in zip(
        rows, answer[::2], answer[1::2], strict=True
    ):
        found = uuidsets.minus(uuidsets.parse(one), uuidsets.parse(two))
        assert uuidsets.dump(found) == left.replace("\n", ""), (one, two)
        assert (not found) == bool(is_subset), (one, two)


def test_a_tag_counts_for_itself() -> None:
    text = f"{A.upper()}:1-3:5:domain_1:8-52, {B}:7"
    assert uuidsets.parse(text) == {
        A: ((1, 3), (5, 5)),
        f"{A}:domain_1": ((8, 52),),
        B: ((7, 7),),
    }
    assert uuidsets.source_of(f"{A}:domain_1") == A


@pytest.mark.parametrize(
    "text",
    [
        f"{A}:1-5' OR '1",
        f"{A}:",
        f"{A}:0",
        A,
        f"{A}:1-5,",
        f"{A}:tag",
        f"{A}:1:1tag:2",
        f"{A[:-1]}:1",
        f"{A}:1\n",
    ],
)
def test_only_a_set_goes_into_a_servers_function(text: str) -> None:
    assert not uuidsets.is_set(text)
    dumped = text.replace(",", "+")
    with pytest.raises(ValueError, match=re.escape(dumped)):
        GtidPositions().load(dumped)


def test_a_position_outlives_a_token() -> None:
    engine = GtidPositions()
    found = Position(f"{A}:1-5:7:tag_1:3,{B}:1")
    text = engine.dump(found)
    assert "," not in text
    assert engine.load(text) == found


def test_floors_are_one_for_each_source() -> None:
    engine = GtidPositions()
    floors = engine.merge((), [Position(f"{A}:1-5,{B}:1")])
    floors = engine.merge(floors, [Position(f"{A}:7"), Position(f"{B}:2-3:t:1")])
    floors = engine.merge(floors, [Position(f"{A}:6")])
    assert [one.value for one in floors] == [f"{A}:1-7", f"{B}:1-3:t:1"]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> GtidPositions:
    """An engine in a process that has seen nothing yet."""
    monkeypatch.setattr(gtid, "_seen", {})
    return GtidPositions()


def compared(engine: GtidPositions, have: str, want: str) -> Verdict:
    return engine.compare(Position(have), Position(want))


def test_what_is_there_is_covered_and_what_is_not_may_come(
    engine: GtidPositions,
) -> None:
    assert compared(engine, f"{A}:1-9,{B}:1", f"{A}:7-8") is Verdict.COVERED
    assert compared(engine, f"{A}:1-5:7-9", f"{A}:5-7") is Verdict.BEHIND
    assert compared(engine, f"{A}:1-9", f"{A}:tag:1") is Verdict.BEHIND
    assert compared(engine, f"{A}:1-9:tag:1-2", f"{A}:9:tag:2") is Verdict.COVERED


def test_only_the_primary_can_say_what_others_transactions_mean(
    engine: GtidPositions,
) -> None:
    """They may be of a server that was promoted, or from long ago."""
    assert compared(engine, f"{A}:1-5,{B}:1", f"{A}:6") is Verdict.UNKNOWN
    assert compared(engine, f"{A}:1-5,{B}:1", f"{B}:2") is Verdict.UNKNOWN
    gtid._seen[A] = uuidsets.parse(f"{A}:1-6,{B}:1")
    assert compared(engine, f"{A}:1-5,{B}:1", f"{A}:6") is Verdict.BEHIND
    assert compared(engine, f"{A}:1-5,{B}:1-2", f"{A}:6") is Verdict.UNKNOWN
    assert compared(engine, f"{A}:1-5,{B}:1,{C}:1", f"{A}:6") is Verdict.UNKNOWN
