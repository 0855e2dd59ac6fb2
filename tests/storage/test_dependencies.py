"""Rows that wait for others: inserted, released, cancelled, each in its transaction."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from lilota_async.errors import TaskNotFound
from lilota_async.models import TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.dependencies import BLOCKED
from lilota_async.storage.queries import delete_task
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Dependent, Finish, NewTask, Released
from lilota_async.storage.writer import Writer
from tests.storage.support import claim, ended, insert, new_task, raw, row_of, transacting

pytestmark = pytest.mark.anyio


async def insert_waiting(
    database: Database, store: Store, *after: UUID, runs_if_failed: bool = False, **values: Any
) -> NewTask:
    """A task that waits for these."""
    task = new_task(**values)
    row = Dependent(task=task, after=after, runs_if_failed=runs_if_failed)
    async with transacting(database) as connection:
        await store.dependencies.insert(connection, [row])
    return task


async def end(database: Database, store: Store, status: TaskStatus = TaskStatus.COMPLETED) -> None:
    """End all that is due."""
    for claimed in await claim(database, store):
        async with transacting(database) as connection:
            await store.finish(connection, [Finish(attempt=claimed.attempt, status=status)])


async def release(database: Database, store: Store, *ids: UUID) -> Released:
    """Release those that wait for these, or for anything."""
    async with transacting(database) as connection:
        edges = await store.dependencies.ended(connection, ids or None)
        return await store.dependencies.release(connection, edges)


async def edges(database: Database) -> int:
    """How many ends are awaited."""
    ((count,),) = await raw(database, "SELECT count(*) FROM lilota_dependency")
    return int(count)


async def test_callers_share_a_flush(database: Database, writer: Writer, store: Store) -> None:
    """Of those who wait for an unknown id each is told, and nobody else."""
    first = new_task()
    await insert(database, store, [first])
    waiting = [new_task() for _ in range(100)]
    unknown = TaskId()
    before = writer.flushes
    results = await asyncio.gather(
        *(
            writer.insert_dependents(
                [Dependent(task=task, after=(unknown if n % 10 == 3 else first.id,))], lambda: None
            )
            for n, task in enumerate(waiting)
        ),
        return_exceptions=True,
    )
    assert writer.flushes <= before + 3
    told = [n for n, result in enumerate(results) if isinstance(result, TaskNotFound)]
    assert told == list(range(3, 100, 10))
    assert await edges(database) == 90
    assert all(result is None for n, result in enumerate(results) if n not in told)
    await end(database, store)
    released = await release(database, store, first.id)
    assert len(released.due) == 90


async def test_it_runs_when_all_have_completed(database: Database, store: Store) -> None:
    """It is pending and not due until the last of them has ended."""
    first, second = new_task(), new_task()
    await insert(database, store, [first])
    await insert(database, store, [second])
    waits = await insert_waiting(database, store, first.id, second.id)
    row = await row_of(database, waits.id)
    assert (row.status, row.run_at) == (TaskStatus.PENDING, BLOCKED)

    (claimed,) = await claim(database, store, 1)
    assert claimed.attempt.id == first.id
    assert await release(database, store) == Released()
    async with transacting(database) as connection:
        done = Finish(attempt=claimed.attempt, status=TaskStatus.COMPLETED)
        await store.finish(connection, [done])
    assert await release(database, store, first.id) == Released(dropped=1)
    await end(database, store)
    assert await release(database, store, second.id) == Released(due=(waits.id,), dropped=1)
    (claimed,) = await claim(database, store)
    assert claimed.attempt.id == waits.id
    assert await edges(database) == 0


@pytest.mark.parametrize("how", ["failed", "cancelled", "deleted"])
@pytest.mark.parametrize("runs", [False, True])
async def test_what_follows_a_failure(
    database: Database, store: Store, how: str, runs: bool
) -> None:
    """It is cancelled, and says why, or runs all the same; so do those that wait for it."""
    parent = new_task()
    await insert(database, store, [parent])
    child = await insert_waiting(database, store, parent.id, runs_if_failed=runs)
    grandchild = await insert_waiting(database, store, child.id)
    if how == "failed":
        await end(database, store, TaskStatus.FAILED)
    elif how == "cancelled":
        async with transacting(database) as connection:
            await store.request_cancel(connection, parent.id)
    else:
        await delete_task(database, parent.id)
    released = await release(database, store)
    if runs:
        assert released == Released(due=(child.id,), dropped=1)
        return
    assert released == Released(cancelled=(child.id,), dropped=1)
    row = await row_of(database, child.id)
    assert row.exception is not None
    assert (row.status, row.exception["kind"]) == (TaskStatus.CANCELLED, "dependency")
    assert row.end_date_time is not None
    words = {"failed": "has failed", "cancelled": "has been cancelled", "deleted": "was deleted"}
    assert words[how] in row.exception["message"]
    assert str(parent.id) in row.exception["message"]
    assert await release(database, store) == Released(cancelled=(grandchild.id,), dropped=1)
    assert await edges(database) == 0


async def test_an_unknown_id_is_refused(database: Database, store: Store) -> None:
    """Nothing is written; what is inserted together may wait for each other."""
    with pytest.raises(TaskNotFound):
        await insert_waiting(database, store, TaskId())
    assert await raw(database, "SELECT id FROM lilota_task") == []
    first, second = new_task(), new_task()
    rows = [Dependent(task=second, after=(first.id,)), Dependent(task=first)]
    async with transacting(database) as connection:
        await store.dependencies.insert(connection, rows)
    assert [claimed.attempt.id for claimed in await claim(database, store)] == [first.id]


async def test_a_row_that_is_there_is_left_alone(database: Database, store: Store) -> None:
    """A repeated insert, as after a lost answer, makes nobody wait again."""
    parent, child = new_task(), new_task()
    await insert(database, store, [parent, child])
    async with transacting(database) as connection:
        await store.dependencies.insert(connection, [Dependent(task=child, after=(parent.id,))])
    assert await edges(database) == 0
    assert len(await claim(database, store)) == 2


async def test_a_time_to_wait_for_as_well(database: Database, store: Store) -> None:
    """It is due when the others have ended and its time has come."""
    parent = new_task()
    await insert(database, store, [parent])
    child = await insert_waiting(database, store, parent.id, delay_seconds=3600.0)
    await end(database, store)
    assert (await release(database, store)).due == (child.id,)
    row = await row_of(database, child.id)
    assert row.run_at < BLOCKED
    assert abs(row.run_at - row.created_at - timedelta(hours=1)) < timedelta(minutes=1)
    assert await claim(database, store) == []


async def test_a_cancelled_task_stays_cancelled(database: Database, store: Store) -> None:
    """The end of what it waited for changes nothing, and its edges go."""
    parent = new_task()
    await insert(database, store, [parent])
    child = await insert_waiting(database, store, parent.id)
    async with transacting(database) as connection:
        await store.request_cancel(connection, child.id)
    await end(database, store)
    assert await release(database, store) == Released(dropped=1)
    assert (await row_of(database, child.id)).status == TaskStatus.CANCELLED
    assert await edges(database) == 0


async def test_two_that_end_at_the_same_time(database: Database, store: Store) -> None:
    """Two nodes take note of two ends at once: one of them releases the task."""
    parents = [new_task() for _ in range(20)]
    await insert(database, store, parents)
    child = await insert_waiting(database, store, *(parent.id for parent in parents))
    for _ in range(2):
        await end(database, store)

    async def take_note(ids: list[TaskId[Any]]) -> list[Released]:
        found = []
        async with Writer(database, store) as writer:
            for each in ids:
                while True:

                    async def note(c: Any, each: UUID = each) -> Released:
                        ended = await store.dependencies.ended(c, [each])
                        return await store.dependencies.release(c, ended)

                    found.append(await writer.execute(note))
                    if not found[-1].held:
                        break
        return found

    ids = [parent.id for parent in parents]
    both = await asyncio.gather(take_note(ids[::2]), take_note(ids[1::2]))
    released = [each for found in both for each in found]
    assert [each.due for each in released if each.due] == [(child.id,)]
    assert await edges(database) == 0


async def test_children_are_written_with_the_end(database: Database, store: Store) -> None:
    """In its transaction, and not for an attempt that is fenced off."""
    await insert(database, store, [new_task()])
    (claimed,) = await claim(database, store)
    first = Dependent(task=new_task(input="1"))
    second = Dependent(task=new_task(input="2"), after=(first.task.id,))
    finish = Finish(attempt=claimed.attempt, status=TaskStatus.COMPLETED, children=(first, second))
    async with Writer(database, store) as writer:
        assert await ended(writer, finish)
        assert [each.attempt.id for each in await claim(database, store)] == [first.task.id]
        assert await edges(database) == 1
        assert await ended(writer, finish)  # again, as after a lost answer
        stranger = Dependent(task=new_task())
        late = Finish(
            attempt=type(claimed.attempt)(
                id=claimed.attempt.id, number=7, node_id=claimed.attempt.node_id
            ),
            status=TaskStatus.COMPLETED,
            children=(stranger,),
        )
        assert not await ended(writer, late)
    ((count,),) = await raw(database, "SELECT count(*) FROM lilota_task")
    assert count == 3
