"""asyncio tasks share no state of a session, and no run-time database of a scope.

Outside a server all tasks work in one thread, one call at a time, on that thread's
connection; that is Django's own rule. Under ASGI each request has a thread.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.isolation.fleet import Fleet


def test_tasks_share_no_consistency_state(fleet: Callable[..., Fleet]) -> None:
    writer, reader, parent = fleet().run(
        """
        import asyncio

        async def writes(written, seen):
            with dbfleet.pin("primary"), dbfleet.on_shard("sales", "a"):
                await Note.objects.acreate(text="by a task")
                written.set()
                await seen.wait()
                return state()

        async def reads(written, seen):
            with dbfleet.consistency("eventual"), dbfleet.on_shard("sales", "b"):
                await written.wait()
                found = state()
                seen.set()
                return found

        async def main():
            events = asyncio.Event(), asyncio.Event()
            states = await asyncio.gather(writes(*events), reads(*events))
            return [*states, state()]

        result = asyncio.run(main())
        """
    )
    assert (writer["floors"], writer["level"]) == (["default/home"], "strong")
    assert (reader["floors"], reader["level"]) == ([], "eventual")
    assert (parent["floors"], parent["level"]) == ([], None)
    assert [one["shard"] for one in (writer, reader, parent)] == ["a", "b", None]


def test_task_sees_what_its_parent_wrote(fleet: Callable[..., Fleet]) -> None:
    """A replica that lags must not serve a task spawned after the write."""
    built = fleet()
    for replica in built.postgres.replicas:
        replica.pause_replay()
    try:
        counts = built.run(
            """
            import asyncio

            async def main():
                await Note.objects.acreate(text="seen by children")
                notes = Note.objects.filter(text="seen by children")
                return await asyncio.gather(*(notes.acount() for _ in range(3)))

            result = asyncio.run(main())
            """
        )
    finally:
        for replica in built.postgres.replicas:
            replica.resume_replay()
    assert counts == [1, 1, 1]


def test_tasks_share_no_transaction(fleet: Callable[..., Fleet]) -> None:
    found = fleet().run(
        """
        import asyncio
        from asgiref.sync import ThreadSensitiveContext, sync_to_async

        def inside(number):
            for seen, used in touch(f"open {number}"):
                return seen, used, state()["in_atomic"]

        async def in_a_thread_of_its_own(number):
            async with ThreadSensitiveContext():
                return await sync_to_async(inside)(number)

        async def in_the_common_thread(number):
            return await sync_to_async(inside)(number)

        async def main():
            return [
                await asyncio.gather(*(work(number) for number in range(3)))
                for work in (in_a_thread_of_its_own, in_the_common_thread)
            ]

        result = [*asyncio.run(main()), len(state()["in_atomic"])]
        """
    )
    own, common, left = found
    for seen, _, in_atomic in (*own, *common):
        assert seen == [0, 0, 0]
        assert len(in_atomic) == 3  # default, sales, the run-time one
    pids = [pid for _, used, _ in own for pid in used.values()]
    assert len(set(pids)) == len(pids)
    assert left == 0


def test_task_that_ends_leaves_its_scope(fleet: Callable[..., Fleet]) -> None:
    built = fleet()
    inside, between, after = built.run(
        """
        import asyncio
        from asgiref.sync import sync_to_async

        async def work(counts):
            async with dbfleet.scope():
                await Note.objects.using(RUN_TIME).acount()
                counts.append(state()["runtime"])
            counts.append(state()["runtime"])

        async def main():
            counts = []
            await asyncio.create_task(work(counts))
            counts.append(await sync_to_async(state)())
            return counts

        inside, after, last = asyncio.run(main())
        # The loop's own thread has no connection: the work is done in another one.
        result = inside, after, last["runtime"]
        """
    )
    assert inside == between == after == []
    built.wait_for_runtime_sessions(0)
