"""``python -m tests.faults``: both runs, of a sharded alias and of a cluster."""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys

#: a commit over several nodes takes longer than a read: so many operations at most
SHARDED_OPS = 6000
_LAST = re.compile(r"faults: (\d+) operations, (\d+) violations")


def main() -> int:
    options = _options()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    common = ["--engine", options.engine, "--seed", str(seed)]
    sharded = max(min(options.ops // 10, SHARDED_OPS), 500)
    runs = {
        "sharded": [*common, "--ops", str(sharded)],
        "replicas": [*common, "--ops", str(max(options.ops - sharded, 500))],
    }
    if not options.promotions:
        runs["replicas"].append("--no-promotions")
    operations = found = 0
    for name, arguments in runs.items():
        last = _run([sys.executable, "-m", f"tests.faults.{name}", *arguments])
        if last is None:
            print(f"VIOLATION the run of {name} did not end as it should")
            found += 1
            continue
        operations, found = operations + int(last[1]), found + int(last[2])
    print(f"faults: {operations} operations, {found} violations")
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--ops", type=int, default=20000, help="operations in all")
    parser.add_argument("--seed", type=int, help="of clients and faults; printed")
    parser.add_argument(
        "--engine", choices=["postgresql", "mariadb", "mysql"], default="postgresql"
    )
    parser.add_argument(
        "--promotions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="promote replicas as well",
    )
    return parser.parse_args()


def _run(command: list[str]) -> re.Match[str] | None:
    """Run and show; the last line says how it went."""
    found = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = _LAST.fullmatch(line.strip())
            if found is None:
                print(line, end="", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
