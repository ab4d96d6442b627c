"""The helpers for tests, where a source finds the replicas: nobody asks it."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.project import Project
from tests.testing import sample
from tests.testing.test_blocks import MIDDLEWARE, documented_example, passed

_DATABASES = """
    from dbfleet import Cluster, databases
    from dbfleet.replicas import Call

    def asked():
        raise SystemExit("a test run asked for replicas")

    lite = {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "p"}
    DATABASES = databases(default=Cluster(lite, replicas=Call(asked)))
"""


def test_helpers_ask_no_source(project: Callable[..., Project]) -> None:
    one = project(databases=_DATABASES, models=sample.MODELS, settings=MIDDLEWARE)
    one.write("app/views.py", sample.VIEWS)
    one.write("urls.py", sample.URLS)
    one.write("app/tests.py", sample.HEAD + documented_example() + sample.STALE)
    passed(one)
