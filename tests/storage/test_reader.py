"""Reading single tasks that many wait for: few statements, and nobody's neighbour suffers."""

from __future__ import annotations

import asyncio

import pytest

from lilota_async.errors import StoreUnavailable
from lilota_async.models import TaskId
from lilota_async.storage.database import Database
from lilota_async.storage.queries import TaskReader
from lilota_async.storage.store import Store
from tests.storage.plans import recording
from tests.storage.support import insert, new_task

pytestmark = pytest.mark.anyio


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
