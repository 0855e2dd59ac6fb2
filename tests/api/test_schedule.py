"""schedule() and schedule_many(): what is committed, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from lilota_async import Lilota, Retry, Task, TaskId
from lilota_async.errors import ConfigurationError, InvalidInput, NotRunning
from lilota_async.storage.writer import Writer
from tests.api.support import DEADLINE, MakeLilota, marked, row, session, until
from tests.api.tasks import AddInput, AddOutput, add, echo, echo_or_default, hold, nothing, sleep

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def test_the_row_is_committed_when_schedule_returns(
    make_lilota: MakeLilota, fast_database_url: str
) -> None:
    """Another connection finds the row as pending, with all that was asked for."""
    lilota = make_lilota(db_url=fast_database_url, number_of_processes=0)
    lilota.register("add", priority=3, timeout=60, retry=Retry(max_attempts=4))(add)
    before = datetime.now(UTC) - timedelta(seconds=5)
    async with lilota:
        task_id = await lilota.schedule("add", AddInput(2, 3), tags=["red", "größe"])
        async with session(fast_database_url) as own:
            task = await own.get(Task, task_id)
    assert task is not None
    assert isinstance(task.id, TaskId)
    assert (task.name, task.status, task.input) == ("add", "pending", {"a": 2, "b": 3})
    assert (task.priority, task.timeout_seconds, task.max_attempts) == (3, 60.0, 4)
    assert (task.tags, task.attempts, task.interruptions) == (["red", "größe"], 0, 0)
    assert before < task.created_at < datetime.now(UTC) + timedelta(seconds=5)
    assert task.created_at.tzinfo is not None
    assert task.pid is None
    assert task.output is None
    assert task.start_date_time is None
    assert task.end_date_time is None


@asynccontextmanager
async def _busy(writer: Writer) -> AsyncIterator[None]:
    """Its connection is in use for the time of the block."""
    begun, over = asyncio.Event(), asyncio.Event()

    async def occupy(_: Any) -> None:
        begun.set()
        await over.wait()

    writing = asyncio.ensure_future(writer.execute(occupy))
    await begun.wait()
    try:
        yield
    finally:
        over.set()
        await writing


async def test_scheduling_does_not_wait_for_the_ends_of_others(
    make_lilota: MakeLilota, postgresql_url: str
) -> None:
    """On PostgreSQL new rows have a connection of their own."""
    async with make_lilota(echo, db_url=postgresql_url, number_of_processes=0) as lilota:
        assert lilota._node is not None
        async with asyncio.timeout(DEADLINE), _busy(lilota._node.writer):
            ids = [await lilota.schedule(echo, 1), *await lilota.schedule_many(echo, [2, 3])]
            assert [(await row(lilota, each)).status for each in ids] == ["pending"] * 3


async def test_nothing_that_was_sent_before_a_pause_starts_after_it(
    make_lilota: MakeLilota, postgresql_url: str
) -> None:
    """pause() returns when what says already that it runs has begun."""
    async with make_lilota(echo, db_url=postgresql_url) as lilota:
        node = lilota._node
        assert node is not None
        async with asyncio.timeout(DEADLINE):
            async with _busy(node._inserter):
                scheduling = asyncio.ensure_future(lilota.schedule(echo, 1))
                pausing = asyncio.ensure_future(lilota.pause())
                await until(lambda: node.dispatcher.limits.is_paused("echo"), "the pause")
                await asyncio.sleep(0.1)
                assert not pausing.done()
            await pausing
            await scheduling


async def test_an_engine_of_the_application_gives_one_connection_for_writing(
    make_lilota: MakeLilota, postgresql_url: str
) -> None:
    """Its pool may be small: the writer takes one of it for good, and no second one."""
    engine = create_async_engine(make_url(postgresql_url))
    async with make_lilota(echo, engine=engine, number_of_processes=0) as lilota:
        assert lilota._node is not None
        assert lilota._node._inserter is lilota._node.writer
        await lilota.schedule(echo, 1)
    await engine.dispose()


async def test_the_row_of_a_task_that_ran(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """A completed row says where, when and at what cost the task ran."""
    lilota = make_lilota(add, db_url=fast_database_url)
    async with lilota:
        task_id = await lilota.schedule(add, AddInput(2, 3))
        task = await lilota.wait(task_id, timeout=DEADLINE)
    assert (task.status, task.progress_percentage) == ("completed", 100)
    assert (task.output, task.exception, task.attempts) == ({"sum": 5}, None, 1)
    assert task.start_date_time is not None
    assert task.end_date_time is not None
    assert task.created_at <= task.start_date_time <= task.end_date_time
    assert task.pid
    assert task.cpu_seconds is not None
    assert task.cpu_seconds < 5
    assert task.peak_memory_bytes is not None
    assert 1_000_000 < task.peak_memory_bytes < 1_000_000_000


async def test_by_function_and_by_name(make_lilota: MakeLilota) -> None:
    """The function and its name are the same task; the id is a UUID of version 7."""
    lilota = make_lilota(add)
    async with lilota:
        first: TaskId[AddOutput] = await lilota.schedule(add, AddInput(2, 3))
        second = await lilota.schedule("add", {"a": 4, "b": 5})
        assert await lilota.result(first, DEADLINE) == AddOutput(5)
        assert await lilota.result(second, DEADLINE) == AddOutput(9)
    assert first.version == 7
    assert first < second


async def test_id_of_the_callers_making(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """Scheduling an id again makes no second row, and does not change the first."""
    lilota = make_lilota(echo, db_url=fast_database_url)
    task_id: TaskId[Any] = TaskId()
    async with lilota:
        assert await lilota.schedule(echo, "first", task_id=task_id) == task_id
        assert await lilota.result(task_id, DEADLINE) == "first"
        assert await lilota.schedule(echo, "second", task_id=task_id) == task_id
        assert [task.input for task in await lilota.get_all_tasks()] == ["first"]


@pytest.mark.parametrize("value", [3, "3", "not an id", UUID(int=0)])
async def test_ids_that_are_none(make_lilota: MakeLilota, value: Any) -> None:
    """An id that is no TaskId is refused before anything is written."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        with pytest.raises(ConfigurationError, match="TaskId"):
            await lilota.schedule(nothing, task_id=value)
        assert await lilota.get_all_tasks() == []


async def test_plain_uuid_as_id(make_lilota: MakeLilota) -> None:
    """A plain UUID is an id as well, and comes back as a TaskId."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        plain: Any = uuid4()
        made = await lilota.schedule(nothing, task_id=plain)
        assert made == plain
        assert isinstance((await row(lilota, made)).id, TaskId)


async def test_missing_and_unwanted_inputs(make_lilota: MakeLilota) -> None:
    """A missing input and one that the task does not take are refused, and say so."""
    lilota = make_lilota(add, nothing, echo_or_default)
    async with lilota:
        with pytest.raises(InvalidInput, match="the task needs an input, and none was given"):
            await lilota.schedule(add)
        with pytest.raises(InvalidInput, match="takes no input; leave it out"):
            await lilota.schedule(nothing, 1)
        assert await lilota.get_all_tasks() == []
        assert await lilota.result(await lilota.schedule(echo_or_default), DEADLINE) == 7
        assert await lilota.result(await lilota.schedule(echo_or_default, 8), DEADLINE) == 8


async def test_priorities(make_lilota: MakeLilota, directory: Path, without_polling: None) -> None:
    """Of what waits, the higher priority runs first, and equals in their order."""
    lilota = make_lilota(hold, sleep)
    async with lilota:
        await lilota.schedule(hold, str(directory))
        await marked(directory)
        # They take longer than a grain of SQLite's clock, by which they are put in order below.
        ids = [
            await lilota.schedule(sleep, 0.01, priority=priority) for priority in (0, -5, 7, 0, 7)
        ]
        (directory / "release").touch()
        tasks = [await lilota.wait(task_id, timeout=DEADLINE) for task_id in ids]
    started = sorted(tasks, key=lambda task: (task.start_date_time, task.id))
    assert [ids.index(task.id) for task in started] == [2, 4, 0, 3, 1]


@pytest.mark.parametrize("priority", ["1", 1.5, 2**31, True, None])
async def test_priorities_that_are_none(make_lilota: MakeLilota, priority: Any) -> None:
    """A priority that no row can hold is refused before anything is written."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        if priority is None:  # the task's own
            await lilota.schedule(nothing, priority=priority)
            return
        with pytest.raises(ConfigurationError, match="priority"):
            await lilota.schedule(nothing, priority=priority)
        assert await lilota.get_all_tasks() == []


@pytest.mark.parametrize("tags", ["red", [""], ["a\nb"], [3], ["x" * 201], 5, {"red": 1}])
async def test_tags_that_are_none(make_lilota: MakeLilota, tags: Any) -> None:
    """Tags are several printable texts; anything else is refused."""
    lilota = make_lilota(nothing, number_of_processes=0)
    async with lilota:
        with pytest.raises(ConfigurationError, match="tag"):
            await lilota.schedule(nothing, tags=tags)
        assert await lilota.get_all_tasks() == []


async def test_schedule_many(make_lilota: MakeLilota, fast_database_url: str) -> None:
    """One task for each input, in their order, in more than one transaction."""
    lilota = make_lilota(add, db_url=fast_database_url, number_of_processes=2)
    async with lilota:
        inputs = (AddInput(number, 1) for number in range(1500))
        ids = await lilota.schedule_many(add, inputs, tags=(tag for tag in ["bulk"]))
        assert await lilota.schedule_many("add", []) == []
    tasks = {task.id: task for task in await lilota.get_all_tasks()}
    assert len(ids) == len(tasks) == 1500
    assert [tasks[task_id].output["sum"] for task_id in ids] == list(range(1, 1501))
    assert tasks[ids[-1]].tags == ["bulk"]


async def test_schedule_many_checks_before_it_writes(make_lilota: MakeLilota) -> None:
    """One input that does not fit keeps all of them from being written."""
    lilota = make_lilota(add, number_of_processes=0)
    async with lilota:
        with pytest.raises(InvalidInput, match=r"'add' does not fit at \$\.b: .*int.*str"):
            await lilota.schedule_many(add, [AddInput(1, 2), {"a": 1, "b": "2"}])
        assert await lilota.get_all_tasks() == []


@pytest.mark.parametrize("inputs", ["text", b"bytes", {"a": 1}, None, 5, AddInput(1, 2)])
async def test_what_is_not_several_inputs(make_lilota: MakeLilota, inputs: Any) -> None:
    """One input instead of a list of them is refused, and not taken apart."""
    async with make_lilota(echo, number_of_processes=0) as lilota:
        with pytest.raises(ConfigurationError, match="give a single one to schedule"):
            await lilota.schedule_many(echo, inputs)
        assert await lilota.get_all_tasks() == []


@pytest.mark.parametrize(
    "options", [{"priority": "1"}, {"delay": -1}, {"timeout": "5"}, {"if_failed": "go"}], ids=str
)
async def test_settings_are_checked_before_inputs(
    make_lilota: MakeLilota, options: dict[str, Any]
) -> None:
    """Without an input as well, and before an iterator is asked for one."""
    inputs = iter(range(3))
    given: Any
    async with make_lilota(echo, number_of_processes=0) as lilota:
        for given in ([], inputs):
            with pytest.raises(ConfigurationError, match=next(iter(options))):
                await lilota.schedule_many(echo, given, **options)
        assert await lilota.get_all_tasks() == []
    assert list(inputs) == [0, 1, 2]


async def test_schedule_only_node(make_lilota: MakeLilota) -> None:
    """A Lilota without processes schedules, runs nothing, and stops without waiting."""
    scheduler = make_lilota(echo, number_of_processes=0)
    async with asyncio.timeout(DEADLINE):
        async with scheduler:
            task_id = await scheduler.schedule(echo, 1)
    assert (await row(scheduler, task_id)).status == "pending"
    worker = make_lilota(echo)
    async with worker:
        assert await worker.result(task_id, DEADLINE) == 1


async def test_rows_of_names_that_nobody_knows_wait(make_lilota: MakeLilota) -> None:
    """A task that only another node knows stays pending, and does not hold stop() up."""
    other = make_lilota(echo, number_of_processes=0)
    worker = make_lilota(nothing)
    async with asyncio.timeout(DEADLINE), other, worker:
        left = await other.schedule(echo, 1)
        assert (await worker.wait(await worker.schedule(nothing), DEADLINE)).status == "completed"
        await worker.stop()
    assert (await row(other, left)).status == "pending"


async def test_a_cancelled_schedule_is_all_or_nothing(make_lilota: MakeLilota) -> None:
    """Cancelled at any moment, schedule() leaves a row that runs, or none."""
    lilota = make_lilota(echo)
    ids: list[TaskId[Any]] = [TaskId() for _ in range(40)]
    async with lilota:
        for number, task_id in enumerate(ids):
            scheduling = asyncio.ensure_future(lilota.schedule(echo, number, task_id=task_id))
            for _ in range(number % 20):
                await asyncio.sleep(0)
            scheduling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await scheduling
    tasks = {task.id: task for task in await lilota.get_all_tasks()}
    assert set(tasks) <= set(ids)
    assert {task.status for task in tasks.values()} <= {"completed"}


async def test_schedule_after_stop(make_lilota: MakeLilota) -> None:
    """After stop() nothing is taken, and the error says what to do."""
    lilota = make_lilota(nothing)
    async with lilota:
        pass
    for call in (lilota.schedule(nothing), lilota.schedule_many(nothing, [None])):
        with pytest.raises(NotRunning, match=r"call 'await lilota.start\(\)' first"):
            await call
    assert isinstance(lilota, Lilota)
    assert await lilota.get_all_tasks() == []
