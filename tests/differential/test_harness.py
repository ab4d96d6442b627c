"""The differential runs must find what they are for: bugs are put in on purpose.

Each run is a process of its own, because it sets Django up with databases of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from decimal import Decimal

import pytest

from tests.differential.compare import Expected, Outcome, Seen, canonical, difference
from tests.differential.several import seeds_of
from tests.differential.source import Code, call, chain, either, text

RUN = """
import sys
{bug}
from tests.differential.__main__ import main
sys.exit(main({arguments!r}))
"""

DROPS_A_SHARD = """
import dataclasses
from dbfleet.planner import plan
right = plan.fragment_of
def fragment(*args):
    part = right(*args)
    if part.table.startswith("differential_"):
        part = dataclasses.replace(part, clusters=part.clusters[:2])
    return part
plan.fragment_of = fragment
"""
PUSHES_FROM_NULLABLE_SIDE = """
from dbfleet.planner import blocks
blocks._is_inner = lambda query, alias: True
"""
IGNORES_DISTINCT = """
from dbfleet.executor.cursors import GatherCursor
right = GatherCursor.execute
GatherCursor.execute = lambda self, sql, params=None: right(
    self, sql.replace("SELECT DISTINCT", "SELECT").replace("COUNT(DISTINCT", "COUNT("),
    params,
)
"""
LOSES_THE_ORDER = """
from dbfleet.executor.cursors import GatherCursor
right = GatherCursor.hold
def hold(self, result):
    result.rows.reverse()
    right(self, result)
GatherCursor.hold = hold
"""
FORGETS_CLAIMS = """
from dbfleet.sharding.claims import Claims
Claims.release = lambda self, *args, **kwargs: None
"""

MISPLACES_NULLS = """
import dataclasses
from dbfleet.planner import merging, partials
right = merging.order_of
def order_of(facts, columns):
    keys = right(facts, columns)
    return tuple(dataclasses.replace(k, nulls_first=not k.nulls_first) for k in keys)
merging.order_of = partials.order_of = order_of
"""
ADDS_UP_DISTINCT_VALUES = """
from dbfleet.planner import partials
partials._is_placed = lambda *args: True
"""
TRUSTS_EVERY_WINDOW = """
from dbfleet.planner import colocation
colocation._check_windows = lambda *args: None
"""
#: what cases have to be made of, as regular expressions over their source
SHAPES = r"""
\.union\(  \.intersection\(  \.difference\(  all=True  \.distinct\(\)  \.dates\(
\.datetimes\(  tzinfo=ZoneInfo  \.first\(\)  \.last\(\)  \.earliest\(  \.latest\(
\.reverse\(\)  \.get\(  \.exists\(\)  \.count\(\)  \.contains\(  \.in_bulk\(\)
\.in_bulk\(\[  field_name=  \.iterator\(chunk_size=  nulls_first=True  nulls_last=True
select_related  prefetch_related  Prefetch\(  to_attr  \.only\(  \.defer\(
locked\(  Exists\(  ~Exists\(  Subquery\(  OuterRef\(  FilteredRelation
Window\(  partition_by=  RowRange  Case\(  Coalesce\(  Cast\(  StdDev\(  Avg\(
distinct=True  filter=  default=  \.aggregate\(  e=\(?F\('a\d'\)  e__gt  \(a0__
attributes__a|options__a  has_key  \.exclude\(  Q\(.*\^  \[\d?:\d\]  \[\d:\]
\.distinct\('  Product_tags\.objects  Customer_favorites\.objects
Shop\.objects  Stock\.objects
"""


def run(
    bug: str = "", *flags: str, **options: object
) -> subprocess.CompletedProcess[str]:
    """A small run on SQLite, with a bug."""
    arguments = ["--engine", "sqlite", *flags]
    for name, value in ({"shards": "3", "count": 120, "seed": 5} | options).items():
        arguments += [f"--{name}", str(value)]
    return subprocess.run(
        [sys.executable, "-c", RUN.format(bug=bug, arguments=arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_agrees_without_a_bug() -> None:
    """The last line is the promised one, and the status says the same."""
    done = run(shards="1,3")
    last = done.stdout.rstrip().splitlines()[-1]
    assert re.fullmatch(
        r"differential: 120 querysets, 0 mismatches, \d+ refused", last
    ), done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    "bug",
    [
        DROPS_A_SHARD,
        PUSHES_FROM_NULLABLE_SIDE,
        IGNORES_DISTINCT,
        LOSES_THE_ORDER,
        FORGETS_CLAIMS,
        MISPLACES_NULLS,
        ADDS_UP_DISTINCT_VALUES,
        TRUSTS_EVERY_WINDOW,
    ],
    ids=[
        "shard",
        "nullable",
        "distinct",
        "order",
        "claims",
        "nulls",
        "distinct sums",
        "windows",
    ],
)
def test_finds(bug: str) -> None:
    """A seeded bug is found, shrunk and printed as code with its rows."""
    done = run(bug, "--until-mismatch", count=1500)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^MISMATCH 1: .*--seed 5 --round \d+$", done.stdout, re.MULTILINE)
    assert "--- rows" in done.stdout
    assert "--- code" in done.stdout


def test_a_seed_repeats_a_run() -> None:
    """The same seed prints the same text."""
    first, second = (run(count=30, seed=11) for _ in range(2))
    assert first.stdout == second.stdout
    assert "seed 11" in first.stdout


CASES = """
import random, sys
from tests.differential.fleet import serve
with serve("sqlite", [1]):
    from tests.differential import data
    from tests.differential.shapes import Shapes
    for number in range(4000):
        chance = random.Random(f"{seed}/{{number // 200}}")
        if number % 200 == 0:
            rows = data.Maker(chance, {engine!r}).make()
        print(repr(str(Shapes(random.Random(number), rows, {engine!r}).case().code)))
"""


def test_every_shape_is_made() -> None:
    """The grammar reaches all that it is meant to reach; not what a run happened to."""
    done = subprocess.run(
        [sys.executable, "-c", CASES.format(engine="postgresql", seed=3)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    made = done.stdout.splitlines()
    assert len(made) == 4000, done.stderr
    counts = {shape: sum(map(bool, map(re.compile(shape).search, made)))
              for shape in SHAPES.split()}  # fmt: skip
    assert {shape: n for shape, n in counts.items() if n < 3} == {}


CONTENTS = """
import random
from django.db import connections
from tests.differential.fleet import serve, working_on
with serve("sqlite", [2]) as fleet:
    from tests.differential import data
    from tests.differential.contents import Contents
    from tests.differential.models import Customer
    rows = data.Maker(random.Random(1), "sqlite").make()
    contents = Contents(fleet, "sharded2")
    contents.fill(rows)
    assert contents.look()
    before = contents.read()
    assert not contents.look()
    contents.keep()
    with working_on("sharded2"):
        Customer.objects.all()[0].delete()
    for node in fleet.nodes["sharded2"].values():
        with connections[node].cursor() as cursor:
            cursor.execute("UPDATE differential_tag SET weight = 77 WHERE weight = 1")
            cursor.execute("UPDATE differential_country SET population = 77")
    assert contents.look()
    after = contents.read()
    changed = {name for name in rows if before[name] != after[name]}
    assert {"Customer", "Country", "Tag"} <= changed, changed
    contents.undo()
    assert data.snapshot("sharded2") == before
    assert not contents.look()
"""


def test_contents_are_put_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONTENTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_decimals_that_were_floats() -> None:
    one, other, third = map(
        Decimal.from_float, (1249852845.553556, 1249852845.553555, 1249862845.5)
    )
    assert len(str(one)) < 34
    assert canonical(one) == canonical(other)
    assert canonical(one) != canonical(third)
    # Digits of a column, and the scale of a server's numeric.
    assert canonical(Decimal("9.99")) != canonical(Decimal("9.990"))
    assert canonical(Decimal(f"1.{20 * '0'}")) != canonical(Decimal(f"1.{19 * '0'}"))


def test_texts_inside_of_results_are_folded() -> None:
    one, other = ([Seen(canonical([{"status": text}]))] for text in ("new", "New "))
    assert canonical(one, folds=True) == canonical(other, folds=True)
    assert canonical(one) != canonical(other)


def test_several_seeds_are_summed_up() -> None:
    """Each seed is a run of its own; a mismatch of one fails them all."""
    done = run("", "--seeds", "3,5-6", "--jobs", "2", count=20)
    assert done.returncode == 0, done.stdout + done.stderr
    for seed in (3, 5, 6):
        assert f"differential: engine sqlite, seed {seed}\n" in done.stdout
    *_, rungs, last = done.stdout.rstrip().splitlines()
    assert rungs.startswith("by rung: ")
    assert last == "differential: 60 querysets, 0 mismatches, 0 refused"


RUN_ALL = """
import subprocess
from tests.differential import several
ends = iter({ends!r})
def run(arguments):
    text, status = next(ends)
    return subprocess.CompletedProcess(["python", "-m", "x", *arguments], status, text)
several._run = run
raise SystemExit(several.run_all([("--seed", "1"), ("--seed", "2")], 1))
"""
GOOD = "by rung: gather 1, one node 3; 75.0% off the gather rung\n{}"


@pytest.mark.parametrize(
    ("second", "status", "last"),
    [
        ("4 querysets, 0 mismatches, 1 refused", 0, "9 querysets, 0 mismatches, 1"),
        ("4 querysets, 2 mismatches, 0 refused", 1, "9 querysets, 2 mismatches, 0"),
        ("Killed", 1, "5 querysets, 0 mismatches, 0"),
    ],
)
def test_a_sum_of_runs(second: str, status: int, last: str) -> None:
    """One mismatch, or one run that broke off, fails all; the last line sums up."""
    ends = [
        (GOOD.format("differential: 5 querysets, 0 mismatches, 0 refused\n"), 0),
        (GOOD.format(f"differential: {second}\n"), status),
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL.format(ends=ends)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stdout.rstrip().splitlines()
    assert lines[-1] == f"differential: {last} refused"
    assert ("1 broke off" in lines[-3]) is (second == "Killed")


@pytest.mark.parametrize("force", ["gather", "scatter"])
def test_forced_rungs(force: str) -> None:
    """Gathering merges nothing; scattering merges what it can."""
    done = run("", "--force", force, count=40)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^by rung: (.*);", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    counts = dict(re.findall(r"([a-z ]+) (\d+)", found[1].replace(", ", ",")))
    merged = {"stream merge", "partial aggregate"} & counts.keys()
    assert bool(merged) is (force == "scatter"), counts


def test_seeds() -> None:
    """Lists and ranges; none is run twice."""
    assert seeds_of("7") == [7]
    assert seeds_of("1,4-6,5") == [1, 4, 5, 6]
    for wrong in ("", "x", "5-3"):
        with pytest.raises(ValueError, match=r"seeds|invalid"):
            seeds_of(wrong)


def test_code_shrinks() -> None:
    """Every smaller tree is valid source, and fixed parts stay."""
    condition = either(call("Q", "a=1"), call("Q", "b=2"), glue="|")
    steps = (
        Code(".filter(", (condition,), tail=")", least=1),
        Code(".order_by('pk')", is_fixed=True),
    )
    code = call("list", chain("Model.objects", *steps))
    found = {str(smaller) for smaller in code.smaller()}
    assert "list(Model.objects.order_by('pk'))" in found
    assert "list(Model.objects.filter(Q(a=1)).order_by('pk'))" in found
    assert all("order_by" in source for source in found)
    assert text("x").parts == ()


def test_a_rounded_deviation_may_end_in_the_next_digit() -> None:
    one, next_one, other = (
        Outcome(canonical([(1, Decimal(value))]))
        for value in ("21.0182", "21.0181", "21.0180")
    )
    rounded = Expected(has_rounded=True)
    assert difference(one, next_one, rounded) is None
    assert difference(one, other, rounded) == "other rows"
    assert difference(one, next_one, Expected()) == "other rows"
    cent, two_cents = (Outcome(canonical([Decimal(v)])) for v in ("0.01", "0.02"))
    assert difference(cent, two_cents, rounded) == "other rows"
