"""``consistency`` as a block and as a decorator, without a server."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from django.http import HttpResponse
from django.template.response import SimpleTemplateResponse

import dbfleet
from dbfleet.errors import ConfigurationError
from dbfleet.sessions import chosen_level


def level() -> str | None:
    found = chosen_level()
    return None if found is None else found.name


def test_blocks_nest_and_end() -> None:
    strong = dbfleet.consistency("strong")
    with strong:
        with dbfleet.consistency("eventual"), strong:
            assert level() == "strong"
        assert level() == "strong"
    with pytest.raises(KeyError), strong:
        raise KeyError
    assert level() is None


def test_functions() -> None:
    @dbfleet.consistency("strong")
    def view(request: str, *, more: int) -> tuple[str, int, str | None]:
        """What it says."""
        return request, more, level()

    assert view("r", more=1) == ("r", 1, "strong")
    assert view.__name__ == "view"
    assert view.__doc__ == "What it says."
    assert level() is None


def test_coroutines() -> None:
    strong = dbfleet.consistency("strong")

    @strong
    async def view() -> str | None:
        await asyncio.sleep(0)
        return level()

    @dbfleet.consistency("eventual")
    async def other() -> str | None:
        await asyncio.sleep(0)
        return level()

    async def both() -> list[str | None]:
        async with dbfleet.consistency(dbfleet.bounded(1)):
            found = await asyncio.gather(view(), other(), view())
            return [*found, level()]

    assert asyncio.iscoroutinefunction(view)
    assert asyncio.run(both()) == ["strong", "eventual", "strong", "bounded"]


def test_a_response_that_is_rendered_later_is_rendered_once_and_pickled() -> None:
    class Lazy(SimpleTemplateResponse):
        @property
        def rendered_content(self) -> str:
            return str(level())

    globals()["Lazy"] = Lazy
    Lazy.__qualname__ = "Lazy"

    @dbfleet.consistency("strong")
    def view() -> HttpResponse:
        return Lazy("nowhere.html")

    response: Any = view()
    assert not response.is_rendered
    assert response.render().content == b"strong"
    assert response.render().content == b"strong"
    assert pickle.loads(pickle.dumps(response)).content == b"strong"


def test_what_cannot_be_decorated() -> None:
    def rows() -> Any:
        yield 1

    with pytest.raises(TypeError, match="use a block inside"):
        dbfleet.consistency("strong")(rows)
    with pytest.raises(TypeError, match="method_decorator"):
        dbfleet.consistency("strong")(type("View", (), {}))
    with pytest.raises(ConfigurationError, match="E004"):
        dbfleet.consistency("weak")
