"""Shows every node of every alias: its role, whether it answers, how fast.

Looks only. Nodes are asked in parallel, each over a new connection and with a
deadline, so a server that does not answer delays the answer and never prevents it.
Exits with 1 if a node is unreachable or is not what the settings say.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import connections
from django.db.utils import Error, load_backend

from dbfleet.engines import Engine, Position, engine_for
from dbfleet.executor import discovery
from dbfleet.executor.failures import reason_of
from dbfleet.executor.nodes import node_class
from dbfleet.planner.route import HOME
from dbfleet.sharding import keepers, ledger

HELP = "show every node: role, whether it answers, latency"
MAX_THREADS = 8
#: what a probe may take beyond connecting: a few round trips
ANSWER_TIMEOUT_S = 2.0


@dataclass
class NodeStatus:
    """What the settings say of a node, and what its server says."""

    alias: str
    cluster: str
    node: str
    role: str
    server_role: str | None = None
    reachable: bool = False
    latency_ms: float | None = None
    #: whether a replica has applied all that its primary had just before
    caught_up: bool | None = None
    version: str | None = None
    #: slots of the shard map that are on a shard's cluster
    slots: int | None = None
    #: whether a cluster keeps claims, and lookups ask it; None where that is not known
    keeps_claims: bool | None = None
    problem: str | None = None
    #: why a node that a source of replicas listed is not read
    left_out: str | None = None
    #: transactions of ours that a shard holds prepared; None where it cannot tell
    prepared: list[str] | None = None


@dataclass
class Probe:
    """One node to ask, with what is needed to ask it."""

    status: NodeStatus
    engine: Engine
    #: makes the connection, in the thread that uses it
    connect: Callable[[], Any]
    is_home_of_shards: bool = False
    #: of a shard's primary: the number that ends the names of its transactions
    number: int | None = None
    #: the distributed engine that it is declared to coordinate
    distributed_by: str | None = None
    #: a source of replicas listed it
    is_found: bool = False
    identity: str | None = None
    position: Position | None = None
    slot_counts: dict[str, int] | None = None
    #: of home: the clusters that keep claims
    keepers: tuple[str, ...] | None = None


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--database", help="only this alias")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=3,
        metavar="seconds",
        help="how long to wait for a connection (default: 3)",
    )


def seconds(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def run(
    stdout: Any, *, database: str | None, json: bool, timeout: int, **options: Any
) -> None:
    """Print the status of every node; raises CommandError if one is not well."""
    if database is not None and database not in connections.settings:
        known = ", ".join(connections.settings)
        raise CommandError(f"there is no alias {database!r}; there are: {known}")
    aliases = [database] if database is not None else list(connections.settings)
    nodes = [*look(aliases, timeout), *_sources(aliases)]
    stdout.write(_as_json(nodes) if json else _table(nodes))
    unwell = [one.node for one in nodes if one.problem]
    if unwell:
        raise CommandError(
            f"{len(unwell)} of {len(nodes)} nodes are unreachable or not what the "
            f"settings say: {', '.join(unwell)}"
        )


def look(aliases: Sequence[str], timeout_s: int) -> list[NodeStatus]:
    """Ask every node of the aliases; two or three times the deadline at most for
    each eight nodes."""
    probes = [probe for alias in aliases for probe in _probes(alias, timeout_s)]
    primaries = [one for one in probes if one.status.role != "replica"]
    replicas = [one for one in probes if one.status.role == "replica"]
    deadline_s = timeout_s + ANSWER_TIMEOUT_S
    by_cluster = {(one.status.alias, one.status.cluster): one for one in primaries}
    _in_parallel([partial(_ask, one, None) for one in primaries], deadline_s)
    _in_parallel(
        [
            partial(_ask, one, by_cluster[one.status.alias, one.status.cluster])
            for one in replicas
        ],
        deadline_s,
    )
    found = []
    for one in probes:
        status = replace(one.status)  # a late answer changes nothing any more
        if not status.reachable and status.problem is None:
            status.problem = f"no answer within {deadline_s:g} s"
        home = by_cluster[status.alias, HOME]
        if home.keepers is not None and status.role == "primary":
            status.keeps_claims = status.cluster in home.keepers
        counts = home.slot_counts
        if counts is not None and status.cluster != HOME and status.role == "primary":
            status.slots = counts.get(status.cluster, 0)
        found.append(status)
    return found


def _probes(alias: str, timeout_s: int) -> list[Probe]:
    """A probe for each node, with a connection of its own that is not open yet."""
    wrapper: Any = connections[alias]
    engine = engine_for(wrapper)
    topology = getattr(wrapper, "topology", None)
    if topology is None:  # not a fleet: one node that is as Django has it
        settings = engine.probe_settings(wrapper.settings_dict, timeout_s)
        kind = load_backend(settings["ENGINE"]).DatabaseWrapper
        status = NodeStatus(alias, HOME, f"{alias}/primary", "primary")
        return [Probe(status, engine, partial(kind, settings, alias))]
    kind = node_class(wrapper.vendor_class)
    found = []
    for cluster in wrapper.nodes.clusters:
        declared = wrapper.nodes.current(cluster, is_asked=True)
        for name in declared.nodes:
            nodes = wrapper.settings_dict["NODES"]
            settings = engine.probe_settings(nodes[name], timeout_s)
            role = "replica" if name != declared.primary else "primary"
            if role == "primary" and topology.read_only:
                role = "read-only"  # which may well be a replica
            is_home = topology.is_sharded and name == topology.home.primary
            status = NodeStatus(alias, cluster, name, role)
            is_found = declared.source is not None and role == "replica"
            connect = partial(kind, settings, name)
            by = topology.distributed_by if role != "replica" else None
            number = None
            if role == "primary" and cluster in topology.shards:
                number = list(topology.shards).index(cluster)
            found.append(Probe(status, engine, connect, is_home, number, by, is_found))
    return found


def _sources(aliases: Sequence[str]) -> list[NodeStatus]:
    """A row for each source of replicas that did not answer."""
    found = []
    for alias in aliases:
        nodes = getattr(connections[alias], "nodes", None)
        for cluster, declared in nodes.clusters.items() if nodes is not None else ():
            failure = declared.source and discovery.failure_of(declared)
            if failure:
                name = f"{declared.name}/replicas"
                found.append(
                    NodeStatus(alias, cluster, name, "source", problem=failure)
                )
    return found


def _ask(probe: Probe, primary: Probe | None) -> None:
    """Fill in what the server says; at most nine round trips."""
    status, engine = probe.status, probe.engine
    node = probe.connect()
    try:
        node.ensure_connection()
        start = time.perf_counter()
        engine.fetch(node, "SELECT 1")
        status.latency_ms = round((time.perf_counter() - start) * 1000, 2)
        status.reachable = True
        status.version = ".".join(map(str, node.get_database_version()))
        is_replica = engine.is_replica(node)
        if is_replica is not None:
            status.server_role = "replica" if is_replica else "primary"
        probe.identity = engine.identity(node)
        if primary is None and not is_replica:
            probe.position = engine.position(node)
        elif primary is not None and primary.position is not None:
            status.caught_up = engine.covers(engine.applied(node), [primary.position])
        if probe.is_home_of_shards:
            probe.slot_counts = ledger.slot_counts(engine, node)
            with contextlib.suppress(Error):  # of a fleet that was not used yet
                probe.keepers = keepers.recorded(engine, node)
        if probe.number is not None:
            status.prepared = _prepared(probe, node)
        problem = _mismatch(probe, primary) or _undistributed(probe, node)
        if probe.is_found and problem:
            status.left_out = problem
        else:
            status.problem = problem
    except (Error, OSError, ImportError, ImproperlyConfigured) as error:
        status.problem = reason_of(error)
    finally:
        with contextlib.suppress(Error, OSError):
            node.close()


def _prepared(probe: Probe, node: Any) -> list[str] | None:
    """What a shard's primary holds prepared for this alias.

    MariaDB and MySQL name those of every database of the server.
    """
    try:
        found = probe.engine.prepared(node)
    except Error:  # it takes a privilege of its own
        return None
    ends = f"_{probe.number}", f"_c{probe.number}"  # of its rows, of its claims
    return sorted(g for g in found if g.startswith("dbfleet_") and g.endswith(ends))


def _mismatch(probe: Probe, primary: Probe | None) -> str | None:
    declared, said = probe.status.role, probe.status.server_role
    if declared != "read-only" and said is not None and said != declared:
        return f"is declared as {declared}, the server says {said}"
    others = primary.identity if primary is not None else None
    if others is not None and probe.identity not in (None, others):
        return f"belongs to system {probe.identity}, its primary to {others}"
    return None


def _undistributed(probe: Probe, node: Any) -> str | None:
    """What a coordinator lacks; its engine goes beside the server's version."""
    if probe.distributed_by is None:
        return None
    from dbfleet.engines import citus  # few projects have it

    found = citus.describe(probe.engine, node)
    if found is None:
        return f"is declared DISTRIBUTED_BY {probe.distributed_by}, which is not there"
    probe.status.version = f"{probe.status.version} ({found})"
    return None


def _in_parallel(actions: Sequence[Callable[[], None]], deadline_s: float) -> None:
    """Run every action in one of a few threads; none is waited for beyond the
    deadline of its turn, and none keeps the process from ending."""
    if not actions:
        return
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    done: queue.SimpleQueue[None] = queue.SimpleQueue()
    for action in actions:
        waiting.put(action)

    def work() -> None:
        while True:
            try:
                action = waiting.get_nowait()
            except queue.Empty:
                return
            action()
            done.put(None)

    count = min(MAX_THREADS, len(actions))
    for _ in range(count):
        threading.Thread(target=work, name="dbfleet-status", daemon=True).start()
    end = time.monotonic() + deadline_s * math.ceil(len(actions) / count)
    for _ in actions:
        try:
            done.get(timeout=max(end - time.monotonic(), 0.001))
        except queue.Empty:
            return


def _as_json(nodes: Sequence[NodeStatus]) -> str:
    return json.dumps([asdict(one) for one in nodes], indent=2)


_HEADINGS = ("node", "role", "server", "latency", "version", "slots", "")


def _table(nodes: Sequence[NodeStatus]) -> str:
    rows = [_HEADINGS, *map(_row, nodes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _row(one: NodeStatus) -> tuple[str, ...]:
    latency = "-" if one.latency_ms is None else f"{one.latency_ms:.2f} ms"
    slots = "" if one.slots is None else str(one.slots)
    remark = "ok"
    if one.problem:
        remark = f"WRONG: {one.problem}" if one.reachable else f"DOWN: {one.problem}"
    elif one.left_out:
        remark = f"left out: {one.left_out}"
    elif one.caught_up is False:
        remark = "behind its primary"
    elif one.prepared:
        remark = f"holds prepared: {', '.join(one.prepared)}"
    elif one.keeps_claims and one.cluster != HOME:
        remark = "ok, keeps claims"
    server = one.server_role or "-"
    return (one.node, one.role, server, latency, one.version or "-", slots, remark)
