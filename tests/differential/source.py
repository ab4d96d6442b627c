"""Python source as a tree, so that a failing case can be made smaller.

Guards one invariant: what is run is the text that is printed; there is no second
form of a case that could differ from its reproduction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Code:
    """``head``, the parts with ``glue`` between them, ``tail``."""

    head: str
    parts: tuple[Code, ...] = ()
    glue: str = ", "
    tail: str = ""
    #: how many parts must stay
    least: int = 0
    #: any one of the parts may stand for the whole
    is_hoistable: bool = False
    #: it must not be dropped by what holds it
    is_fixed: bool = False
    #: dropping its parts would change what can be compared
    is_rigid: bool = False

    def __str__(self) -> str:
        return self.head + self.glue.join(map(str, self.parts)) + self.tail

    def smaller(self) -> Iterator[Code]:
        """Every tree with one part less, the largest cuts first."""
        if self.is_hoistable:
            yield from self.parts
        if not self.is_rigid and len(self.parts) > self.least:
            for at, part in enumerate(self.parts):
                if not part.is_fixed:
                    yield replace(self, parts=self.parts[:at] + self.parts[at + 1 :])
        for at, part in enumerate(self.parts):
            for less in part.smaller():
                less = replace(less, is_fixed=part.is_fixed)
                yield replace(
                    self, parts=(*self.parts[:at], less, *self.parts[at + 1 :])
                )


def text(source: str, *, is_fixed: bool = False) -> Code:
    """A leaf."""
    return Code(source, is_fixed=is_fixed)


def call(name: str, *parts: Code | str, least: int | None = None) -> Code:
    """``name(parts)``; by default no part may go."""
    nodes = tuple(text(part) if isinstance(part, str) else part for part in parts)
    return Code(
        f"{name}(", nodes, tail=")", least=len(nodes) if least is None else least
    )


def keyword(name: str, value: Code | str) -> Code:
    """``name=value``."""
    node = text(value) if isinstance(value, str) else value
    return Code(f"{name}=", (node,), least=1)


def chain(start: str, *steps: Code) -> Code:
    """``start`` with calls after it, each of which may go."""
    return Code(start, steps, glue="")


def either(*parts: Code, glue: str) -> Code:
    """Conditions joined by an operator; one of them may stand for all."""
    return Code("(", parts, glue=f" {glue} ", tail=")", least=1, is_hoistable=True)
