"""The project of these tests, as text: views that write, read and stream."""

from __future__ import annotations

DATABASES = """
from dbfleet import Cluster, databases

DATABASES = databases(default=Cluster({url!r}, replicas={replicas!r}))
MIDDLEWARE = [
    "dbfleet.carriers.middleware.SessionMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
SESSION_COOKIE_SECURE = True
CARRIERS = {{"HEADER": "X-Dbfleet-Token"}}
DBFLEET = {{"CARRIERS": CARRIERS}}
CACHES = {{
    "default": {{"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    "other": {{"BACKEND": "django.core.cache.backends.dummy.DummyCache"}},
}}
TEMPLATES = [{{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "OPTIONS": {{"loaders": [("django.template.loaders.locmem.Loader", {{
        "texts.html": "{{% for one in texts %}}{{{{ one }}}} {{% endfor %}}",
    }})]}},
}}]
"""

MODELS = """
class Note(models.Model):
    text = models.CharField(max_length=40)


class Which(models.Model):
    port = models.IntegerField(primary_key=True)

    class Meta:
        managed = False
        db_table = "which"
"""

VIEWS = '''
import asyncio

import dbfleet.sessions
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.generic import ListView

from app.models import Note, Which


def texts():
    return sorted(Note.objects.values_list("text", flat=True))


def post(request):
    Note.objects.create(text=request.GET["text"])
    return HttpResponse()


def read(request):
    found = {"texts": texts(), "port": Which.objects.get().port}
    response = JsonResponse(found)
    if "public" in request.GET:
        response.headers["Cache-Control"] = "public, max-age=60"
    return response


def nothing(request):
    return HttpResponse()


def lost(request):
    """As a request ends whose demands were reported as lost."""
    session = dbfleet.sessions.current()
    for floor in session.of("default/home").floors:
        session.drop("default/home", floor)
    return HttpResponse()


def login(request):
    user, _ = User.objects.get_or_create(username=request.GET["user"])
    from django.contrib.auth import login

    login(request, user, "django.contrib.auth.backends.ModelBackend")
    return HttpResponse()


def stream(request):
    def rows():
        Note.objects.create(text="streamed")
        yield " ".join(texts())

    return StreamingHttpResponse(rows())


async def astream(request):
    async def rows():
        await Note.objects.acreate(text="streamed")
        yield " ".join(await sync_to_async(texts)())

    return StreamingHttpResponse(rows())


async def children(request):
    """Each child sees its own, the parent sees all."""

    async def child(n):
        await Note.objects.acreate(text=f"child {n}")
        return f"child {n}" in await sync_to_async(texts)()

    own = await asyncio.gather(*[child(n) for n in range(4)])
    return JsonResponse({"own": own, "texts": await sync_to_async(texts)()})


async def aread(request):
    return await sync_to_async(read)(request)


async def apost(request):
    await Note.objects.acreate(text=request.GET["text"])
    return HttpResponse()


strong = dbfleet.consistency("strong")


@strong
def strong_read(request):
    return read(request)


@strong
async def strong_aread(request):
    return await aread(request)


@strong
def strong_stream(request):
    return StreamingHttpResponse(
        str(Which.objects.get().port) + " " for _ in range(2)
    )


@strong
async def strong_astream(request):
    async def rows():
        for _ in range(2):
            yield str((await Which.objects.aget()).port) + " "

    return StreamingHttpResponse(rows())


@strong
def strong_template(request):
    ports = Which.objects.values_list("port", flat=True)
    return TemplateResponse(request, "texts.html", {"texts": ports})


@method_decorator(strong, name="dispatch")
class StrongList(ListView):
    template_name = "texts.html"
    context_object_name = "texts"
    queryset = Which.objects.values_list("port", flat=True)


@method_decorator(strong, name="dispatch")
class StrongAsync(View):
    async def get(self, request):
        return await aread(request)


class StrongGet(View):
    @method_decorator(strong)
    def get(self, request):
        return read(request)


ALL = (
    post, read, nothing, lost, login, stream, astream, children, aread, apost,
    strong_read, strong_aread, strong_stream, strong_astream, strong_template,
)
urlpatterns = [path(view.__name__, view) for view in ALL] + [
    path("list", StrongList.as_view()),
    path("async", StrongAsync.as_view()),
    path("get", StrongGet.as_view()),
]
'''

PRELUDE = '''
import asyncio
import contextlib
import contextvars
import io
import json
import threading

import dbfleet
from asgiref.testing import ApplicationCommunicator
from dbfleet import conf, sessions
from dbfleet.carriers import headers, shared, signed
from dbfleet.health import breaker
from dbfleet.observe import events
from dbfleet.sessions import tokens
from django.core.asgi import get_asgi_application
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections, transaction
from django.test import override_settings
from app.models import Note, Which
from urls import texts

ROLES = {roles!r}
names_of_all = list(globals())


def where():
    return ROLES[Which.objects.get().port]


def alone(action, *args):
    """Run in a context that inherits nothing."""
    return contextvars.Context().run(action, *args)


def answer(status, headers, body):
    found = {{"status": status, "headers": {{}}, "cookies": []}}
    for name, value in headers:
        if name.lower() == "set-cookie":
            found["cookies"].append(value)
        else:
            found["headers"][name.lower()] = value
    text = body.decode()
    found["body"] = json.loads(text) if text.startswith("{{") else text
    if isinstance(found["body"], dict) and "port" in found["body"]:
        found["body"]["where"] = ROLES[found["body"].pop("port")]
    return found


def wsgi(path, cookie="", **headers):
    """A request through Django's own handler, as a server makes it."""
    path, _, query = path.partition("?")
    environ = {{
        "REQUEST_METHOD": "GET", "PATH_INFO": "/" + path, "QUERY_STRING": query,
        "SERVER_NAME": "test", "SERVER_PORT": "80", "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(),
        "HTTP_COOKIE": cookie,
        **{{"HTTP_" + k.upper(): v for k, v in headers.items()}},
    }}
    said = []

    def go():
        response = WSGIHandler()(environ, lambda *args: said.append(args))
        try:
            return b"".join(response)
        finally:
            response.close()

    body = contextvars.Context().run(go)
    status, found = said[0]
    return answer(int(status[:3]), found, body)


def asgi(path, cookie="", **headers):
    """The same as a server for ASGI makes it."""
    path, _, query = path.partition("?")
    given = {{k.replace("_", "-"): v for k, v in headers.items()}}
    given["cookie"] = cookie
    scope = {{
        "type": "http", "asgi": {{"version": "3.0"}}, "http_version": "1.1",
        "method": "GET", "path": "/" + path, "query_string": query.encode(),
        "scheme": "http", "server": ("test", 80), "client": ("127.0.0.1", 1),
        "headers": [(k.encode(), v.encode()) for k, v in given.items() if v],
    }}

    async def go():
        server = ApplicationCommunicator(get_asgi_application(), scope)
        await server.send_input({{"type": "http.request", "body": b""}})
        start = await server.receive_output(20)
        body, more = b"", True
        while more:
            message = await server.receive_output(20)
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await server.wait(20)
        found = [(k.decode(), v.decode()) for k, v in start["headers"]]
        return answer(start["status"], found, body)

    return contextvars.Context().run(asyncio.run, go())


def observed(action, *args):
    """The events while something is done."""
    found = []
    with events.subscribed(found.append):
        action(*args)
    return [[one.name, one.fields] for one in found if one.name[:5] == "token"]


def start():
    connections.close_all()
    sessions.forget()
    breaker.reset()
    caches_clear()


def caches_clear():
    from django.core.cache import cache

    cache.clear()
'''
