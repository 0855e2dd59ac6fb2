"""The 25 tests of the synchronous ancestor, lilota 0.6, awaited on the public API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from lilota_async.core import Lilota
from lilota_async.errors import AlreadyRegistered, AlreadyRunning, InvalidInput, NotRunning
from lilota_async.models import Task, TaskProgress, TaskStatus
from lilota_async.options import usable_cpus
from tests.ancestor_tasks import (
    EXTERNAL_STATE,
    AddInput,
    AddInputDataclass,
    AddInputInvalid,
    AddOutput,
    AddOutputDataclass,
    AddOutputInvalid,
    add,
    add_with_dataclasses,
    add_with_dict,
    add_with_exception,
    add_with_taskprogress,
    hello_world,
    only_input_model,
    only_output_model,
    only_taskprogress,
    task_mutates_external_state,
)
from tests.api.support import task_processes

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]


def make(url: str, number_of_processes: int | None = 1, **options: Any) -> Lilota:
    """A Lilota that knows `add`."""
    lilota = Lilota(url, number_of_processes=number_of_processes, **options)
    lilota.register("add", input_model=AddInput, output_model=AddOutput)(add)
    return lilota


@asynccontextmanager
async def started(lilota: Lilota) -> AsyncIterator[Lilota]:
    """Start, and stop at the end whatever happens."""
    async with asyncio.timeout(60):
        await lilota.start()
        try:
            yield lilota
        finally:
            if lilota.is_running:
                await lilota.stop()


async def run_one(
    url: str, function: Callable[..., Any], input: Any = None, **options: Any
) -> Task:
    """Register the function, start, schedule, stop, and read the row, as the ancestor does."""
    manual = options.pop("set_progress_manually", False)
    lilota = Lilota(url, number_of_processes=1, set_progress_manually=manual)
    lilota.register(function.__name__, **options)(function)
    async with started(lilota):
        task_id = await lilota.schedule(function.__name__, input)
    task = await lilota.get_task_by_id(task_id)
    assert task is not None
    return task


# --- register --------------------------------------------------------------------------------


async def test_nothing_is_registered_at_first(fast_database_url: str) -> None:
    """A new Lilota has no registration."""
    assert Lilota(fast_database_url, number_of_processes=1).registered_tasks == ()


async def test_one_registration(fast_database_url: str) -> None:
    """A registered function is one registration."""
    assert make(fast_database_url).registered_tasks == ("add",)


async def test_a_name_cannot_be_registered_twice(fast_database_url: str) -> None:
    """The second registration of a name is refused, and says which it is."""
    lilota = make(fast_database_url)
    with pytest.raises(RuntimeError, match="Task 'add' is already registered") as caught:
        lilota.register("add", input_model=AddInput)(add_with_dict)
    assert isinstance(caught.value, AlreadyRegistered)


# --- start and stop --------------------------------------------------------------------------


async def test_default_number_of_processes_is_that_of_the_cpus(fast_database_url: str) -> None:
    """Without a number there is a process for every CPU that may be used."""
    before = task_processes()
    async with started(make(fast_database_url, number_of_processes=None)) as lilota:
        assert lilota.number_of_processes == usable_cpus()
        assert len(task_processes() - before) == usable_cpus()


async def test_number_of_processes_is_one(fast_database_url: str) -> None:
    """One process is one process."""
    before = task_processes()
    async with started(make(fast_database_url)) as lilota:
        assert lilota.number_of_processes == 1
        assert len(task_processes() - before) == 1


async def test_more_processes_than_cpus(fast_database_url: str) -> None:
    """Unlike in the ancestor, more processes than CPUs are what was asked for."""
    before = task_processes()
    async with started(make(fast_database_url, usable_cpus() + 2)) as lilota:
        assert lilota.number_of_processes == usable_cpus() + 2
        assert len(task_processes() - before) == usable_cpus() + 2


async def test_start_twice(fast_database_url: str) -> None:
    """A second start is refused, and harms nothing."""
    async with started(make(fast_database_url)) as lilota:
        with pytest.raises(AlreadyRunning, match="already started"):
            await lilota.start()
        assert lilota.is_running


async def test_stop_before_start(fast_database_url: str) -> None:
    """What was not started cannot be stopped."""
    with pytest.raises(NotRunning, match=r"stop\(\) needs a running lilota"):
        await make(fast_database_url).stop()


async def test_start_and_directly_stop(fast_database_url: str) -> None:
    """A stop right after the start ends all processes."""
    before = task_processes()
    lilota = make(fast_database_url, number_of_processes=None)
    async with asyncio.timeout(60):
        await lilota.start()
        assert lilota.is_running
        await lilota.stop()
    assert not lilota.is_running
    assert task_processes() <= before


# --- schedule --------------------------------------------------------------------------------


async def test_schedule_before_start(fast_database_url: str) -> None:
    """Before the start nothing can be scheduled."""
    with pytest.raises(NotRunning, match=r"schedule\(\) needs a running lilota"):
        await make(fast_database_url).schedule("add", AddInput(a=1, b=2))


async def test_hello_world(fast_database_url: str) -> None:
    """A task without input and output completes."""
    task = await run_one(fast_database_url, hello_world)
    assert task.status is TaskStatus.COMPLETED
    assert task.exception is None
    assert task.progress_percentage == 100
    assert task.input is None
    assert task.output is None


async def test_only_input_model(fast_database_url: str) -> None:
    """A task with an input model alone has an input and no output."""
    input = AddInput(a=1, b=2)
    task = await run_one(fast_database_url, only_input_model, input, input_model=AddInput)
    assert task.status is TaskStatus.COMPLETED
    assert task.exception is None
    assert task.progress_percentage == 100
    assert task.input == {"a": 1, "b": 2}
    assert task.output is None


async def test_only_output_model(fast_database_url: str) -> None:
    """A task with an output model alone has an output and no input."""
    task = await run_one(fast_database_url, only_output_model, output_model=AddOutput)
    assert task.status is TaskStatus.COMPLETED
    assert task.exception is None
    assert task.progress_percentage == 100
    assert task.input is None
    assert task.output["sum"] == 3


async def test_only_taskprogress(fast_database_url: str) -> None:
    """With progress set by hand, the row keeps what the task has set."""
    task = await run_one(
        fast_database_url,
        only_taskprogress,
        task_progress=TaskProgress,
        set_progress_manually=True,
    )
    assert task.status is TaskStatus.COMPLETED
    assert task.progress_percentage == 50


async def test_model_protocol(fast_database_url: str) -> None:
    """Models with `as_dict()` go in and come out."""
    task = await run_one(
        fast_database_url, add, AddInput(a=1, b=2), input_model=AddInput, output_model=AddOutput
    )
    assert task.status is TaskStatus.COMPLETED
    assert task.exception is None
    assert task.progress_percentage == 100
    assert task.input["a"] + task.input["b"] == task.output["sum"]


async def test_taskprogress_beside_an_input(fast_database_url: str) -> None:
    """The progress follows the input, which may be an instance of another class that fits."""
    task = await run_one(
        fast_database_url,
        add_with_taskprogress,
        AddInputDataclass(a=1, b=2),
        input_model=AddInput,
        task_progress=TaskProgress,
        set_progress_manually=True,
    )
    assert task.status is TaskStatus.COMPLETED
    assert task.progress_percentage == 50


async def test_dataclasses(fast_database_url: str) -> None:
    """Dataclasses go in and come out."""
    task = await run_one(
        fast_database_url,
        add_with_dataclasses,
        AddInputDataclass(a=1, b=2),
        input_model=AddInputDataclass,
        output_model=AddOutputDataclass,
    )
    assert task.status is TaskStatus.COMPLETED
    assert task.exception is None
    assert task.progress_percentage == 100
    assert task.input["a"] + task.input["b"] == task.output["sum"]


async def test_dict(fast_database_url: str) -> None:
    """Dicts go in and come out."""
    task = await run_one(
        fast_database_url,
        add_with_dict,
        {"a": 1, "b": 2},
        input_model=dict[str, int],
        output_model=dict[str, int],
    )
    assert task.status is TaskStatus.COMPLETED
    assert task.exception is None
    assert task.progress_percentage == 100
    assert task.input["a"] + task.input["b"] == task.output["sum"]


async def test_invalid_model(fast_database_url: str) -> None:
    """An object that is no model is refused before anything is written."""
    lilota = Lilota(fast_database_url, number_of_processes=1)
    lilota.register("add", input_model=AddInputInvalid, output_model=AddOutputInvalid)(
        add_with_dataclasses
    )
    async with started(lilota):
        with pytest.raises(InvalidInput, match=r"'add'.*AddInputInvalid cannot be turned into"):
            await lilota.schedule("add", AddInputInvalid(a=1, b=2))
        assert await lilota.get_all_tasks() == []


async def test_1000_tasks_on_one_process(fast_database_url: str) -> None:
    """A thousand tasks, scheduled one after the other, have their results after stop()."""
    async with started(make(fast_database_url)) as lilota:
        ids = [await lilota.schedule("add", AddInput(a=i, b=i)) for i in range(1, 1001)]
    assert [task.id for task in await lilota.get_all_tasks(status="completed")] == ids
    for task_id in ids[::10]:  # after stop() each read has a connection of its own
        task = await lilota.get_task_by_id(task_id)
        assert task is not None
        assert task.status is TaskStatus.COMPLETED
        assert task.exception is None
        assert task.input["a"] + task.input["b"] == task.output["sum"]


async def test_5000_tasks_on_all_processes(fast_database_url: str) -> None:
    """Five thousand tasks, scheduled at once, have their results after stop()."""
    async with started(make(fast_database_url, number_of_processes=None)) as lilota:
        ids = await asyncio.gather(
            *(lilota.schedule("add", AddInput(a=i, b=i)) for i in range(1, 5001))
        )
    tasks = {task.id: task for task in await lilota.get_all_tasks()}
    assert len(tasks) == 5000
    for number, task_id in enumerate(ids, start=1):
        task = tasks[task_id]
        assert task.status is TaskStatus.COMPLETED
        assert task.exception is None
        assert task.input == {"a": number, "b": number}
        assert task.output == {"sum": 2 * number}
        assert task.attempts == 1


async def test_a_function_that_raises(fast_database_url: str) -> None:
    """A failed task has the exception, its progress is 100 and its output is empty."""
    task = await run_one(
        fast_database_url,
        add_with_exception,
        AddInput(a=1, b=2),
        input_model=AddInput,
        output_model=AddOutput,
    )
    assert task.status is TaskStatus.FAILED
    assert task.exception is not None
    assert task.exception["type"] == "Exception"
    assert task.exception["message"] == "Error"
    assert "add_with_exception" in task.exception["traceback"]
    assert task.progress_percentage == 100
    assert task.output is None


async def test_delete_twice(fast_database_url: str) -> None:
    """A task can be deleted once."""
    async with started(make(fast_database_url)) as lilota:
        task_id = await lilota.schedule("add", AddInput(a=1, b=2))
    assert await lilota.get_task_by_id(task_id) is not None
    assert await lilota.delete_task_by_id(task_id)
    assert not await lilota.delete_task_by_id(task_id)
    assert await lilota.get_task_by_id(task_id) is None


async def test_mutable_state_is_not_shared(fast_database_url: str) -> None:
    """What a task changes in its module stays in its process."""
    assert EXTERNAL_STATE["counter"] == 0
    task = await run_one(
        fast_database_url, task_mutates_external_state, output_model=dict[str, int]
    )
    assert task.status is TaskStatus.COMPLETED
    assert task.output["counter"] == 1
    assert EXTERNAL_STATE["counter"] == 0


async def test_unfinished_task_of_a_dead_application(fast_database_url: str) -> None:
    """A row that was left running is run again at the next start."""
    async with started(make(fast_database_url)):
        pass  # the tables are there now
    engine = create_async_engine(fast_database_url)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        left = Task(
            name="add",
            status=TaskStatus.RUNNING,
            input={"a": 4, "b": 5},
            output=None,
            exception=None,
            progress_percentage=50,
        )
        session.add(left)
        await session.commit()
    await engine.dispose()
    lilota = make(fast_database_url)
    before = await lilota.get_task_by_id(left.id)
    assert before is not None
    assert before.status is TaskStatus.RUNNING
    assert before.progress_percentage == 50

    async with started(lilota):
        pass

    task = await lilota.get_task_by_id(left.id)
    assert task is not None
    assert task.status is TaskStatus.COMPLETED
    assert task.exception is None
    assert task.progress_percentage == 100
    assert task.input["a"] + task.input["b"] == task.output["sum"]
    assert await lilota.delete_task_by_id(left.id)
