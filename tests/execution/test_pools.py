"""Threads and the loop as places for tasks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from lilota_async.execution.context import current_task, in_task_process
from lilota_async.execution.ends import Ended, Unstarted
from lilota_async.execution.pools import LocalPool, LocalSlot
from lilota_async.execution.protocol import Checkpoint, Outcome, Progress, Started
from tests.execution import neighbours, tasks
from tests.execution.support import (
    PATIENCE,
    Heard,
    call_of,
    failure_of,
    nothing_left,
    run,
    until,
    value_of,
)

pytestmark = pytest.mark.anyio

OF_THE_APPLICATION: ContextVar[str] = ContextVar("of the application", default="default")


def look_around() -> list[Any]:
    task = current_task()
    assert task is not None
    return [task.name, task.attempt, OF_THE_APPLICATION.get(), in_task_process()]


async def look_around_async() -> list[Any]:
    return look_around()


async def wait_async(path: str) -> None:
    tasks.touch(path)
    await asyncio.sleep(600)


async def swallow_async(path: str) -> str:
    tasks.touch(path)
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(600)
    return "all the same"


async def cancel_itself() -> None:
    raise asyncio.CancelledError("of my own")


TOGETHER = threading.Barrier(3)


def meet() -> str:
    """Return when two others have come as well."""
    TOGETHER.wait(PATIENCE)
    return threading.current_thread().name


@asynccontextmanager
async def pool_of(kind: str, size: int = 2) -> AsyncIterator[LocalPool]:
    with nothing_left():
        pool = LocalPool(size, lambda: None, threads=kind == "thread")
        await pool.start()
        try:
            yield pool
        finally:
            await pool.close()


@pytest.fixture(params=["thread", "loop"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def _run(slot: LocalSlot, function: Callable[..., Any], input: Any = None) -> Ended:
    return await run(slot, call_of(function, input), Heard())


@pytest.mark.parametrize("function", [look_around, look_around_async])
async def test_a_task_runs_in_a_context_of_its_own(kind: str, function: Any) -> None:
    """Functions of both kinds know their task, and see nothing of the caller's variables."""
    OF_THE_APPLICATION.set("of the caller")
    async with pool_of(kind) as pool:
        seen = value_of(await _run(pool.slots()[0], function))
        assert seen == [function.__name__, 1, "default", False]
    assert current_task() is None


@pytest.mark.parametrize(
    "function",
    [
        tasks.raise_needs_args,
        tasks.raise_system_exit,
        tasks.raise_keyboard_interrupt,
        tasks.raise_stop_iteration,
        tasks.raise_cancelled,
        tasks.raise_generator_exit,
        cancel_itself,
    ],
)
async def test_whatever_is_raised_is_a_failure(kind: str, function: Callable[..., Any]) -> None:
    """Neither the loop nor whoever waits is harmed."""
    async with pool_of(kind) as pool:
        failure = failure_of(await _run(pool.slots()[0], function))
        assert failure["kind"] == "error"
        assert value_of(await _run(pool.slots()[0], tasks.ok)) == "ok"


async def test_messages_come_before_the_end(kind: str) -> None:
    """Progress and checkpoint are heard on the loop, in their order."""
    async with pool_of(kind) as pool:
        heard = Heard()
        ended = await run(pool.slots()[0], call_of(tasks.report, 3), heard)
        assert isinstance(ended, Outcome)
        assert ended.progress == 2
        kinds = [type(message) for message in heard.messages]
        assert kinds == [Started, Progress, Progress, Progress, Checkpoint]


async def test_a_slot_runs_one_call_and_says_when_it_is_free() -> None:
    """The owner of the pool is told at the end of each."""
    told: list[int] = []
    pool = LocalPool(2, lambda: told.append(1), threads=False)
    slot, other = pool.slots()
    running = asyncio.ensure_future(_run(slot, wait_async, "/dev/null"))
    await until(lambda: slot.load == 1)
    assert other.load == 0
    slot.interrupt(0, "cancel")
    assert failure_of(await running)["type"].endswith("TaskStopped")
    assert slot.load == 0
    assert told == [1]


async def test_a_coroutine_is_cancelled(tmp_path: Path) -> None:
    """Its failure says that it was stopped, and not that something was cancelled."""
    async with pool_of("loop") as pool:
        slot = pool.slots()[0]
        path = tmp_path / "begun"
        running = asyncio.ensure_future(_run(slot, wait_async, str(path)))
        await until(path.exists)
        slot.interrupt(0, "timeout")
        ended = await running
        assert failure_of(ended)["type"].endswith("TaskStopped")
        assert isinstance(ended, Outcome)
        assert ended.interrupted


async def test_a_coroutine_that_returns_all_the_same_has_a_result(tmp_path: Path) -> None:
    """It did not look at `cancelled`: what arrived first wins."""
    async with pool_of("loop") as pool:
        slot = pool.slots()[0]
        path = tmp_path / "begun"
        running = asyncio.ensure_future(_run(slot, swallow_async, str(path)))
        await until(path.exists)
        slot.interrupt(0, "cancel")
        assert value_of(await running) == "all the same"


async def test_a_coroutine_that_is_cancelled_before_its_first_step_never_begins(
    tmp_path: Path,
) -> None:
    """The attempt ends, instead of being cancelled itself."""
    async with pool_of("loop") as pool:
        slot = pool.slots()[0]
        path = tmp_path / "begun"
        running = asyncio.ensure_future(_run(slot, wait_async, str(path)))
        await asyncio.sleep(0)  # it has a task now, which has not had a turn
        slot.interrupt(0, "cancel")
        assert await running == Unstarted()
        assert not path.exists()
        assert value_of(await _run(slot, tasks.ok)) == "ok"


async def test_a_thread_that_looks_is_stopped(tmp_path: Path) -> None:
    """It returns because of what it saw, which is no result."""
    async with pool_of("thread") as pool:
        slot = pool.slots()[0]
        path = tmp_path / "begun"
        running = asyncio.ensure_future(_run(slot, tasks.wait_until_cancelled, str(path)))
        await until(path.exists)
        slot.interrupt(0, "cancel")
        assert failure_of(await running)["type"].endswith("TaskStopped")


async def test_a_thread_that_does_not_look_has_a_result(tmp_path: Path) -> None:
    """It cannot be killed, and is waited for."""
    async with pool_of("thread") as pool:
        slot = pool.slots()[0]
        path = tmp_path / "task"
        call = call_of(neighbours.wait_for_release, str(path))
        running = run(slot, call, Heard())
        await until((tmp_path / "task.begun").exists)
        slot.interrupt(call.serial, "cancel")
        assert slot.kill(call.serial)
        await slot.retire()
        assert not running.done()
        (tmp_path / "task.release").touch()
        assert value_of(await running) == 7


async def test_threads_do_not_hold_up_the_loop() -> None:
    """Several run at a time, each in a thread of the pool's."""
    async with pool_of("thread", size=3) as pool:
        ends = await asyncio.gather(*(_run(slot, meet) for slot in pool.slots()))
        names = {value_of(ended) for ended in ends}
        assert len(names) == 3
        assert all(name.startswith("lilota-task") for name in names)
