"""Deleting what has ended long ago: what, in which batches, and by which index."""

from __future__ import annotations

import asyncio

import pytest

from lilota_async.models import TaskId, TaskStatus
from lilota_async.storage import pruning
from lilota_async.storage.database import Database
from lilota_async.storage.pruning import delete_some, prune
from lilota_async.storage.queries import Selection, get_tasks
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Claim, Finish, NewTask
from lilota_async.storage.writer import Writer
from tests.storage.plans import reads_whole_table, recording
from tests.storage.support import NODE, claim, ended, insert, new_task, raw

pytestmark = pytest.mark.anyio
OLD = "'2020-01-01 00:00:00.000000'"
DAY = 86400.0


async def _ended(
    database: Database, store: Store, tasks: list[NewTask], status: str, *, old: bool = True
) -> None:
    """Insert tasks that have this status, ended years ago or now."""
    await insert(database, store, tasks)
    end = OLD if old else store.dialect.now
    for start in range(0, len(tasks), 100):
        keys = ", ".join(f"'{task.id.hex}'" for task in tasks[start : start + 100])
        await raw(
            database,
            f"UPDATE lilota_task SET status = '{status}', end_date_time = {end}"
            f" WHERE id IN ({keys})",
        )


async def _left(database: Database) -> set[TaskId]:
    return {task.id for task in await get_tasks(database)}


async def test_only_what_ended_long_ago(database: Database, store: Store) -> None:
    """Neither what waits or runs, however old, nor what has ended just now."""
    running, pending = new_task(), new_task("unclaimed", delay_seconds=-10 * DAY)
    await insert(database, store, [running, pending])
    assert len(await claim(database, store)) == 1
    recent = new_task()
    await _ended(database, store, [recent], "completed", old=False)
    old = {status: new_task() for status in ("completed", "failed", "cancelled")}
    for status, task in old.items():
        await _ended(database, store, [task], status)

    assert await prune(database, DAY) == 3
    assert await _left(database) == {running.id, pending.id, recent.id}
    assert await prune(database, DAY) == 0
    assert await prune(database, 0.0) == 1
    assert await _left(database) == {running.id, pending.id}


async def test_by_status_and_name(database: Database, store: Store) -> None:
    """A status and a name narrow it down, byte for byte."""
    for name in ("add", "Add"):
        for status in ("completed", "failed"):
            await _ended(database, store, [new_task(name) for _ in range(2)], status)
    assert await prune(database, DAY, status=TaskStatus.FAILED, names=["add"]) == 2
    assert await prune(database, DAY, names=["ADD"]) == 0
    assert await prune(database, DAY, status=TaskStatus.FAILED) == 2
    assert {task.status for task in await get_tasks(database)} == {TaskStatus.COMPLETED}
    assert await prune(database, DAY, names=["Add"]) == 2
    assert len(await get_tasks(database, Selection(name="add"))) == 2


async def test_batches(database: Database, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch at a time for the housekeeping, all of them for prune()."""
    monkeypatch.setattr(pruning, "ROWS_PER_DELETE", 10)
    await _ended(database, store, [new_task() for _ in range(25)], "completed")
    batch = {"status": TaskStatus.COMPLETED, "name": "add"}
    assert await delete_some(database, DAY, status=TaskStatus.COMPLETED, name="add")
    assert len(await _left(database)) == 15
    assert await prune(database, DAY) == 15
    assert not await delete_some(database, DAY, **batch)  # type: ignore[arg-type]


async def test_two_nodes_at_once(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They delete each row once, and neither fails."""
    monkeypatch.setattr(pruning, "ROWS_PER_DELETE", 10)
    await _ended(database, store, [new_task() for _ in range(200)], "completed")
    deleted = 0
    while await _left(database):
        deleted += sum(await asyncio.gather(*(prune(database, DAY) for _ in range(4))))
    assert deleted == 200


async def test_while_tasks_come_to_their_end(
    database: Database, store: Store, writer: Writer
) -> None:
    """What ends at the same moment is deleted now or next time; neither side fails."""
    await insert(database, store, [new_task() for _ in range(600)])
    working = True

    async def work() -> None:
        nonlocal working
        request = Claim(node_id=NODE, names=("add",), pids=tuple(range(20)))
        while claimed := (await writer.claim(lambda: request)).tasks:
            ends = [Finish(attempt=each.attempt, status=TaskStatus.COMPLETED) for each in claimed]
            assert all(await asyncio.gather(*(ended(writer, end) for end in ends)))
        working = False

    async def delete() -> int:
        deleted = 0
        while working:
            deleted += await prune(database, 0.0, names=["add"])
        return deleted

    async with asyncio.timeout(60.0):
        _, one, other = await asyncio.gather(work(), delete(), delete())
    assert one + other + await prune(database, 0.0) == 600
    assert await _left(database) == set()


async def test_a_key_that_is_taken_keeps_its_row(database: Database, store: Store) -> None:
    """A unique key that is taken for some time after the end is so until then."""
    held = new_task(unique_key="k", unique_seconds=3600.0)
    over = new_task(unique_key="l", unique_seconds=-5.0)
    await _ended(database, store, [held, over], "completed")
    assert await prune(database, DAY) == 1
    assert await _left(database) == {held.id}


async def test_what_others_wait_for_stays(database: Database, store: Store) -> None:
    """A task that waits for the end of another must find how that came to it."""
    parent, child = new_task(), new_task("unclaimed")
    await insert(database, store, [child])
    await _ended(database, store, [parent], "completed")
    await raw(
        database,
        "INSERT INTO lilota_dependency (on_id, task_id, runs_if_failed)"
        " VALUES (:parent, :child, false)",
        parent=store.dialect.key(parent.id),
        child=store.dialect.key(child.id),
    )
    assert await prune(database, DAY) == 0
    await raw(database, "DELETE FROM lilota_dependency")
    assert await prune(database, DAY) == 1


async def test_no_row_that_is_kept_is_read(database: Database, store: Store) -> None:
    """A batch goes by the index of what has ended, whatever the statistics say."""
    await insert(database, store, [new_task() for _ in range(3000)])
    if database.dialect == "postgresql":
        await raw(database, "ANALYZE lilota_task")
    await raw(database, "UPDATE lilota_task SET status = 'completed'")
    await raw(database, f"UPDATE lilota_task SET end_date_time = {store.dialect.now}")
    with recording(database) as recorded:
        assert await prune(database, DAY, names=["add"]) == 0
    async with database.connect() as connection:
        await store.prepare(connection)
        plans = await recorded.plans(connection)
        await connection.invalidate()
    deletes = [plan for plan in plans if "ix_lilota_task_ended" in plan]
    assert len(deletes) == 3
    assert not [plan for plan in plans if reads_whole_table(plan)]
