"""The command line: ``python -m tests.conformance --alias … --engine …``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tests.conformance import compare, report
from tests.conformance.fleet import serve, write_settings
from tests.conformance.run import Run, app_of, run_tests
from tests.conformance.sources import (
    BUILD,
    MINIMUM_PYTHON,
    ROOT,
    CannotRun,
    Source,
    find_source,
    installed_series,
)

HOME = BUILD / "conformance"
KNOWN_DIFFERENCES = Path(__file__).with_name("known_differences.toml")
DEADLINE_S = 3600.0
STALL_S = 120.0
APPS = """
basic queries aggregation aggregation_regress annotations lookup ordering expressions
expressions_case expressions_window prefetch_related select_related delete bulk_create
update many_to_many many_to_one one_to_one generic_relations defer distinct_on_fields
get_or_create model_inheritance transactions dates datetimes db_functions
known_related_objects m2m_through null_queries or_lookups raw_query reverse_lookup
save_delete_hooks signals string_lookup force_insert_update custom_pk composite_pk
multiple_database
"""
# What a machine that checks every change can wait for.
BOUNDED_APPS = {
    ("sharded", "postgresql"): """
    basic queries aggregation annotations lookup ordering expressions_case
    prefetch_related delete bulk_create update many_to_many get_or_create transactions
    composite_pk multiple_database
    """,
}
BOUNDED_FALLBACK = "basic aggregation lookup delete bulk_create update transactions"


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    alias: str
    engine: str
    shards: int
    #: one run with each
    shard_counts: tuple[int, ...]
    django: str
    labels: list[str]
    whole_apps: list[str]
    baseline: bool
    keep: bool
    verbose: bool
    deadline_s: float
    stall_s: float
    python: str | None
    django_source: str | None

    @property
    def name(self) -> str:
        many = f"-{self.shards}" if len(self.shard_counts) > 1 else ""
        return f"{self.alias}-{self.engine}-{self.django}{many}"

    @property
    def path(self) -> Path:
        return HOME / self.name


def parse(arguments: list[str]) -> Options:
    """Read the command line; exits with a message if it makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    aliases = ("cluster", "sharded", "placement", "plain")
    parser.add_argument("--alias", choices=aliases, default="sharded")
    parser.add_argument("--engine", choices=compare.ENGINES, default="postgresql")
    parser.add_argument(
        "--shards",
        type=lambda given: [int(number) for number in given.split(",")],
        default=[3],
        help="of a sharded alias; 1,2,8: a run with each",
    )
    parser.add_argument("--django", choices=sorted(MINIMUM_PYTHON))
    parser.add_argument("--apps", nargs="+", help="Django's test apps")
    parser.add_argument("--tests", nargs="+", help="single test labels")
    parser.add_argument("--bounded", action="store_true", help="a quick subset")
    parser.add_argument(
        "--no-baseline", action="store_true", help="use the stored plain results"
    )
    parser.add_argument("--keep", action="store_true", help="leave the servers running")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S)
    parser.add_argument("--stall-s", type=float, default=STALL_S)
    parser.add_argument("--python", help="a Python that has Django and the drivers")
    parser.add_argument("--django-source", help="an unpacked source distribution")
    given = parser.parse_args(arguments)
    if min(given.shards) < 1:
        parser.error("--shards must be at least 1")
    if sum(map(bool, (given.apps, given.tests, given.bounded))) > 1:
        parser.error("give one of --apps, --tests and --bounded")
    apps = words(given.apps) or APPS.split()
    if given.bounded:
        chosen = BOUNDED_APPS.get((given.alias, given.engine), BOUNDED_FALLBACK)
        apps = chosen.split()
    whole_apps = [] if given.tests else apps
    return Options(
        alias=given.alias,
        engine=given.engine,
        shards=given.shards[0],
        shard_counts=tuple(given.shards),
        django=given.django or installed_series(),
        labels=words(given.tests) or whole_apps,
        whole_apps=whole_apps,
        baseline=not given.no_baseline,
        keep=given.keep,
        verbose=given.verbose,
        deadline_s=given.deadline_s,
        stall_s=given.stall_s,
        python=given.python,
        django_source=given.django_source,
    )


def words(given: list[str] | None) -> list[str]:
    """The words of arguments that a shell may or may not have split."""
    return " ".join(given or []).split()


def check_labels(options: Options, source: Source) -> None:
    """Refuse apps that Django's tests do not have: a typo must not pass for a test."""
    unknown = [
        app
        for app in dict.fromkeys(map(app_of, options.labels))
        if not (source.tests_path / app / "__init__.py").is_file()
    ]
    if unknown:
        raise CannotRun(
            f"Django {source.version} has no test apps named {' '.join(unknown)}."
        )


def baseline_path(options: Options, source: Source) -> Path:
    return HOME / f"baseline-{options.engine}-{source.version}.json"


def stored_baseline(options: Options, source: Source) -> Run:
    """The stored plain results of these labels; ``CannotRun`` if there are none."""
    path = baseline_path(options, source)
    if not path.exists():
        raise CannotRun(f"No baseline at {path}: run once without --no-baseline.")
    stored = Run.from_json(json.loads(path.read_text(encoding="utf-8")))
    wanted = tuple(f"{label}." for label in options.labels)
    for label, prefix in zip(options.labels, wanted, strict=True):
        if not any(f"{test_id}.".startswith(prefix) for test_id in stored.tests):
            raise CannotRun(f"{path} has nothing of {label}: run it once with it.")
    stored.tests = {
        test_id: outcome
        for test_id, outcome in stored.tests.items()
        if f"{test_id}.".startswith(wanted)
    }
    apps = {app_of(label) for label in options.labels}
    stored.app_seconds = {app: stored.app_seconds[app] for app in sorted(apps)}
    if not options.whole_apps:
        stored.app_seconds = seconds_by_app(stored)
    stored.total_s = stored.setup_s + sum(stored.app_seconds.values())
    return stored


def seconds_by_app(run: Run) -> dict[str, float]:
    """Seconds per app, of the tests alone."""
    seconds: dict[str, float] = {}
    for test_id, outcome in run.tests.items():
        app = app_of(test_id)
        seconds[app] = seconds.get(app, 0.0) + outcome.seconds
    return seconds


def store_baseline(options: Options, source: Source, plain: Run) -> None:
    """Add whole apps that ran to their end to the stored plain results."""
    if plain.cut_short or not options.whole_apps:
        return
    path = baseline_path(options, source)
    merged = Run()
    if path.exists():
        merged = Run.from_json(json.loads(path.read_text(encoding="utf-8")))
    apps = set(options.whole_apps)
    merged.tests = {
        test_id: outcome
        for test_id, outcome in merged.tests.items()
        if app_of(test_id) not in apps
    }
    merged.tests.update(plain.tests)
    merged.fixtures.update(plain.fixtures)
    merged.app_seconds.update(plain.app_seconds)
    merged.setup_s = plain.setup_s
    path.write_text(json.dumps(merged.to_json()), encoding="utf-8")


def execute(options: Options, source: Source) -> tuple[Run, Run]:
    """Run the plain engine, then the alias under test, on the same servers."""

    def run(name: str, alias: str, expression: str) -> Run:
        print(f"{name}: running {len(options.labels)} labels ...", flush=True)
        path = options.path / f"conformance_{name}.py"
        write_settings(path, alias, options.engine, options.django, expression)
        done = run_tests(
            python=source.python,
            tests_path=source.tests_path,
            settings_path=path,
            import_paths=[ROOT / "src"],
            labels=options.labels,
            deadline_s=options.deadline_s,
            stall_s=options.stall_s,
            echo=options.verbose,
        )
        print(f"{name}: {len(done.tests)} tests in {done.total_s:.1f} s", flush=True)
        return done

    options.path.mkdir(parents=True, exist_ok=True)
    with serve(
        options.alias,
        options.engine,
        options.shards,
        options.path,
        keep=options.keep,
    ) as servers:
        if options.baseline:
            plain = run("plain", "plain", servers.plain)
            store_baseline(options, source, plain)
        else:
            plain = stored_baseline(options, source)
        subject = run("subject", options.alias, servers.subject)
    if options.keep:
        print(reproduction(options, source))
    return plain, subject


def reproduction(options: Options, source: Source) -> str:
    """How to run single tests of the subject once more, on the kept servers."""
    paths = f"{options.path}:{ROOT / 'src'}:{Path(__file__).parent / 'child'}"
    return (
        f"to run a test on them:\n"
        f"  cd {source.tests_path} && PYTHONPATH={paths} PYTHONHASHSEED=0 "
        f"{source.python} runtests.py --settings=conformance_subject --parallel=1 "
        f"--noinput LABEL"
    )


def main(arguments: list[str]) -> int:
    """Run, compare, report. 0 if nothing was unexpected."""
    found: dict[int, compare.Comparison] = {}
    try:
        options = parse(arguments)
        known = compare.read_known(KNOWN_DIFFERENCES.read_text(encoding="utf-8"))
        source = find_source(options.django, options.python, options.django_source)
        check_labels(options, source)
        for number in options.shard_counts:
            one = replace(options, shards=number)
            if found and options.whole_apps:
                one = replace(one, baseline=False)  # stored by the first run
            found[number] = judged(one, source, known)
    except (CannotRun, ValueError) as error:
        print(f"conformance cannot run: {error}", file=sys.stderr)
        return 1
    if len(found) > 1:
        for number, comparison in found.items():
            print(f"{number} shards: {comparison.summary}", flush=True)
    return 1 if any(comparison.unexpected for comparison in found.values()) else 0


def judged(
    options: Options, source: Source, known: list[compare.KnownDifference]
) -> compare.Comparison:
    """One run: what it printed ends with its summary."""
    plain, subject = execute(options, source)
    applicable = [
        entry
        for entry in known
        if entry.applies(options.alias, options.engine, options.django)
    ]
    comparison = compare.compare(plain, subject, applicable, options.whole_apps)
    details = HOME / f"{options.name}.json"
    report.write_details(
        details,
        plain,
        subject,
        comparison,
        alias=options.alias,
        engine=options.engine,
        shards=options.shards,
        django=source.version,
        python=str(source.python),
    )
    for line in report.report(plain, subject, comparison, options.alias):
        print(line)
    print(f"details: {details.relative_to(ROOT)}")
    print(comparison.summary, flush=True)
    return comparison


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
