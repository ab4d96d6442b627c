"""``python -m tests.faults.sharded``: clients of a fleet that fails, then checkers."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from dbfleet.testing.rig import Rig
from tests.faults.settling import settle_by_table
from tests.faults.sharded.bugs import BUGS
from tests.faults.sharded.history import Operation, State, violations
from tests.faults.sharded.servers import Servers

if TYPE_CHECKING:
    from tests.faults.sharded.clients import Clients
    from tests.faults.sharded.nemesis import Nemesis

CLIENTS = 6
START_BALANCE = 1000
#: a run that takes longer hangs: so long in all, and so long for each operation
END_TIMEOUT_S, OPERATION_TIMEOUT_S = 120, 0.2


def main() -> int:
    options = _options()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.engine}, claims: {options.claims}", flush=True)
    with Rig() as rig:
        servers = Servers(rig, options.engine, options.claims)
        _configure(servers)
        if options.bug:
            BUGS[options.bug]()
        total = _fill(servers)
        history: list[Operation] = []
        found: list[str] = []
        for number in range(options.rounds):
            clients, nemesis = _run(
                servers, options.ops, f"{seed}-{number}", len(history)
            )
            history += clients.history
            found = [*clients.problems, *nemesis.problems]
            found += violations(history, _state(servers), total)
            if found:
                break
    outcomes = Counter((one.kind, one.outcome.value) for one in history)
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"  {kind} {outcome}: {count}")
    for line in found[:50]:
        print(f"VIOLATION {line}")
    print(f"faults: {len(history)} operations, {len(found)} violations")
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.sharded", description=__doc__
    )
    parser.add_argument("--ops", type=int, default=6000, help="operations in all")
    parser.add_argument("--seed", type=int, help="of clients and faults; printed")
    parser.add_argument(
        "--engine", choices=["postgresql", "mariadb", "mysql"], default="postgresql"
    )
    parser.add_argument(
        "--claims", choices=["home", "shards"], default="home", help="who keeps them"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="at most, until there is a violation"
    )
    parser.add_argument("--bug", choices=sorted(BUGS), help="break dbfleet on purpose")
    return parser.parse_args()


def _configure(servers: Servers) -> None:
    import django
    from django.conf import settings

    from dbfleet import Cluster, Sharded, databases

    if servers.engine != "postgresql":
        import pymysql

        pymysql.install_as_MySQLdb()
    entries = databases(
        default=Sharded(
            home=servers.urls["home"],
            shards={
                "a": Cluster(servers.urls["a"], replicas=[servers.replica_url]),
                "b": servers.urls["b"],
            },
            claims=servers.claims,  # type: ignore[arg-type]
        )
    )
    entries["default"]["OPTIONS"] = servers.options()
    settings.configure(
        SECRET_KEY="faults",
        INSTALLED_APPS=["dbfleet", "tests.faults.sharded"],
        DATABASES=entries,
        DBFLEET={
            "LOCAL": ["sharded.Slip"],
            "SHARD_KEYS": {"sharded.Entry": "account"},
        },
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()


def _fill(servers: Servers) -> int:
    from django.core.management import call_command
    from django.db import connections

    from tests.faults.sharded.clients import ACCOUNTS
    from tests.faults.sharded.models import Account, Register

    call_command("migrate", run_syncdb=True, verbosity=0)
    Account.objects.bulk_create(
        [Account(id=n, balance=START_BALANCE) for n in range(ACCOUNTS)]
    )
    Register.objects.bulk_create(
        [Register(client=n, operation=0) for n in range(CLIENTS)]
    )
    connections.close_all()
    return ACCOUNTS * START_BALANCE


def _run(
    servers: Servers, operations: int, seed: str, first: int
) -> tuple[Clients, Nemesis]:
    from tests.faults.sharded.clients import Clients
    from tests.faults.sharded.nemesis import Nemesis

    clients = Clients(CLIENTS, operations, seed, first)
    nemesis = Nemesis(servers, clients, seed)
    started = time.monotonic()
    clients.start()
    nemesis.start()
    if not clients.join(END_TIMEOUT_S + operations * OPERATION_TIMEOUT_S):
        clients.problems.append("clients hang")
    nemesis.stop()
    servers.heal()
    clients.join(60)
    nemesis.settle()
    print(f"  {nemesis.faults} faults in {time.monotonic() - started:.0f} s")
    return clients, nemesis


def _state(servers: Servers) -> State:
    """What the nodes hold, from their own databases, once nothing is in doubt."""
    orphans = [
        f"{node}: {gid}" for node, held in servers.prepared().items() for gid in held
    ]
    settle_by_table(servers)
    entries: dict[int, list[int]] = {}
    for operation, amount in servers.gather(
        "SELECT operation, amount FROM sharded_entry"
    ):
        entries.setdefault(operation, []).append(amount)
    slips = servers.rows("home", "SELECT operation FROM sharded_slip")
    balances: list[Any] = servers.gather("SELECT balance FROM sharded_account")
    return State(
        total=sum(balance for (balance,) in balances),
        entries=entries,
        slips=Counter(operation for (operation,) in slips),
        people=[
            (row[0], row[1])
            for row in servers.gather("SELECT operation, email FROM sharded_person")
        ],
        orphans=orphans,
    )


if __name__ == "__main__":
    sys.exit(main())
