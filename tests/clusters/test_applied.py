"""What is known of a replica is what its present server said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dbfleet.engines import Position
from dbfleet.engines.postgresql import PostgreSQLEngine
from dbfleet.sessions import applied

NODE = "applied/replica1"
ENGINE = PostgreSQLEngine()


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    applied.forget(NODE)
    yield
    applied.forget(NODE)


def test_a_replica_only_goes_forward() -> None:
    asked = applied.epoch(NODE)
    applied.learn(ENGINE, NODE, Position(20, 1), asked)
    applied.learn(ENGINE, NODE, Position(10, 1), asked)  # an answer that came late
    assert applied.of(NODE) == Position(20, 1)
    applied.learn(ENGINE, NODE, Position(30, 1), asked)
    assert applied.of(NODE) == Position(30, 1)


def test_an_answer_of_the_server_before_is_not_learned() -> None:
    asked = applied.epoch(NODE)
    # Another thread connects to a server that was set up anew, while this one's
    # answer of the old server has come and was not looked at yet.
    applied.forget(NODE)
    applied.learn(ENGINE, NODE, Position(20, 1), asked)
    assert applied.of(NODE) is None
    applied.learn(ENGINE, NODE, Position(5, 1), applied.epoch(NODE))
    assert applied.of(NODE) == Position(5, 1)
