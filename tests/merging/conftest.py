"""A project on a sharded alias of each kind, migrated once for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.merging.fleet import KINDS, MergingProject, serve


@pytest.fixture(scope="session", params=KINDS)
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MergingProject]:
    """The fleet of the kind at hand: home, three shards and ``plain``, one server."""
    kind = str(request.param)
    with serve(request, tmp_path_factory.mktemp(kind), kind) as built:
        yield built
