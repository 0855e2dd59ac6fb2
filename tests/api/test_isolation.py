"""What happens to one task concerns no other: 100 ends beside three long tasks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lilota_async import Task, TaskStatus
from tests.api import tasks
from tests.api.support import MakeLilota, marked

pytestmark = pytest.mark.anyio

ENDS = 100


async def test_long_tasks_run_through_a_hundred_crashes_timeouts_and_cancels(
    make_lilota: MakeLilota, tmp_path: Path
) -> None:
    """Three tasks in neighbouring cells see 100 violent ends and are not restarted once."""
    lilota = make_lilota(tasks.hold, tasks.kill_itself, tasks.spin, number_of_processes=4)
    directories = [_new_directory(tmp_path / f"long-{number}") for number in range(3)]
    async with asyncio.timeout(90), lilota:
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


def kind_of(task: Task) -> str:
    assert task.exception is not None
    return str(task.exception["kind"])


def _new_directory(directory: Path) -> Path:
    directory.mkdir()
    return directory
