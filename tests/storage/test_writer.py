"""Group commit: shared flushes, poisoned operations, cancelled callers and closing."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from lilota_async.errors import NotRunning, StoreError, TaskIsRunning
from lilota_async.models import TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.queries import get_task, get_tasks
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import (
    Attempt,
    Claim,
    Claimed,
    ClaimedTask,
    Finish,
    NewTask,
    Report,
    Requeue,
)
from lilota_async.storage.writer import Writer
from tests.storage.support import NODE, checked_out, ended, eventually, held_by, new_task, row_of

pytestmark = pytest.mark.anyio

CLAIM_ONE = Claim(node_id=NODE, names=("add",), pids=(1,))


def poisoned() -> NewTask:
    """A task that no database takes."""
    return NewTask(id=TaskId(), name=None)  # type: ignore[arg-type]


async def test_callers_share_a_flush(database: Database, writer: Writer) -> None:
    """A hundred concurrent inserts need few commits, and all are there afterwards."""
    tasks = [new_task() for _ in range(100)]
    await asyncio.gather(*(writer.insert([task]) for task in tasks))
    assert writer.flushes <= 3
    assert [task.id for task in await get_tasks(database)] == [task.id for task in tasks]


async def test_a_flush_takes_every_kind_in_its_order(database: Database, writer: Writer) -> None:
    """A claim sees what was inserted with it, and a report what is finished with it.

    Where a batch of one kind is one statement, each kind has a flush of its own.
    """
    await writer.insert([new_task()])
    (first,) = (await writer.claim(lambda: CLAIM_ONE)).tasks
    task = new_task()
    before = writer.flushes
    claiming = asyncio.ensure_future(writer.claim(lambda: CLAIM_ONE))
    await asyncio.sleep(0)
    inserting = writer.insert([task])
    finish = Finish(attempt=first.attempt, status=TaskStatus.COMPLETED, output="2")
    reporting = writer.report(Report(attempt=first.attempt, checkpoint="1"))
    assert await ended(writer, finish)
    assert await reporting
    await inserting
    assert [item.attempt.id for item in (await claiming).tasks] == [task.id]
    flushes = {"postgresql": 3, "sqlite": 2}.get(database.dialect, 1)
    assert writer.flushes == before + flushes
    row = await row_of(database, first.attempt.id)
    assert (row.checkpoint, row.output) == (1, 2)


async def test_fenced_operations_are_false(writer: Writer) -> None:
    """Whoever is fenced off learns it."""
    attempt = Attempt(id=TaskId(), number=1, node_id=NODE)
    answers = await asyncio.gather(
        ended(writer, Finish(attempt=attempt, status=TaskStatus.FAILED)),
        ended(writer, Requeue(attempt=attempt)),
        writer.report(Report(attempt=attempt, progress=1)),
    )
    assert list(answers) == [False, False, False]


async def test_a_large_flush_is_split(database: Database, writer: Writer) -> None:
    """Rows and bytes of a flush are bounded; one insert stays whole."""
    await asyncio.gather(
        *(writer.insert([new_task(input='"' + "x" * 3_000_000 + '"')]) for _ in range(4)),
        writer.insert([new_task() for _ in range(1500)]),
        writer.insert([]),
    )
    assert 2 <= writer.flushes <= 6
    assert len(await get_tasks(database, limit=2000)) == 1504


async def test_new_rows_are_split_and_ends_are_not(database: Database, writer: Writer) -> None:
    """Ends that fell behind the claims of new ones would pile up."""
    tasks = [new_task() for _ in range(600)]
    await asyncio.gather(*(writer.insert([task]) for task in tasks))
    assert writer.flushes >= 3
    claim = Claim(node_id=NODE, names=("add",), pids=(1,) * len(tasks))
    claimed = (await writer.claim(lambda: claim)).tasks
    assert len(claimed) == len(tasks)
    before = writer.flushes
    done = [Finish(attempt=each.attempt, status=TaskStatus.COMPLETED) for each in claimed]
    assert await asyncio.gather(*(ended(writer, each) for each in done)) == [True] * len(tasks)
    assert writer.flushes <= before + 2


async def test_many_calls_do_not_hold_up_the_others(database: Database, writer: Writer) -> None:
    """A few of them go into a flush, and what comes after the rest does not wait for it."""
    done = 0

    async def call(c: AsyncConnection) -> None:
        nonlocal done
        await c.execute(text("SELECT 1"))
        done += 1

    calls = [asyncio.ensure_future(writer.execute(call)) for _ in range(300)]
    await asyncio.sleep(0)
    await writer.insert([new_task()])
    assert done < 100
    await asyncio.gather(*calls)
    assert done == 300


async def test_a_poisoned_operation_fails_alone(database: Database, writer: Writer) -> None:
    """Its own caller gets the error; the others in its flush are committed."""
    tasks = [new_task() for _ in range(20)]
    tasks[13] = poisoned()
    results = await asyncio.gather(
        *(writer.insert([task]) for task in tasks),
        writer.execute(lambda c: c.execute(text("SELECT no_such_function_at_all()"))),
        writer.claim(lambda: CLAIM_ONE),
        return_exceptions=True,
    )
    assert [index for index, result in enumerate(results) if isinstance(result, Exception)] == [
        13,
        20,
    ]
    assert isinstance(results[21], Claimed)
    assert len(results[21].tasks) == 1
    assert len(await get_tasks(database)) == 19
    await writer.insert([new_task()])


async def test_an_insert_is_all_or_nothing(database: Database, writer: Writer) -> None:
    """One bad row of many keeps the others of the same call out."""
    with pytest.raises(StoreError, match=r"(?i)null"):
        await writer.insert([new_task(), poisoned(), new_task()])
    assert await get_tasks(database) == []


async def test_execute_runs_any_call_of_the_store(
    database: Database, writer: Writer, store: Store
) -> None:
    """Its answer and its errors reach the caller; lilota's own disturb nobody."""
    running, pending = new_task(), new_task()
    await writer.insert([running])
    await writer.claim(lambda: CLAIM_ONE)
    await writer.insert([pending])
    flushes = writer.flushes

    async def delete(task_id: TaskId[Any]) -> bool:
        return await writer.execute(lambda c: store.delete(c, task_id))

    refused, deleted, gone = await asyncio.gather(
        delete(running.id), delete(pending.id), delete(TaskId()), return_exceptions=True
    )
    assert isinstance(refused, TaskIsRunning)
    assert (deleted, gone) == (True, False)
    assert writer.flushes == flushes + 1
    assert await get_task(database, pending.id) is None


async def test_cancelled_inserts_leave_no_connection(database: Database, writer: Writer) -> None:
    """Wherever insert() is cancelled, the row is there or not, and the writer goes on."""
    tasks = [new_task() for _ in range(80)]
    for offset, task in enumerate(tasks):
        call = asyncio.ensure_future(writer.insert([task]))
        for _ in range(offset // 2):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        if not call.cancelled():
            assert await get_task(database, task.id) is not None
    last = new_task()
    await writer.insert([last])
    assert await get_task(database, last.id) is not None
    # On SQLite the writer's own connection is none of the pool's.
    assert checked_out(database) == (0 if database.dialect == "sqlite" else 1)


async def test_a_cancelled_claim_gives_its_tasks_back(
    database: Database, store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would run them: they are pending again, uncounted."""
    task = new_task()
    await writer.insert([task])
    gate = threading.Event()
    claim = store.claim

    async def hold(c: AsyncConnection, wanted: Claim) -> list[ClaimedTask]:
        claimed = await claim(c, wanted)
        await held_by(gate)
        return claimed

    monkeypatch.setattr(store, "claim", hold)
    claiming = asyncio.create_task(writer.claim(lambda: CLAIM_ONE))
    await eventually(lambda: is_in_flight(writer, 1))
    claiming.cancel()
    gate.set()

    async def is_back() -> bool:
        row = await row_of(database, task.id)
        return row.status == TaskStatus.PENDING and row.attempts == 0 and writer.flushes >= 3

    await eventually(is_back)


async def is_in_flight(writer: Writer, count: int) -> bool:
    """Whether so many operations are being flushed."""
    return len(writer._in_flight) == count


async def test_close_writes_what_is_queued(database: Database, store: Store) -> None:
    """Callers of the last moment are served, later ones refused."""
    writer = Writer(database, store)
    await writer.start()
    tasks = [new_task() for _ in range(50)]
    calls = [asyncio.ensure_future(writer.insert([task])) for task in tasks]
    await asyncio.sleep(0)
    await writer.close()
    await asyncio.gather(*calls)
    assert len(await get_tasks(database)) == 50
    with pytest.raises(NotRunning):
        await writer.insert([new_task()])
    assert checked_out(database) == 0
    await writer.close()


async def test_a_writer_can_start_again(database: Database, store: Store) -> None:
    """After close() it takes up its work as before."""
    writer = Writer(database, store)
    with pytest.raises(NotRunning):
        await writer.insert([new_task()])
    for _ in range(2):
        await writer.start()
        await writer.insert([new_task()])
        await writer.close()
    assert len(await get_tasks(database)) == 2


async def test_conflicts_are_tried_again(
    database: Database, writer: Writer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadlock is nobody's fault, and nobody hears of it."""

    class Deadlock(Exception):
        sqlstate = "40P01"

    failures = [Deadlock(), Deadlock()]
    insert = store.insert

    async def deadlocking(c: AsyncConnection, tasks: Any) -> None:
        await insert(c, tasks)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(store, "insert", deadlocking)
    await asyncio.gather(*(writer.insert([new_task()]) for _ in range(3)))
    assert failures == []
    assert len(await get_tasks(database)) == 3
