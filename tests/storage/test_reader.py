"""Reading single tasks that many wait for: few statements, and nobody's neighbour suffers."""

from __future__ import annotations

import asyncio
import pickle
from datetime import UTC, datetime

import pytest
from sqlalchemy import inspect

from lilota_async.errors import StoreUnavailable
from lilota_async.models import Task, TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.queries import get_task
from lilota_async.storage.reader import TaskReader
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Cost, Finish
from tests.storage.plans import recording
from tests.storage.support import claim, insert, kill_others, new_task, transacting

pytestmark = pytest.mark.anyio

WHEN = datetime(2020, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


async def test_each_gets_its_own_task(database: Database, store: Store) -> None:
    """Also one who asks for what another asks for, or for what is not there."""
    tasks = [new_task() for _ in range(100)]
    await insert(database, store, tasks)
    reader = TaskReader(database)
    ids = [*(task.id for task in tasks), tasks[0].id, TaskId()]
    read = await asyncio.gather(*map(reader.read, ids))
    assert [task and task.id for task in read] == [*ids[:-1], None]
    assert read[0] is not read[100]


async def test_many_share_a_statement(database: Database, store: Store) -> None:
    """Two batches of 64 at most, instead of a hundred reads."""
    tasks = [new_task() for _ in range(100)]
    await insert(database, store, tasks)
    reader = TaskReader(database)
    with recording(database) as recorded:
        await asyncio.gather(*(reader.read(task.id) for task in tasks))
    assert len([sql for sql, _ in recorded.statements if "FROM lilota_task" in sql]) == 2


async def test_what_is_asked_for_later_is_read_later(database: Database, store: Store) -> None:
    """Nobody is given what was read before the question."""
    first, second = new_task(), new_task()
    await insert(database, store, [first])
    reader = TaskReader(database)
    reading = asyncio.ensure_future(reader.read(first.id))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await insert(database, store, [second])
    assert await reader.read(second.id) is not None
    assert await reading is not None


async def test_a_caller_who_goes_away(database: Database, store: Store) -> None:
    """The others get their answers, and the connection goes back."""
    task = new_task()
    await insert(database, store, [task])
    reader = TaskReader(database)
    gone, stays = (asyncio.ensure_future(reader.read(task.id)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await stays) is not None
    assert gone.cancelled()


async def test_without_the_database() -> None:
    """Each caller gets the error, and the next one a new try."""
    database = Database("postgresql://lilota@127.0.0.1:1/nowhere")
    await database.open()
    reader = TaskReader(database)
    for _ in range(2):
        answers = await asyncio.gather(
            *(reader.read(TaskId()) for _ in range(3)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
    await database.close()


async def test_a_lone_task_is_read_like_all_others(database: Database, store: Store) -> None:
    """It has the same values of the same types, and is as detached and unchanged."""
    await insert(database, store, [new_task(input='{"a":[1.5,null]}', tags='["x"]', run_at=WHEN)])
    (claimed,) = await claim(database, store)
    failed = Finish(
        attempt=claimed.attempt,
        status=TaskStatus.FAILED,
        exception='{"type":"Error"}',
        failures="no JSON",
        cost=Cost(cpu_seconds=0.5, peak_memory_bytes=2**40, log="said"),
    )
    async with transacting(database) as connection:
        assert await store.finish(connection, [failed]) == [True]
    task_id = claimed.attempt.id
    task, wanted = await TaskReader(database).read(task_id), await get_task(database, task_id)
    assert task is not None
    assert wanted is not None
    for column in Task.__table__.columns:
        value = getattr(wanted, column.key)
        assert getattr(task, column.key) == value, column
        assert type(getattr(task, column.key)) is type(value), column
    assert inspect(task).detached
    assert not inspect(task).modified
    assert not inspect(task).unloaded
    assert inspect(task).identity == inspect(wanted).identity
    assert pickle.loads(pickle.dumps(task)).output == wanted.output
    assert await TaskReader(database).read(TaskId()) is None


async def test_a_lone_read_survives_a_dead_connection(database: Database, store: Store) -> None:
    """It is read over another one."""
    task = new_task()
    await insert(database, store, [task])
    reader = TaskReader(database)
    assert await reader.read(task.id) is not None
    await kill_others(Database(database.url))
    assert await reader.read(task.id) is not None
