"""The demo runs from nothing, tells the truth, and leaves nothing behind."""

from __future__ import annotations

import http.cookiejar
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbfleet.testing.rig import wait_until
from dbfleet.testing.rig.identity import unprivileged
from dbfleet.testing.rig.ports import free_port
from dbfleet.testing.rig.postgresql_binaries import find_postgresql
from tests.conftest import start_or_skip
from tests.support.project import REPOSITORY

TIMEOUT_S = 110
LAST_LINE = re.compile(r"demo: (\d+) queries, (\d+) equal, (\d+) different")
NO_POSTGRESQL = {"DBFLEET_RIG_POSTGRESQL": "/nowhere"}

#: runs the demo with one order of the fleet changed behind the ORM's back
SPOILT = """
import sys
from example.demo import __main__, opening

fill = opening.fill

def spoil(report):
    fill(report)
    from example.sales.models import Invoice
    Invoice.objects.filter(pk=1).update(total=1000)

opening.fill = spoil
sys.exit(__main__.main())
"""

COUNT = "from example.sales.models import Invoice; print(Invoice.objects.count())"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory for temporary files that a server's user can enter, too."""
    with tempfile.TemporaryDirectory(prefix="dbfleet-demo-") as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


def environment(temporary: Path, more: dict[str, str]) -> dict[str, str]:
    ours = {"FLEET", "CHINOOK", "EXAMPLE_SERVERS", "DJANGO_SETTINGS_MODULE"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    paths = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    return {**kept, "PYTHONPATH": paths, "TMPDIR": str(temporary), **more}


def run(
    temporary: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the demo, or ``arguments`` instead, with every warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", *(arguments or ("-m", "example.demo"))],
        cwd=REPOSITORY,
        env=environment(temporary, more),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def counts(done: subprocess.CompletedProcess[str]) -> tuple[int, int, int]:
    """Queries, equal, different, as the last line says."""
    lines = done.stdout.splitlines()
    found = LAST_LINE.fullmatch(lines[-1]) if lines else None
    assert found, f"{done.stdout}\n{done.stderr}"
    queries, equal, different = map(int, found.groups())
    return queries, equal, different


def assert_all_equal(done: subprocess.CompletedProcess[str], at_least: int) -> None:
    queries, equal, different = counts(done)
    assert (queries, different) == (equal, 0), done.stdout
    assert queries >= at_least
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def postgresql(request: pytest.FixtureRequest, temporary: Path) -> None:
    """PostgreSQL's programs, or a skip."""
    start_or_skip(
        request,
        "PostgreSQL",
        lambda: find_postgresql(unprivileged("postgres"), copies_in=temporary / "copy"),
    )


@pytest.mark.usefixtures("postgresql")
def test_postgresql(temporary: Path) -> None:
    before = set(temporary.iterdir())
    done = run(temporary, FLEET="postgresql")
    assert_all_equal(done, at_least=60)
    for told in (
        r"error InvoiceLine\.objects\.filter\(.+\)\n +CrossAliasQuery: ",
        r"still reads 'Mix 19'",
        r"again: 7 of 7 equal\n +after: +default/replica2 \d+x\n",
        r"found by itself: default/replica1 ",
        r"error revenue of all orders\n +NodeUnavailable: sales/b/primary",
        r"12 of 12 tables equal",
        r"a playlist is written, by default/replica1; .+\n +read back: 1\n",
    ):
        assert re.search(told, done.stdout), (told, done.stdout)
    assert "SQLite files" not in done.stdout
    assert set(temporary.iterdir()) == before


@pytest.mark.parametrize("environment", [{"FLEET": "sqlite"}, NO_POSTGRESQL])
def test_sqlite_where_asked_for_or_where_nothing_else_runs(
    temporary: Path, environment: dict[str, str]
) -> None:
    done = run(temporary, **environment)
    assert_all_equal(done, at_least=50)
    loud = [line for line in done.stdout.splitlines() if line.startswith("!! ")]
    assert len(loud) == 1
    assert "SQLite files, no replicas" in loud[0]
    assert list(temporary.iterdir()) == []


def test_postgresql_is_not_replaced_where_it_was_asked_for(temporary: Path) -> None:
    done = run(temporary, FLEET="postgresql", **NO_POSTGRESQL)
    assert done.returncode == 1
    assert "DBFLEET_RIG_POSTGRESQL must name a directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("CHINOOK", "/nowhere/chinook.sqlite", "names no file"), ("FLEET", "x", "or")],
)
def test_wrong_choice_is_told(
    temporary: Path, name: str, value: str, told: str
) -> None:
    done = run(temporary, **{"FLEET": "sqlite", name: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"demo: {name} ")
    assert told in done.stderr
    assert list(temporary.iterdir()) == []


def test_a_different_answer_is_told(temporary: Path) -> None:
    done = run(temporary, "-c", SPOILT, FLEET="sqlite")
    queries, equal, different = counts(done)
    assert different > 0
    assert queries == equal + different
    assert re.search(r"DIFF +dashboard", done.stdout)
    assert done.returncode == 1


def test_serve_opens_the_admin_to_this_machine_alone(temporary: Path) -> None:
    port, description = free_port(), temporary / "servers.json"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "example.demo", "--serve"),
            *("--port", str(port), "--description", str(description)),
        ],
        cwd=REPOSITORY,
        env=environment(temporary, {"FLEET": "sqlite"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            wait_until(
                lambda: child.poll() is not None or is_open("127.0.0.1", port),
                timeout_s=TIMEOUT_S / 2,
                what="the store opens",
            )
            page = log_in(f"http://127.0.0.1:{port}/admin/sales/invoice/")
            assert "420 invoices" in page
            assert not is_open(own_address(), port)
            assert description.stat().st_mode & 0o077 == 0
            shell = run(
                temporary,
                *("-m", "example.manage", "shell", "-v", "0", "-c", COUNT),
                EXAMPLE_SERVERS=description.read_text(),
            )
            assert (shell.stdout, shell.returncode) == ("420\n", 0), shell.stderr
        finally:
            child.send_signal(signal.SIGINT)
            stdout, stderr = child.communicate(timeout=TIMEOUT_S / 2)
    assert child.returncode == 0, stderr
    assert "user admin, password admin" in stdout
    assert stdout.rstrip().endswith("every file deleted")
    assert list(temporary.iterdir()) == []


def test_serve_on_a_taken_port_starts_nothing(temporary: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run(temporary, "-m", "example.demo", "--serve", "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {port} is taken: make serve PORT=" in done.stderr
    assert list(temporary.iterdir()) == []


def is_open(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def own_address() -> str:
    """An address of this machine that others may know; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.2"
        address: str = probe.getsockname()[0]
        return address


def log_in(url: str) -> str:
    """The page of the admin at ``url``, as user admin with password admin."""
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    with browser.open(url, timeout=30) as form:
        login = form.geturl()
    token = next(cookie.value for cookie in jar if cookie.name == "csrftoken")
    data = {"username": "admin", "password": "admin", "csrfmiddlewaretoken": token}
    sent = urllib.parse.urlencode(data).encode()
    with browser.open(login, sent, timeout=30) as answer:
        page: str = answer.read().decode()
    return page
