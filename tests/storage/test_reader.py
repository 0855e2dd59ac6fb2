"""Reading single tasks that many wait for: few statements, and nobody's neighbour suffers."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import QueuePool, inspect
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

import lilota_async.storage.reader as module
from lilota_async.errors import SchemaMissing, StoreUnavailable
from lilota_async.models import Task, TaskId, TaskStatus
from lilota_async.storage.database import Database
from lilota_async.storage.queries import get_task
from lilota_async.storage.reader import TaskReader
from lilota_async.storage.store import Store
from lilota_async.storage.transitions import Cost, Ending, Finish, NewTask
from tests.api.support import until
from tests.storage.plans import recording
from tests.storage.support import (
    checked_out,
    claim,
    insert,
    kill_others,
    new_task,
    raw,
    transacting,
)

pytestmark = pytest.mark.anyio

WHEN = datetime(2020, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


def is_kept(database: Database) -> bool:
    """Whether anybody has a connection, from the pool or, with SQLite, in a thread."""
    threads = [each for each in threading.enumerate() if "lilota-connection" in each.name]
    return checked_out(database) > 0 or bool(threads)


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[TaskReader]:
    """One that has given its connection back at the end."""
    reader = TaskReader(database)
    yield reader
    await reader.close()


@pytest.fixture
async def task(database: Database, store: Store) -> NewTask:
    """One that is in the database."""
    task = new_task()
    await insert(database, store, [task])
    return task


async def test_each_gets_its_own_task(database: Database, store: Store, reader: TaskReader) -> None:
    """Also one who asks for what another asks for, or for what is not there."""
    tasks = [new_task() for _ in range(100)]
    await insert(database, store, tasks)
    ids = [*(task.id for task in tasks), tasks[0].id, TaskId()]
    read = await asyncio.gather(*map(reader.read, ids))
    assert [task and task.id for task in read] == [*ids[:-1], None]
    assert read[0] is not read[100]


async def test_many_share_a_statement(database: Database, store: Store, reader: TaskReader) -> None:
    """Two batches of 64 at most, instead of a hundred reads."""
    tasks = [new_task() for _ in range(100)]
    await insert(database, store, tasks)
    assert await reader.read(TaskId()) is None  # it has its connection
    with recording(database) as recorded:
        await asyncio.gather(*(reader.read(task.id) for task in tasks))
    assert len([sql for sql, _ in recorded.statements if "FROM lilota_task" in sql]) == 2


async def test_many_ask_for_one_task(database: Database, task: NewTask, reader: TaskReader) -> None:
    """They share statements too, and each has a task of its own."""
    assert await reader.read(TaskId()) is None  # it has its connection
    with recording(database) as recorded:
        read = await asyncio.gather(*(reader.read(task.id) for _ in range(100)))
    assert len({id(each) for each in read}) == 100
    assert {each and each.id for each in read} == {task.id}
    assert len([sql for sql, _ in recorded.statements if "FROM lilota_task" in sql]) == 2


async def test_an_ending_is_what_the_result_needs(
    database: Database, store: Store, reader: TaskReader
) -> None:
    """Of the task that has ended, of one that waits, and of none; the output as it is written."""
    await insert(database, store, [new_task("other")])
    (claimed,) = await claim(database, store)
    done = Finish(attempt=claimed.attempt, status=TaskStatus.COMPLETED, output='{"a": [1.50]}')
    async with transacting(database) as connection:
        assert await store.finish(connection, [done]) == [True]
    waiting = new_task()
    await insert(database, store, [waiting])
    ids = (claimed.attempt.id, waiting.id, TaskId())
    assert await asyncio.gather(*map(reader.read_ending, ids)) == [
        Ending("other", "completed", '{"a": [1.50]}'),
        Ending("add", "pending", None),
        None,
    ]


async def test_tasks_and_endings_together(
    database: Database, task: NewTask, reader: TaskReader
) -> None:
    """Each gets what was asked for, whoever asks at the same time."""
    asked = [ask(task.id) for _ in range(3) for ask in (reader.read, reader.read_ending)]
    assert [type(each) for each in await asyncio.gather(*asked)] == [Task, Ending] * 3


async def test_what_is_asked_for_later_is_read_later(
    database: Database, store: Store, reader: TaskReader
) -> None:
    """Nobody is given what was read before the question."""
    first, second = new_task(), new_task()
    await insert(database, store, [first])
    reading = asyncio.ensure_future(reader.read(first.id))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await insert(database, store, [second])
    assert await reader.read(second.id) is not None
    assert await reading is not None


async def test_a_caller_who_goes_away(task: NewTask, reader: TaskReader) -> None:
    """The others get their answers, and the connection goes back."""
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


async def test_a_lone_task_is_read_like_all_others(
    database: Database, store: Store, reader: TaskReader
) -> None:
    """It has the same values of the same types, and is as detached and unchanged."""
    await insert(database, store, [new_task(input='{"a":[1.5,null]}', tags='["x"]', run_at=WHEN)])
    (claimed,) = await claim(database, store)
    failed = Finish(
        attempt=claimed.attempt,
        status=TaskStatus.FAILED,
        exception="no JSON",
        cost=Cost(cpu_seconds=0.5, peak_memory_bytes=2**40, log="said"),
    )
    async with transacting(database) as connection:
        assert await store.finish(connection, [failed]) == [True]
    task_id = claimed.attempt.id
    task, wanted = await reader.read(task_id), await get_task(database, task_id)
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
    assert await reader.read(TaskId()) is None


async def test_a_lone_read_survives_a_dead_connection(
    database: Database, task: NewTask, reader: TaskReader
) -> None:
    """It is read over another one."""
    assert await reader.read(task.id) is not None
    await kill_others(Database(database.url))
    assert await reader.read(task.id) is not None


async def test_one_connection_for_reads_that_follow_each_other(
    database: Database, task: NewTask, reader: TaskReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays taken out of the pool while somebody asks, and goes back a moment later."""
    taken: list[Database] = []
    take = Database.acquire_own

    async def noted(database: Database) -> AsyncConnection:
        taken.append(database)
        return await take(database)

    monkeypatch.setattr(Database, "acquire_own", noted)
    for _ in range(5):
        assert await reader.read(task.id) is not None
    assert taken == [database]
    assert is_kept(database)
    await until(lambda: not is_kept(database), "the end of the rest")


async def test_reads_keep_it_for_longer(
    database: Database, task: NewTask, reader: TaskReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest begins anew with each of them."""
    monkeypatch.setattr(module, "_REST_SECONDS", 0.1)
    for _ in range(20):
        await reader.read(task.id)
        assert is_kept(database)
        await asyncio.sleep(0.02)
    await until(lambda: not is_kept(database), "the end of the rest")
    assert await reader.read(task.id) is not None


async def test_after_an_error_nothing_is_kept(
    database: Database, task: NewTask, reader: TaskReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the connection nor the look after it."""
    monkeypatch.setattr(module, "_REST_SECONDS", 0.05)
    assert await reader.read(task.id) is not None
    await raw(database, "DROP TABLE lilota_task")
    with pytest.raises(SchemaMissing):
        await reader.read(task.id)
    assert not is_kept(database)
    await until(lambda: reader._rest is None, "the end of the rest")


async def test_a_connection_of_an_application_is_not_kept(
    database: Database, task: NewTask
) -> None:
    """Its pool may be small."""
    engine = create_async_engine(database.url)
    reader = TaskReader(Database(engine=engine))
    assert await reader.read(task.id) is not None
    assert isinstance(engine.pool, QueuePool)
    assert (engine.pool.checkedin(), engine.pool.checkedout()) == (1, 0)
    await reader.close()
    await engine.dispose()


async def test_after_its_end_nothing_is_kept(
    database: Database, task: NewTask, reader: TaskReader
) -> None:
    """As of a node that is just stopping: those who ask are answered all the same."""
    asking = asyncio.ensure_future(reader.read(task.id))
    await asyncio.sleep(0)
    await reader.close()
    assert await asking is not None
    assert await reader.read(task.id) is not None
    assert not is_kept(database)
