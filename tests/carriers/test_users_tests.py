"""A project's own ``TestCase``: requests of its client see what the test wrote."""

from __future__ import annotations

from tests.carriers.conftest import Site

TESTS = """
from django.test import AsyncClient, TestCase, TransactionTestCase
from app.models import Note


class Both:
    def test_a_request_sees_what_the_test_wrote(self):
        Note.objects.create(text="by the test")
        for path in ("/seen", "/aseen"):
            found = self.client.get(path).json()
            self.assertEqual(found["texts"], ["by the test"])

    def test_the_test_sees_what_a_request_wrote(self):
        self.client.get("/post?text=by a request")
        self.assertEqual(Note.objects.get().text, "by a request")
        found = self.client.get("/seen").json()
        self.assertEqual(found["texts"], ["by a request"])

    async def test_async(self):
        await Note.objects.acreate(text="by the test")
        await self.async_client.get("/apost?text=by a request")
        found = (await self.async_client.get("/aseen")).json()
        self.assertEqual(found["texts"], ["by a request", "by the test"])
        self.assertEqual(await Note.objects.acount(), 2)


class Inside(Both, TestCase):
    pass


class Outside(Both, TransactionTestCase):
    pass
"""

URLS = """
from urls import *
from urls import urlpatterns


def seen(request):
    return JsonResponse({"texts": texts()})


async def aseen(request):
    return await sync_to_async(seen)(request)


urlpatterns = [*urlpatterns, path("seen", seen), path("aseen", aseen)]
"""


def test_users_tests(fleet: Site) -> None:
    """Replicas are paused; Django's runner makes its own database on the primary."""
    fleet.project.write("app/tests.py", TESTS)
    fleet.project.write("test_urls.py", URLS)
    fleet.project.write(
        "settings_of_tests.py", "from settings import *\nROOT_URLCONF = 'test_urls'\n"
    )
    found = fleet.project.manage(
        "test", "app", "--settings=settings_of_tests", "--noinput", check=False
    )
    assert found.returncode == 0, found.stderr
    assert "Ran 6 tests" in found.stderr
