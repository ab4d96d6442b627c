"""Temporary Django projects, each in a directory and in processes of its own.

Guards two invariants: a test's project shares no state with the test run (settings,
connections, caches, threads), and no process outlives its test or its deadline.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S = 10

_SETTINGS = '''\
"""Settings of a test's project."""

from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent
SECRET_KEY = "not a secret: tests only"
DEBUG = False
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = {apps!r}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
ROOT_URLCONF = "urls"
WSGI_APPLICATION = "wsgi.application"
ASGI_APPLICATION = "asgi.application"
{databases}
{more}
'''

_MANAGE = '''\
"""Run Django's commands for this project."""

import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

if __name__ == "__main__":
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
'''

_SERVER = '''\
"""The project as a server sees it."""

import os

from django.core.{kind} import get_{kind}_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_{kind}_application()
'''

_RUN = """\
import json
import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
code_path, result_path = sys.argv[1:3]
names = {"__name__": "__main__", "__file__": code_path}
import django
django.setup()
with open(code_path) as source:
    exec(compile(source.read(), code_path, "exec"), names)
from django.core.serializers.json import DjangoJSONEncoder
with open(result_path, "w") as target:
    json.dump(names.get("result"), target, cls=DjangoJSONEncoder)
"""


class ProjectFailed(AssertionError):
    """A process of a test's project failed or passed its deadline."""


@dataclass(frozen=True)
class Finished:
    """What a process of a project left: its exit code and its output."""

    returncode: int
    stdout: str
    stderr: str


class Project:
    """A Django project with one app, ``app``, in a directory of its own.

    ``databases`` is a plain ``DATABASES`` dict, or Python source that binds
    ``DATABASES`` itself. ``models`` and ``settings`` are Python source; the latter
    comes last, so it overrides. ``apps`` are added after ``dbfleet`` and ``app``.
    """

    def __init__(
        self,
        root: Path,
        *,
        databases: Mapping[str, Any] | str,
        models: str = "",
        settings: str = "",
        apps: Sequence[str] = (),
        dbfleet: bool = True,
    ) -> None:
        self.root = root
        self._runs = 0
        self._children: list[subprocess.Popen[str]] = []
        if not isinstance(databases, str):
            databases = f"DATABASES = {dict(databases)!r}"
        self.write(
            "settings.py",
            _SETTINGS.format(
                apps=[*(["dbfleet"] if dbfleet else []), "app", *apps],
                databases=textwrap.dedent(databases),
                more=textwrap.dedent(settings),
            ),
        )
        self.write("urls.py", "urlpatterns = []\n")
        self.write("manage.py", _MANAGE)
        self.write("wsgi.py", _SERVER.format(kind="wsgi"))
        self.write("asgi.py", _SERVER.format(kind="asgi"))
        self.write("run.py", _RUN)
        self.write("app/__init__.py", "")
        self.write(
            "app/models.py",
            "from django.db import models\n\n" + textwrap.dedent(models),
        )

    def write(self, path: str, text: str) -> Path:
        """Write a file of the project; ``text`` may be indented as a whole."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(text))
        return target

    def run(
        self,
        code: str,
        *,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> Any:
        """Run code in a new process after ``django.setup()``; return its ``result``.

        ``result`` is whatever the code binds to that name, carried as JSON (tuples
        arrive as lists, dates and decimals as strings). Raises ``ProjectFailed``
        with the process's output when it fails.
        """
        self._runs += 1
        code_path = self.write(f"run/{self._runs}.py", code)
        result_path = code_path.with_suffix(".json")
        self.python(
            "run.py", str(code_path), str(result_path), timeout_s=timeout_s, env=env
        )
        return json.loads(result_path.read_text())

    def manage(
        self,
        *args: str,
        check: bool = True,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
    ) -> Finished:
        """Run ``manage.py``; without ``check`` a failure is returned, not raised."""
        return self.python(
            "manage.py", *args, check=check, timeout_s=timeout_s, env=env, stdin=stdin
        )

    def python(
        self,
        *args: str,
        check: bool = True,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
    ) -> Finished:
        """Run the test run's Python in the project, with every warning an error."""
        child = subprocess.Popen(
            [sys.executable, "-W", "error", *args],
            cwd=self.root,
            env=self.environment(env),
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        late = False
        try:
            stdout, stderr = child.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            late = True
            # The whole group: a grandchild would keep the pipes open.
            os.killpg(child.pid, signal.SIGKILL)
            stdout, stderr = child.communicate(timeout=STOP_TIMEOUT_S)
        if late:
            raise ProjectFailed(
                _report(args, f"no end in {timeout_s} s", stdout, stderr)
            )
        if check and child.returncode != 0:
            raise ProjectFailed(
                _report(args, f"exit code {child.returncode}", stdout, stderr)
            )
        return Finished(child.returncode, stdout, stderr)

    def start(
        self, *args: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a process (a server, a worker) that ends with the test.

        Its output goes to ``process-<n>.log`` in the project's directory, n from 1.
        """
        log = self.root / f"process-{len(self._children) + 1}.log"
        with log.open("w") as output:
            child = subprocess.Popen(
                [sys.executable, *args],
                cwd=self.root,
                env=self.environment(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of the project's processes."""
        path = os.pathsep.join([str(self.root), str(REPOSITORY / "src")])
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": path,
            **(more or {}),
        }

    def close(self) -> None:
        """End what :meth:`start` started: politely, then for good."""
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait(STOP_TIMEOUT_S)
        self._children.clear()


def _report(args: Sequence[str], what: str, stdout: str, stderr: str) -> str:
    parts = [f"{' '.join(args)}: {what}"]
    for name, text in (("stdout", stdout), ("stderr", stderr)):
        if text:
            parts.append(f"--- {name}\n{text}")
    return "\n".join(parts)
