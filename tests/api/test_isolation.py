"""What happens to one task concerns no other, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from lilota_async import Retry, Task, TaskStatus
from tests.api import slow_import, tasks, work
from tests.api.support import (
    DEADLINE,
    MakeLilota,
    is_gone,
    leaving_nothing,
    marked,
    row,
    task_processes,
    until,
)
from tests.api.tasks import echo

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

ENDS = 100


async def test_long_tasks_run_through_a_hundred_crashes_timeouts_and_cancels(
    make_lilota: MakeLilota, tmp_path: Path
) -> None:
    """Three tasks in neighbouring cells see 100 violent ends and are not restarted once."""
    lilota = make_lilota(tasks.hold, tasks.kill_itself, tasks.spin, number_of_processes=4)
    directories = [_new_directory(tmp_path / f"long-{number}") for number in range(3)]
    async with asyncio.timeout(90), leaving_nothing(lilota):
        held = [await lilota.schedule(tasks.hold, str(directory)) for directory in directories]
        pids = [await marked(directory) for directory in directories]
        for number in range(ENDS):
            directory = _new_directory(tmp_path / f"end-{number}")
            if number % 3 == 0:
                ended = await lilota.wait(await lilota.schedule(tasks.kill_itself))
                assert kind_of(ended) == "crash"
            elif number % 3 == 1:
                late = await lilota.schedule(tasks.spin, str(directory), timeout=0.01)
                assert kind_of(await lilota.wait(late)) == "timeout"
            else:
                unwanted = await lilota.schedule(tasks.spin, str(directory))
                await marked(directory)
                assert await lilota.cancel(unwanted)
        for directory in directories:
            (directory / "release").touch()
        for task_id, pid in zip(held, pids, strict=True):
            task = await lilota.wait(task_id)
            assert (task.status, task.attempts, str(task.pid)) == (TaskStatus.COMPLETED, 1, pid)


async def test_fifty_timeouts_at_once(make_lilota: MakeLilota, tmp_path: Path) -> None:
    """Loops without an end on two processes: each has its own timeout, none is begun twice."""
    lilota = make_lilota(echo, number_of_processes=2)
    lilota.register(timeout=0.1)(tasks.spin)
    async with asyncio.timeout(60), leaving_nothing(lilota):
        ids = await lilota.schedule_many(tasks.spin, [str(tmp_path)] * 50)
        for task_id in ids:
            task = await lilota.wait(task_id)
            assert (kind_of(task), task.attempts) == ("timeout", 1), task.exception
        ids = await lilota.schedule_many(echo, range(20))
        assert [await lilota.result(task_id) for task_id in ids] == list(range(20))


async def test_short_tasks_do_not_wait_behind_a_long_one(
    make_lilota: MakeLilota, directory: Path
) -> None:
    """They share processes in bursts, but not the one that runs something else."""
    lilota = make_lilota(tasks.hold, echo, number_of_processes=2)
    async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
        for task_id in await lilota.schedule_many(echo, range(40)):
            await lilota.wait(task_id)  # they are known to be short by now
        held = await lilota.schedule(tasks.hold, str(directory))
        await marked(directory)
        try:
            async with asyncio.timeout(DEADLINE / 2):
                for task_id in await lilota.schedule_many(echo, range(300)):
                    await lilota.wait(task_id)
        finally:
            (directory / "release").touch()
        assert await lilota.result(held) == "released"


async def test_a_fork_that_comes_back(make_lilota: MakeLilota) -> None:
    """The task has one outcome, its own, and its process runs the next task."""
    lilota = make_lilota(work.fork_and_return, work.pid)
    async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
        for _ in range(5):
            task_id = await lilota.schedule(work.fork_and_return)
            assert await lilota.result(task_id) == "the task's"
            task = await row(lilota, task_id)
            assert await lilota.result(await lilota.schedule(work.pid)) == task.pid


async def test_a_task_that_daemonises(make_lilota: MakeLilota, directory: Path) -> None:
    """Its process is gone: a crash, though the daemon lives on with all of its descriptors."""
    lilota = make_lilota(work.daemonise, echo)
    try:
        async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
            task = await lilota.wait(await lilota.schedule(work.daemonise, str(directory)))
            assert (kind_of(task), task.exception["exit_code"]) == ("crash", 0)  # type: ignore[index]
            assert await lilota.result(await lilota.schedule(echo, 1)) == 1
        daemon = int(await marked(directory, "daemon"))
        assert not is_gone(daemon)
    finally:
        os.kill(int((directory / "daemon").read_text()), signal.SIGKILL)


async def test_a_crash_while_the_result_is_on_its_way(make_lilota: MakeLilota) -> None:
    """Half of 5 MB is no result, and nobody waits for the other half."""
    lilota = make_lilota(work.die_while_sending, echo)
    async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
        task = await lilota.wait(await lilota.schedule(work.die_while_sending))
        assert (kind_of(task), task.exception["signal"], task.output) == (  # type: ignore[index]
            "crash",
            "SIGKILL",
            None,
        )
        text = "x" * 5_000_000
        assert await lilota.result(await lilota.schedule(echo, text)) == text


@pytest.mark.parametrize("go", [True, False], ids=["in-time", "too-slow"])
async def test_a_cancel_while_the_module_is_imported(
    make_lilota: MakeLilota, directory: Path, monkeypatch: pytest.MonkeyPatch, go: bool
) -> None:
    """The task's own code never begins; an import without an end is killed after the grace."""
    monkeypatch.setenv("SLOW_IMPORT", str(directory))
    lilota = make_lilota(slow_import.ready, echo, start_method="spawn", grace=5.0 if go else 0.1)
    async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
        task_id = await lilota.schedule(slow_import.ready)
        pid = int(await marked(directory, "importing"))
        cancelling = asyncio.ensure_future(lilota.cancel(task_id))
        if go:
            assert lilota._node is not None
            attempt = lilota._node.running.find(task_id)
            assert attempt is not None
            # The request is in the pipe of the process by then.
            await until(lambda: attempt.intent is not None, "the request to stop")
            (directory / "go").touch()
        assert await cancelling
        assert is_gone(pid)
        assert (await row(lilota, task_id)).status == "cancelled"
        assert not (directory / "ran").exists()
        assert await lilota.result(await lilota.schedule(echo, 1)) == 1


async def test_a_cancel_while_the_process_comes_up(make_lilota: MakeLilota) -> None:
    """At every moment of a replacement: the task is cancelled, and the next one runs."""
    lilota = make_lilota(tasks.kill_itself, work.pid)
    async with asyncio.timeout(60), leaving_nothing(lilota):
        for number in range(12):
            await lilota.wait(await lilota.schedule(tasks.kill_itself))
            task_id = await lilota.schedule(work.pid)
            await asyncio.sleep(number * 0.006)
            status = "cancelled" if await lilota.cancel(task_id) else "completed"
            task = await row(lilota, task_id)
            assert (task.status, task.attempts <= 1) == (status, True)
        assert await lilota.result(await lilota.schedule(work.pid))


async def test_a_killed_idle_process_costs_no_attempt(make_lilota: MakeLilota) -> None:
    """Processes that die between tasks are replaced; what they were given runs elsewhere."""
    lilota = make_lilota(echo, number_of_processes=2)
    lilota.register(retry=Retry(max_attempts=1))(work.pid)
    async with asyncio.timeout(60), leaving_nothing(lilota):
        for number in range(20):
            for pid in task_processes():
                if number % 2:
                    os.kill(pid, signal.SIGKILL)
            task_id = await lilota.schedule(echo, number)
            assert await lilota.result(task_id) == number
            assert (await row(lilota, task_id)).attempts == 1


async def test_the_garbage_collector_takes_nothing(
    make_lilota: MakeLilota, directory: Path
) -> None:
    """Nothing that runs depends on a reference that only the caller has."""
    lilota = make_lilota(tasks.hold, echo, number_of_processes=2)
    gc.freeze()  # what was there before would only make it slow
    async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
        held = await lilota.schedule(tasks.hold, str(directory))
        ids = await lilota.schedule_many(echo, range(20))
        while len(await lilota.get_all_tasks(status="completed")) < 20:
            gc.collect()
        await marked(directory)
        (directory / "release").touch()
        assert await lilota.result(held) == "released"
        assert [await lilota.result(task_id) for task_id in ids] == list(range(20))
    gc.unfreeze()


async def test_a_stop_of_tasks_that_do_not_want_to_end(
    make_lilota: MakeLilota, tmp_path: Path
) -> None:
    """stop() ends them all, with what they have started, and puts them back."""
    functions: list[Any] = [tasks.swallow, tasks.hold_the_interpreter, tasks.start_a_child]
    lilota = make_lilota(*functions, number_of_processes=3)
    async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
        for function in functions:
            directory = _new_directory(tmp_path / function.__name__)
            await lilota.schedule(function, str(directory))
            await marked(directory)
        child = int((tmp_path / "start_a_child" / "child").read_text())
        await lilota.stop(drain=False, timeout=0)
        assert is_gone(child)
    assert {task.status for task in await lilota.get_all_tasks()} == {"pending"}
    await until(lambda: not psutil.pid_exists(child), "the end of the child")


def kind_of(task: Task) -> str:
    assert task.exception is not None
    return str(task.exception["kind"])


def _new_directory(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def test_a_short_task_that_hangs_holds_nobody_up(
    make_lilota: MakeLilota, directory: Path
) -> None:
    """What waits behind it in its burst runs elsewhere, once, and can be cancelled."""
    lilota = make_lilota(tasks.hold_if_told, number_of_processes=2)
    async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
        known = await lilota.schedule_many(tasks.hold_if_told, [""] * 300)
        for task_id in known:
            await lilota.wait(task_id)
        told = [""] * 20 + [str(directory)] + [""] * 100
        ids = await lilota.schedule_many(tasks.hold_if_told, told)
        held = ids.pop(20)
        for task_id in ids:
            task = await lilota.wait(task_id)
            assert (task.status, task.attempts) == (TaskStatus.COMPLETED, 1)
        assert (await row(lilota, held)).status is TaskStatus.RUNNING
        assert await lilota.cancel(held)
