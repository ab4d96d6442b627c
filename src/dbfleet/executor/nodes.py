"""Nodes: private connections of one alias, opened when first needed.

A node is an instance of the vendor's own wrapper that no ``connections`` knows. It
stays in driver autocommit; transactions on it are explicit statements. A
``NodeSet`` belongs to one alias wrapper and so to one thread.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from django.db.utils import DatabaseErrorWrapper
from django.utils.functional import cached_property

from dbfleet import sessions, topology
from dbfleet.engines import Engine
from dbfleet.errors import NodeMismatch
from dbfleet.executor.failures import CONNECTION_ERRORS, NodeErrorWrapper, connecting
from dbfleet.health import breaker
from dbfleet.observe import events
from dbfleet.policies import Policy
from dbfleet.topology import ClusterTopology, Topology

#: replicas whose identity was compared with their primary's, in this process
_verified: set[tuple[str, str]] = set()


def forget_alias(alias: str) -> None:
    """Compare the replicas of an alias with their primaries again."""
    for known in [one for one in tuple(_verified) if one[0].startswith(f"{alias}/")]:
        _verified.discard(known)


def resolved_params(wrapper: Any, get_params: Callable[[], Any]) -> Any:
    """Connection parameters with every callable of the settings evaluated."""
    declared = wrapper.settings_dict
    resolved = topology.resolve(declared)
    if resolved is declared:
        return get_params()
    wrapper.settings_dict = resolved
    try:
        return get_params()
    finally:
        wrapper.settings_dict = declared


class NodeMixin:
    """A vendor wrapper as a node of an alias; ``owner`` is the alias's wrapper."""

    owner: Any = None  # none on the connection that creates a test database
    is_replica_node = False

    def get_connection_params(self) -> Any:
        return resolved_params(self, super().get_connection_params)  # type: ignore[misc]

    @cached_property
    def wrap_database_errors(self) -> DatabaseErrorWrapper:
        if self.owner is None:
            return DatabaseErrorWrapper(self)
        return NodeErrorWrapper(self, self.owner)

    def connect(self) -> None:
        if self.owner is None:
            super().connect()  # type: ignore[misc]
        else:
            with connecting(self, self.owner):
                super().connect()  # type: ignore[misc]

    @property
    def catalogue(self) -> Any:
        """The alias's: every node has the same tables."""
        return self.owner.catalogue

    def validate_thread_sharing(self) -> None:
        if self.owner is not None:
            self.owner.validate_thread_sharing()

    def init_connection_state(self) -> None:
        super().init_connection_state()  # type: ignore[misc]
        owner = self.owner
        if self.is_replica_node or (owner is not None and owner.topology.read_only):
            owner.engine.make_read_only(self)


@lru_cache(maxsize=32)
def node_class(vendor_class: type) -> type:
    """The node subclass of a vendor's wrapper, made once."""
    name = f"{vendor_class.__name__}Node"
    return type(
        name, (NodeMixin, vendor_class), {"__module__": vendor_class.__module__}
    )


class NodeSet:
    """The nodes of one alias wrapper; home's primary is the wrapper itself."""

    def __init__(self, wrapper: Any, vendor_class: type) -> None:
        self.wrapper = wrapper
        self.topology: Topology = wrapper.topology
        self.engine: Engine = wrapper.engine
        self._class = node_class(vendor_class)
        self._open: dict[str, Any] = {}
        #: cluster -> (policy, until when, the order that was drawn)
        self._kept: dict[str, tuple[Policy, float, Sequence[str]]] = {}
        self.clusters = {"home": self.topology.home, **self.topology.shards}
        #: the names under which a session remembers what it wrote
        self._keys = {name: f"{self.topology.alias}/{name}" for name in self.clusters}

    # -- single nodes ---------------------------------------------------------

    def node(self, name: str, *, is_replica: bool = False) -> Any:
        """The wrapper of a node, not necessarily connected yet."""
        if name == self.topology.home.primary:
            return self.wrapper
        node = self._open.get(name)
        if node is None:
            settings = self.wrapper.settings_dict["NODES"][name]
            node = self._class(settings, name)
            node.owner = self.wrapper
            node.is_replica_node = is_replica
            self._open[name] = node
        return node

    def extra(self, purpose: str) -> Any:
        """A second connection to home's primary, for work outside a transaction."""
        name = f"{self.topology.alias}/home/{purpose}"
        node = self._open.get(name)
        if node is None:
            node = self._class(self.wrapper.settings_dict, name)
            node.owner = self.wrapper
            self._open[name] = node
        return node

    def quiet(self) -> Any:
        """Home as a node of its own: a database whose log nobody reads."""
        return self.extra("quiet")

    def primary(self, cluster: str) -> Any:
        """The primary of a cluster, connected; raises NodeUnavailable."""
        name = self.clusters[cluster].primary
        node = self.node(name)
        if node is self.wrapper:
            # A gather reaches home without Django's own check. Closing home closes
            # all, so never once a node holds work of a transaction.
            if not self.wrapper.transaction.enlisted:
                node.close_if_health_check_failed()
            return node
        node.close_if_health_check_failed()
        if node.connection is None:
            node.ensure_connection()
        return node

    # -- replicas -------------------------------------------------------------

    def reader(self, cluster: str, policy: Policy, level: str) -> Any:
        """A node of ``cluster`` whose answer this session may see.

        Zero round trips for a session that wrote nothing; otherwise at most one to
        the primary and one to each replica that has not caught up. Never fails
        because of a replica: the primary is the last resort.
        """
        declared = self.clusters[cluster]
        if not declared.replicas or level == "strong":
            return self.primary(cluster)
        key = self._keys[cluster]
        floor = sessions.floor_of(key) if level == "session" else None
        if floor is not None and floor.position is None:
            position = self.engine.position(self.primary(cluster))
            if position is None:
                return self.primary(cluster)
            floor = sessions.Floor(position)
            sessions.set_floor(key, floor)
        for name in self._order(cluster, policy, declared.replicas):
            if breaker.is_open(name):
                continue
            replica = self._usable_replica(declared, name)
            if replica is not None and self._is_fresh(key, replica, name, floor):
                return replica
        return self.primary(cluster)

    def _order(
        self, cluster: str, policy: Policy, replicas: tuple[str, ...]
    ) -> Sequence[str]:
        """The policy's order, kept for as long as the policy says."""
        keep_s = getattr(policy, "keep_s", 0)
        if not keep_s:
            return policy.order(replicas)
        now = time.monotonic()
        kept = self._kept.get(cluster)
        if kept is not None and kept[0] is policy and now < kept[1]:
            return kept[2]
        order = policy.order(replicas)
        self._kept[cluster] = (policy, now + keep_s, order)
        return order

    def _usable_replica(self, cluster: ClusterTopology, name: str) -> Any:
        node = self.node(name, is_replica=True)
        try:
            node.close_if_health_check_failed()
            if node.connection is None:
                node.ensure_connection()
                self._verify(cluster, node, name)
                breaker.succeeded(name)
        except CONNECTION_ERRORS as error:
            if isinstance(error, NodeMismatch):
                node.close()
                raise
            self.failed(name, error)
            return None
        return node

    def _is_fresh(
        self, key: str, node: Any, name: str, floor: sessions.Floor | None
    ) -> bool:
        if floor is None or name in floor.passed:
            return True
        assert floor.position is not None
        try:
            is_fresh = self.engine.has_caught_up(node, floor.position)
        except CONNECTION_ERRORS as error:
            self.failed(name, error)
            return False
        if is_fresh:
            passed = sessions.Floor(floor.position, floor.passed | {name})
            sessions.set_floor(key, passed)
        return is_fresh

    def _verify(self, cluster: ClusterTopology, node: Any, name: str) -> None:
        """Compare a replica with its primary, once in a process.

        A primary that is down cannot be compared with; its replicas then serve
        unverified, and are verified by a later connection.
        """
        if (name, str(node.settings_dict["NAME"])) in _verified:
            return
        problem = None
        if self.engine.is_replica(node) is False:
            problem = NodeMismatch(
                "E203",
                f"{name} is declared as a replica, but the server accepts writes: it "
                "is no replica (any more); correct REPLICAS of alias "
                f"{self.topology.alias!r}",
            )
        else:
            primary = self.node(cluster.primary)
            try:
                systems = self.engine.identity(primary), self.engine.identity(node)
            except CONNECTION_ERRORS:
                return
            if systems[0] != systems[1]:
                problem = NodeMismatch(
                    "E201",
                    f"{name} belongs to system {systems[1]}, its primary "
                    f"{cluster.primary} to {systems[0]}: it replicates another "
                    f"server; correct REPLICAS of alias {self.topology.alias!r}",
                )
        if problem is not None:
            raise problem
        _verified.add((name, str(node.settings_dict["NAME"])))

    def failed(self, name: str, error: BaseException) -> None:
        """A node could not serve: close it and leave it alone for a while."""
        node = self._open.get(name)
        if node is not None:
            with contextlib.suppress(Exception):
                node.close()
            node.connection = None
        breaker.failed(name)
        events.emit("node_failed", node=name, error=type(error).__name__)

    # -- all ------------------------------------------------------------------

    def opened(self) -> Iterator[Any]:
        """Every node that has been asked for, home excluded."""
        yield from tuple(self._open.values())

    def close(self) -> None:
        """Close every node but home; errors of one do not keep others open."""
        for node in self.opened():
            with contextlib.suppress(Exception):
                node.close()
            node.connection = None
