"""The tutorial runs as it is written, step by step."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.support.project import REPOSITORY, Project

PAGE = REPOSITORY / "docs" / "tutorial" / "index.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)


def with_results_checked(code: str) -> str:
    """Turn each line ``expression  # result`` into a comparison of its repr."""

    def compared(line: re.Match[str]) -> str:
        return f"shown = repr({line[1]}); assert shown == {line[2]!r}, shown"

    return re.sub(r"^(\S.*?)  # (.+)$", compared, code, flags=re.M)


def test_tutorial_runs_as_written(project: Callable[..., Project]) -> None:
    site = project(databases={}, dbfleet=False)
    for name in ("settings.py", "manage.py"):
        (site.root / name).unlink()
    env = {"DJANGO_SETTINGS_MODULE": "shopsite.settings"}

    install, *commands = "".join(blocks("console")).splitlines()
    assert "pip install" in install
    models, settings, rows, routes = blocks("python")

    for command in commands[:2]:
        run_command(site, command, {})
    (site.root / "shop" / "models.py").write_text(models)
    with (site.root / "shopsite" / "settings.py").open("a") as file:
        file.write(settings)
    for command in commands[2:]:
        run_command(site, command, env)
    for shard in ("home", "a", "b", "c"):
        assert (site.root / f"{shard}.sqlite3").exists()

    code = with_results_checked(rows) + routes
    shown = site.manage("shell", "-v", "0", "-c", code, env=env).stdout
    rungs = re.findall(r"^rung: +(.+)$", shown, flags=re.M)
    assert rungs == ["one node", "stream merge"]


def run_command(site: Project, command: str, env: dict[str, str]) -> None:
    """Run a line of the page with the Python and the Django of this test run."""
    words = command.removeprefix("$ ").split()
    if words[0] == "django-admin":
        words = ["-m", "django", *words[1:]]
        env = {"DJANGO_SETTINGS_MODULE": ""}
    else:
        assert words[0] == "python", command
        words = words[1:]
    site.python(*words, env=env)
