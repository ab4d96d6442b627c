"""Runs every bug until it is caught."""

from __future__ import annotations

import argparse
import copy
import random
from contextlib import ExitStack

from dbfleet.testing.rig import Rig
from tests.faults.replicas.servers import Servers


def hunt(options: argparse.Namespace) -> int:
    """Each bug on the same servers; 1 if one of them is not caught."""
    from tests.faults.replicas.__main__ import play
    from tests.faults.replicas.project import configure

    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}, {options.engine}, bugs", flush=True)
    missed: list[str] = []
    caught: list[str] = []
    operations = 0
    with Rig() as rig:
        servers = Servers(rig, options.engine)
        # Bugs name models and methods, which need a project of their own here.
        configure(options.engine, servers.urls)
        from tests.faults.replicas.bugs import BUGS
        from tests.faults.replicas.promotion_bugs import PROMOTION_BUGS

        for name, bug in (BUGS | PROMOTION_BUGS).items():
            if options.bug and name not in options.bug.split(","):
                continue
            if bug.is_wal and options.engine != "postgresql":
                continue
            own = copy.copy(options)
            own.ops, own.stop, own.is_quiet = bug.ops, True, True
            own.promotions = bug.promotes
            with ExitStack() as stack:
                used = servers
                if bug.promotes:  # roles change for good: servers of its own
                    used = Servers(stack.enter_context(Rig()), options.engine)
                found = play(used, own, str(seed), bug.faults.split(","), name)
            operations += found.operations
            what = found.found[0].splitlines()[0][:110] if found.found else "MISSED"
            took = f"{found.operations} operations, {found.took_s:.0f} s"
            print(f"  {name}: {took}: {what}", flush=True)
            (caught if found.found else missed).append(name)
    print(f"bugs: {len(caught)} caught, {len(missed)} missed {missed or ''}")
    print(f"faults: {operations} operations, {len(missed)} violations")
    return 1 if missed else 0
