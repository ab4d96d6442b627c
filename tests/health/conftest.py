from __future__ import annotations

from collections.abc import Iterator

import pytest

from dbfleet.health import drain
from tests.health.cluster import Reader


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture(autouse=True)
def nothing_drained() -> Iterator[None]:
    drain.reset()
    yield
    drain.reset()
