"""Where tests put replicas in place of a cluster's own; empty in a running project.

``dbfleet.testing`` fills it for the length of a block. Guards one invariant: with
nothing in it, a decision costs one truth test more.
"""

from __future__ import annotations

from typing import Any, Protocol


class Emulation(Protocol):
    """One alias whose replicas are played by its primaries."""

    def adopt(self, nodes: Any) -> None:
        """Take over the nodes of a wrapper of the alias."""

    def check_primary(self, cluster: str) -> None:
        """Raise NodeUnavailable if the primary is to be down."""

    def replica(self, nodes: Any, cluster: str, name: str) -> Any:
        """What stands for a replica; None if it is to be down."""

    def sent(self, nodes: Any, cluster: str, *, is_write: bool) -> None:
        """A statement is about to be sent to a primary."""

    def is_harness(self, wrapper: Any) -> bool:
        """Whether the open transaction is the test's own, not the tested code's."""


class Emulated(dict[str, Emulation]):
    """The emulations of this process, by alias."""

    def has(self, nodes: Any) -> bool:
        return nodes.topology.alias in self

    def adopt(self, nodes: Any) -> None:
        found = self.get(nodes.topology.alias)
        if found is not None:
            found.adopt(nodes)

    def check_primary(self, nodes: Any, cluster: str) -> None:
        found = self.get(nodes.topology.alias)
        if found is not None:
            found.check_primary(cluster)

    def replica(self, nodes: Any, cluster: str, name: str) -> Any:
        return self[nodes.topology.alias].replica(nodes, cluster, name)

    def sent(self, nodes: Any, cluster: str, *, is_write: bool) -> None:
        found = self.get(nodes.topology.alias)
        if found is not None:
            found.sent(nodes, cluster, is_write=is_write)

    def is_harness(self, wrapper: Any) -> bool:
        found = self.get(wrapper.alias)
        return found is not None and found.is_harness(wrapper)


emulated = Emulated()
