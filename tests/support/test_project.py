"""The temporary projects behave as their docstrings say."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.support.project import Project, ProjectFailed

SQLITE = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
MODELS = """
    class Order(models.Model):
        total = models.IntegerField()
"""


@pytest.fixture
def shop(project: Callable[..., Project]) -> Project:
    return project(databases=SQLITE, models=MODELS, dbfleet=False)


def test_run_returns_the_result_of_its_code(shop: Project) -> None:
    shop.manage("migrate", "--run-syncdb")
    result = shop.run(
        """
        from app.models import Order

        Order.objects.bulk_create(Order(total=n) for n in range(3))
        result = {"totals": list(Order.objects.values_list("total"))}
        """
    )
    assert result == {"totals": [[0], [1], [2]]}


def test_failure_carries_the_output(shop: Project) -> None:
    with pytest.raises(ProjectFailed, match="ZeroDivisionError"):
        shop.run("1 / 0")


def test_warning_is_an_error(shop: Project) -> None:
    with pytest.raises(ProjectFailed, match="UserWarning: mind"):
        shop.run("import warnings; warnings.warn('mind')")


def test_command_may_be_expected_to_fail(shop: Project) -> None:
    finished = shop.manage("no_such_command", check=False)
    assert finished.returncode == 1
    assert "Unknown command" in finished.stderr


def test_deadline_ends_the_process_and_its_children(shop: Project) -> None:
    code = f"""
    import subprocess, time
    print("waiting", flush=True)
    subprocess.run([{sys.executable!r}, "-c", "import time; time.sleep(600)"])
    """
    with pytest.raises(ProjectFailed, match=r"no end in 3 s\n--- stdout\nwaiting"):
        shop.run(code, timeout_s=3)


def test_close_ends_started_processes(shop: Project) -> None:
    child = shop.start("-c", "import time; time.sleep(600)")
    shop.close()
    assert child.poll() is not None
