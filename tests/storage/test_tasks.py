"""Transitions of single rows: insert, cancel, retry and delete."""

from __future__ import annotations

import json
from datetime import UTC, timedelta
from uuid import UUID

import pytest
from msgspec.structs import replace

from lilota_async.errors import TaskIsRunning
from lilota_async.models import TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.queries import get_task
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import FAILURES_KEPT, Attempt, Finish
from tests.storage.support import (
    NODE,
    claim,
    claim_new,
    insert,
    new_task,
    raw,
    row_of,
    transacting,
)

pytestmark = pytest.mark.anyio


async def end(
    database: Database, store: Store, attempt: Attempt, exception: str | None = None
) -> None:
    """Let the attempt fail."""
    failed = Finish(attempt=attempt, status=TaskStatus.FAILED, exception=exception, output=None)
    async with transacting(database) as connection:
        assert await store.finish(connection, [failed]) == [True]


async def cancel(database: Database, store: Store, task_id: UUID) -> TaskStatus | None:
    """Request to cancel."""
    async with transacting(database) as connection:
        return await store.request_cancel(connection, task_id)


async def retry(database: Database, store: Store, task_id: UUID, extra: int = 1) -> bool:
    """Retry with so many more attempts."""
    async with transacting(database) as connection:
        return await store.retry(connection, task_id, extra)


async def delete(database: Database, store: Store, task_id: UUID) -> bool:
    """Delete the row."""
    async with transacting(database) as connection:
        return await store.delete(connection, task_id)


async def test_insert_makes_a_pending_row(database: Database, store: Store) -> None:
    """Times are aware UTC and by the clock of the database; the rest is as given."""
    task = new_task(
        input='{"a":1}', priority=-3, delay_seconds=90.5, max_attempts=4, timeout_seconds=0.25
    )
    await insert(database, store, [task])
    row = await row_of(database, task.id)
    assert isinstance(row.id, TaskId)
    assert (row.status, row.priority, row.attempts, row.max_attempts) == ("pending", -3, 0, 4)
    assert (row.input, row.timeout_seconds, row.progress_percentage) == ({"a": 1}, 0.25, 0)
    assert (row.tags, row.pid, row.locked_by, row.interruptions) == (None, None, None, 0)
    assert row.created_at.tzinfo is UTC
    assert row.run_at - row.created_at == timedelta(seconds=90.5)


async def test_times_are_stored_in_one_format(database: Database, store: Store) -> None:
    """On SQLite they compare as text, with the application's own microseconds too."""
    if database.dialect != "sqlite":
        pytest.skip("times are no text")
    await insert(database, store, [new_task(delay_seconds=1.5), new_task()])
    await claim(database, store)
    columns = "created_at, run_at, start_date_time"
    for row in await raw(database, f"SELECT {columns} FROM lilota_task"):
        for value in row:
            assert value is None or len(value) == len("2026-01-02 03:04:05.000000")


async def test_a_second_insert_leaves_the_row_alone(database: Database, store: Store) -> None:
    """The same id makes no second row, be it in another statement or the same one."""
    task = new_task(input="1")
    again = new_task()
    await insert(database, store, [task])
    await insert(database, store, [replace(task, input="2"), again, replace(again, input="2")])
    assert (await row_of(database, task.id)).input == 1
    ((count,),) = await raw(database, "SELECT count(*) FROM lilota_task")
    assert count == 2


async def test_many_rows_go_in_together(database: Database, store: Store) -> None:
    """More rows than one statement of any database holds."""
    await insert(database, store, [new_task(input="x" * 10_000) for _ in range(1100)])
    ((count,),) = await raw(database, "SELECT count(*) FROM lilota_task")
    assert count == 1100


async def test_cancel_of_a_pending_task_ends_it(database: Database, store: Store) -> None:
    """It is cancelled at once, and no node claims it; the answer is what it was before."""
    task = new_task()
    await insert(database, store, [task])
    assert await cancel(database, store, task.id) == TaskStatus.PENDING
    row = await row_of(database, task.id)
    assert (row.status, row.end_date_time is not None) == (TaskStatus.CANCELLED, True)
    assert await claim(database, store) == []
    assert await cancel(database, store, task.id) == TaskStatus.CANCELLED


async def test_cancel_of_a_running_task_is_a_request(database: Database, store: Store) -> None:
    """The node that runs it finds the request."""
    attempt = (await claim_new(database, store)).attempt
    async with transacting(database) as connection:
        assert await store.cancel_requests(connection, NODE) == []
    assert await cancel(database, store, attempt.id) == TaskStatus.RUNNING
    row = await row_of(database, attempt.id)
    assert (row.status, row.end_date_time) == (TaskStatus.RUNNING, None)
    assert row.cancel_requested_at is not None
    async with transacting(database) as connection:
        assert await store.cancel_requests(connection, NODE) == [attempt]
        assert await store.cancel_requests(connection, TaskId()) == []


async def test_cancel_of_a_final_task_tells_its_status(database: Database, store: Store) -> None:
    """Nothing changes, and without a row there is no status."""
    attempt = (await claim_new(database, store)).attempt
    await end(database, store, attempt)
    assert await cancel(database, store, attempt.id) == TaskStatus.FAILED
    assert (await row_of(database, attempt.id)).cancel_requested_at is None
    assert await cancel(database, store, TaskId()) is None


async def test_retry_starts_over(database: Database, store: Store) -> None:
    """The row is pending and due, its attempts go on counting, its failure is kept."""
    attempt = (await claim_new(database, store)).attempt
    assert not await retry(database, store, attempt.id)
    await end(database, store, attempt, '{"kind":"error","b":1,"a":1.0}')
    assert await retry(database, store, attempt.id, 2)
    row = await row_of(database, attempt.id)
    assert (row.status, row.attempts, row.max_attempts) == (TaskStatus.PENDING, 1, 3)
    assert (row.exception, row.end_date_time, row.output) == (None, None, None)
    assert (row.locked_by, row.pid, row.progress_percentage) == (None, None, 0)
    assert row.failures == [{"attempt": 1, "kind": "error", "b": 1, "a": 1.0}]
    (again,) = await claim(database, store)
    assert again.attempt.number == 2
    assert again.failures == '[{"attempt":1,"kind":"error","b":1,"a":1.0}]'
    assert not await retry(database, store, TaskId())


async def test_retry_keeps_the_last_failures(database: Database, store: Store) -> None:
    """The list does not grow for ever, and nonsense in it is left alone."""
    attempt = (await claim_new(database, store)).attempt
    await end(database, store, attempt, '{"n":-1,"traceback":"long"}')
    old = json.dumps([{"n": number} for number in range(FAILURES_KEPT)])
    await raw(database, "UPDATE lilota_task SET failures = :old", old=old)
    assert await retry(database, store, attempt.id)
    failures = (await row_of(database, attempt.id)).failures
    assert failures is not None
    assert (len(failures), failures[0]) == (FAILURES_KEPT, {"n": 1})
    assert failures[-1] == {"attempt": 1, "n": -1}

    (again,) = await claim(database, store)
    await end(database, store, again.attempt, "{broken")
    assert await retry(database, store, attempt.id)
    assert len((await row_of(database, attempt.id)).failures or []) == FAILURES_KEPT


async def test_delete_takes_anything_but_running(database: Database, store: Store) -> None:
    """Pending and final rows go; a running one is refused and stays."""
    attempt = (await claim_new(database, store)).attempt
    pending = new_task()
    await insert(database, store, [pending])
    with pytest.raises(TaskIsRunning):
        await delete(database, store, attempt.id)
    await end(database, store, attempt)
    assert await delete(database, store, attempt.id)
    assert await delete(database, store, pending.id)
    assert not await delete(database, store, pending.id)
    assert await get_task(database, attempt.id) is None
