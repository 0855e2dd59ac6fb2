"""What a task may use, what it has used, and when its process is replaced for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lilota_async import Retry, Task, TaskCrashed, TaskStatus
from lilota_async.execution import processes
from tests.api import tasks, work
from tests.api.support import DEADLINE, MakeLilota, is_gone, leaving_nothing, marked, row, row_when
from tests.api.tasks import echo
from tests.api.work import MEBIBYTE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]


@pytest.mark.parametrize("function", [work.use_memory, work.use_memory_in_a_child])
async def test_too_much_memory(make_lilota: MakeLilota, directory: Path, function: Any) -> None:
    """What uses more than its limit is killed, children and all; the row says how much it was."""
    lilota = make_lilota(echo)
    lilota.register(max_memory="200MiB")(function)
    async with asyncio.timeout(DEADLINE), leaving_nothing(lilota):
        task = await lilota.wait(await lilota.schedule(function, str(directory)))
        _assert_too_large(task)
        mark = "started" if function is work.use_memory else "child"
        assert is_gone(int(await marked(directory, mark)))
        assert await lilota.result(await lilota.schedule(echo, 1)) == 1


def _assert_too_large(task: Task) -> None:
    assert task.exception is not None
    assert (task.status, task.exception["kind"], task.output) == ("failed", "memory", None)
    assert "200 MiB" in task.exception["message"]
    assert task.exception["peak_memory_bytes"] > 200 * MEBIBYTE
    assert task.peak_memory_bytes is not None
    assert task.peak_memory_bytes > 200 * MEBIBYTE


@pytest.mark.parametrize(("on", "attempts"), [((), 2), ((TaskCrashed,), 2), ((OSError,), 1)])
async def test_too_much_memory_by_policy(
    make_lilota: MakeLilota, directory: Path, on: Any, attempts: int
) -> None:
    """It counts as a crash, for the policy."""
    lilota = make_lilota()
    retry = Retry(max_attempts=2, delay=0, on=on)
    lilota.register(max_memory="200MiB", retry=retry)(work.use_memory)
    async with lilota, asyncio.timeout(DEADLINE):
        task = await lilota.wait(await lilota.schedule(work.use_memory, str(directory)))
    _assert_too_large(task)
    assert task.attempts == attempts


async def test_a_limit_that_is_kept(make_lilota: MakeLilota) -> None:
    """Who stays below notices nothing."""
    lilota = make_lilota()
    lilota.register(max_memory="1GiB")(work.burn)
    async with lilota, asyncio.timeout(DEADLINE):
        task = await lilota.wait(await lilota.schedule(work.burn, 0.3))
    assert (task.status, task.output) == (TaskStatus.COMPLETED, 64 * MEBIBYTE)


async def test_what_it_cost(make_lilota: MakeLilota) -> None:
    """Processor time and peak are the task's own, and not those of the one before it."""
    lilota = make_lilota(work.burn, echo)
    async with lilota, asyncio.timeout(DEADLINE):
        dear = await lilota.wait(await lilota.schedule(work.burn, 0.3))
        cheap = await lilota.wait(await lilota.schedule(echo, 1))
    assert dear.pid == cheap.pid
    assert dear.cpu_seconds is not None
    assert cheap.cpu_seconds is not None
    assert 0.3 <= dear.cpu_seconds < 1.5
    assert cheap.cpu_seconds < 0.1
    assert dear.peak_memory_bytes is not None
    assert cheap.peak_memory_bytes is not None
    assert dear.peak_memory_bytes > 64 * MEBIBYTE
    assert cheap.peak_memory_bytes < dear.peak_memory_bytes - 50 * MEBIBYTE


@pytest.mark.parametrize("how", ["exception", "timeout", "cancel", "SIGKILL", "SIGSEGV", "exit"])
async def test_what_it_cost_to_no_avail(make_lilota: MakeLilota, how: str) -> None:
    """Every end has its cost; that of a process that died by itself may not be known any more."""
    died = how in ("SIGKILL", "SIGSEGV", "exit")
    lilota = make_lilota(work.burn_and_end)
    async with lilota, asyncio.timeout(DEADLINE):
        timeout = 4.0 if how == "timeout" else None
        task_id = await lilota.schedule(work.burn_and_end, how, timeout=timeout)
        if how == "cancel":
            await row_when(lilota, task_id, lambda task: task.progress_percentage == 50)
            assert await lilota.cancel(task_id)
        task = await lilota.wait(task_id)
    assert task.status == ("cancelled" if how == "cancel" else "failed")
    if not died or task.cpu_seconds is not None:
        assert task.cpu_seconds is not None
        assert 0.1 < task.cpu_seconds < 1.5
    if not died:
        assert task.peak_memory_bytes is not None
        assert task.peak_memory_bytes > 64 * MEBIBYTE


async def test_threads_know_their_processor_time(make_lilota: MakeLilota) -> None:
    """The memory is the application's, of which a task has no part of its own."""
    lilota = make_lilota()
    lilota.register(executor="thread")(work.burn)
    async with lilota, asyncio.timeout(DEADLINE):
        task = await lilota.wait(await lilota.schedule(work.burn, 0.2))
    assert task.cpu_seconds is not None
    assert 0.05 < task.cpu_seconds < 1.5
    assert task.peak_memory_bytes is None


async def test_processes_are_recycled_after_some_tasks(make_lilota: MakeLilota) -> None:
    """No task is lost, none pays an attempt, and no process runs more than it may."""
    lilota = make_lilota(work.pid, number_of_processes=2, recycle_after=5)
    async with asyncio.timeout(60), leaving_nothing(lilota):
        ids = await lilota.schedule_many(work.pid, [None] * 30)
        pids = [await lilota.result(task_id) for task_id in ids]
        rows = [await row(lilota, task_id) for task_id in ids]
    assert len(set(pids)) > 2
    assert {task.attempts for task in rows} == {1}
    assert [task.pid for task in rows] == pids


async def test_processes_that_have_grown_are_recycled(
    make_lilota: MakeLilota, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a task has left behind ends with its process, between tasks."""
    monkeypatch.setattr(processes, "GROWTH_CHECK_SECONDS", 0.0)
    lilota = make_lilota(work.keep, recycle_growth="100MiB")
    async with lilota, asyncio.timeout(DEADLINE):
        pids = [
            await lilota.result(await lilota.schedule(work.keep, megabytes))
            for megabytes in (1, 1, 150, 1, 1)
        ]
    assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4]


async def test_a_crash_beside_a_recycling(make_lilota: MakeLilota) -> None:
    """Recycling and crashes together lose no task."""
    lilota = make_lilota(echo, tasks.kill_itself, number_of_processes=2, recycle_after=3)
    async with asyncio.timeout(60), leaving_nothing(lilota):
        ids = []
        for number in range(6):
            ids += await lilota.schedule_many(echo, range(number))
            await lilota.schedule(tasks.kill_itself)
        for task_id in ids:
            task = await lilota.wait(task_id)
            assert (task.status, task.attempts) == ("completed", 1)
