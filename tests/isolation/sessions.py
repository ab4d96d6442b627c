"""The sessions that a server sees, told apart by their application_name."""

from __future__ import annotations

from dbfleet.testing.rig import PostgresCluster
from dbfleet.testing.rig.waiting import wait_until

DEADLINE_S = 10


def sessions(cluster: PostgresCluster, name: str) -> set[tuple[str, int]]:
    """(server, pid) of every session of that application_name, on every server."""
    found = set()
    for server in cluster.servers:
        for (pid,) in server.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s", [name]
        ):
            found.add((server.name, pid))
    return found


def wait_for_sessions(cluster: PostgresCluster, name: str, count: int) -> None:
    """Return once the servers have ``count`` sessions of that application_name."""
    wait_until(
        lambda: len(sessions(cluster, name)) == count,
        timeout_s=DEADLINE_S,
        what=f"{name} has {count} sessions",
        poll_s=0.05,
    )


def terminate(cluster: PostgresCluster, name: str) -> None:
    """End every session of that application_name, as a server's restart would."""
    for server in cluster.servers:
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = %s",
            [name],
        )
    wait_for_sessions(cluster, name, 0)
