"""Nodes: private connections of one alias, opened when first needed.

A node is an instance of the vendor's own wrapper that no ``connections`` knows. It
stays in driver autocommit; transactions on it are explicit statements. A
``NodeSet`` belongs to one alias wrapper and so to one thread.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from django.db.utils import DatabaseErrorWrapper, Error
from django.utils.functional import cached_property

from dbfleet import sessions, topology
from dbfleet.engines import Engine, Position
from dbfleet.errors import NodeMismatch
from dbfleet.executor import discovery, fanout, leaders
from dbfleet.executor.emulated import emulated
from dbfleet.executor.failures import (
    CONNECTION_ERRORS,
    NodeErrorWrapper,
    connecting,
    is_replica,
)
from dbfleet.executor.replicas import Place, Replicas
from dbfleet.executor.watch import watch, watch_connecting
from dbfleet.health import breaker
from dbfleet.observe import events
from dbfleet.sessions import Era, applied, lag
from dbfleet.topology import ClusterTopology, Topology

#: replicas whose identity was compared with their primary's, in this process
_verified: set[tuple[str, str]] = set()

#: cluster -> the server system its primary said it belongs to
_systems: dict[str, str | None] = {}


def forget_alias(alias: str) -> None:
    """Compare the replicas of an alias with their primaries again."""
    for known in [one for one in tuple(_verified) if one[0].startswith(f"{alias}/")]:
        _verified.discard(known)
        applied.forget(known[0])
    for cluster in [one for one in tuple(_systems) if one.startswith(f"{alias}/")]:
        del _systems[cluster]
        leaders.forget(cluster)
        lag.forget(cluster)
    discovery.forget(alias)


def resolved_params(wrapper: Any, get_params: Callable[[], Any]) -> Any:
    """Connection parameters with every callable of the settings evaluated."""
    declared = wrapper.settings_dict
    server = declared
    if wrapper.leader is not None:
        server = (wrapper.owner or wrapper).settings_dict["NODES"][wrapper.leader.name]
    resolved = topology.resolve(server)
    if resolved is declared:
        return get_params()
    wrapper.settings_dict = resolved
    try:
        return get_params()
    finally:
        wrapper.settings_dict = declared


def is_in_memory(wrapper: Any) -> bool:
    """Whether the data of a wrapper's database end with its connection."""
    return bool(getattr(wrapper, "is_in_memory_db", bool)())


class NodeMixin:
    """A vendor wrapper as a node of an alias; ``owner`` is the alias's wrapper."""

    owner: Any = None  # none on the connection that creates a test database
    is_replica_node = False
    #: the cluster whose primary this is; None for other nodes
    cluster: str | None = None
    #: of a second connection to a primary: that node's name
    stands_for: str | None = None
    #: the server that was promoted in the declared one's place
    leader: Any = None
    #: the statement at hand may write, outside a transaction
    is_writing = False

    def get_connection_params(self) -> Any:
        params = resolved_params(self, super().get_connection_params)  # type: ignore[misc]
        if self.cluster is not None:
            params = self.owner.engine.connection_params(self, params)
        if self.is_replica_node and self.owner is not None:
            params = self.owner.engine.bounded(self, params)
        return params

    @cached_property
    def wrap_database_errors(self) -> DatabaseErrorWrapper:
        if self.owner is None:
            return DatabaseErrorWrapper(self)
        return NodeErrorWrapper(self, self.owner)

    def connect(self) -> None:
        if self.owner is None:
            super().connect()  # type: ignore[misc]
        elif self.cluster is None:
            self._connect()
        else:
            leaders.connect(self, self.owner.nodes, self.cluster, self._connect)

    def _connect(self) -> None:
        if self.is_replica_node:
            watch(self)
        elif self.cluster is not None:
            watch_connecting(self)
        with connecting(self, self.owner):
            super().connect()  # type: ignore[misc]

    def close_if_unusable_or_obsolete(self) -> None:
        # Asking one that failed just now whether it is usable may take long.
        node: Any = self
        had_errors = self.is_replica_node and node.errors_occurred
        if had_errors and breaker.is_open(node.alias):
            node.close()
        super().close_if_unusable_or_obsolete()  # type: ignore[misc]

    @property
    def catalogue(self) -> Any:
        """The alias's: every node has the same tables."""
        return self.owner.catalogue

    def validate_thread_sharing(self) -> None:
        if self.owner is not None and not fanout.is_helping():
            self.owner.validate_thread_sharing()

    def init_connection_state(self) -> None:
        if self.is_replica_node and self.owner is not None:
            watch(self)
        super().init_connection_state()  # type: ignore[misc]
        owner = self.owner
        if self.is_replica_node or (owner is not None and owner.topology.read_only):
            owner.engine.make_read_only(self)
        if self.is_replica_node and owner is not None:
            owner.engine.prepare_guard(self)
        elif self.cluster is not None:
            owner.engine.track_commits(self)


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
        self.vendor_class = vendor_class
        self._class = node_class(vendor_class)
        self._open: dict[str, Any] = {}
        self.clusters: dict[str, ClusterTopology] = {
            "home": self.topology.home,
            **self.topology.shards,
        }
        #: the names under which a session remembers what it wrote
        self.keys = {name: f"{self.topology.alias}/{name}" for name in self.clusters}
        #: cluster -> the answer of its source that is in ``clusters``
        self._epochs: dict[str, int] = {}
        #: removed replicas, to be closed when no rows of theirs are to come
        self._leaving: dict[str, Any] = {}
        #: cursors whose rows a server keeps
        self.streaming: weakref.WeakSet[Any] = weakref.WeakSet()
        self.replicas = Replicas(self)
        self.leaders = leaders.Leaders(self)
        #: in a test run a cluster is its primary, see :mod:`dbfleet.backend.creation`
        self.is_alone = bool(wrapper.settings_dict.get("REPLICAS_OFF"))
        if emulated:
            emulated.adopt(self)

    # -- single nodes ---------------------------------------------------------

    def node(self, name: str, *, is_replica: bool = False) -> Any:
        """The wrapper of a node, not necessarily connected yet."""
        if name == self.topology.home.primary:
            return self.wrapper
        node = self._open.get(name)
        if node is None:
            settings = self.wrapper.settings_dict["NODES"][name]
            node = self._leaving.pop(name, None) or self._class(settings, name)
            node.owner = self.wrapper
            node.is_replica_node = is_replica
            self._open[name] = node
        return node

    def extra(self, purpose: str, cluster: str = "home") -> Any:
        """A second connection to a primary, home's or a shard's, for work outside a
        transaction, or in a branch of its own."""
        name = f"{self.topology.alias}/{cluster}/{purpose}"
        node = self._open.get(name)
        if node is None:
            declared, settings = self.clusters[cluster], self.wrapper.settings_dict
            if cluster != "home":
                settings = settings["NODES"][declared.primary]
            node = self._class(settings, name)
            node.owner, node.stands_for = self.wrapper, declared.primary
            self._open[name] = node
        return node

    def quiet(self) -> Any:
        """Home as a node of its own: a database whose log nobody reads."""
        return self.extra("quiet")

    def primary(self, cluster: str, *, is_keeper: bool = False) -> Any:
        """The primary of a cluster, connected; raises NodeUnavailable.

        ``is_keeper``: on the connection of a shard that its claims have.
        """
        if emulated:
            emulated.check_primary(self, cluster)
        declared = self.clusters[cluster]
        if is_keeper:
            node = self.extra("claims", cluster)
        else:
            node = self.node(declared.primary)
        node.is_writing = False
        if declared.replicas or declared.source is not None:
            if node is not self.wrapper and node.cluster is None:
                node.cluster = cluster
            if node.leader is not leaders.leader_of(self.keys[cluster]):
                self._follow(cluster, node)
            self.leaders.check(cluster, node)
        if node is self.wrapper:
            # A gather reaches home without Django's own check. Closing home closes
            # all, so never once a node holds work of a transaction.
            if not self.wrapper.transaction.enlisted:
                node.close_if_health_check_failed()
            if declared.replicas and node.connection is None:
                node.ensure_connection()  # it tells which server is the primary
            return node
        node.close_if_health_check_failed()
        if node.connection is None:
            node.ensure_connection()
        return node

    def _follow(self, cluster: str, node: Any) -> None:
        transaction = self.wrapper.transaction
        if transaction.is_open and transaction.holds(cluster):
            raise NodeMismatch(
                "E209",
                f"another server took the place of {self.clusters[cluster].primary}"
                f" of alias {self.topology.alias!r} during this transaction; nothing "
                "of it was committed: roll back and run it again",
            )
        leaders.follow(node, self, cluster)

    def check_leaders(self, transaction: Any) -> None:
        """Refuse to commit where another server was promoted meanwhile; no I/O."""
        parts = [(part.cluster, part.node) for part in transaction.enlisted.values()]
        for cluster, node in (*parts, ("home", self.wrapper)):
            if node.leader is not leaders.leader_of(self.keys[cluster]):
                self._follow(cluster, node)

    # -- replicas -------------------------------------------------------------

    def current(self, cluster: str, *, is_asked: bool = False) -> ClusterTopology:
        """A cluster with the replicas it has now, where a source finds them.

        With ``is_asked`` the source is asked if it is time, see
        :func:`discovery.found`; otherwise no I/O.
        """
        declared = self.clusters[cluster]
        is_played = emulated and emulated.has(self)
        if declared.source is None or self.is_alone or is_played:
            return declared
        if is_asked:
            found = discovery.found(declared, self.wrapper.settings_dict)
        else:
            found = discovery.known(declared)
        if found.epoch != self._epochs.get(cluster, 0):
            self._epochs[cluster] = found.epoch
            self._take(cluster, declared, found)
            declared = declared._replace(replicas=found.names)
            self.clusters[cluster] = declared
        self.let_go()
        return declared

    def _take(
        self, cluster: str, declared: ClusterTopology, found: discovery.Found
    ) -> None:
        known = self.wrapper.settings_dict["NODES"]
        for name in declared.replicas:
            if name not in found.nodes and name in self._open:
                self._leaving[name] = self._open.pop(name)
        for name, settings in found.nodes.items():
            known[name] = settings
            if name in self._open:  # for its next connection
                self._open[name].settings_dict = settings
        for name in tuple(known):
            if not (
                name.rpartition("/")[0] != declared.name
                or name == declared.primary
                or leaders.leads(self.keys[cluster], name)
                or discovery.is_kept(declared, name)
            ):
                known.pop(name, None)

    def rest(self) -> None:
        """Between two requests: close what was removed."""
        if not self.wrapper.transaction.is_open:
            for name, declared in tuple(self.clusters.items()):
                if declared.source is not None:
                    self.current(name)
            self.let_go(is_idle=True)

    def let_go(self, *, is_idle: bool = False) -> None:
        """Close replicas that were removed, but for those whose rows are still read."""
        if not self._leaving or (self.engine.is_local and not is_idle):
            return  # there, any cursor may have rows to come
        in_use = [] if is_idle else [id(one.node) for one in tuple(self.streaming)]
        for name, node in tuple(self._leaving.items()):
            if id(node) not in in_use:
                del self._leaving[name]
                with contextlib.suppress(Exception):
                    node.close()
                node.connection = None

    def reader(self, place: Place) -> Any:
        """A node of a cluster whose answer this session may see, proved beforehand.

        For statements that cannot carry the proof in their own message: at most one
        more round trip to each replica, which is not waited for.
        """
        replicas = self.replicas
        own = replicas.usual(place)
        if own is not None and not own.wants:
            return own.node
        for choice in replicas.choices(place, None, False):
            try:
                if not choice.wants or replicas.is_proved(
                    place.cluster, choice, self.engine.applied(choice.node)
                ):
                    replicas.served(place, choice)
                    return choice.node
            except CONNECTION_ERRORS as error:
                if choice.name is None:
                    raise
                self.failed(choice.name, error)
        raise AssertionError("the primary is always offered")

    def unchanged(self, name: str, connection: Any) -> Any:
        """A replica that nothing is known against and that is still connected as it
        was; None leaves it to :meth:`usable_replica`. No I/O."""
        node = self._open.get(name)
        if (
            node is None
            or connection is None
            or node.connection is not connection
            or (node.health_check_enabled and not node.health_check_done)
            or breaker.is_troubled()
            or emulated
        ):
            return None
        return node

    def usable_replica(self, cluster: str, name: str) -> Any:
        """A replica, connected; None if it cannot be, or was promoted."""
        if emulated and emulated.has(self):
            return emulated.replica(self, cluster, name)
        declared = self.clusters[cluster]
        if declared.source is not None and name not in declared.replicas:
            return None  # removed while a session stayed on it
        node = self.node(name, is_replica=True)
        try:
            node.close_if_health_check_failed()
            if node.connection is None:
                applied.forget(name)
                node.ensure_connection()
                if not self._verify(cluster, node, name):
                    node.close()
                    return None
                breaker.succeeded(name)
        except CONNECTION_ERRORS as error:
            if isinstance(error, NodeMismatch):
                node.close()
                raise
            self.failed(name, error)
            return None
        return node

    def _verify(self, cluster_name: str, node: Any, name: str) -> bool:
        """Whether a server is a replica, and, once in a process, its primary's.

        A primary that is down cannot be compared with; its replicas then serve
        unverified, and are verified by a later connection.
        """
        known = name, str(node.settings_dict["NAME"])
        if known in _verified and self.engine.is_standby(node):
            return True
        cluster = self.clusters[cluster_name]
        problem = None
        if self.engine.is_replica(node) is False:
            self.leaders.search(cluster_name)
            if leaders.leads(self.keys[cluster_name], name):
                return False
            if known in _verified:  # an old primary that came back, for a while
                breaker.failed(name)
                return False
            problem = NodeMismatch(
                "E203",
                f"{name} is declared as a replica, but the server accepts writes: it "
                "is no replica (any more); correct REPLICAS of alias "
                f"{self.topology.alias!r}",
            )
        elif known not in _verified:
            primary = self.node(cluster.primary)
            try:
                systems = self.engine.identity(primary), self.engine.identity(node)
            except CONNECTION_ERRORS:
                return True
            _systems[self.keys[cluster_name]] = systems[0]
            if systems[0] != systems[1]:
                problem = NodeMismatch(
                    "E201",
                    f"{name} belongs to system {systems[1]}, its primary "
                    f"{cluster.primary} to {systems[0]}: it replicates another "
                    f"server; correct REPLICAS of alias {self.topology.alias!r}",
                )
        if problem is not None and cluster.source is None:
            raise problem
        if problem is not None:
            # A source may well list the primary, too, or know it later than others.
            events.emit("replica_refused", node=name, reason=str(problem))
            discovery.refuse(cluster, name)
            return False
        _verified.add(known)
        return True

    def system_of(self, cluster: str) -> str | None:
        """The server system that a cluster belongs to, once it was asked."""
        return _systems.get(self.keys[cluster])

    def is_replaceable(self, node: Any, error: Error) -> bool:
        """Whether another node may answer what a replica could not."""
        if not is_replica(node):
            return False
        engine = self.engine
        if engine.is_read_only_error(error) or engine.is_recovery_conflict(error):
            return True
        if not isinstance(error, CONNECTION_ERRORS) or not engine.is_lost(node):
            return False
        self.failed(node.alias, error)
        return True

    def failed(self, name: str, error: BaseException) -> None:
        """A node could not serve: close it and leave it alone for a while."""
        node = self._open.get(name)
        if node is not None:
            with contextlib.suppress(Exception):
                node.close()
            node.connection = None
        applied.forget(name)
        if not discovery.is_gone(name):
            breaker.failed(name)
        events.emit("node_failed", node=name, error=type(error).__name__)

    def era(self, cluster: str, primary: Any) -> Era:
        """Which server a primary's wrapper is connected to; no I/O."""
        leader = primary.leader
        name = leader.name if leader is not None else self.clusters[cluster].primary
        found = leaders.found(self.keys[cluster])
        return Era(str(name), self.engine.known_timeline(primary), found)

    def read_era(self, cluster: str) -> Era:
        """Under which primary, as far as this process knows, replicas are read; no
        I/O."""
        key = self.keys[cluster]
        leader = leaders.leader_of(key)
        name = leader.name if leader is not None else self.clusters[cluster].primary
        return Era(str(name), leaders.timeline_of(key), leaders.found(key))

    # -- what a session saw -----------------------------------------------------

    def saw(self, cluster: str, position: Position | None = None) -> None:
        """The session saw the primary of a cluster at ``position``, or wrote there;
        None: at one it was not told. Nothing to remember without replicas."""
        if not self.clusters[cluster].is_replicated:
            return
        session, key = sessions.current(), self.keys[cluster]
        if position is None:
            node = self.node(self.clusters[cluster].primary)
            session.saw_unknown(key, self.era(cluster, node))
        else:
            leaders.saw_timeline(key, position.timeline)
            session.demand(key, [position], self.engine.merge)

    def counts(self, cluster: str) -> bool:
        """Whether a write to a cluster now, in autocommit, has to be counted."""
        return (
            self.engine.counts_commits
            and self.clusters[cluster].is_replicated
            and not self.wrapper.transaction.is_open
        )

    def counted(self, node: Any, sql: str) -> contextlib.AbstractContextManager[Any]:
        """A block for one statement that may write to a primary, counted if need be."""
        cluster = "home" if node is self.wrapper else node.cluster
        if cluster is None or not self.counts(cluster):
            return contextlib.nullcontext()
        return self.engine.counted(node, sql)

    # -- all ------------------------------------------------------------------

    def ensure_timezone(self) -> None:
        """Have every node answer in the time zone that the settings say now."""
        for node in self.opened():
            node.__dict__.pop("timezone", None)
            node.__dict__.pop("timezone_name", None)
            node.ensure_timezone()

    def opened(self) -> Iterator[Any]:
        """Every node that has been asked for, home excluded."""
        yield from (*self._open.values(), *self._leaving.values())

    def close(self) -> None:
        """Close every node but home; errors of one do not keep others open."""
        for node in self.opened():
            with contextlib.suppress(Exception):
                node.close()
            if not is_in_memory(node):
                node.connection = None
        self._leaving.clear()
