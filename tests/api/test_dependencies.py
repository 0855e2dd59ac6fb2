"""schedule(after=): what waits for other tasks, and what becomes of it."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from lilota_async import Lilota, TaskCancelled, TaskId, TaskStatus
from lilota_async.engine import dependencies as module
from lilota_async.errors import ConfigurationError, TaskNotFound
from lilota_async.storage.stores import create_store
from lilota_async.storage.transitions import Dependent, NewTask
from tests.api.support import DEADLINE, MakeLilota, row, row_when
from tests.api.tasks import echo, fail, hold
from tests.storage.support import transacting

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
def without_looking(monkeypatch: pytest.MonkeyPatch, without_polling: None) -> None:
    """A node must know by itself when somebody need not wait any more."""
    for name in ("LOOK_SECONDS", "IDLE_SECONDS"):
        monkeypatch.setattr(module, name, 10 * DEADLINE)


async def test_one_after_the_other(
    make_lilota: MakeLilota, database_url: str, without_looking: None
) -> None:
    """A chain runs in its order, each as soon as the one before has completed."""
    async with make_lilota(echo, db_url=database_url, number_of_processes=2) as lilota:
        ids: list[TaskId[Any]] = [await lilota.schedule(echo, 0)]
        for number in range(1, 5):
            ids.append(await lilota.schedule(echo, number, after=ids[-1:]))
        assert await lilota.result(ids[-1], DEADLINE) == 4
        rows = [await row(lilota, task_id) for task_id in ids]
    for before, following in pairwise(rows):
        assert before.end_date_time is not None
        assert following.start_date_time is not None
        assert before.end_date_time <= following.start_date_time


async def test_one_after_many(
    make_lilota: MakeLilota, database_url: str, without_looking: None
) -> None:
    """It runs once, after all of them, also when some had ended before it was scheduled."""
    async with make_lilota(echo, db_url=database_url, number_of_processes=2) as lilota:
        first = await lilota.schedule(echo, "first")
        await lilota.wait(first, DEADLINE)
        parts = await lilota.schedule_many(echo, range(200))
        merge = await lilota.schedule(echo, "merged", after=[first, *parts])
        merged = await lilota.wait(merge, DEADLINE)
        assert (merged.output, merged.attempts) == ("merged", 1)
        ended = [task.end_date_time for task in await lilota.get_all_tasks() if task.id != merge]
    assert len(ended) == 201
    assert merged.start_date_time is not None
    assert all(each is not None and each <= merged.start_date_time for each in ended)


async def test_many_after_one(
    make_lilota: MakeLilota, fast_database_url: str, directory: Path, without_looking: None
) -> None:
    """More than one look at the table finds."""
    async with make_lilota(echo, hold, db_url=fast_database_url, number_of_processes=2) as lilota:
        first = await lilota.schedule(hold, str(directory))
        ids = await lilota.schedule_many(echo, range(2500), after=[first])
        waiting = await lilota.get_all_tasks(name="echo")
        assert [task.status for task in waiting] == [TaskStatus.PENDING] * 2500
        (directory / "release").touch()
        async with asyncio.timeout(DEADLINE):
            assert [await lilota.result(each) for each in ids] == list(range(2500))


async def test_a_failure_cancels(
    make_lilota: MakeLilota, fast_database_url: str, without_looking: None
) -> None:
    """What waits is cancelled, with all that waits for it, unless it is to run all the same."""
    async with make_lilota(echo, fail, db_url=fast_database_url) as lilota:
        failing = await lilota.schedule(fail, "no")
        child = await lilota.schedule(echo, 1, after=[failing])
        grandchild = await lilota.schedule(echo, 2, after=[child])
        cleaning = await lilota.schedule(echo, 3, after=[failing, child], if_failed="run")
        with pytest.raises(TaskCancelled):
            await lilota.result(grandchild, DEADLINE)
        assert await lilota.result(cleaning, DEADLINE) == 3
        task = await row(lilota, child)
        assert (task.status, task.attempts) == (TaskStatus.CANCELLED, 0)
        assert task.exception is not None
        assert f"task {failing}, which this one waited for, has failed" in task.exception["message"]


async def test_cancel_and_delete_are_no_completion(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """A cancelled task is noticed at once, a deleted one when somebody looks."""
    async with make_lilota(echo, db_url=fast_database_url, number_of_processes=0) as lilota:
        first, second = await lilota.schedule_many(echo, [1, 2])
        waits = await lilota.schedule(echo, 3, after=[first])
        waits_too = await lilota.schedule(echo, 4, after=[second])
        assert await lilota.cancel(first)
        assert (await lilota.wait(waits, DEADLINE)).status is TaskStatus.CANCELLED
        assert await lilota.delete_task_by_id(second)
        assert (await lilota.wait(waits_too, DEADLINE)).status is TaskStatus.CANCELLED


async def test_what_is_refused(make_lilota: MakeLilota, database_url: str) -> None:
    """Unknown ids, a task that waits for itself, and what is no id; nothing is written."""
    async with make_lilota(echo, db_url=database_url) as lilota:
        with pytest.raises(TaskNotFound):
            await lilota.schedule(echo, 1, after=[TaskId()])
        with pytest.raises(TaskNotFound):
            await lilota.schedule_many(echo, [1, 2], after=[TaskId()])
        own: TaskId[Any] = TaskId()
        with pytest.raises(ConfigurationError, match="would wait for itself"):
            await lilota.schedule(echo, 1, task_id=own, after=[own])
        wrong: Any
        for wrong in ("text", own, ["text"], 5, 0, False):
            with pytest.raises(ConfigurationError, match="after= takes the ids of tasks"):
                await lilota.schedule(echo, 1, after=wrong)
            with pytest.raises(ConfigurationError, match="after= takes the ids of tasks"):
                await lilota.schedule_many(echo, [1], after=wrong)
        wrong = "maybe"
        first = await lilota.schedule(echo, 1, delay=1000)
        with pytest.raises(ConfigurationError, match="if_failed must be"):
            await lilota.schedule(echo, 1, after=[first], if_failed=wrong)
        with pytest.raises(ConfigurationError, match="if_failed must be"):
            await lilota.schedule(echo, 1, if_failed=wrong)
        assert [task.id for task in await lilota.get_all_tasks()] == [first]


async def test_after_nothing(make_lilota: MakeLilota) -> None:
    """No ids are none to wait for, in whichever way that is said."""
    nothing: Any
    async with make_lilota(echo) as lilota:
        for nothing in (None, [], ()):
            ids = [await lilota.schedule(echo, 1, after=nothing, if_failed="run")]
            ids += await lilota.schedule_many(echo, [1], after=nothing)
            assert [await lilota.result(each, DEADLINE) for each in ids] == [1, 1]


async def test_no_cycle_by_scheduling_again(make_lilota: MakeLilota) -> None:
    """A task that has a row does not begin to wait for one that waits for it."""
    async with make_lilota(echo) as lilota:
        first = await lilota.schedule(echo, 1, delay=0.2)
        second = await lilota.schedule(echo, 2, after=[first])
        assert await lilota.schedule(echo, 3, task_id=first, after=[second]) == first
        assert await lilota.result(second, DEADLINE) == 2


async def test_stop_finishes_what_waits(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """What was accepted before stop() is finished, with what waits for it."""
    lilota = make_lilota(echo, db_url=fast_database_url)
    async with lilota:
        ids = [await lilota.schedule(echo, 0)]
        for number in range(1, 4):
            ids.append(await lilota.schedule(echo, number, after=ids[-1:]))
    assert {task.status for task in await lilota.get_all_tasks()} == {TaskStatus.COMPLETED}


async def test_ended_by_another_node(make_lilota: MakeLilota, database_url: str) -> None:
    """The node that runs the tasks need not be the one that knows of the dependency."""
    async with (
        make_lilota(echo, db_url=database_url) as runner,
        make_lilota(echo, db_url=database_url, number_of_processes=0) as source,
    ):
        first = await source.schedule(echo, 1)
        second = await source.schedule(echo, 2, after=[first])
        assert await runner.result(second, DEADLINE) == 2


async def test_a_node_that_died_before_it_looked(
    make_lilota: MakeLilota, database_url: str
) -> None:
    """The next one to start finds what the end of a task has made due."""
    async with make_lilota(echo, db_url=database_url) as lilota:
        first = await lilota.schedule(echo, 1)
        await lilota.wait(first, DEADLINE)
    database = lilota._database()
    store = create_store(database)
    waits = NewTask(id=TaskId(), name="echo", input="2")
    async with transacting(database) as connection:
        await store.dependencies.insert(connection, [Dependent(task=waits, after=(first,))])
    async with make_lilota(echo, db_url=database_url) as other:
        assert await other.result(waits.id, DEADLINE) == 2


async def test_in_a_transaction(
    make_lilota: MakeLilota, database_url: str, without_looking: None
) -> None:
    """Both may be new in the application's own transaction."""
    engine = create_async_engine(database_url)
    async with make_lilota(echo, db_url=database_url) as lilota:
        async with AsyncSession(engine) as session:
            first = await lilota.schedule(echo, 1, session=session)
            second = await lilota.schedule(echo, 2, after=[first], session=session)
            with pytest.raises(TaskNotFound):
                await lilota.schedule(echo, 3, after=[TaskId()], session=session)
            await session.commit()
        assert await lilota.result(second, DEADLINE) == 2
        assert len(await lilota.get_all_tasks()) == 2
    await engine.dispose()


async def test_a_running_task_is_waited_for(
    make_lilota: MakeLilota, directory: Any, without_looking: None
) -> None:
    """Until it is released, what waits for it is pending."""
    lilota: Lilota = make_lilota(hold, echo, number_of_processes=2)
    async with lilota:
        held = await lilota.schedule(hold, str(directory))
        await row_when(lilota, held, lambda task: task.status is TaskStatus.RUNNING)
        waits = await lilota.schedule(echo, 1, after=[held])
        assert await lilota.result(await lilota.schedule(echo, 2), DEADLINE) == 2
        assert (await row(lilota, waits)).status is TaskStatus.PENDING
        (directory / "release").touch()
        assert await lilota.result(waits, DEADLINE) == 1
