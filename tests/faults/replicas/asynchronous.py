"""Operations of the asynchronous ORM, for the clients that are tasks."""

from __future__ import annotations

import asyncio
import time

from django.db import Error

from dbfleet.errors import FleetError
from tests.faults.replicas import promises
from tests.faults.replicas.models import Register
from tests.faults.replicas.operations import Client, Missed, row_of
from tests.faults.replicas.promises import Row
from tests.faults.replicas.servers import REGISTERS


async def write(client: Client) -> None:
    """Count the own register up by ``aupdate``."""
    counter, at = client.next_counter(), time.monotonic()
    seen, error = client.seen, None
    try:
        await _update(client.number, counter, seen)
    except (Error, FleetError) as raised:
        error = raised
    # Looks the register up where there was no answer, which may take a while.
    await asyncio.to_thread(client.written, "write a_autocommit", counter, at, error)


async def write_in_child(client: Client) -> None:
    """The same in a child task, while another one reads; the parent reads after it."""
    await asyncio.gather(write(client), _read_any(client))
    await read(client, client.number)


async def _read_any(client: Client) -> None:
    try:
        await Register.objects.aexists()
    except (Error, FleetError) as error:
        client.was_told(error)


async def _update(register: int, counter: int, seen: tuple[int, int]) -> None:
    found = await Register.objects.filter(pk=register, counter__lt=counter).aupdate(
        counter=counter, seen_register=seen[0], seen_counter=seen[1]
    )
    if found != 1:
        raise Missed


async def read(client: Client, which: int | None = None) -> None:
    """Read one register by ``aget``."""
    register = client.which() if which is None else which
    at, error = time.monotonic(), None
    rows: list[Row] = []
    try:
        rows.append(row_of(await Register.objects.aget(pk=register)))
    except (Error, FleetError) as raised:
        error = raised
    found = client.seen_rows(rows, "session")
    client.note_read("read a_object", at, rows, found, error)


async def read_all(client: Client) -> None:
    """Read all registers by ``async for``."""
    at, error = time.monotonic(), None
    rows: list[Row] = []
    found: list[str] = []
    try:
        # Objects: Django executes values_list() in the event loop's own thread.
        async for one in Register.objects.order_by("pk").aiterator(chunk_size=5):
            rows.append(row_of(one))
        found += promises.complete(rows, REGISTERS)
    except (Error, FleetError) as raised:
        error = raised
    found += client.seen_rows(rows, "session")
    client.note_read("read a_all", at, rows, found, error)
