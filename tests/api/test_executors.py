"""Processes, threads and the loop: the same task means the same on each."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from lilota_async import current_task
from tests.api import tasks
from tests.api.support import DEADLINE, MakeLilota, marked, row
from tests.api.tasks import (
    AMBIENT,
    AddInput,
    AddOutput,
    add,
    describe_itself,
    describe_itself_async,
    fail,
    hold,
    hold_async,
    returns,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
EXECUTORS = ("process", "thread", "loop")
everywhere = pytest.mark.parametrize("executor", EXECUTORS)


@everywhere
@pytest.mark.parametrize("function", [describe_itself, describe_itself_async])
async def test_current_task(make_lilota: MakeLilota, executor: Any, function: Any) -> None:
    """current_task() knows the row, and nothing of the caller's context leaks in or out."""
    lilota = make_lilota(set_progress_manually=True)
    lilota.register("described", executor=executor)(function)
    AMBIENT.set("the caller's")
    async with lilota:
        for _ in range(2):  # the second in the same process or thread
            task_id = await lilota.schedule("described", tags=["red", "blue"])
            seen = await lilota.result(task_id, DEADLINE)
            assert seen["id"] == str(task_id)
            assert (seen["name"], seen["attempt"]) == ("described", 1)
            assert (seen["tags"], seen["cancelled"]) == (["red", "blue"], False)
            assert seen["percentage"] == 40
            assert seen["ambient"] == "unset"
            assert (seen["pid"] == os.getpid()) == (executor != "process")
            task = await row(lilota, task_id)
            assert (task.pid, task.progress_percentage) == (seen["pid"], 40)
    assert AMBIENT.get() == "the caller's"
    assert current_task() is None
    if executor == "loop":
        assert seen["thread"] == threading.current_thread().name
    elif executor == "thread":
        assert seen["thread"] != threading.current_thread().name


@everywhere
async def test_models_and_failures(make_lilota: MakeLilota, executor: Any) -> None:
    """Models, exceptions and outputs that do not fit are the same everywhere."""
    lilota = make_lilota()
    for function in (add, fail, returns):
        lilota.register(executor=executor)(function)
    async with lilota:
        assert await lilota.result(await lilota.schedule(add, AddInput(2, 3)), DEADLINE) == (
            AddOutput(5)
        )
        failed = await lilota.wait(await lilota.schedule(fail, "no paper"), DEADLINE)
        invalid = await lilota.wait(await lilota.schedule(returns, "nan"), DEADLINE)
    assert failed.exception is not None
    assert failed.exception["type"] == "ValueError"
    assert failed.exception["message"] == "no paper"
    assert failed.exception["traceback"].count('File "') == 1
    assert invalid.exception is not None
    assert invalid.exception["kind"] == "invalid_output"


@everywhere
@pytest.mark.parametrize("kind", ["exit", "interrupt", "stop", "cancelled", "generator", "group"])
async def test_exceptions_that_could_do_harm(
    make_lilota: MakeLilota, executor: Any, kind: str
) -> None:
    """Whatever a task raises is its own failure, and harms neither the loop nor the slot."""
    lilota = make_lilota()
    for function in (tasks.raise_odd, tasks.raise_odd_async, add):
        lilota.register(executor=executor)(function)
    async with lilota:
        for function in (tasks.raise_odd, tasks.raise_odd_async):
            task = await lilota.wait(await lilota.schedule(function, kind), DEADLINE)
            assert (task.status, (task.exception or {})["kind"]) == ("failed", "error")
            assert (await lilota.wait(await lilota.schedule(add, AddInput(1, 1)), DEADLINE)).output


async def test_several_at_a_time(make_lilota: MakeLilota, tmp_path: Path) -> None:
    """Each executor runs as many at a time as it has places, and no more."""
    lilota = make_lilota(number_of_processes=2, number_of_threads=3, number_of_coroutines=4)
    lilota.register("process")(hold)
    lilota.register("thread", executor="thread")(hold)
    lilota.register("loop", executor="loop")(hold_async)
    places = {"process": 2, "thread": 3, "loop": 4}
    async with lilota, asyncio.timeout(DEADLINE):
        directories = {}
        for name, size in places.items():
            directories[name] = [tmp_path / f"{name}-{number}" for number in range(size + 1)]
            for directory in directories[name]:
                directory.mkdir()
                await lilota.schedule(name, str(directory))
        for name, size in places.items():
            for directory in directories[name][:size]:
                await marked(directory)
        running = await lilota.get_all_tasks(status="running")
        assert len(running) == sum(places.values())
        for each in (directory for some in directories.values() for directory in some):
            (each / "release").touch()
    assert {task.output for task in await lilota.get_all_tasks()} == {"released"}


async def test_an_executor_without_places(make_lilota: MakeLilota) -> None:
    """With no threads, tasks for threads wait, and stop() does not wait for them."""
    lilota = make_lilota(number_of_threads=0)
    lilota.register(executor="thread")(add)
    async with asyncio.timeout(DEADLINE):
        async with lilota:
            task_id = await lilota.schedule(add, AddInput(1, 2))
    assert (await row(lilota, task_id)).status == "pending"


@everywhere
async def test_stop_drains_every_executor(make_lilota: MakeLilota, executor: Any) -> None:
    """stop() finishes what waits for any kind of place."""
    lilota = make_lilota(number_of_threads=1, number_of_coroutines=1)
    lilota.register(executor=executor)(tasks.sleep_async)
    async with asyncio.timeout(DEADLINE):
        async with lilota:
            ids = await lilota.schedule_many(tasks.sleep_async, [0.02] * 5)
    for task_id in ids:
        assert (await row(lilota, task_id)).status == "completed"


async def test_threads_share_the_memory(make_lilota: MakeLilota) -> None:
    """A task in a thread sees the application's memory; one in a process does not."""
    lilota = make_lilota()
    lilota.register("thread", executor="thread")(tasks.remembered)
    lilota.register("process")(tasks.remembered)
    tasks.MEMORY["word"] = "here"
    async with lilota:
        assert await lilota.result(await lilota.schedule("thread"), DEADLINE) == "here"
        assert await lilota.result(await lilota.schedule("process"), DEADLINE) is None
    tasks.MEMORY.clear()


async def test_a_task_that_schedules_through_its_application(make_lilota: MakeLilota) -> None:
    """The loop stays free while tasks run in processes and threads."""
    lilota = make_lilota(tasks.sleep)
    lilota.register("thread", executor="thread")(tasks.sleep)
    loop = asyncio.get_running_loop()
    async with lilota:
        ids = [await lilota.schedule(name, 2.0) for name in ("sleep", "thread")]
        longest, last = 0.0, loop.time()
        waiting = asyncio.ensure_future(
            asyncio.gather(*(lilota.wait(task_id, DEADLINE) for task_id in ids))
        )
        while not waiting.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, loop.time() - last), loop.time()
    assert longest < 1.8  # one of the tasks on the loop would have made it 2
