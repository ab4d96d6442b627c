"""The views that the servers of these tests serve, as text of a project's module."""

from __future__ import annotations

URLS = """
import asyncio
import itertools
import threading

from asgiref.sync import sync_to_async
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path
from probe import *
from probe import RUN_TIME

together = threading.Barrier(4)


def work(request, number):
    before = state()
    for seen, used in touch(f"open {number}"):
        together.wait(20)  # four requests are inside their transactions
        return JsonResponse({"before": before, "seen": seen, "pids": used})


async def awork(request, number):
    return await sync_to_async(work)(request, number)


def soiled(request):
    soil()
    if "raise" in request.GET:
        raise RuntimeError("a view failed")
    return JsonResponse({"pids": pids(), "thread": threading.get_ident()})


async def asoiled(request):
    sessions._level.set(dbfleet.bounded(1))
    never_left.append(pins.on_shard("sales", "b"))
    never_left[-1].__enter__()
    await Note.objects.acreate(text="soiled by a task")
    await sync_to_async(soil)()
    # A thread that outlives the request, which asgiref's own do not.
    kept = await sync_to_async(pids_of_runtime, thread_sensitive=False)()
    return JsonResponse({"pids": await sync_to_async(pids)(), "kept": kept})


def pids_of_runtime():
    connections[RUN_TIME].ensure_connection()
    return pids()["runtime/primary" if "runtime/primary" in pids() else "runtime"]


async def ahang(request):
    kept = await sync_to_async(pids_of_runtime, thread_sensitive=False)()
    hanging.set()
    await asyncio.Event().wait()


hanging = threading.Event()


def status(request):
    return JsonResponse(
        {"pids": pids(), "thread": threading.get_ident(), "state": state(),
         "orders": Order.objects.filter(text="never committed").count()}
    )


async def astatus(request):
    return JsonResponse(
        {
            "task": state(),
            "state": await sync_to_async(state)(),
            "kept": await sync_to_async(state, thread_sensitive=False)(),
        }
    )


def stream(request, count):
    def lines():
        for number in itertools.islice(itertools.count(), count):
            found = Note.objects.using(RUN_TIME).count()
            yield f"{number} {len(server_sessions(settings.RUN_TIME_NAME))} {found}\\n"

    return StreamingHttpResponse(lines())


async def astream(request, count):
    async def lines():
        for number in range(count):
            found = await Note.objects.using(RUN_TIME).acount()
            seen = await sync_to_async(server_sessions)(settings.RUN_TIME_NAME)
            yield f"{number} {len(seen)} {found}\\n"

    return StreamingHttpResponse(lines())


urlpatterns = [
    path("work/<int:number>", work),
    path("awork/<int:number>", awork),
    path("soil", soiled),
    path("asoil", asoiled),
    path("ahang", ahang),
    path("status", status),
    path("astatus", astatus),
    path("stream/<int:count>", stream),
    path("astream/<int:count>", astream),
]
"""
