"""A project's process that keeps its state between the steps of a test.

Guards two invariants: a step has a deadline, and no process outlives its test. So a
test may break a server between two statements of one session.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import textwrap
import time
from typing import Any

from tests.support.project import Project

STEP_TIMEOUT_S = 30
STOP_TIMEOUT_S = 10

_LOOP = """\
import json
import sys
import traceback

import django

django.setup()
from django.core.serializers.json import DjangoJSONEncoder

names = {"__name__": "__main__"}
answers = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    names.pop("result", None)
    try:
        exec(compile(json.loads(line), "<step>", "exec"), names)
        answer = {"result": names.get("result")}
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    print(json.dumps(answer, cls=DjangoJSONEncoder), file=answers, flush=True)
"""


class Console:
    """Runs code in a process of a project, one step after the other."""

    def __init__(self, project: Project, **env: str) -> None:
        project.write("console.py", _LOOP)
        log = project.root / "console.log"
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "console.py"],
                cwd=project.root,
                env=project.environment(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._log = log

    def run(self, code: str, *, timeout_s: float = STEP_TIMEOUT_S) -> Any:
        """Run a step; return what it bound to ``result``, carried as JSON."""
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        pipes[0].write(json.dumps(textwrap.dedent(code)) + "\n")
        pipes[0].flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(pipes[1], selectors.EVENT_READ)
            if not waiting.select(timeout_s):
                raise AssertionError(f"no end in {timeout_s} s: {code}")
        line = pipes[1].readline()
        if not line:
            raise AssertionError(f"the process ended:\n{self._log.read_text()}")
        answer = json.loads(line)
        if "failed" in answer:
            raise AssertionError(f"{code}\n{answer['failed']}")
        return answer["result"]

    def ask(self, expression: str) -> Any:
        """The value of an expression."""
        return self.run(f"result = {expression}")

    def until(self, expression: str, expected: Any, *, timeout_s: float) -> None:
        """Return once the expression has the value that is expected."""
        deadline = time.monotonic() + timeout_s
        found = self.ask(expression)
        while found != expected:
            if time.monotonic() > deadline:
                raise AssertionError(f"{expression}: {found!r} after {timeout_s} s")
            found = self.ask(expression)

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
